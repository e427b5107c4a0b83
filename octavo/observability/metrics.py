"""Prometheus metrics under vLLM's names, so that dashboards and autoscalers carry over.

Gauges and token counters are read from the engine's newest snapshot when somebody scrapes;
latencies and ends of requests are what the API process sees, fed by one `RequestTimer` a request.
Several API servers on one engine count on a common board, and each tells of all of them.
Knows no HTTP and no engine. Not safe for threads: belongs to the API server's event loop.

Source of names, types and buckets: https://docs.vllm.ai/en/latest/usage/metrics.html
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, get_args

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from octavo.observability.board import Board
from octavo.observability.histogram import Histogram
from octavo.types import Delta, EngineStats, FinishReason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# fmt: off
TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)
ITL_BUCKETS = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
)
E2E_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)
# fmt: on

_REASONS: dict[FinishReason, int] = {
    reason: index for index, reason in enumerate(get_args(FinishReason))
}


class RequestTimer:
    """Measures one request from its start to its one end, in seconds of the monotonic clock.

    Time to first token: from the start to the first delta with tokens. Inter-token latency: a
    later delta of k tokens counts k times with a k-th of the time since the one before, so that
    the sum is the time and the count is the number of tokens.
    """

    __slots__ = ("_last", "_metrics", "_start", "finished_reason")

    def __init__(self, metrics: Metrics, arrived: float) -> None:
        self._metrics = metrics
        self._start = arrived
        self._last: float | None = None
        self.finished_reason: FinishReason | None = None

    def on_delta(self, delta: Delta) -> None:
        """Count a delta; the one that ends the request finishes the timer."""
        num_tokens = len(delta.token_ids)
        if num_tokens:
            now = perf_counter()
            if self._last is None:
                self._metrics.time_to_first_token.observe(now - self._start)
            else:
                self._metrics.inter_token_latency.observe(
                    (now - self._last) / num_tokens, num_tokens
                )
            self._last = now
        if delta.finish_reason is not None:
            self.finish(delta.finish_reason)

    def finish(self, reason: FinishReason) -> None:
        """Count the request's end. The first call counts, later ones do nothing."""
        if self.finished_reason is not None:
            return
        self.finished_reason = reason
        self._metrics.count_end(reason)
        self._metrics.e2e_request_latency.observe(perf_counter() - self._start)


class Metrics(Collector):
    """All metrics of one server, in a registry of its own.

    Args:
        model_name: value of the label `model_name`.
        stats: gives the engine's newest snapshot; called at every scrape.
        board: where to count, with other servers if it is shared; None: one of our own.
    """

    def __init__(
        self, model_name: str, stats: Callable[[], EngineStats], board: Board | None = None
    ) -> None:
        board = Board.private() if board is None else board
        self._labels = [model_name]
        self._stats = stats
        self._board = board
        self.time_to_first_token = _histogram(TTFT_BUCKETS, board)
        self.inter_token_latency = _histogram(ITL_BUCKETS, board)
        self.e2e_request_latency = _histogram(E2E_BUCKETS, board)
        self._ends = board.take(len(_REASONS))
        self.registry = CollectorRegistry()
        self.registry.register(self)
        PlatformCollector(registry=self.registry)
        if board.num_rows == 1:  # of several processes, each would tell of itself alone
            ProcessCollector(registry=self.registry)
            GCCollector(registry=self.registry)

    @property
    def finished(self) -> dict[FinishReason, int]:
        """Number of ended requests by reason.

        Requests that the engine refused were never admitted and are not in it; clients that went
        away are, as `abort`.
        """
        return {
            reason: int(sum(cells[index] for cells in self._ends))
            for reason, index in _REASONS.items()
        }

    def count_end(self, reason: FinishReason) -> None:
        """Count a request that ended."""
        self._ends[0][_REASONS[reason]] += 1

    def start_request(self, arrived: float | None = None) -> RequestTimer:
        """A timer that starts now, or started at a reading of `time.perf_counter()`."""
        return RequestTimer(self, perf_counter() if arrived is None else arrived)

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics in the format that an `Accept` header asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def collect(self) -> Iterator[Metric]:
        """The families of the engine and of requests, for the registry."""
        stats = self._stats()
        usage_help = "Share of KV cache blocks in use, 0 to 1."
        yield self._gauge(
            "num_requests_running", "Requests that are in a batch.", stats.num_running
        )
        yield self._gauge("num_requests_waiting", "Requests in the queue.", stats.num_waiting)
        yield self._gauge("kv_cache_usage_perc", usage_help, stats.kv_cache_usage)
        yield self._gauge("gpu_cache_usage_perc", f"Old name: {usage_help}", stats.kv_cache_usage)
        yield self._counter(
            "num_preemptions", "Requests put back into the queue.", stats.num_preemptions
        )
        yield self._counter(
            "prefix_cache_queries", "Prompt tokens looked up.", stats.prefix_cache_queries
        )
        yield self._counter(
            "prefix_cache_hits", "Prompt tokens found in the prefix cache.", stats.prefix_cache_hits
        )
        yield self._own_counter(
            "scheduler_seconds", "The host's time for planning and updating.", stats.scheduler_ns
        )
        yield self._own_counter("device_seconds", "Time in steps.", stats.device_ns)
        restarts = CounterMetricFamily(
            "octavo:engine_restarts", "Engines started anew.", labels=["model_name"]
        )
        restarts.add_metric(self._labels, stats.num_restarts)
        yield restarts
        yield self._front_end_restarts()
        is_up = GaugeMetricFamily(
            "octavo:engine_up", "1 while the engine takes requests.", labels=["model_name"]
        )
        is_up.add_metric(self._labels, stats.is_up)
        yield is_up
        yield self._counter("prompt_tokens", "Prompt tokens computed.", stats.num_prompt_tokens)
        yield self._counter("generation_tokens", "Tokens generated.", stats.num_generation_tokens)
        ends = CounterMetricFamily(
            "vllm:request_success",
            "Ended requests by reason.",
            labels=["model_name", "finished_reason"],
        )
        for reason, count in self.finished.items():
            ends.add_metric([*self._labels, reason], count)
        yield ends
        latency_help = "Time between two tokens of a request, seconds."
        for name, text, histogram in (
            (
                "time_to_first_token",
                "From arrival to first token, seconds.",
                self.time_to_first_token,
            ),
            ("inter_token_latency", latency_help, self.inter_token_latency),
            ("time_per_output_token", f"Old name: {latency_help}", self.inter_token_latency),
            ("e2e_request_latency", "From arrival to end, seconds.", self.e2e_request_latency),
        ):
            family = HistogramMetricFamily(f"vllm:{name}_seconds", text, labels=["model_name"])
            family.add_metric(self._labels, histogram.buckets(), histogram.sum)
            yield family

    def _front_end_restarts(self) -> Metric:
        family = CounterMetricFamily(
            "octavo:api_server_restarts", "API servers started anew.", labels=["model_name"]
        )
        family.add_metric(self._labels, self._board.num_restarts)
        return family

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        family = GaugeMetricFamily(f"vllm:{name}", text, labels=["model_name"])
        family.add_metric(self._labels, value)
        return family

    def _own_counter(self, name: str, text: str, nanoseconds: int) -> Metric:
        family = CounterMetricFamily(f"octavo:{name}", text, labels=["model_name"])
        family.add_metric(self._labels, nanoseconds / 1e9)
        return family

    def _counter(self, name: str, text: str, value: float) -> Metric:
        family = CounterMetricFamily(f"vllm:{name}", text, labels=["model_name"])
        family.add_metric(self._labels, value)
        return family


def _histogram(bounds: tuple[float, ...], board: Board) -> Histogram:
    return Histogram(bounds, board.take(Histogram.num_cells(bounds)))
