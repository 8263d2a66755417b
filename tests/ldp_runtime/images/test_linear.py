import numpy as np

from ldp_runtime.images.linear import encode_srgb, linear_to_srgb, srgb_to_linear


def test_the_curve_of_srgb() -> None:
    # Values of IEC 61966-2-1: 0.5 linear is 188 of 255, 0.2140 is 0.5 encoded, the straight part has slope 12.92.
    light = np.array([0.0, 0.001, 0.0031308, 0.21404, 0.5, 1.0])
    np.testing.assert_allclose(encode_srgb(light) / 65535, [0, 0.01292, 0.04045, 0.5, 0.73536, 1], atol=2e-5)


def test_the_curve_and_its_inverse() -> None:
    encoded = np.array([0.0, 0.04045, 0.5, 128 / 255, 1.0], dtype=np.float32)
    light = [0, 0.0031308, 0.2140411, 0.2158605, 1]
    np.testing.assert_allclose(srgb_to_linear(encoded), light, atol=1e-6)
    np.testing.assert_allclose(linear_to_srgb(np.array(light, np.float32)), encoded, atol=1e-6)
    for dtype in (np.float32, np.float64):
        values = np.linspace(0, 1, 65536, dtype=dtype).reshape(16, 16, 256)
        linear = srgb_to_linear(values)
        assert linear.dtype == linear_to_srgb(linear).dtype == dtype
        np.testing.assert_allclose(linear_to_srgb(linear), values, atol=1e-6)


def test_light_beyond_the_range() -> None:
    found = linear_to_srgb(np.array([-0.5, 1.5], np.float32))
    np.testing.assert_allclose(found, [0, 1.055 * 1.5 ** (1 / 2.4) - 0.055], atol=1e-6)


def test_black_and_white_are_clipped() -> None:
    assert encode_srgb(np.array([-5.0, 0.0, 64.0, 1023.0, 2000.0]), 64, 1023).tolist() == [0, 0, 0, 65535, 65535]


def test_large_arrays_are_encoded_in_blocks() -> None:
    light = np.linspace(0, 1, 5_000_000, dtype=np.float32).reshape(1000, -1)
    encoded = encode_srgb(light)
    assert encoded.dtype == np.uint16
    assert (np.diff(encoded.reshape(-1).astype(int)) >= 0).all()
    np.testing.assert_array_equal(encoded[:, ::100], encode_srgb(light[:, ::100]))
