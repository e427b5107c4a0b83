"""Puts telemetry together out of the SDK's parts: who we are, what is sampled, where it goes.

Importing this imports OpenTelemetry; see `tracing`. What the flags leave open is read by the SDK
from its own environment variables: endpoints, headers, certificates, time limits, the sampler.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from octavo.config import OTLPProtocol, default_grpc_quiet, default_otel
from octavo.errors import ConfigError
from octavo.observability.tracing_metrics import TelemetryMetrics
from octavo.observability.tracing_sender import LastWords, Sender
from octavo.observability.tracing_spans import Tracer
from octavo.version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.metrics.export import MetricsData
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.sampling import Sampler

    from octavo.config import ServerConfig

MAX_QUEUE_LEN = 8192
BATCH_LEN = 128
"""Spans that are encoded in one go. Python lets one thread run at a time: while a batch is encoded,
streams wait, so that a small one is better than the SDK's 512."""

SPANS_INTERVAL_S = 5.0
METRICS_INTERVAL_S = 60.0

SHUTDOWN_S = 3.0
"""How long the last spans may take to leave at the end, seconds."""


class Telemetry:
    """What the server's layers and handlers see: `tracer`; and the threads behind it.

    Args:
        model: the served model's name.
        spans: where spans go; None: nowhere.
        metrics: where metrics go; None: nowhere.
        sampler: None: what `OTEL_TRACES_SAMPLER` says, else every trace whose caller does not
            object.
    """

    def __init__(
        self,
        model: str,
        spans: SpanExporter | None,
        metrics: MetricExporter | None,
        sampler: Sampler | None = None,
    ) -> None:
        provider = TracerProvider(sampler, own_resource(), shutdown_on_exit=False)
        scope = InstrumentationScope("octavo", __version__)
        self._words = LastWords("opentelemetry")
        self._spans: Sender[ReadableSpan] | None = None
        self._points: Sender[MetricsData] | None = None
        counted: TelemetryMetrics | None = None
        if spans is not None:
            self._spans = Sender(
                "spans",
                lambda batch: spans.export(batch) is SpanExportResult.SUCCESS,
                abort=spans.shutdown,
                words=self._words.take,
                max_queue_len=_number("OTEL_BSP_MAX_QUEUE_SIZE", MAX_QUEUE_LEN),
                batch_len=_number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", BATCH_LEN),
                interval_s=_seconds("OTEL_BSP_SCHEDULE_DELAY", SPANS_INTERVAL_S),
            )
        if metrics is not None:
            counted = TelemetryMetrics(model, provider.resource, scope)
            self._points = Sender(
                "readings of metrics",
                lambda batch: metrics.export(batch[0]) is MetricExportResult.SUCCESS,
                abort=metrics.shutdown,
                words=self._words.take,
                interval_s=_seconds("OTEL_METRIC_EXPORT_INTERVAL", METRICS_INTERVAL_S),
                poll=counted.read,
            )
        self.tracer = Tracer(
            model,
            provider.resource,
            scope,
            provider.sampler,
            provider.id_generator,
            None if self._spans is None else self._spans.put,
            counted,
        )

    @classmethod
    def from_config(cls, config: ServerConfig) -> Telemetry:
        """What a server's flags and environment ask for.

        Raises:
            ConfigError: the SDK refuses a setting.
        """
        ratio = config.otlp_traces_sample_ratio
        sampler = None if ratio is None else ParentBasedTraceIdRatio(ratio)
        try:
            spans = None if _is_off("OTEL_TRACES_EXPORTER") else span_exporter(config)
            metrics = None if _is_off("OTEL_METRICS_EXPORTER") else metric_exporter(config)
        except ConfigError:
            raise
        except Exception as exc:  # whatever a certificate or a compression may be wrong in
            raise ConfigError(f"OTLP cannot be set up: {type(exc).__name__}: {exc}") from exc
        telemetry = cls(config.served_model_names[0], spans, metrics, sampler)
        telemetry.tracer.hourly_rate_nano = config.hourly_rate_nano
        telemetry.tracer.currency = config.currency
        return telemetry

    @property
    def num_lost_spans(self) -> int:
        """Spans that were dropped, or that the collector did not take."""
        return 0 if self._spans is None else self._spans.num_dropped + self._spans.num_failed

    def shutdown(self, timeout_s: float = SHUTDOWN_S) -> None:
        """Send what there is, for so long. Blocks; may be called again."""
        deadline = time.monotonic() + timeout_s
        for sender in (self._spans, self._points):
            if sender is not None:
                sender.close(max(0.1, deadline - time.monotonic()))
        self._words.close()


class _OwnResource(Resource):
    """Knows its hash: the exporters ask for it with each span, and it takes a text of JSON."""

    def __init__(self, attributes: dict[str, Any], schema_url: str) -> None:
        super().__init__(attributes, schema_url)
        self._own_hash = super().__hash__()

    def __hash__(self) -> int:
        return self._own_hash


def own_resource() -> Resource:
    """Who we are; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come before ours."""
    given = Resource.create()
    own = {
        "service.version": __version__,
        "service.instance.id": str(uuid4()),
        "host.name": socket.gethostname(),
        "process.pid": os.getpid(),
    }
    attributes: dict[str, Any] = {**own, **given.attributes}
    if str(attributes["service.name"]).startswith("unknown_service"):
        attributes["service.name"] = "octavo"
    return _OwnResource(attributes, given.schema_url)


def span_exporter(config: ServerConfig) -> SpanExporter:
    """What sends spans to the collector."""
    if _protocol(config, "TRACES") == "grpc":
        default_grpc_quiet()
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as by_grpc

        return by_grpc.OTLPSpanExporter(endpoint=_endpoint(config))
    from opentelemetry.exporter.otlp.proto.http import trace_exporter as by_http

    return by_http.OTLPSpanExporter(endpoint=_endpoint(config, "/v1/traces"))


def metric_exporter(config: ServerConfig) -> MetricExporter:
    """What sends metrics to the collector."""
    if _protocol(config, "METRICS") == "grpc":
        default_grpc_quiet()
        from opentelemetry.exporter.otlp.proto.grpc import metric_exporter as by_grpc

        return by_grpc.OTLPMetricExporter(endpoint=_endpoint(config))
    from opentelemetry.exporter.otlp.proto.http import metric_exporter as by_http

    return by_http.OTLPMetricExporter(endpoint=_endpoint(config, "/v1/metrics"))


def _endpoint(config: ServerConfig, path: str = "") -> str | None:
    """The flag's URL for a signal; None: the SDK knows. `/v1/traces` at its end may be there."""
    if config.otlp_endpoint is None:
        return None
    parts = urlsplit(config.otlp_endpoint)
    base = parts.path.rstrip("/").removesuffix("/v1/traces")
    return urlunsplit(parts._replace(path=base + path))


def _protocol(config: ServerConfig, signal: str) -> str:
    if config.otlp_protocol is not None:
        return config.otlp_protocol
    for name in (f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = default_otel(name)
        if protocol and protocol not in get_args(OTLPProtocol):
            raise ConfigError(f"${name} must be grpc or http/protobuf, got {protocol!r}")
        if protocol:
            return protocol
    return "grpc"


def _is_off(name: str) -> bool:
    return default_otel(name).lower() == "none"


def _number(name: str, default: int) -> int:
    try:
        return max(1, int(default_otel(name)))
    except ValueError:
        return default


def _seconds(name: str, default: float) -> float:
    """A variable of milliseconds, as the SDK has them."""
    return _number(name, int(default * 1000)) / 1000
