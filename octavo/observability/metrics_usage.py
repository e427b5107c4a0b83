"""What requests cost, by feature, and what became of their records.

The ledger is the exact account; these are counters for dashboards and alerts, with a bounded number
of features. Cells are 64-bit floats: nanoseconds stay whole up to 104 days of a feature's device
time, and after that are rounded like any sample.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from octavo.observability.label_slots import LabelSlots, safe_label
from octavo.observability.metrics_text import Family

if TYPE_CHECKING:
    from collections.abc import Iterator

    from octavo.observability.board import Board

NUM_FEATURES = 32
"""Most features with counters of their own."""

_COUNTS = ("num_written", "num_spilled", "num_lost")


class Usage(Protocol):
    """What is read of a usage record. `ledger.record.UsageRecord` is one."""

    @property
    def feature(self) -> str:
        """What the request was for; untrusted."""
        ...

    @property
    def prefill_ns(self) -> int:
        """Device time for the prompt."""
        ...

    @property
    def decode_ns(self) -> int:
        """Device time for the output."""
        ...

    @property
    def waste_ns(self) -> int:
        """The part of the two that was for nothing."""
        ...

    @property
    def cost_nano(self) -> int:
        """In 1e-9 of the currency."""
        ...

    @property
    def num_input_tokens(self) -> int:
        """The prompt's."""
        ...

    @property
    def num_cached_tokens(self) -> int:
        """Those of them that the prefix cache had."""
        ...

    @property
    def num_output_tokens(self) -> int:
        """The output's."""
        ...


class LedgerCounts(Protocol):
    """What is read of a ledger's writer: records since it was made."""

    @property
    def num_written(self) -> int:
        """In the ledger."""
        ...

    @property
    def num_spilled(self) -> int:
        """In the spill file first."""
        ...

    @property
    def num_lost(self) -> int:
        """Nowhere."""
        ...


class UsageMetrics:
    """Counters by feature, and of records.

    Args:
        board: where to count.
        currency: of costs.
    """

    def __init__(self, board: Board, currency: str = "USD") -> None:
        self.currency = currency
        # prefill, decode, waste in ns; cost in 1e-9; requests; input, cached, output tokens
        self._features = LabelSlots(board, NUM_FEATURES, 8)
        self._totals = board.take(2)  # cost in 1e-9, waste in ns
        self._records = board.take(len(_COUNTS))
        self._before = list(self._records[0])
        self._tags = board.take(2)  # dropped, replaced by "other"
        self._ledger: LedgerCounts | None = None

    def count_tags(self, num_dropped: int, num_capped: int) -> None:
        """Count what callers sent and is not in records as they sent it."""
        cells = self._tags[0]
        cells[0] += num_dropped
        cells[1] += num_capped

    def observe(self, usage: Usage) -> None:
        """Count a request that has ended."""
        spent_ns = usage.prefill_ns + usage.decode_ns
        self._features.add(
            safe_label(usage.feature),
            (
                usage.prefill_ns,
                usage.decode_ns,
                usage.waste_ns,
                usage.cost_nano,
                1,
                usage.num_input_tokens,
                usage.num_cached_tokens,
                usage.num_output_tokens,
            ),
            max(spent_ns, 1),
        )
        totals = self._totals[0]
        totals[0] += usage.cost_nano
        totals[1] += usage.waste_ns
        self._read_ledger()

    def follow_ledger(self, counts: LedgerCounts) -> None:
        """Tell of this writer's records from now on. A server that takes up the row of one before
        it goes on from that one's counts.
        """
        self._ledger = counts
        self._before = list(self._records[0])

    def _read_ledger(self) -> None:
        if self._ledger is not None:
            for index, name in enumerate(_COUNTS):
                self._records[0][index] = self._before[index] + getattr(self._ledger, name)

    def families(self) -> Iterator[Family]:
        """What a scrape tells of it."""
        self._read_ledger()
        for index, (name, text) in enumerate(
            (
                ("written", "Usage records that are in the ledger."),
                ("spilled", "Usage records that went to the spill file first."),
                ("lost", "Usage records that could not be kept."),
            )
        ):
            num = int(sum(cells[index] for cells in self._records))
            yield Family(f"octavo:ledger_records_{name}", "counter", text, [((), num)])
        for index, (name, text) in enumerate(
            (
                ("dropped", "Tags of callers that were malformed, too long or too many."),
                ("capped", "Features and tenants that became `other`: too many in an hour."),
            )
        ):
            num = int(sum(cells[index] for cells in self._tags))
            yield Family(f"octavo:usage_tags_{name}", "counter", text, [((), num)])
        money = (("currency", self.currency),)
        cost = sum(cells[0] for cells in self._totals) / 1e9
        waste = sum(cells[1] for cells in self._totals) / 1e9
        yield Family("octavo:cost", "counter", "Cost of ended requests.", [(money, cost)])
        yield Family(
            "octavo:waste_seconds",
            "counter",
            "Device time of ended requests that computed again what had been computed.",
            [((), waste)],
        )
        yield from self._by_feature(money)

    def _by_feature(self, money: tuple[tuple[str, str], ...]) -> Iterator[Family]:
        totals = [((("feature", name),), sums) for name, sums in self._features.totals().items()]
        yield Family(
            "octavo:feature_cost",
            "counter",
            "Cost of ended requests by feature.",
            [((*feature, *money), sums[3] / 1e9) for feature, sums in totals],
        )
        yield Family(
            "octavo:feature_gpu_seconds",
            "counter",
            "Device time of ended requests by feature.",
            [
                ((*feature, ("phase", phase)), sums[index] / 1e9)
                for feature, sums in totals
                for index, phase in ((0, "prefill"), (1, "decode"))
            ],
        )
        yield Family(
            "octavo:feature_waste_seconds",
            "counter",
            "The part of that time that computed again what had been computed.",
            [(feature, sums[2] / 1e9) for feature, sums in totals],
        )
        yield Family(
            "octavo:feature_requests",
            "counter",
            "Ended requests by feature.",
            [(feature, int(sums[4])) for feature, sums in totals],
        )
        yield Family(
            "octavo:feature_tokens",
            "counter",
            "Tokens of ended requests by feature; cached ones are input too.",
            [
                ((*feature, ("kind", kind)), int(sums[index]))
                for feature, sums in totals
                for index, kind in ((5, "input"), (6, "cached"), (7, "output"))
            ],
        )
