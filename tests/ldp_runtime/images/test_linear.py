import numpy as np

from ldp_runtime.images.linear import encode_srgb


def test_the_curve_of_srgb() -> None:
    # Values of IEC 61966-2-1: 0.5 linear is 188 of 255, 0.2140 is 0.5 encoded, the straight part has slope 12.92.
    light = np.array([0.0, 0.001, 0.0031308, 0.21404, 0.5, 1.0])
    np.testing.assert_allclose(encode_srgb(light) / 65535, [0, 0.01292, 0.04045, 0.5, 0.73536, 1], atol=2e-5)


def test_black_and_white_are_clipped() -> None:
    assert encode_srgb(np.array([-5.0, 0.0, 64.0, 1023.0, 2000.0]), 64, 1023).tolist() == [0, 0, 0, 65535, 65535]


def test_large_arrays_are_encoded_in_blocks() -> None:
    light = np.linspace(0, 1, 5_000_000, dtype=np.float32).reshape(1000, -1)
    encoded = encode_srgb(light)
    assert encoded.dtype == np.uint16
    assert (np.diff(encoded.reshape(-1).astype(int)) >= 0).all()
    np.testing.assert_array_equal(encoded[:, ::100], encode_srgb(light[:, ::100]))
