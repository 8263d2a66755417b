from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from tests.ldp_runtime.service.fakes import FakeDeblurrer, check_problem, encoded, pair, served


def test_an_upload_that_is_too_large_by_its_header_is_not_read(deblurrer: FakeDeblurrer) -> None:
    def body() -> Iterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    with served(deblurrer, max_upload=1000) as (client, _):
        headers = {"Content-Type": "multipart/form-data; boundary=x", "Content-Length": "1001"}
        check_problem(client.post("/v1/deblur", content=body(), headers=headers), 413, "1000 bytes", "--max-upload")


def test_an_upload_that_turns_out_too_large_is_refused(deblurrer: FakeDeblurrer) -> None:
    with served(deblurrer, max_upload=1000) as (client, service):
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        chunks = iter([b'--x\r\nContent-Disposition: form-data; name="left"; filename="l"\r\n\r\n', *[b"a" * 400] * 3])
        check_problem(client.post("/v1/deblur", content=chunks, headers=headers), 413, "1000 bytes")
        assert service.uploads.reading == 0


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"--x\r\n"),
        ("multipart/form-data; boundary=x", b"--y\r\n\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n"),
        ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="left"; filename="l"\r\n'),
        ("multipart/form-data; boundary=" + "x" * 300, b"--x\r\n"),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"A" * 9000 + b": b\r\n\r\n--x--\r\n"),
    ],
)
def test_a_malformed_form_is_the_clients_error(client: TestClient, content_type: str, body: bytes) -> None:
    answer = client.post("/v1/deblur", content=body, headers={"Content-Type": content_type})
    assert answer.status_code in (400, 422), answer.text
    check_problem(answer, answer.status_code)


def test_a_form_with_too_much_in_it_is_refused(client: TestClient) -> None:
    third = [("left", ("l", encoded())), ("right", ("r", encoded())), ("more", ("m", b"x"))]
    check_problem(client.post("/v1/deblur", files=third), 400, "Too many files")
    fields = {f"field{i}": "x" for i in range(9)}
    check_problem(client.post("/v1/deblur", files=pair(), data=fields), 400, "Too many fields")
