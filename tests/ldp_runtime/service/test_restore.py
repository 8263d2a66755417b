from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from ldp_runtime.images.decode import Photo
from ldp_runtime.images.photo import decode_photo, encode_photo
from ldp_runtime.images.raw import develop
from tests.ldp_runtime.images.raw_files import small_dng
from tests.ldp_runtime.service.fakes import FakeDeblurrer, H, W, check_problem, encoded, pair, served, view


@pytest.mark.parametrize(("name", "suffix"), [("tiff", ".tif"), ("jpeg", ".jpg")])
def test_the_format_is_chosen(client: TestClient, name: str, suffix: str) -> None:
    answer = client.post("/v1/deblur", files=pair(), data={"format": name})
    assert answer.headers["content-type"] == f"image/{name}"
    assert f'filename="restored{suffix}"' in answer.headers["content-disposition"]
    assert decode_photo("answer", answer.content).pixels.shape == (H, W, 3)


def test_metadata_of_the_left_view_is_kept(client: TestClient) -> None:
    left = encode_photo("l.png", Photo(view(1), icc_profile=b"profile of the left view", dpi=(300.0, 300.0)))
    answer = client.post("/v1/deblur", files={"left": ("l", left), "right": ("r", encoded(shift=-1))})
    restored = decode_photo("answer", answer.content)
    assert restored.icc_profile == b"profile of the left view"
    assert restored.dpi == pytest.approx((300, 300), abs=0.1)


def test_swap_and_axis(client: TestClient, deblurrer: FakeDeblurrer) -> None:
    answer = client.post("/v1/deblur", files=pair(), data={"swap": "true", "axis": "vertical"})
    np.testing.assert_array_equal(decode_photo("answer", answer.content).pixels, 255 - view(-1))
    assert deblurrer.axes == ["vertical"]


def test_the_check_of_a_request(client: TestClient, deblurrer: FakeDeblurrer) -> None:
    for data in ({}, {"check": "warn"}, {"check": "off"}):
        assert client.post("/v1/deblur", files=pair(), data=data).status_code == 200
    assert deblurrer.checks == [None, "warn", "off"]
    form = client.get("/openapi.json").json()["components"]["schemas"]["Body_deblur_v1_deblur_post"]["properties"]
    assert {"enum": ["auto", "warn", "off"], "type": "string"} in form["check"]["anyOf"]


@pytest.mark.parametrize(
    ("files", "data", "words"),
    [
        (
            {"left": ("l.png", b"no image"), "right": ("r.png", encoded())},
            {},
            ["the left view", "PNG, TIFF, JPEG, PGM or PPM"],
        ),
        ({"left": ("l.png", b""), "right": ("r.png", encoded())}, {}, ["the left view", "empty"]),
        ({"left": ("l", encoded()[:-40]), "right": ("r", encoded())}, {}, ["the left view", "damaged"]),
        (
            {"left": ("l", encoded()), "right": ("r", encoded(size=(H, W + 1)))},
            {},
            ["the right view", f"{W + 1} x {H}"],
        ),
        ({"left": ("l", encoded()), "right": ("r", encoded(dtype=np.uint16))}, {}, ["16 bits", "expected 8"]),
        (pair(dtype=np.uint16), {"format": "jpeg"}, ["JPEG holds 8 bits"]),
        ({"left": ("l", encoded())}, {}, ["the photo holds one picture", "expected both views"]),
        ({}, {"left": "text", "right": "text"}, ["left"]),
        (pair(), {"axis": "diagonal"}, ["axis", "'horizontal' or 'vertical'"]),
        (pair(), {"format": "gif"}, ["format", "'png', 'tiff' or 'jpeg'"]),
        (pair(), {"check": "maybe"}, ["check", "'auto', 'warn' or 'off'"]),
        (pair(), {"swap": "perhaps"}, ["swap"]),
    ],
)
def test_what_is_no_pair_is_refused(client: TestClient, files: Any, data: Any, words: list[str]) -> None:
    check_problem(client.post("/v1/deblur", files=files, data=data), 422, *words)


def test_what_the_client_called_its_files_is_not_repeated(client: TestClient) -> None:
    files = {"left": ("../../etc/<b>passwd", b"no image"), "right": ("r.png", encoded())}
    assert "passwd" not in client.post("/v1/deblur", files=files).text


def test_a_view_of_too_many_pixels_is_refused_before_it_is_decoded(
    deblurrer: FakeDeblurrer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("the view was decoded")

    monkeypatch.setattr("ldp_runtime.service.restore.decode_views", decode)
    with served(deblurrer, max_pixels=H * W - 1) as (client, _):
        for suffix in (".png", ".tif", ".jpg"):
            answer = client.post("/v1/deblur", files=pair(suffix))
            check_problem(answer, 422, f"{W} x {H} pixels", "--max-megapixels")


def test_one_file_may_hold_both_views(client: TestClient) -> None:
    pytest.importorskip("rawpy")
    data = small_dng()
    left, right = develop("a", data)
    for swap, view_ in (("false", left), ("true", right)):
        answer = client.post("/v1/deblur", files={"left": ("a.dng", data)}, data={"swap": swap})
        assert answer.status_code == 200, answer.text
        np.testing.assert_array_equal(decode_photo("answer", answer.content).pixels, 65535 - view_.pixels)
        assert "--swap" in answer.headers["ldp-warning"]
    abreast = encode_photo("a.png", Photo(np.concatenate([view(1), view(-1)], axis=1)))
    answer = client.post("/v1/deblur", files={"left": ("a.png", abreast)}, data={"side_by_side": "true"})
    np.testing.assert_array_equal(decode_photo("answer", answer.content).pixels, 255 - view(1))
    small = {"left": ("a.dng", data)}
    with served(FakeDeblurrer(), max_pixels=32 * 40 - 1) as (limited, _):
        check_problem(limited.post("/v1/deblur", files=small), 422, "40 x 32 pixels", "--max-megapixels")


def test_a_pixel_capture_is_known_by_the_names_of_its_files(client: TestClient) -> None:
    samples = np.linspace(4096, 65535, 600).round().astype(np.uint16).reshape(20, 30)
    data = encode_photo("a.pgm", Photo(np.repeat(samples[..., None], 3, 2), grey=True))
    files = {"left": ("1_left.pgm", data), "right": ("1_right.pgm", data)}
    answer = client.post("/v1/deblur", files=files)
    assert decode_photo("answer", answer.content).pixels.shape == (40, 30, 3)
    assert "Pixel capture" in answer.headers["ldp-warning"]
