"""Real servers that send to real collectors, over both protocols, and to none at all."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from opentelemetry.semconv.attributes import service_attributes

from octavo.config import ServerConfig
from octavo.errors import ConfigError
from octavo.observability import tracing
from octavo.observability.tracing_export import Telemetry, _endpoint
from tests.observability.otlp_collectors import (
    attributes_of,
    grpc_collector,
    http_collector,
)
from tests.serving.server_process import completion, serving, write_model

if TYPE_CHECKING:
    from pathlib import Path

    from tests.serving.server_process import Server

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SERVER_SPAN = "POST /v1/completions"
CALL = "text_completion fake"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have a collector of his own."""
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)


def url_of(server: Server) -> str:
    return server.wait_for("ready at ").split()[0].removesuffix("/v1")


def end(server: Server) -> int:
    server.popen.send_signal(signal.SIGTERM)
    return server.end()


def num_aborted(client: httpx.Client) -> float:
    lines = client.get("/metrics").text.splitlines()
    [line] = [x for x in lines if "request_success_total" in x and '"abort"' in x]
    return float(line.split()[-1])


def test_grpc_gets_all_that_happened_before_the_end(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=me")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")  # nothing goes before the end
    with grpc_collector() as received:
        options = {"otlp_endpoint": received.url}
        with serving(model, tmp_path, options=options, step_s=0.002) as server:
            url = url_of(server)
            with httpx.Client(base_url=url, headers={"traceparent": CALLER}) as client:
                answer = client.post("/v1/completions", json=completion(5, n=2))
                assert answer.headers["traceresponse"].startswith(CALLER[:35])
                body = completion(3000, stream=True, ignore_eos=True)
                with client.stream("POST", "/v1/completions", json=body) as stream:
                    next(stream.iter_lines())
                received.wait(lambda: num_aborted(client) == 1)  # the client has left
            assert received.spans == []
            assert end(server) == 0
    first, second = received.named(SERVER_SPAN)
    assert {s.trace_id.hex() for _, s in received.spans} == {CALLER[3:35]}
    assert first.parent_span_id.hex() == second.parent_span_id.hex() == CALLER[36:52]
    calls = [s for s in received.named(CALL) if s.parent_span_id == first.span_id]
    assert len(calls) == 2
    assert attributes_of(calls[0])["gen_ai.usage.output_tokens"] == 5
    [left] = [s for s in received.named(CALL) if s.parent_span_id == second.span_id]
    assert attributes_of(left)["error.type"] == "aborted"
    assert attributes_of(left)["gen_ai.usage.output_tokens"] >= 1
    assert attributes_of(second)["error.type"] == "client_disconnected"
    who = received.spans[0][0]
    assert who[service_attributes.SERVICE_NAME] == "octavo"
    assert who["deployment.environment.name"] == "test"
    assert who["service.instance.id"]
    assert received.headers["x-tenant"] == "me"
    told = {name: num for name, _, num in received.metrics}
    assert told["gen_ai.server.request.duration"] == 3


def test_http_gets_what_several_api_servers_send(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "50")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    with http_collector() as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", received.url)
        options = {"api_server_count": 2}
        with serving(model, tmp_path, options=options) as server:
            url = url_of(server)

            def instances() -> set[str]:
                return {who["service.instance.id"] for who, _ in received.spans}

            def ask_again() -> bool:
                httpx.post(f"{url}/v1/completions", json=completion(2))
                return len(instances()) == 2 and bool(received.metrics)

            received.wait(ask_again)
            assert end(server) == 0
    assert {who["service.name"] for who, _ in received.spans} == {"mine"}
    assert len(received.named(SERVER_SPAN)) == len(received.named(CALL))
    for call in received.named(CALL):
        assert attributes_of(call)["gen_ai.response.finish_reasons"] == ["length"]


def test_nobody_waits_for_a_collector_that_is_not_there(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "16")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with serving(model, tmp_path, options={"otlp_endpoint": endpoint}) as server:
            url = url_of(server)
            with httpx.Client(base_url=url) as client:
                for _ in range(20):
                    assert client.post("/v1/completions", json=completion(2)).status_code == 200
            begin = time.monotonic()
            assert end(server) == 0
            assert time.monotonic() - begin < 8.0
            told = [line for line in server.log.splitlines() if "lost so far" in line]
            assert 1 <= len(told) <= 6
            assert any("spans lost so far" in line for line in told)
            assert "Transient error" not in server.log.replace(told[0], "").replace(told[-1], "")


def test_the_end_over_http_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        config = ServerConfig(
            otlp_endpoint=f"http://127.0.0.1:{taken.getsockname()[1]}",
            otlp_protocol="http/protobuf",
            served_model_names=("m",),
        )
        telemetry = Telemetry.from_config(config)
        telemetry.tracer.begin("x", "chat", {}).end()
        begin = time.monotonic()
        telemetry.shutdown(0.3)
        assert time.monotonic() - begin < 3.0
        while not telemetry.num_lost_spans:  # the exporter was told to give up
            assert time.monotonic() - begin < 30.0
            time.sleep(0.01)
    assert telemetry.num_lost_spans == 1


def test_off_means_that_nothing_is_imported(model: str, tmp_path: Path) -> None:
    with serving(model, tmp_path) as server:
        url = url_of(server)
        headers = {"traceparent": CALLER}
        answer = httpx.post(f"{url}/v1/completions", json=completion(2), headers=headers)
        assert answer.status_code == 200
        assert "traceresponse" not in answer.headers
        assert end(server) == 0  # which looks at the imported modules


def test_missing_packages(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "opentelemetry":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)  # as if it were not installed
    config = ServerConfig(otlp_endpoint="http://localhost:4317")
    with pytest.raises(ConfigError, match=r'needs .* pip install "octavo\[otel\]"'):
        tracing.check_installed(config)
    tracing.check_installed(ServerConfig())
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4317")
    assert tracing.start_telemetry(ServerConfig()) is None
    assert "octavo[otel]" in caplog.text


def test_when_telemetry_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not tracing.is_wanted(ServerConfig())
    assert tracing.start_telemetry(ServerConfig()) is None
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://localhost:4317")
    assert tracing.is_wanted(ServerConfig())
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert not tracing.is_wanted(ServerConfig())
    assert tracing.is_wanted(ServerConfig(otlp_endpoint="http://localhost:4317"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://host:4318", "http://host:4318/v1/metrics"),
        ("http://host:4318/", "http://host:4318/v1/metrics"),
        ("http://host:4318/v1/traces", "http://host:4318/v1/metrics"),
        ("https://host/otlp", "https://host/otlp/v1/metrics"),
    ],
)
def test_a_signal_s_path_comes_behind_the_url(given: str, expected: str) -> None:
    assert _endpoint(ServerConfig(otlp_endpoint=given), "/v1/metrics") == expected


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"otlp_endpoint": "localhost:4317"}, "must be a URL"),
        ({"otlp_endpoint": "http://"}, "must be a URL"),
        ({"otlp_endpoint": "http://host:port"}, "must be a URL"),
        ({"otlp_endpoint": "http://me:hunter2@host:4317"}, "OTEL_EXPORTER_OTLP_HEADERS"),
        ({"otlp_traces_sample_ratio": 1.5}, "in 0..1"),
        ({"otlp_traces_sample_ratio": float("nan")}, "in 0..1"),
    ],
)
def test_settings_that_are_none(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        ServerConfig(**settings)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon"), ("OTEL_EXPORTER_OTLP_COMPRESSION", "lzw")],
)
def test_variables_that_the_sdk_refuses(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    config = ServerConfig(otlp_endpoint="http://localhost:4317", served_model_names=("m",))
    with pytest.raises(ConfigError, match=value):
        Telemetry.from_config(config)


def test_signals_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    config = ServerConfig(
        otlp_endpoint="http://localhost:4317",
        served_model_names=("m",),
        price_per_device_hour=Decimal(2),
        currency="EUR",
    )
    telemetry = Telemetry.from_config(config)
    assert telemetry.tracer.hourly_rate_nano == 2_000_000_000
    assert telemetry.tracer.currency == "EUR"
    trace = telemetry.tracer.begin("x", "chat", {})
    assert not trace.is_sampled
    assert telemetry.tracer.metrics is None
    telemetry.shutdown(0.1)
