from fastapi.testclient import TestClient

from tests.ldp_runtime.service.fakes import encoded, pair, sample, until


def test_metrics_count_by_outcome(client: TestClient) -> None:
    client.post("/v1/deblur", files=pair())
    client.post("/v1/deblur", files={"left": ("l", b"no image"), "right": ("r", encoded())})
    client.get("/nothing/of/that/name")
    outcomes = 'ldp_restorations_total{outcome="%s"}'  # counted by the worker, perhaps after the answer
    until(lambda: all(sample(client.get("/metrics").text, outcomes % name) == 1 for name in ("restored", "refused")))
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    text = answer.text
    route = 'ldp_http_requests_total{method="POST",route="/v1/deblur",status="%s"}'
    assert sample(text, route % 200) == 1
    assert sample(text, route % 422) == 1
    assert sample(text, 'ldp_http_requests_total{method="GET",route="other",status="404"}') == 1
    assert sample(text, 'ldp_stage_seconds_sum{stage="deblur"}') == 0.25
    assert sample(text, "ldp_uploads_reading") == 0
    assert sample(text, "process_resident_memory_bytes") > 0
