"""What reports get from a ledger: sums over groups. Plain values, integers throughout.

`key` is the group: one text for each name in `by`, in its order. An hour is `2026-11-28T20`, a day
`2026-11-28`, a month `2026-11`, in UTC; a tag that a request does not have is the empty text, as is
a missing feature.
Amounts of different currencies are never added up: one group has one line per currency.
"""

from __future__ import annotations

import msgspec

INPUT_EDGES = (32_000, 100_000, 128_000, 199_999, 200_000, 256_000, 272_000, 512_000, 524_288)
"""Lengths of inputs above which list prices are others; roll-ups keep requests apart by them."""


class Totals(msgspec.Struct, kw_only=True):
    """Requests of one group, in one currency.

    Attributes:
        band: how many of the edges that were asked for the requests' inputs are longer than.
        num_input_tokens: cached ones included.
        prefill_ns, decode_ns: device time; `waste_ns` is a part of the two.
        e2e_ns: from arrival to end, added up over the requests.
        cost_nano: nano-units of the currency; the sum of the records' own.
    """

    key: tuple[str, ...]
    currency: str
    band: int = 0
    num_requests: int = 0
    num_input_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    prefill_ns: int = 0
    decode_ns: int = 0
    waste_ns: int = 0
    e2e_ns: int = 0
    cost_nano: int = 0


class Side(msgspec.Struct, kw_only=True):
    """Successful or failed outcomes of one name, and the requests that they join.

    Attributes:
        num_outcomes: each is counted once, in the group of the last of its requests.
        value_nano: of these outcomes, added up, nano-units.
        num_requests: that such an outcome joins, each counted once and in its own group; a request
            that a successful and a failed outcome of one name join is a successful one's.
        device_ns, cost_nano: of these requests.
    """

    num_outcomes: int = 0
    value_nano: int = 0
    num_requests: int = 0
    device_ns: int = 0
    cost_nano: int = 0


class OutcomeTotals(msgspec.Struct, kw_only=True):
    """Outcomes of one name in one group, in one currency; dated by their last request."""

    key: tuple[str, ...]
    name: str
    currency: str
    success: Side = msgspec.field(default_factory=Side)
    failure: Side = msgspec.field(default_factory=Side)


class EngineTotals(msgspec.Struct, kw_only=True):
    """Device time of one group of hours or servers, in one currency.

    Attributes:
        buckets: nanoseconds by name (`requests`, `idle`, ...); together they are all the device
            time that was paid for.
        cost_nano: what each bucket cost, nano-units; rounded once per bucket, server and hour, so
            that it adds up like the rest.
    """

    key: tuple[str, ...]
    currency: str
    buckets: dict[str, int]
    cost_nano: dict[str, int]
