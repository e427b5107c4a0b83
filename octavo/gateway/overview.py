"""What an administrator sees of a gateway: names, tiers, backends, and how these are. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.gateway.config_routes import target_of
from octavo.gateway.model import Target

if TYPE_CHECKING:
    from octavo.gateway.config_routes import TierSection, Way
    from octavo.gateway.health import BackendState
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
        "rules": [{"name": rule.name, **_way(rule)} for rule in config.rules],
        "tiers": {name: _tier(parts, tier) for name, tier in config.tiers.items()},
        "backends": {
            name: {
                "kind": state.upstream.backend.kind,
                "models": list(state.upstream.backend.models),
                "is_well": state.is_well,
                "problem": state.problem,
                "breaker": health.breaker_state(name),
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
    }


def _tier(parts: Parts, tier: TierSection) -> dict[str, Any]:
    targets = []
    for spec in (*tier.targets, *tier.fallbacks):
        section = target_of(spec)
        target = Target(section.backend, section.model)
        targets.append(
            {
                "backend": target.backend,
                "model": target.model,
                "is_usable": parts.dispatcher.health.is_usable(target),
            }
        )
    return {"judge": tier.judge, "targets": targets}


def _load(state: BackendState) -> dict[str, Any]:
    told = state.told is not None
    return {
        "num_requests": state.num_ours,
        "num_running": state.num_running if told else None,
        "num_waiting": state.num_waiting if told else None,
        "kv_usage": state.kv_usage if told else None,
        "num_connections": state.upstream.num_open,
    }
