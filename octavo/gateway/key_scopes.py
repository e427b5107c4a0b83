"""Whether a key may do what is asked with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.errors import NotAllowedError
from octavo.gateway.patterns import matches_any

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from octavo.gateway.model import Call, KeyInfo


def check_scopes(call: Call) -> None:
    """Refuse a call that its key does not allow.

    Raises:
        NotAllowedError: 403; names what is not allowed, and what is.
    """
    key = call.key
    if key.routes and call.route not in key.routes:
        raise _refusal(f"use {call.path}", key.routes, "route", None)
    if not matches_any(call.model, key.models):
        raise _refusal(f"ask for the model {call.model!r}", key.models, "model", "model")
    if not matches_any(call.feature, key.features):
        what = f"set the feature {call.feature!r}" if call.feature else "leave out the feature"
        raise _refusal(what, key.features, "feature", None)


def visible_models(key: KeyInfo, names: Collection[str]) -> list[str]:
    """Those of the models and aliases that a key may ask for."""
    return [name for name in names if matches_any(name, key.models)]


def _refusal(what: str, allowed: Sequence[str], kind: str, param: str | None) -> NotAllowedError:
    return NotAllowedError(
        f"This API key may not {what}; it may: {', '.join(allowed)}",
        param=param,
        code=f"{kind}_not_allowed",
    )
