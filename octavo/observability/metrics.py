"""Prometheus metrics under vLLM's names, so that dashboards and autoscalers carry over.

The state of the engine is read from its newest snapshot when somebody scrapes (`metrics_engine`);
latencies and ends of requests are what the API process sees (`metrics_requests`), and so are HTTP
requests (`metrics_http`); costs come with usage records (`metrics_usage`).
Several API servers on one engine count on a common board, and each tells of all of them.
Knows no HTTP and no engine. Not safe for threads: belongs to the API server's event loop.

Source of names, types and buckets: https://docs.vllm.ai/en/latest/usage/metrics.html; what differs
is in docs/metrics.md.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder

from octavo.errors import EngineUnavailableError
from octavo.observability.board import Board
from octavo.observability.metrics_engine import cache_config, engine_families
from octavo.observability.metrics_http import HTTPMetrics
from octavo.observability.metrics_requests import RequestMetrics, RequestTimer, Siblings
from octavo.observability.metrics_text import OPEN_METRICS_END, Family, Renderer
from octavo.observability.metrics_usage import UsageMetrics

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from octavo.observability.metrics_usage import LedgerCounts, Usage
    from octavo.types import EngineInfo, EngineStats, FinishReason

DEFAULT_MAX_MODEL_LEN = 131_072
"""Bounds histograms of lengths where nothing is known of the engine."""


class Metrics:
    """All metrics of one server.

    Args:
        model_name: value of the label `model_name`.
        stats: gives the engine's newest snapshot; called at every scrape.
        board: where to count, with other servers if it is shared; None: one of our own.
        info: the engine's, for what never changes; None: nothing is told of that.
        check_health: raises `EngineUnavailableError` while the engine does not answer; None: it
            answers when the snapshot says that it is up.
        currency: of costs.

    Attributes:
        requests: latencies and lengths.
        usage: costs.
        http: answered requests; None until `track_http`.
    """

    def __init__(
        self,
        model_name: str,
        stats: Callable[[], EngineStats],
        board: Board | None = None,
        *,
        info: EngineInfo | None = None,
        check_health: Callable[[], None] | None = None,
        currency: str = "USD",
    ) -> None:
        board = Board.private() if board is None else board
        self._stats = stats
        self._board = board
        self._check_health = check_health
        self._fixed = () if info is None else (cache_config(info),)
        self.requests = RequestMetrics(
            board, DEFAULT_MAX_MODEL_LEN if info is None else info.max_model_len
        )
        self.usage = UsageMetrics(board, currency)
        self.http: HTTPMetrics | None = None
        self._renderer = Renderer((("engine", "0"), ("model_name", model_name)))
        self._http_renderer = Renderer(())
        self._process = CollectorRegistry()
        PlatformCollector(registry=self._process)
        if board.num_rows == 1:  # of several processes, each would tell of itself alone
            ProcessCollector(registry=self._process)
            GCCollector(registry=self._process)

    @property
    def finished(self) -> dict[FinishReason, int]:
        """See `RequestMetrics.finished`."""
        return self.requests.finished

    def start_request(
        self,
        arrived: float | None = None,
        *,
        max_tokens: int | None = None,
        siblings: Siblings | None = None,
    ) -> RequestTimer:
        """A timer that starts now, or started at a reading of `time.perf_counter()`.

        Args:
            arrived: None: now.
            max_tokens: see `RequestTimer`.
            siblings: see `RequestTimer`.
        """
        begin = perf_counter() if arrived is None else arrived
        return RequestTimer(self.requests, begin, max_tokens, siblings)

    def observe_usage(self, usage: Usage) -> None:
        """Count what a request cost, once, when it has ended."""
        self.usage.observe(usage)

    def count_tags(self, num_dropped: int, num_capped: int) -> None:
        """Count what callers said of themselves that records do not have so."""
        self.usage.count_tags(num_dropped, num_capped)

    def follow_ledger(self, counts: LedgerCounts) -> None:
        """Tell of a ledger writer's records from now on."""
        self.usage.follow_ledger(counts)

    def track_http(self, routes: Iterable[tuple[str, str]]) -> HTTPMetrics:
        """Count HTTP requests from now on; called once, with all paths and methods of the server.

        A board's servers must all call it with the same routes.
        """
        assert self.http is None
        self.http = HTTPMetrics(self._board, routes)
        return self.http

    def exposition(self, accept: str = "") -> tuple[bytes, str]:
        """The metrics in the format that an `Accept` header asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        is_open_metrics = content_type.startswith("application/openmetrics-text")
        text = self._renderer.render(self.families(), is_open_metrics=is_open_metrics)
        if self.http is not None:
            text += self._http_renderer.render(
                self.http.families(), is_open_metrics=is_open_metrics
            )
        body = text.encode() + encode(self._process)
        assert not is_open_metrics or body.endswith(OPEN_METRICS_END.encode())
        return body, content_type

    def families(self) -> Iterator[Family]:
        """The families of engine, requests and costs, as they are now."""
        yield from engine_families(self._stats())
        yield from self._fixed
        yield Family(
            "octavo:engine_answers",
            "gauge",
            "1 while the engine takes requests and answers them; 0 also while it is stuck.",
            [((), self._answers)],
        )
        yield Family(
            "octavo:api_server_restarts",
            "counter",
            "API servers started anew.",
            [((), self._board.num_restarts)],
        )
        yield from self.requests.families()
        yield from self.usage.families()

    @property
    def _answers(self) -> int:
        if self._check_health is None:
            return int(self._stats().is_up)
        try:
            self._check_health()
        except EngineUnavailableError:
            return 0
        return 1
