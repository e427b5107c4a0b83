"""What /metrics tells of HTTP requests and of refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from octavo.errors import QueueFullError

if TYPE_CHECKING:
    from tests.server.conftest import RunningServer

HTTP = "http_requests_total"


def samples(server: RunningServer) -> dict[tuple[str, ...], float]:
    text = server.client.get("/metrics").text
    return {
        (s.name, *(v for k, v in sorted(s.labels.items()) if k not in ("engine", "model_name"))): (
            s.value
        )
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_answers_are_counted_by_route(server: RunningServer) -> None:
    server.completion(max_tokens=5)
    server.completion(max_tokens=-5)
    server.completion(max_tokens=5, stream=True)
    server.client.get("/v1/models/fake")
    server.client.get("/v1/models/another")
    server.client.get("/made/up")
    server.client.delete("/v1/completions")
    server.client.get("/health")
    server.client.get("/metrics")
    found = samples(server)
    counted = {key[1:]: value for key, value in found.items() if key[0] == HTTP}
    assert counted == {
        ("/v1/completions", "POST", "2xx"): 2,
        ("/v1/completions", "POST", "4xx"): 1,
        ("/v1/models/{name:path}", "GET", "2xx"): 1,
        ("/v1/models/{name:path}", "GET", "4xx"): 1,
        ("none", "other", "4xx"): 2,
    }
    assert found["http_request_duration_seconds_count", "/v1/completions", "POST"] == 3
    assert found["http_request_duration_highr_seconds_count",] == 7
    assert found["http_request_size_bytes_sum", "/v1/completions"] > 60
    assert found["http_response_size_bytes_sum", "/v1/completions"] > 100


def test_refusals_are_counted_and_are_no_ends(server: RunningServer) -> None:
    server.engine.fail_at = 0
    server.engine.failure = QueueFullError("too many wait", code="queue_full")
    for answer in (server.completion(), server.chat(), server.completion(n=2)):
        assert answer.status_code == 503
    found = samples(server)
    assert found["vllm:admission_rejections_total", "max_num_queued_reqs"] >= 3
    assert sum(v for k, v in found.items() if k[0] == "vllm:request_success_total") == 0


def test_n_is_one_parameter_of_its_sequences(server: RunningServer) -> None:
    server.completion(max_tokens=5, n=3)
    server.completion(max_tokens=5, prompt=["a", "b"])
    found = samples(server)
    assert found["vllm:request_params_n_sum",] == 3 + 1 + 1
    assert found["vllm:request_params_n_count",] == 3
    assert found["vllm:request_params_max_tokens_sum",] == 5 * 5
    assert found["vllm:request_max_num_generation_tokens_count",] == 3
    assert found["vllm:request_generation_tokens_count",] == 5
