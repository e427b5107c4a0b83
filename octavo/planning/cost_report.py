"""Sums of a ledger into a cost report. Pure: knows neither databases nor terminals.

How it counts, so that anyone can count after it:

- Money is integer nano-units (1e-9 of the currency), time integer nanoseconds. Nothing is rounded
  before it is shown, and every column that is a sum adds up to the total row exactly.
- Other device time (idle, start-up, planning: every bucket but `requests`) is spread over the
  requests that ended on the same UTC day, in proportion to their device time; that of days without
  requests over all requests of the report's time. What is left over by whole numbers goes to the
  largest remainders. Filters choose rows after that: a feature is not loaded with the share of
  others.
- The view `usage` costs requests alone, `loaded` adds their share of the other time.
- A request's cost counts once for each *name* of outcome that is joined with it, however many
  outcomes of the name there are. An outcome counts once, in the row and at the time of the last
  request that it is joined with; the costs stay in the rows of their requests.
- Cost per success is the cost of all requests that are joined with an outcome of the name, of
  failures too, over the number of successes. Return is the value of the outcomes over that cost.
"""

from __future__ import annotations

from collections import defaultdict
from decimal import Decimal
from typing import TYPE_CHECKING

import msgspec

from octavo.planning.cost_prices import ListPrice, TokenCounts
from octavo.planning.cost_query import View

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


REQUESTS = "requests"
"""The bucket of engine time that requests are charged with themselves."""

Group = tuple[str, ...]
_REST: tuple[Group, str] = ((), "rest")
"""Stands for what filters leave out."""


class UsageSum(msgspec.Struct, frozen=True, kw_only=True):
    """What some requests used together.

    Attributes:
        group: values of what the report is by, in its order.
        day: that they ended on, UTC, as text.
        band: how many of the prices' thresholds their inputs are longer than.
    """

    group: Group
    day: str
    band: int = 0
    num_requests: int
    num_input_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    device_ns: int
    waste_ns: int
    cost_nano: int


class OutcomeSum(msgspec.Struct, frozen=True, kw_only=True):
    """Outcomes of one name in one group and day.

    Attributes:
        num_outcomes, num_successes, value_nano: of outcomes whose last request is in the group.
        num_requests, device_ns, cost_nano: of requests in the group that have an outcome of that
            name, each counted once.
    """

    group: Group
    day: str
    name: str
    num_outcomes: int = 0
    num_successes: int = 0
    value_nano: int = 0
    num_requests: int = 0
    device_ns: int = 0
    cost_nano: int = 0


class BucketSum(msgspec.Struct, frozen=True, kw_only=True):
    """Device time of all engines in one bucket on one day, and what it cost."""

    day: str
    bucket: str
    device_ns: int
    cost_nano: int


class OutcomeFigures(msgspec.Struct, kw_only=True):
    """Outcomes of one name in one row; money and time in nano-units and nanoseconds."""

    num_outcomes: int = 0
    num_successes: int = 0
    value_nano: int = 0
    num_requests: int = 0
    cost_nano: int = 0

    def add(self, other: OutcomeFigures) -> None:
        """Add another one's numbers."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def success_rate(self) -> Decimal | None:
        """Successes over outcomes."""
        return ratio(self.num_successes, self.num_outcomes)

    @property
    def cost_per_success(self) -> Decimal | None:
        """Whole units of the currency."""
        return ratio(self.cost_nano, self.num_successes, scale=-9)

    @property
    def value_over_cost(self) -> Decimal | None:
        """What came back for each unit spent; None: no outcome counts here."""
        return ratio(self.value_nano, self.cost_nano) if self.num_outcomes else None


class CostRow(msgspec.Struct, kw_only=True):
    """One row, or the total.

    Attributes:
        group: values of what the report is by; of the total: empty.
        device_ns: charged to the requests themselves.
        other_ns, other_nano: their share of the device's other time, and what it cost.
        cost_nano: what the view says that they cost.
        compared: by the name of a list price, what the same tokens would cost there, exact.
        outcomes: by name.
    """

    group: Group = ()
    num_requests: int = 0
    num_input_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    device_ns: int = 0
    waste_ns: int = 0
    other_ns: int = 0
    other_nano: int = 0
    cost_nano: int = 0
    compared: dict[str, Decimal] = {}
    outcomes: dict[str, OutcomeFigures] = {}

    def add(self, other: CostRow) -> None:
        """Add another row's numbers."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, cost in other.compared.items():
            self.compared[name] = self.compared.get(name, Decimal(0)) + cost
        for name, figures in other.outcomes.items():
            self.outcomes.setdefault(name, OutcomeFigures()).add(figures)

    @property
    def cost_per_million_output(self) -> Decimal | None:
        """Whole units per million output tokens."""
        return ratio(self.cost_nano, self.num_output_tokens, scale=-3)

    @property
    def cost_per_request(self) -> Decimal | None:
        """Whole units per request."""
        return ratio(self.cost_nano, self.num_requests, scale=-9)

    @property
    def waste_share(self) -> Decimal | None:
        """Of the device time that requests were charged with."""
        return ratio(self.waste_ns, self.device_ns)

    @property
    def other_share(self) -> Decimal | None:
        """Of the device time with the share of other time."""
        return ratio(self.other_ns, self.device_ns + self.other_ns)


_SUMS = (
    "num_requests",
    "num_input_tokens",
    "num_cached_tokens",
    "num_output_tokens",
    "device_ns",
    "waste_ns",
    "other_ns",
    "other_nano",
    "cost_nano",
)


class CostReport(msgspec.Struct, frozen=True, kw_only=True):
    """A whole report.

    Attributes:
        by: what the groups of rows are.
        rows: the dearest first; with a time in `by`, in the order of their groups.
        device_ns: by bucket, of all engines in the time, filters aside; empty: the ledger has none.
        prices: what `compared` compares with.
    """

    by: tuple[str, ...]
    view: View
    currency: str
    rows: tuple[CostRow, ...]
    total: CostRow
    device_ns: dict[str, int]
    prices: tuple[ListPrice, ...]
    outcomes: tuple[str, ...]


def build_report(
    *,
    by: tuple[str, ...],
    view: View,
    currency: str,
    usage: Iterable[UsageSum],
    outcomes: Iterable[OutcomeSum] = (),
    buckets: Sequence[BucketSum] = (),
    device_ns_by_day: Mapping[str, int],
    prices: Sequence[ListPrice] = (),
    thresholds: Sequence[int] = (),
    outcome_names: tuple[str, ...] = (),
    sort_by_group: bool = False,
) -> CostReport:
    """The report over these sums.

    Args:
        by: as in `CostReport`.
        view: as in `CostReport`.
        currency: as in `CostReport`.
        usage: of what the filters let in.
        outcomes: of what the filters let in.
        buckets: of all engines.
        device_ns_by_day: device time of all requests, those that filters leave out as well.
        prices: to compare with.
        thresholds: lengths of inputs that `UsageSum.band` counts, rising.
        outcome_names: that the report was asked for; each row has them all.
        sort_by_group: order rows by their group and not by cost.
    """
    usage = list(usage)
    cells: dict[tuple[Group, str], int] = defaultdict(int)
    for part in usage:
        cells[part.group, part.day] += part.device_ns
    other_ns = _spread(buckets, "device_ns", cells, device_ns_by_day)
    other_nano = _spread(buckets, "cost_nano", cells, device_ns_by_day)
    rows: dict[Group, CostRow] = {}
    for part in usage:
        row = rows.setdefault(part.group, _empty(part.group, prices, outcome_names))
        _add_usage(row, part, prices, thresholds)
    for group, day in cells:
        row = rows[group]
        row.other_ns += other_ns.get((group, day), 0)
        row.other_nano += other_nano.get((group, day), 0)
        row.cost_nano += other_nano.get((group, day), 0) if view == "loaded" else 0
    for outcome in outcomes:
        row = rows.setdefault(outcome.group, _empty(outcome.group, prices, outcome_names))
        share = 0
        if view == "loaded":
            cell = (outcome.group, outcome.day)
            share = _part(other_nano.get(cell, 0), outcome.device_ns, cells.get(cell, 0))
        row.outcomes.setdefault(outcome.name, OutcomeFigures()).add(
            OutcomeFigures(
                num_outcomes=outcome.num_outcomes,
                num_successes=outcome.num_successes,
                value_nano=outcome.value_nano,
                num_requests=outcome.num_requests,
                cost_nano=outcome.cost_nano + share,
            )
        )
    total = _empty((), prices, outcome_names)
    for row in rows.values():
        total.add(row)
    device_ns: dict[str, int] = defaultdict(int)
    for bucket in buckets:
        device_ns[bucket.bucket] += bucket.device_ns
    ordered = sorted(
        rows.values(), key=lambda row: row.group if sort_by_group else (-row.cost_nano, row.group)
    )
    return CostReport(
        by=by,
        view=view,
        currency=currency,
        rows=tuple(ordered),
        total=total,
        device_ns=dict(sorted(device_ns.items(), key=lambda item: (-item[1], item[0]))),
        prices=tuple(prices),
        outcomes=outcome_names,
    )


def ratio(amount: int, count: int, *, scale: int = 0) -> Decimal | None:
    """The quotient times 10**scale, to 28 digits; None: of nothing."""
    return (Decimal(amount) / count).scaleb(scale) if count else None


def _empty(group: Group, prices: Sequence[ListPrice], names: Sequence[str]) -> CostRow:
    return CostRow(
        group=group,
        compared={price.name: Decimal(0) for price in prices},
        outcomes={name: OutcomeFigures() for name in names},
    )


def _add_usage(
    row: CostRow, part: UsageSum, prices: Sequence[ListPrice], thresholds: Sequence[int]
) -> None:
    for name in (*_SUMS[:6], "cost_nano"):
        setattr(row, name, getattr(row, name) + getattr(part, name))
    counts = TokenCounts(
        part.num_requests, part.num_input_tokens, part.num_cached_tokens, part.num_output_tokens
    )
    longer_than = thresholds[part.band - 1] if part.band else 0
    for price in prices:
        band = price.band_of(longer_than + 1)
        row.compared[price.name] += price.cost(counts, band)


def _spread(
    buckets: Sequence[BucketSum],
    what: str,
    cells: Mapping[tuple[Group, str], int],
    device_ns_by_day: Mapping[str, int],
) -> dict[tuple[Group, str], int]:
    """The other time, or its cost, of each cell: see the module."""
    from octavo.engine.metering_split import split_exactly  # brings numpy

    by_day: dict[str, int] = defaultdict(int)
    for bucket in buckets:
        if bucket.bucket != REQUESTS:
            by_day[bucket.day] += getattr(bucket, what)
    shares: dict[tuple[Group, str], int] = defaultdict(int)
    of_day: dict[str, dict[tuple[Group, str], int]] = defaultdict(dict)
    for cell, weight in cells.items():
        of_day[cell[1]][cell] = weight
    homeless = sum(n for day, n in by_day.items() if not device_ns_by_day.get(day))
    everywhere = (homeless, cells, sum(device_ns_by_day.values()))
    days = [(by_day[day], of, device_ns_by_day.get(day, 0)) for day, of in of_day.items()]
    for amount, weights, whole in (*days, everywhere):
        # Requests may have come between the two queries: they are nobody's rest.
        rest = max(0, whole - sum(weights.values()))
        if not amount or not rest + sum(weights.values()):
            continue
        ordered = [*sorted(weights), _REST]
        parts = split_exactly(amount, [*(weights[cell] for cell in ordered[:-1]), rest])
        for cell, part in zip(ordered, parts, strict=True):
            shares[cell] += part
    shares.pop(_REST, None)
    return shares


def _part(amount: int, weight: int, whole: int) -> int:
    """The weight's share of the amount, to the nearest whole number, halves up."""
    return (2 * amount * weight + whole) // (2 * whole) if whole else 0
