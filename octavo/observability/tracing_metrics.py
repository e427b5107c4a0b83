"""The metrics that OpenTelemetry's conventions name for model servers, over OTLP.

Counted in our own histograms, at a microsecond a request: the SDK's take thirty for each number.
What the SDK would make of them, its exporters get from `read`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    HistogramDataPoint,
    Metric,
    MetricsData,
    ResourceMetrics,
    ScopeMetrics,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData

from octavo.config import default_otel
from octavo.observability import tracing_names as names
from octavo.observability.board import private_cells
from octavo.observability.histogram import Histogram

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    from octavo.observability.board import Cells

_ABOUT = {
    names.REQUEST_DURATION: (
        "s",
        "Generative AI server request duration such as time-to-last byte or last output token.",
    ),
    names.SERVER_TIME_TO_FIRST_TOKEN: (
        "s",
        "Time to generate first token for successful responses.",
    ),
    names.TIME_PER_OUTPUT_TOKEN: (
        "s",
        "Time per output token generated after the first token for successful responses.",
    ),
    names.TOKEN_USAGE: ("{token}", "Number of input and output tokens used."),
}


class _Series:
    """One histogram of one metric, under one set of attributes."""

    def __init__(self, metric: str, attributes: dict[str, str | int]) -> None:
        bounds = names.BOUNDS[metric]
        self.cells: Cells = private_cells(Histogram.num_cells(bounds))
        self.histogram = Histogram(bounds, [self.cells])
        self.metric = metric
        self.attributes = attributes
        self._told = list(self.cells)

    def read(self, start_ns: int, now_ns: int, *, is_delta: bool) -> HistogramDataPoint:
        """Its state, or what came since the last reading."""
        cells = list(self.cells)
        changes = [now - before for now, before in zip(cells, self._told, strict=True)]
        if is_delta:
            self._told = cells
            cells = changes
        counts = [int(count) for count in cells[:-1]]
        return HistogramDataPoint(
            attributes=self.attributes,
            start_time_unix_nano=start_ns,
            time_unix_nano=now_ns,
            count=sum(counts),
            sum=cells[-1],
            bucket_counts=counts,
            explicit_bounds=names.BOUNDS[self.metric],
            min=None,  # type: ignore[arg-type]  # the protocol can do without
            max=None,  # type: ignore[arg-type]
        )


class TelemetryMetrics:
    """See the module. Fed by the event loop; `read` may run in another thread.

    Args:
        model: the served model's name.
        resource, scope: who tells.
    """

    def __init__(self, model: str, resource: Resource, scope: InstrumentationScope) -> None:
        self._model = model
        self._resource = resource
        self._scope = scope
        self._series: dict[tuple[str, str, str], _Series] = {}
        self._start_ns = time.time_ns()
        preference = default_otel("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE")
        self._is_delta = preference.lower() in ("delta", "lowmemory")

    def observe(
        self,
        operation: str,
        *,
        duration_s: float,
        num_input_tokens: int,
        num_output_tokens: int,
        error_type: str = "",
        time_to_first_token_s: float | None = None,
    ) -> None:
        """Count a request that ended."""
        self._of(names.REQUEST_DURATION, operation, names.ERROR_TYPE, error_type).observe(
            duration_s
        )
        if num_input_tokens:
            self._of(names.TOKEN_USAGE, operation, names.TOKEN_TYPE, "input").observe(
                num_input_tokens
            )
        if num_output_tokens:
            self._of(names.TOKEN_USAGE, operation, names.TOKEN_TYPE, "output").observe(
                num_output_tokens
            )
        if time_to_first_token_s is None or error_type:
            return
        self._of(names.SERVER_TIME_TO_FIRST_TOKEN, operation).observe(time_to_first_token_s)
        if num_output_tokens > 1:
            seconds = (duration_s - time_to_first_token_s) / (num_output_tokens - 1)
            self._of(names.TIME_PER_OUTPUT_TOKEN, operation).observe(max(0.0, seconds))

    def _of(self, metric: str, operation: str, key: str = "", value: str = "") -> Histogram:
        series = self._series.get((metric, operation, value))
        if series is None:
            attributes: dict[str, str | int] = {
                names.OPERATION: operation,
                names.PROVIDER: "octavo",
                names.REQUEST_MODEL: self._model,
                names.RESPONSE_MODEL: self._model,
            }
            if value:
                attributes[key] = value
            series = self._series[metric, operation, value] = _Series(metric, attributes)
        return series.histogram

    def read(self) -> list[MetricsData]:
        """All of it as exporters take it; empty: nothing was counted yet."""
        now_ns = time.time_ns()
        points: dict[str, list[HistogramDataPoint]] = {}
        for series in list(self._series.values()):
            point = series.read(self._start_ns, now_ns, is_delta=self._is_delta)
            points.setdefault(series.metric, []).append(point)
        if not points:
            return []
        temporality = AggregationTemporality.CUMULATIVE
        if self._is_delta:
            temporality, self._start_ns = AggregationTemporality.DELTA, now_ns
        metrics = [
            Metric(
                name=name,
                description=_ABOUT[name][1],
                unit=_ABOUT[name][0],
                data=HistogramData(data_points=found, aggregation_temporality=temporality),
            )
            for name, found in points.items()
        ]
        scoped = ScopeMetrics(scope=self._scope, metrics=metrics, schema_url="")
        told = ResourceMetrics(resource=self._resource, scope_metrics=[scoped], schema_url="")
        return [MetricsData(resource_metrics=[told])]
