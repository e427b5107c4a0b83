"""The metrics over OTLP, against what the SDK makes of the same numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from opentelemetry.exporter.otlp.proto.common.metrics_encoder import encode_metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics

from octavo.observability import tracing_names as names
from octavo.observability.tracing_metrics import TelemetryMetrics

if TYPE_CHECKING:
    import pytest

RESOURCE = Resource({"service.name": "octavo"})
SCOPE = InstrumentationScope("octavo", "1")


def request(duration_s: float, num_input: int, num_output: int, **more: Any) -> dict[str, Any]:
    counts = {"num_input_tokens": num_input, "num_output_tokens": num_output}
    return {"duration_s": duration_s, **counts, **more}


REQUESTS: list[dict[str, Any]] = [
    request(0.5, 7, 5, time_to_first_token_s=0.1),
    request(0.01, 1, 1, time_to_first_token_s=0.01),
    request(99.0, 70_000_000, 0),
    request(0.3, 4, 4, time_to_first_token_s=0.2, error_type="aborted"),
]


def new_metrics() -> TelemetryMetrics:
    return TelemetryMetrics("m", RESOURCE, SCOPE)


def of_sdk() -> dict[str, Any]:
    """The same requests in the instruments that the conventions' package makes."""
    reader = InMemoryMetricReader()
    views = [
        View(instrument_name=name, aggregation=ExplicitBucketHistogramAggregation(bounds))
        for name, bounds in names.BOUNDS.items()
    ]
    provider = MeterProvider([reader], RESOURCE, views=views, shutdown_on_exit=False)
    meter = provider.get_meter("octavo", "1")
    duration = gen_ai_metrics.create_gen_ai_server_request_duration(meter)
    first = gen_ai_metrics.create_gen_ai_server_time_to_first_token(meter)
    each = gen_ai_metrics.create_gen_ai_server_time_per_output_token(meter)
    tokens = gen_ai_metrics.create_gen_ai_client_token_usage(meter)
    common = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "octavo",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m",
    }
    duration.record(0.5, common)
    duration.record(0.01, common)
    duration.record(99.0, common)
    duration.record(0.3, {**common, "error.type": "aborted"})
    first.record(0.1, common)
    first.record(0.01, common)
    each.record((0.5 - 0.1) / 4, common)
    for value in (7, 1, 70_000_000, 4):
        tokens.record(value, {**common, "gen_ai.token.type": "input"})
    for value in (5, 1, 4):
        tokens.record(value, {**common, "gen_ai.token.type": "output"})
    return summary(reader.get_metrics_data())


def summary(data: Any) -> dict[str, Any]:
    """Each metric as it goes over the wire, without times and extremes."""
    [resource] = encode_metrics(data).resource_metrics
    [scope] = resource.scope_metrics
    found = {}
    for metric in scope.metrics:
        points = []
        for point in metric.histogram.data_points:
            attributes = {a.key: a.value.string_value for a in point.attributes}
            counts, bounds = list(point.bucket_counts), list(point.explicit_bounds)
            points.append((sorted(attributes.items()), point.count, point.sum, counts, bounds))
        found[metric.name] = (
            metric.unit,
            metric.description,
            metric.histogram.aggregation_temporality,
            sorted(points),
        )
    return found


def test_it_is_what_the_sdk_makes_of_it() -> None:
    metrics = new_metrics()
    assert metrics.read() == []
    for ended in REQUESTS:
        metrics.observe("chat", **ended)
    [data] = metrics.read()
    ours, theirs = summary(data), of_sdk()
    assert ours == theirs
    assert set(ours) == set(names.BOUNDS)
    assert summary(metrics.read()[0]) == theirs  # cumulative: reading takes nothing away


def test_deltas_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
    metrics = new_metrics()
    counts = []
    for num in (2, 0, 3):
        for _ in range(num):
            metrics.observe("chat", **request(1.0, 0, 0))
        for data in metrics.read():
            [(_, _, temporality, [(_, count, total, _, _)])] = summary(data).values()
            counts.append((temporality, count, total))
    assert counts == [(1, 2, 2.0), (1, 0, 0.0), (1, 3, 3.0)]


def test_readings_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "delta")
    metrics = new_metrics()
    metrics.observe("chat", **request(1.0, 0, 0))
    spans = []
    for _ in range(2):
        [resource] = metrics.read()[0].resource_metrics
        point = resource.scope_metrics[0].metrics[0].data.data_points[0]
        spans.append((point.start_time_unix_nano, point.time_unix_nano))
    assert spans[0][1] == spans[1][0] <= spans[1][1]
