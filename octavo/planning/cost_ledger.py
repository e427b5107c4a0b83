"""From a ledger to a cost report: what to ask it for, and what a reader should be told beside."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from octavo.errors import ConfigError
from octavo.planning.cost_prices import thresholds_of
from octavo.planning.cost_query import TIMES
from octavo.planning.cost_report import (
    BucketSum,
    CostReport,
    OutcomeSum,
    UsageSum,
    build_report,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from octavo.ledger.store import Ledger
    from octavo.ledger.totals import OutcomeTotals, Totals
    from octavo.planning.cost_prices import ListPrice
    from octavo.planning.cost_query import CostQuery


def report_of(
    ledger: Ledger, query: CostQuery, prices: Sequence[ListPrice] = ()
) -> tuple[CostReport, list[str]]:
    """The report, and notes for its reader.

    Args:
        ledger: to read.
        query: what to report.
        prices: to compare with.

    Raises:
        ConfigError: the records have several currencies, or another one than the prices; or a view
            or column needs what the ledger has not.
        DatabaseUnavailableError: the ledger cannot be read.
    """
    by = query.by if "day" in query.by else (*query.by, "day")
    where = dict(query.filters)
    span = (query.since_ns, query.until_ns)
    thresholds = thresholds_of(prices)
    totals = ledger.totals(by, *span, where, thresholds)
    everyone = ledger.totals(("day",), *span) if where else totals
    currency = _currency(totals, prices)
    buckets = [
        BucketSum(day=total.key[0], bucket=name, device_ns=ns, cost_nano=total.cost_nano[name])
        for total in ledger.engine_totals(("day",), *span)
        if total.currency == currency
        for name, ns in total.buckets.items()
    ]
    if query.view == "loaded" and totals and not buckets:
        raise ConfigError(
            "the ledger has no device time of engines in this time, so there is none to spread: "
            "use --view usage"
        )
    at = by.index("day")
    num_names = len(query.by)
    device_ns_by_day: dict[str, int] = defaultdict(int)
    for total in everyone:
        if total.currency == currency:
            day = total.key[at] if everyone is totals else total.key[0]
            device_ns_by_day[day] += total.prefill_ns + total.decode_ns
    joined: list[OutcomeTotals] = []
    if query.outcomes:
        joined = ledger.outcome_totals(by, *span, where, query.outcomes)
    report = build_report(
        by=query.by,
        view=query.view,
        currency=currency,
        usage=(_usage_sum(total, num_names, at) for total in totals),
        outcomes=(_outcome_sum(total, num_names, at) for total in joined),
        buckets=buckets,
        device_ns_by_day=device_ns_by_day,
        prices=prices,
        thresholds=thresholds,
        outcome_names=query.outcomes,
        sort_by_group=any(name in TIMES for name in query.by),
    )
    return report, list(_notes(ledger, query, report, joined))


def _currency(totals: Sequence[Totals], prices: Sequence[ListPrice]) -> str:
    currencies = sorted({total.currency for total in totals})
    if len(currencies) > 1:
        raise ConfigError(
            f"the requests were priced in {' and '.join(currencies)}, which cannot be added up: "
            f"choose one, --filter currency={currencies[0]}"
        )
    currency = currencies[0] if currencies else "USD"
    for price in prices:
        if totals and price.currency != currency:
            raise ConfigError(
                f"{price.name} is priced in {price.currency} and the requests in {currency}: give "
                f"prices in {currency} with --prices"
            )
    return currency


def _usage_sum(total: Totals, num_names: int, at: int) -> UsageSum:
    return UsageSum(
        group=total.key[:num_names],
        day=total.key[at],
        band=total.band,
        num_requests=total.num_requests,
        num_input_tokens=total.num_input_tokens,
        num_cached_tokens=total.num_cached_tokens,
        num_output_tokens=total.num_output_tokens,
        device_ns=total.prefill_ns + total.decode_ns,
        waste_ns=total.waste_ns,
        cost_nano=total.cost_nano,
    )


def _outcome_sum(total: OutcomeTotals, num_names: int, at: int) -> OutcomeSum:
    success, failure = total.success, total.failure
    return OutcomeSum(
        group=total.key[:num_names],
        day=total.key[at],
        name=total.name,
        num_outcomes=success.num_outcomes + failure.num_outcomes,
        num_successes=success.num_outcomes,
        value_nano=success.value_nano + failure.value_nano,
        num_requests=success.num_requests + failure.num_requests,
        device_ns=success.device_ns + failure.device_ns,
        cost_nano=success.cost_nano + failure.cost_nano,
    )


def _notes(
    ledger: Ledger, query: CostQuery, report: CostReport, joined: Sequence[OutcomeTotals]
) -> Iterable[str]:
    if not report.rows:
        yield "there is no request in this time that the filters let in"
        return
    if report.total.device_ns and not report.total.cost_nano:
        yield "these requests have no price: start servers with --price-per-device-hour"
    if not report.device_ns:
        yield "the ledger has no device time of engines in this time: idle is not known"
    if not query.outcomes:
        return
    found = {total.name for total in joined}
    if missing := [name for name in query.outcomes if name not in found]:
        others = ledger.outcome_totals((), query.since_ns, query.until_ns)
        names = sorted({total.name for total in others})
        there = f"there are {', '.join(names)}" if names else "there are none of any name"
        yield f"no outcome named {' or '.join(missing)} is joined with these requests; {there}"
    if num := ledger.num_unmatched_outcomes(query.since_ns, query.until_ns):
        yield f"outcomes of this time, of any name, that are joined with no request: {num}"
