"""What would become of a request: read, checked and routed as a real one, and not sent.

Nothing is counted, reserved or remembered by it: neither limits nor the memory of which replica has
had which prompt change.
"""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from msgspec import Meta

from octavo.errors import AuthenticationError, InvalidRequestError
from octavo.gateway.admin_ledger import amount
from octavo.gateway.affinity import PrefixMemory
from octavo.gateway.ceilings import bounded
from octavo.gateway.config_keys import MAX_KEY_LEN
from octavo.gateway.key_scopes import check_scopes
from octavo.gateway.model import ANYBODY, PATHS, Call, Route
from octavo.gateway.overview import target_view
from octavo.gateway.policy import Router
from octavo.gateway.reading import read_call

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from octavo.gateway.model import KeyInfo, Target
    from octavo.gateway.parts import Parts

_PATHS = {route: path for path, route in PATHS.items()}


class ExplainRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A request to explain.

    Attributes:
        body: as it would be sent.
        route: which one it would be sent to.
        key: the API key that it would bring; left out: as where none is asked for.
        headers: that it would bring, beside the key.
        request_id: canaries and shadows are drawn by it; left out: a new one.
    """

    body: dict[str, Any]
    route: Route = "chat"
    key: Annotated[str, Meta(max_length=MAX_KEY_LEN)] = ""
    headers: Annotated[dict[str, str], Meta(max_length=64)] = {}
    request_id: Annotated[str, Meta(max_length=128)] = ""


class _Recall(PrefixMemory):
    """Another memory, to be read only."""

    def __init__(self, memory: PrefixMemory) -> None:
        super().__init__(0)
        self._memory = memory

    def find(
        self, hashes: Sequence[bytes], targets: Collection[Target]
    ) -> tuple[int, list[Target]]:
        """See `PrefixMemory.find`."""
        return self._memory.find(hashes, targets)

    def num_held(self, target: Target) -> int:
        """See `PrefixMemory.num_held`."""
        return self._memory.num_held(target)


async def explain(parts: Parts, request: ExplainRequest) -> dict[str, object]:
    """Where a request would go, and the most that it could cost.

    Raises:
        RequestError: the gateway would refuse it so; its limits and budgets are not asked.
    """
    call = _read(parts, request, await _key(parts, request.key))
    health = parts.dispatcher.health
    router = Router(parts.config, _Recall(parts.router.memory))
    plan = router.route(call, health, health)
    worst = parts.escalation.worst_case(call, plan)

    def shown(targets: Sequence[Target]) -> list[dict[str, object]]:
        return [target_view(parts, target) for target in targets]

    return {
        "request_id": call.request_id,
        "call": _call_view(call),
        "rule": plan.rule,
        "tiers": [
            {"name": tier.name, "judge": tier.judge, "targets": shown(tier.targets)}
            for tier in plan.tiers
        ],
        "shadows": shown(plan.shadows),
        "deadline_s": plan.deadline_s,
        "max_cost": None if plan.max_cost_nano is None else amount(plan.max_cost_nano),
        "worst_case": worst
        and {
            "cost": amount(worst.cost_nano),
            "num_tokens": worst.num_tokens,
            "device_s": worst.device_ns / 1e9,
        },
    }


async def _key(parts: Parts, key: str) -> KeyInfo:
    if not key:
        return ANYBODY
    try:
        return await parts.keys.find(key.encode())
    except AuthenticationError as error:
        # A 401 would say that the admin key is wrong
        raise InvalidRequestError(error.message, param="key", code=error.code) from None


def _read(parts: Parts, request: ExplainRequest, key: KeyInfo) -> Call:
    """The request as a call, as far as it gets before limits."""
    try:
        headers = [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in request.headers.items()
        ]
    except UnicodeEncodeError:
        raise InvalidRequestError(
            "headers have characters that no header carries", param="headers"
        ) from None
    body = msgspec.json.encode(request.body)
    call = read_call(
        body,
        headers,
        route=request.route,
        path=_PATHS[request.route],
        request_id=request.request_id or f"explain-{uuid.uuid4().hex}",
        arrived=time.perf_counter(),
        key=key,
        settings=parts.settings,
    )
    check_scopes(call)
    return bounded(call, body, parts.config.server.default_max_tokens)[0]


def _call_view(call: Call) -> dict[str, object]:
    """What was read of the request, its text left out."""
    names = (
        "route", "model", "stream", "feature", "tenant", "session_id", "tags", "language",
        "num_prompt_chars", "num_prompt_tokens", "max_tokens", "num_choices", "has_tools",
        "has_schema", "has_images",
    )  # fmt: skip
    return {"key": call.key.key_id, "team": call.key.team} | {n: getattr(call, n) for n in names}
