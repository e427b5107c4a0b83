"""What tests of telemetry share: exporters that keep what comes, and the application with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx
from opentelemetry.sdk.metrics.export import MetricExporter, MetricExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from octavo.config import ServerConfig
from octavo.observability.tracing_export import Telemetry
from octavo.server.app import create_app
from tests.server.fake_engine import FakeEngine, FakeTokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from opentelemetry.sdk.metrics.export import MetricsData
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.sampling import Sampler

    from octavo.server.app import Application
    from octavo.types import Delta, SamplingParams

QUEUE_NS, PREFILL_NS = 2_000, 3_000


class TimedEngine(FakeEngine):
    """Tells how long a request waited and was read."""

    async def _deltas(self, prompt: list[int], params: SamplingParams) -> AsyncIterator[Delta]:
        async for delta in super()._deltas(prompt, params):
            delta.queue_ns, delta.prefill_ns, delta.num_preemptions = QUEUE_NS, PREFILL_NS, 1
            yield delta


class KeptMetrics(MetricExporter):
    """An exporter that keeps the newest reading."""

    def __init__(self) -> None:
        super().__init__()
        self.newest: MetricsData | None = None

    def export(self, metrics_data: MetricsData, timeout_millis: float = 0, **_: Any) -> Any:
        self.newest = metrics_data
        return MetricExportResult.SUCCESS

    def force_flush(self, timeout_millis: float = 0) -> bool:
        return True

    def shutdown(self, timeout_millis: float = 0, **_: Any) -> None:
        pass


class Traced:
    """The application over a fake engine, with telemetry that stays here."""

    def __init__(self, sampler: Sampler | None = None, **config: Any) -> None:
        self.engine = TimedEngine()
        self._spans = InMemorySpanExporter()
        self._metrics = KeptMetrics()
        self.telemetry = Telemetry("fake", self._spans, self._metrics, sampler)
        settings = ServerConfig(served_model_names=("fake",), **config)
        self.app: Application = create_app(
            self.engine,  # type: ignore[arg-type]
            FakeTokenizer(),
            settings,
            telemetry=self.telemetry,
        )
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(self.app, raise_app_exceptions=False),
            base_url="http://octavo.test:8000",
            headers={"user-agent": "a test"},
        )

    async def chat(self, *, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": "hello"}]
        body = {"model": "fake", "messages": messages, "max_tokens": 8, **fields}
        return await self.client.post("/v1/chat/completions", json=body, headers=headers)

    async def post(self, path: str, **fields: Any) -> httpx.Response:
        return await self.client.post(path, json={"model": "fake", **fields})

    def end(self) -> Spans:
        """Flush; what was sent."""
        self.telemetry.shutdown(5.0)
        return Spans(list(self._spans.get_finished_spans()))

    def metrics(self) -> dict[str, list[tuple[dict[str, Any], int, float]]]:
        """Of each metric its series: attributes, count, sum. Call it after `end`."""
        found: dict[str, list[tuple[dict[str, Any], int, float]]] = {}
        if self._metrics.newest is not None:
            for metric in self._metrics.newest.resource_metrics[0].scope_metrics[0].metrics:
                found[metric.name] = [
                    (dict(p.attributes or {}), p.count, p.sum)  # type: ignore[union-attr]
                    for p in metric.data.data_points
                ]
        return found


class Spans:
    """Finished spans."""

    def __init__(self, spans: list[ReadableSpan]) -> None:
        self.all = spans

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.all if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        [span] = self.named(name)
        return span

    def below(self, parent: ReadableSpan) -> list[ReadableSpan]:
        """Its children, the first one first."""
        found = [s for s in self.all if s.parent and s.parent.span_id == parent.context.span_id]
        return sorted(found, key=lambda span: span.start_time or 0)
