"""The gateway's metrics, `octavo_gateway_*`: what was asked, where it went, what it cost, and what
the gateway itself took. Counted as requests end, read when somebody scrapes.

Labels are names of the configuration, so that there are as many series as it has backends and
models, whatever callers send. Belongs to one event loop.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from octavo.errors import EngineUnavailableError
from octavo.ledger.record import NANO
from octavo.observability.histogram import Histogram
from octavo.observability.metrics_buckets import E2E_BUCKETS, TTFT_BUCKETS
from octavo.observability.metrics_text import OPEN_METRICS_END, Family, Renderer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from octavo.gateway.model import Attempt
    from octavo.gateway.parts import Parts
    from octavo.ledger.writer import LedgerWriter
    from octavo.observability.metrics_text import Labels, Value

OVERHEAD_BUCKETS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0),
    *(5.0, 30.0),
)

_BREAKER_STATES = ("closed", "half_open", "open")


class GatewayMetrics:
    """All metrics of one gateway process.

    Args:
        currency: of costs.
        ledger: whose counts are told; None: there is none.

    Attributes:
        num_open: requests that are worked on.
        reloads: of the configuration, by result: `ok`, `refused`.
        loaded: when the one in force was loaded, seconds since 1970.
    """

    def __init__(self, currency: str = "USD", ledger: LedgerWriter | None = None) -> None:
        self.num_open = 0
        self.reloads = {"ok": 0, "refused": 0}
        self.loaded = 0.0
        self._currency = currency
        self._ledger = ledger
        self._renderer = Renderer(())
        self._requests: defaultdict[tuple[str, int], int] = defaultdict(int)
        self._attempts: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        self._tokens: dict[tuple[str, str], list[int]] = {}
        self._escalations: defaultdict[tuple[str, str], int] = defaultdict(int)
        self._overhead = Histogram(OVERHEAD_BUCKETS)
        self._ttft = Histogram(TTFT_BUCKETS)
        self._e2e = Histogram(E2E_BUCKETS)

    def observe_request(self, route: str, status: int, seconds: float) -> None:
        """Count an answer.

        Args:
            route: `model.Route`, or `other`.
            status: of the answer; 499 where the client went before there was one.
            seconds: from arrival to its end.
        """
        self._requests[route, status] += 1
        if route != "other":
            self._e2e.observe(seconds)

    def observe_attempts(self, attempts: Sequence[Attempt], seconds: float) -> None:
        """Count what a call was at backends.

        Args:
            attempts: all of them.
            seconds: that the gateway took beside them.
        """
        for attempt in attempts:
            backend, model = attempt.backend, attempt.model
            self._attempts[backend, model, attempt.status] += 1
            tokens = attempt.tokens
            sums = self._tokens.get((backend, model))
            if sums is None:
                sums = self._tokens[backend, model] = [0, 0, 0, 0]
            sums[0] += tokens.input
            sums[1] += tokens.cached
            sums[2] += tokens.output
            sums[3] += attempt.cost_nano
            if attempt.ttft_ns is not None:
                self._ttft.observe(attempt.ttft_ns / NANO)
            if attempt.status == "escalated":
                self._escalations[attempt.tier, attempt.judge] += 1
        self._overhead.observe(seconds)

    async def exposition(self, accept: str, parts: Parts) -> tuple[bytes, str]:
        """The metrics in the format that an `Accept` header asks for, and its content type.

        Args:
            accept: the header.
            parts: of the configuration in force.
        """
        used = await _budget_use(parts)
        from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
        from prometheus_client.exposition import choose_encoder

        encode, content_type = choose_encoder(accept)
        is_open_metrics = content_type.startswith("application/openmetrics-text")
        process = CollectorRegistry()
        ProcessCollector(registry=process)
        GCCollector(registry=process)
        text = self._renderer.render(self.families(parts, used), is_open_metrics=is_open_metrics)
        body = text.encode() + encode(process)
        assert not is_open_metrics or body.endswith(OPEN_METRICS_END.encode())
        return body, content_type

    def families(self, parts: Parts, used: Mapping[str, float]) -> Iterator[Family]:
        """What a scrape tells.

        Args:
            parts: of the configuration in force.
            used: of each budget, the part that is used where it is used most.
        """
        yield _counter(
            "requests",
            "Answered requests.",
            [((("route", r), ("status", str(s))), n) for (r, s), n in self._requests.items()],
        )
        yield _gauge("open_requests", "Requests that are worked on.", [((), self.num_open)])
        names = ("backend", "model", "status")
        yield _counter(
            "attempts",
            "Attempts at backends, by how they ended.",
            [(tuple(zip(names, of, strict=True)), n) for of, n in self._attempts.items()],
        )
        for index, name, text in (
            (0, "input_tokens", "Tokens of prompts, cached ones included."),
            (1, "cached_tokens", "Tokens of prompts that backends had in their caches."),
            (2, "output_tokens", "Tokens of answers."),
        ):
            yield _counter(name, text, [(_at(of), s[index]) for of, s in self._tokens.items()])
        yield _counter(
            "cost",
            f"What attempts have cost, {self._currency}.",
            [(_at(of), sums[3] / NANO) for of, sums in self._tokens.items()],
        )
        yield _counter(
            "escalations",
            "Answers that were not good enough, by tier and judge.",
            [((("tier", t), ("judge", j)), n) for (t, j), n in self._escalations.items()],
        )
        for name, text, histogram in (
            ("overhead_seconds", "What calls took beside their attempts.", self._overhead),
            ("ttft_seconds", "From sending a call to a stream's first event.", self._ttft),
            ("e2e_seconds", "From a request's arrival to its answer's end.", self._e2e),
        ):
            yield Family(f"octavo_gateway_{name}", "histogram", text, [((), histogram)])
        yield from _backends(parts)
        yield from _budgets(parts, used)
        yield from self._limits(parts)
        yield from self._operation()

    def _limits(self, parts: Parts) -> Iterator[Family]:
        limits = parts.limits
        yield _counter(
            "limit_refusals",
            "Calls that got a 429, by limit.",
            [((("limit", name),), num) for name, num in limits.num_refused.items()],
        )
        yield _counter(
            "limit_queued", "Calls that waited for their turn.", [((), limits.num_queued)]
        )
        yield _gauge("limit_waiting", "Calls that wait for their turn.", [((), limits.num_waiting)])

    def _operation(self) -> Iterator[Family]:
        yield _counter(
            "config_reloads",
            "Reloads of the configuration, by result.",
            [((("result", result),), num) for result, num in self.reloads.items()],
        )
        yield _gauge(
            "config_loaded_timestamp_seconds",
            "When the configuration in force was loaded.",
            [((), self.loaded)],
        )
        ledger = self._ledger
        if ledger is not None:
            for name in ("written", "spilled", "lost"):
                num = getattr(ledger, f"num_{name}")
                yield _counter(f"ledger_{name}", f"Entries of the ledger, {name}.", [((), num)])
            yield _gauge("ledger_waiting", "Entries that wait.", [((), ledger.num_waiting)])
            yield _gauge(
                "ledger_down", "1 while the database does not answer.", [((), int(ledger.is_down))]
            )


async def _budget_use(parts: Parts) -> dict[str, float]:
    """Of each budget, the part that is used or held of the counter with the least left. None where
    the store does not answer: that is told by itself.
    """
    book = parts.budget_book
    if book is None:
        return {}
    try:
        rows = await book.state()
    except EngineUnavailableError:
        return {}
    most: dict[str, float] = {}
    for row in rows:
        name, part = str(row["budget"]), row["used_part"]
        assert isinstance(part, float)
        most[name] = max(part, most.get(name, 0.0))
    return most


def _budgets(parts: Parts, used: Mapping[str, float]) -> Iterator[Family]:
    book = parts.budget_book
    if book is None:
        return
    yield _gauge(
        "budget_used_ratio",
        "Part of a budget that is used in its period, where it is used most.",
        [((("budget", name),), part) for name, part in used.items()],
    )
    yield _counter(
        "budget_refusals",
        "Calls that got a 429, by budget.",
        [((("budget", name),), num) for name, num in book.num_refused.items()],
    )
    yield _counter(
        "budget_alerts",
        "Thresholds that were told of, by budget.",
        [
            ((("budget", budget), ("threshold", threshold)), num)
            for (budget, threshold), num in book.alerts.num_alerts.items()
        ],
    )
    yield _counter(
        "budget_alerts_undelivered",
        "Alerts that a webhook has not taken.",
        [((), book.alerts.num_undelivered)],
    )
    keeper = book.keeper
    yield _gauge(
        "budgets_down", "1 while their store does not answer.", [((), int(keeper.is_down))]
    )
    yield _gauge(
        "budgets_unsettled",
        "Calls whose use their store has not taken yet.",
        [((), keeper.num_unsettled)],
    )
    yield _counter(
        "budgets_expired",
        "Reservations of gateways that went away.",
        [((), keeper.num_expired)],
    )


def _backends(parts: Parts) -> Iterator[Family]:
    health = parts.dispatcher.health
    up: list[tuple[Labels, Value]] = []
    breaker: list[tuple[Labels, Value]] = []
    load: list[tuple[Labels, Value]] = []
    ours: list[tuple[Labels, Value]] = []
    for name, state in health.states.items():
        label = ("backend", name)
        up.append(((label,), int(state.is_well)))
        now = str(health.breaker_state(name)).replace("-", "_")
        breaker += [((label, ("state", one)), int(one == now)) for one in _BREAKER_STATES]
        load.append(((label,), state.num_running + state.num_waiting))
        ours.append(((label,), state.num_ours))
    yield _gauge("backend_up", "1 while a backend's probes are well.", up)
    yield _gauge("breaker_state", "1 for the state that a backend's breaker has.", breaker)
    yield _gauge("backend_load", "Requests at a backend, by its own word.", load)
    yield _gauge("backend_requests", "Requests of ours at a backend.", ours)


def _at(of: tuple[str, str]) -> Labels:
    return (("backend", of[0]), ("model", of[1]))


def _counter(name: str, text: str, points: Sequence[tuple[Labels, Value]]) -> Family:
    return Family(f"octavo_gateway_{name}", "counter", text, points)


def _gauge(name: str, text: str, points: Sequence[tuple[Labels, Value]]) -> Family:
    return Family(f"octavo_gateway_{name}", "gauge", text, points)
