"""Lines that a cost report has on terminals and in pages alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.planning.cost_columns import plain

if TYPE_CHECKING:
    from octavo.planning.cost_prices import ListPrice
    from octavo.planning.cost_report import CostReport

NO_NAME = "(none)"
"""Stands for a value that requests do not have."""


def device_time_line(report: CostReport) -> str:
    """Where the devices' time went, all requests of the time; empty: the ledger does not say."""
    whole = sum(report.device_ns.values())
    if not whole:
        return ""
    shares = ", ".join(
        f"{name.replace('_', ' ')} {100 * amount / whole:.1f} %"
        for name, amount in report.device_ns.items()
        if amount
    )
    return f"{whole / 3.6e12:,.2f} device hours: {shares}"


def price_line(price: ListPrice) -> str:
    """What a list price is, and whose: one line."""
    bands = []
    for band in price.bands:
        cached = "" if band.cached_input is None else f", cached {plain(band.cached_input):f}"
        above = f"above {band.above:,} tokens " if band.above else ""
        bands.append(f"{above}in {plain(band.input):f}{cached}, out {plain(band.output):f}")
    if price.per_request:
        bands.append(f"{plain(price.per_request):f} per request")
    prices = "; ".join(bands)
    return (
        f"at {price.name}: {price.model}, per 1M tokens {prices} {price.currency} ({price.source})"
    )
