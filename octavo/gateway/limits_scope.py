"""Which limits hold for a call, whom it is counted for, and how many tokens it may use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.gateway.model import value_of
from octavo.gateway.patterns import matches_any

if TYPE_CHECKING:
    from octavo.gateway.config_limits import Limit
    from octavo.gateway.model import Call

_NO_OUTPUT = ("embeddings", "score", "rerank")


def holds(name: str, limit: Limit, call: Call) -> bool:
    """Whether a limit holds for a call."""
    if limit.holds_for == "named" and name not in call.key.limits:
        return False
    return (
        matches_any(call.feature, limit.features)
        and matches_any(call.tenant, limit.tenants)
        and matches_any(call.model, limit.models)
    )


def subject_of(limit: Limit, call: Call) -> tuple[str, ...]:
    """What a limit counts a call by."""
    return tuple(value_of(call, dimension) for dimension in limit.per)


def reserve_of(call: Call, limit: Limit) -> int:
    """Tokens that a call may use, as far as a limit knows beforehand."""
    output = limit.assumed_output_tokens if call.max_tokens is None else call.max_tokens
    if call.route in _NO_OUTPUT:
        output = 0
    return call.num_prompt_tokens + output * call.num_choices
