"""Which limits hold for a call, whom it is counted for, and how many tokens it may use."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.gateway.config_limits import Dimension, Limit
    from octavo.gateway.model import Call

_NO_OUTPUT = ("embeddings", "score", "rerank")


def holds(name: str, limit: Limit, call: Call) -> bool:
    """Whether a limit holds for a call."""
    if limit.holds_for == "named" and name not in call.key.limits:
        return False
    return (
        _matches(call.feature, limit.features)
        and _matches(call.tenant, limit.tenants)
        and _matches(call.model, limit.models)
    )


def _matches(value: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatchcase(value, pattern) for pattern in patterns)


def subject_of(limit: Limit, call: Call) -> tuple[str, ...]:
    """What a limit counts a call by."""
    return tuple(_value(call, dimension) for dimension in limit.per)


def _value(call: Call, dimension: Dimension) -> str:
    match dimension:
        case "key":
            return call.key.key_id
        case "team":
            return call.key.team
        case "tenant":
            return call.tenant
        case "feature":
            return call.feature
        case "model":
            return call.model
        case "route":
            return call.route


def reserve_of(call: Call, limit: Limit) -> int:
    """Tokens that a call may use, as far as a limit knows beforehand."""
    output = limit.assumed_output_tokens if call.max_tokens is None else call.max_tokens
    if call.route in _NO_OUTPUT:
        output = 0
    return call.num_prompt_tokens + output * call.num_choices
