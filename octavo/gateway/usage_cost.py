"""What an answer cost, in its usage: taken out of what a backend says, put into what clients get.

JSON is taken apart only on the way to the usage; everything else stays the bytes that it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from octavo.gateway.model import DevicePrice, Tokens, actual

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from octavo.gateway.model import Attempt, Price, Route, Target

NAMES = ("gpu_seconds", "cost", "currency")
"""Fields of `protocol.usage.CostFields`."""

_INNER: Mapping[Route, str] = {"messages": "message", "responses": "response"}
"""What has the usage in events of these routes, where the event has not."""

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_usage = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode
_encode = msgspec.json.Encoder().encode
_NOTHING: Mapping[str, Any] = {}


def tells_cost(data: bytes) -> bool:
    """Whether an engine may have told what its answer cost, in JSON or in an event."""
    return b'"gpu_seconds"' in data


def with_cost(route: Route, data: bytes, cost: Mapping[str, Any] = _NOTHING) -> bytes:
    """An answer, or the JSON of an event, with this cost in its usage.

    Args:
        route: whose shape it has.
        data: JSON; what is none, or has no usage, is left as it is.
        cost: in place of what was told there; empty: none.
    """
    try:
        fields = _decode(data)
        usage = _decode_usage(fields["usage"]) if "usage" in fields else None
        if usage is not None:
            left = {name: value for name, value in usage.items() if name not in NAMES}
            if not cost and len(left) == len(usage):
                return data
            return _encode({**fields, "usage": {**left, **cost}})
        inner = _INNER.get(route, "")
        if inner in fields:
            given = bytes(fields[inner])
            changed = with_cost(route, given, cost)
            return data if changed is given else _encode({**fields, inner: msgspec.Raw(changed)})
    except msgspec.DecodeError:
        pass
    return data


def cost_of(
    attempts: Iterable[Attempt],
    price_of: Callable[[str, str], Price | None],
    now: tuple[Target, Tokens] | None = None,
) -> dict[str, Any]:
    """What a call has cost with all its attempts, as a usage tells it: what budgets count.

    Args:
        attempts: that have ended.
        price_of: by backend and model.
        now: the one that has not, and what it used.

    Returns:
        `cost`, null where the price of one is not known; `currency`; and where engines took part
        `gpu_seconds`, of them, null where one does not tell.
    """
    cost_nano: int | None = 0
    device_ns: int | None = 0
    has_device = False
    currency = ""
    parts = [(a.backend, a.model, a.tokens, a.cost_nano) for a in attempts]
    if now is not None:
        target, tokens = now
        price = price_of(target.backend, target.model)
        spent = (tokens.cost_nano or 0) if price is None else actual(tokens, price).cost_nano
        parts.append((target.backend, target.model, tokens, spent))
    for backend, model, tokens, spent in parts:
        price = price_of(backend, model)
        if price is not None:
            currency = currency or price.currency
        elif tokens.cost_nano is None and tokens != Tokens():
            cost_nano = None
        if cost_nano is not None:
            cost_nano += spent
        if tokens.device_ns is not None:
            has_device = True
            device_ns = None if device_ns is None else device_ns + tokens.device_ns
        elif isinstance(price, DevicePrice) and tokens != Tokens():
            has_device, device_ns = True, None
    told: dict[str, Any] = {"gpu_seconds": _unit(device_ns)} if has_device else {}
    return told | {"cost": _unit(cost_nano), "currency": currency or "USD"}


def _unit(nano: int | None) -> float | None:
    """So many 1e-9 as a number whose shortest decimal spelling is exact, up to 1e15 of them."""
    return None if nano is None else nano / 1e9
