import numpy as np
import pytest
from fastapi.testclient import TestClient

from ldp_runtime.images.decode import Photo
from ldp_runtime.images.photo import decode_photo, encode_photo
from ldp_runtime.service.app import PAGE
from ldp_runtime.service.gate import CHUNK
from tests.ldp_runtime.service.fakes import URL, FakeDeblurrer, Served, check_problem, pair, served


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:80", "127.8.9.1", "[::1]:8000"])
def test_loopback_names_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/v1/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1:8000", "[::1", "", "localhost@evil"]
)
def test_other_names_are_not(client: TestClient, host: str) -> None:
    for path in ("/", "/v1/health", "/v1/deblur"):
        check_problem(client.get(path, headers={"Host": host}), 421, "localhost")


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "https://127.0.0.1.evil"])
def test_other_pages_may_send_nothing(client: TestClient, origin: str) -> None:
    answer = client.post("/v1/deblur", files=pair(), headers={"Origin": origin})
    check_problem(answer, 403, "another site")
    assert "access-control-allow-origin" not in answer.headers


def test_the_own_page_may_send(client: TestClient) -> None:
    assert client.post("/v1/deblur", files=pair(), headers={"Origin": URL}).status_code == 200


def test_the_token_is_asked_for(deblurrer: FakeDeblurrer) -> None:
    token = "a-token-of-16-letters"
    with served(deblurrer, token=token) as (client, _):
        for headers in (
            {},
            {"Authorization": token},
            {"Authorization": f"Bearer {token}x"},
            {"Authorization": "Bearer"},
        ):
            for path in ("/v1/limits", "/metrics", "/v1/restorations/x", "/nothing"):
                answer = client.get(path, headers=headers)
                check_problem(answer, 401, "Authorization")
                assert answer.headers["www-authenticate"] == "Bearer"
            check_problem(client.post("/v1/deblur", files=pair(), headers=headers), 401)
        for path in (*PAGE, "/v1/health", "/openapi.json"):
            assert client.get(path, headers={"Host": "photos.example"}).status_code == 200
        right = {"Authorization": f"Bearer {token}", "Host": "photos.example"}
        assert client.post("/v1/deblur", files=pair(), headers=right).status_code == 200
        schema = client.get("/openapi.json").json()
        assert "HTTPBearer" in schema["components"]["securitySchemes"]
        assert schema["paths"]["/v1/deblur"]["post"]["security"] == [{"HTTPBearer": []}]


def test_every_answer_has_the_security_headers(client: TestClient) -> None:
    for path in ("/", "/nothing", "/v1/health", "/v1/restorations/none"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_large_answers_go_out_in_chunks(running: Served) -> None:
    client, _ = running
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (500, 400, 3), dtype=np.uint8)
    data = encode_photo("l.png", Photo(noise))
    answer = client.post("/v1/deblur", files={"left": ("l", data), "right": ("r", data)})
    assert len(answer.content) > 2 * CHUNK
    np.testing.assert_array_equal(decode_photo("answer", answer.content).pixels, 255 - noise)
