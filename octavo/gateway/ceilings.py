"""How long a call's answers may be, and what it can cost and has cost. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import InvalidRequestError
from octavo.gateway.model import Amount, DevicePrice, Tokens, actual, worst_case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from octavo.gateway.model import Attempt, Call, Price, Route

_FIELDS: dict[Route, tuple[str, ...]] = {
    "chat": ("max_completion_tokens", "max_tokens"),
    "completions": ("max_tokens",),
    "messages": ("max_tokens",),
    "responses": ("max_output_tokens",),
}
"""How the length of an answer is bounded; the first is written where the caller has written none:
for chats the one that is not deprecated, which some models demand."""

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def bounded(call: Call, body: bytes, default: int | None) -> tuple[Call, bytes]:
    """A call with the bound of its answer's length that its key and the gateway set.

    Args:
        call: as it was read.
        body: its bytes.
        default: for calls that name none, where their key has no default; None: no bound.

    Returns:
        Both, changed where a bound was added or lowered.

    Raises:
        InvalidRequestError: the key demands a bound, and there is none.
    """
    key, given = call.key, call.max_tokens
    names = _FIELDS.get(call.route)
    if names is None:
        return call, body
    bound = given
    if bound is None:
        if key.requires_max_tokens:
            raise InvalidRequestError(
                f"This API key needs a bound of the answer's length: give {names[0]}",
                param=names[0],
                code="max_tokens_required",
            )
        bound = default if key.default_max_tokens is None else key.default_max_tokens
    if key.max_tokens is not None:
        bound = key.max_tokens if bound is None else min(bound, key.max_tokens)
    if bound == given:
        return call, body
    written = [name for name in names if call.body.get(name) is not None] or [names[0]]
    fields: dict[str, Any] = dict(_decode(body))
    for name in written:
        fields[name] = bound
    changed = {**call.body, **dict.fromkeys(written, bound)}
    return msgspec.structs.replace(call, max_tokens=bound, body=changed), _encode(fields)


def worst_at(call: Call, price: Price | None, context_length: int | None) -> Amount | None:
    """The most that one attempt can use; None: nobody knows, as there is no price, or nothing
    bounds the answer.
    """
    most = context_length if call.max_tokens is None else call.max_tokens
    if price is None or most is None:
        return None
    return worst_case(call, price, max_tokens=most)


def affordable_output(call: Call, price: Price | None, left_nano: int) -> int:
    """Tokens of output at one target until so much money is spent; 0 where not even the prompt can
    be paid. Without a price there is no bound: what is unknown was refused before, or is free.
    """
    if price is None:
        return 1 << 62
    fixed = worst_case(call, price, max_tokens=0).cost_nano
    if isinstance(price, DevicePrice):
        # nano-units for an hour, nanoseconds for a token
        per, unit = price.hourly_nano * price.worst_output_ns, 3600 * 10**9
    else:
        per, unit = price.output, price.per
    if not per:
        return 1 << 62
    return max(0, left_nano - fixed) * unit // per


def used(attempts: Iterable[Attempt], price_of: Callable[[str, str], Price | None]) -> Amount:
    """What attempts have used.

    Args:
        attempts: that have ended.
        price_of: by backend and model.
    """
    cost_nano = num_tokens = device_ns = 0
    for attempt in attempts:
        tokens = attempt.tokens
        cost_nano += attempt.cost_nano
        num_tokens += tokens.input + tokens.output
        if tokens.device_ns is not None:
            device_ns += tokens.device_ns
        elif tokens != Tokens():
            price = price_of(attempt.backend, attempt.model)
            if isinstance(price, DevicePrice):
                device_ns += actual(tokens, price).device_ns
    return Amount(cost_nano, num_tokens, device_ns)
