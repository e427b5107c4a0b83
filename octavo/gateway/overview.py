"""What an administrator sees of a gateway: names, tiers, backends, and how these are. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from octavo.gateway.admin_ledger import amount
from octavo.gateway.config_routes import target_of
from octavo.gateway.model import DevicePrice, Target

if TYPE_CHECKING:
    from octavo.gateway.config_routes import TierSection, Way, When
    from octavo.gateway.health import BackendState
    from octavo.gateway.model import Price
    from octavo.gateway.parts import Parts


def overview(parts: Parts) -> dict[str, Any]:
    """Models and rules in the order in which they are tried, tiers, and backends with their health.
    No address, key or header of a backend is among it.
    """
    config, health = parts.config, parts.dispatcher.health
    return {
        "models": {
            name: _way(config.models[name]) if name in config.models else {"tiers": [name]}
            for name in parts.router.model_names
        },
        "rules": [
            {"name": rule.name, "when": _given(rule.when), **_way(rule)} for rule in config.rules
        ],
        "tiers": {name: _tier(parts, tier) for name, tier in config.tiers.items()},
        "backends": {
            name: {
                "kind": state.upstream.backend.kind,
                "models": list(state.upstream.backend.models),
                "is_well": state.is_well,
                "problem": state.problem,
                "breaker": health.breaker_state(name),
                "num_opened": state.breaker.num_opened,
                "is_metered": state.upstream.backend.metered,
                **_load(state),
            }
            for name, state in health.states.items()
        },
    }


def _way(way: Way) -> dict[str, Any]:
    return {
        "tiers": list(way.tiers),
        "canaries": [
            {"name": canary.name, "percent": float(canary.percent), "tiers": list(canary.tiers)}
            for canary in way.canaries
        ],
        "num_shadows": len(way.shadows),
        "deadline_s": way.deadline_s,
        "max_cost": None if way.max_cost is None else str(way.max_cost),
    }


def _given(when: When) -> dict[str, Any]:
    """What a rule asks for, without what it leaves open."""
    fields = msgspec.structs.asdict(when)
    return {name: value for name, value in fields.items() if value not in (None, {})}


def _tier(parts: Parts, tier: TierSection) -> dict[str, Any]:
    targets = []
    for spec in (*tier.targets, *tier.fallbacks):
        section = target_of(spec)
        shown = target_view(parts, section.target)
        targets.append({**shown, "weight": section.weight, "is_fallback": spec in tier.fallbacks})
    return {"judge": tier.judge, "balance": tier.balance, "targets": targets}


def target_view(parts: Parts, target: Target) -> dict[str, Any]:
    """One target, as it is now."""
    health = parts.dispatcher.health
    return {
        "backend": target.backend,
        "model": target.model,
        "is_usable": health.is_usable(target),
        "load": health.load(target),
        "price": _price(parts.price(target.backend, target.model)),
    }


def _price(price: Price | None) -> dict[str, str] | None:
    """What answers cost: by tokens, for a million of them, or by the device's hour."""
    if price is None:
        return None
    if isinstance(price, DevicePrice):
        return {"device_hour": amount(price.hourly_nano), "currency": price.currency}
    each = {"input": price.input, "output": price.output, "cached_input": price.cached_input}
    scale = 1_000_000 // price.per
    view = {name: amount(nano * scale) for name, nano in each.items() if nano is not None}
    return {**view, "per_request": amount(price.request), "currency": price.currency}


def _load(state: BackendState) -> dict[str, Any]:
    told = state.told is not None
    return {
        "num_requests": state.num_ours,
        "num_running": state.num_running if told else None,
        "num_waiting": state.num_waiting if told else None,
        "kv_usage": state.kv_usage if told else None,
        "num_connections": state.upstream.num_open,
    }
