"""Where a call goes: rules, names, canaries, shadows, and the order of equal targets.

Decides from values alone: the same configuration, calls, health and loads give the same plans.
Sends nothing; whether an answer is good enough and what comes after a failure is decided elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from octavo.errors import ModelNotServedError
from octavo.gateway.affinity import (
    PrefixMemory,
    anchor,
    capacities,
    draw,
    rank,
    session_key,
)
from octavo.gateway.conditions import Condition, may_ask
from octavo.gateway.config_routes import Canary, TierSection, Way, target_of
from octavo.gateway.key_scopes import visible_models
from octavo.gateway.model import Plan, Target, Tier
from octavo.gateway.patterns import is_literal
from octavo.ledger.record import to_nano

if TYPE_CHECKING:
    from octavo.gateway.config import GatewayConfig
    from octavo.gateway.model import Call, KeyInfo
    from octavo.gateway.seams import HealthView, LoadView


class _Tier(msgspec.Struct, frozen=True):
    """A tier, ready to be ordered."""

    name: str
    section: TierSection
    weights: dict[Target, float]
    fallbacks: tuple[Target, ...]


class _Way(msgspec.Struct, frozen=True):
    """A way with its values looked up.

    Attributes:
        salt: tells its draws from other ways'.
        canaries: what each takes of the requests that those before it have left, from 0 to 1.
    """

    rule: str
    salt: str
    tiers: tuple[str, ...]
    canaries: tuple[tuple[float, Canary], ...]
    shadows: tuple[tuple[float, Target], ...]
    deadline_s: float
    max_cost_nano: int | None


class Router:
    """Makes plans by one configuration. Remembers which prompts went where, see `affinity`.

    Args:
        config: checked.
        memory: of the configuration before; None: nothing is remembered yet.
    """

    def __init__(self, config: GatewayConfig, memory: PrefixMemory | None = None) -> None:
        routing = config.routing
        self.memory = PrefixMemory(0) if memory is None else memory
        self.memory.resize(routing.memory_blocks)
        self._routing = routing
        self._tiers = {name: _tier(name, section) for name, section in config.tiers.items()}
        self._ways = {
            name: self._way(f"model:{name}", alias) for name, alias in config.models.items()
        }
        if routing.serve_backend_models:
            self._add_backend_models(config)
        self._known = frozenset(self._ways)
        self._rules = [
            (Condition(rule.when, self._known), self._way(rule.name, rule)) for rule in config.rules
        ]
        self._named = [
            (rule.when, frozenset(filter(is_literal, rule.when.models or ())))
            for rule in config.rules
        ]
        self.model_names = sorted(self._known.union(*(names for _, names in self._named)))
        """Names that callers may ask for, as far as they are no patterns."""

    def names_for(self, key: KeyInfo) -> list[str]:
        """Those of `model_names` that a caller can be served: a name that only rules have is there
        for those whom such a rule takes.
        """
        trust_tenant = self._routing.trust_tenant
        names = set(self._known)
        for when, named in self._named:
            if may_ask(key, when, trust_tenant=trust_tenant):
                names |= named
        return visible_models(key, sorted(names))

    def route(self, call: Call, health: HealthView, load: LoadView) -> Plan:
        """Where a call goes. A target that is not usable now is left out, unless none is.

        Raises:
            ModelNotServedError: no rule takes the call, and nothing has the model's name.
        """
        way = self._find(call)
        tiers, rule = way.tiers, way.rule
        for share, canary in way.canaries:
            if draw("canary", way.salt, canary.name, _unit(call, canary)) < share:
                tiers, rule = canary.tiers, f"{way.rule}/{canary.name}"
                break
        return Plan(
            rule=rule,
            tiers=tuple(self._order(self._tiers[name], call, health, load) for name in tiers),
            shadows=tuple(
                target
                for share, target in way.shadows
                if draw("shadow", way.salt, target.backend, target.model, call.request_id) < share
            ),
            deadline_s=way.deadline_s,
            max_cost_nano=way.max_cost_nano,
        )

    def _find(self, call: Call) -> _Way:
        for condition, way in self._rules:
            if condition.holds(call):
                return way
        found = self._ways.get(call.model)
        if found is None:
            raise ModelNotServedError(
                f"The model {call.model!r} does not exist here: /v1/models has those that do",
                param="model",
                code="model_not_found",
            )
        return found

    def _order(self, tier: _Tier, call: Call, health: HealthView, load: LoadView) -> Tier:
        """A tier with its targets in the order in which they are to be tried."""
        usable = {t: weight for t, weight in tier.weights.items() if health.is_usable(t)}
        fallbacks = [target for target in tier.fallbacks if health.is_usable(target)]
        if not usable and not fallbacks:
            usable, fallbacks = tier.weights, list(tier.fallbacks)
        ordered = list(usable)
        if len(usable) > 1:
            ordered = self._ordered(tier, call, usable, load)
        elif ordered and len(tier.weights) > 1:
            self.memory.add(call.block_hashes, ordered[0])
        return Tier(name=tier.name, targets=(*ordered, *fallbacks), judge=tier.section.judge)

    def _ordered(
        self, tier: _Tier, call: Call, weights: dict[Target, float], load: LoadView
    ) -> list[Target]:
        section = tier.section
        if section.balance == "order":
            return list(weights)
        if section.balance == "random":
            return rank(call.request_id.encode(), weights)
        loads = {target: load.load(target) for target in weights}
        if section.balance == "load":
            ranked = rank(call.request_id.encode(), weights)
            return sorted(ranked, key=lambda target: loads[target] / weights[target])
        is_sticky = section.sticky_sessions and call.session_id
        session = session_key(call.tenant, call.session_id) if is_sticky else b""
        preferred = self._preferred(call, session, weights, loads)
        ranked = rank(session or anchor(call.block_hashes) or call.request_id.encode(), weights)
        if not preferred:
            ranked = self._evened(ranked, call, weights, section.load_bound)
        ordered = [*preferred, *(target for target in ranked if target not in preferred)]
        room = capacities(loads, weights, bound=section.load_bound, least=section.min_load)
        first = next(target for target in ordered if loads[target] < room[target])
        ordered.remove(first)
        self.memory.add(call.block_hashes, first)
        if session:
            self.memory.add((session,), first)
        return [first, *ordered]

    def _preferred(
        self, call: Call, session: bytes, weights: dict[Target, float], loads: dict[Target, float]
    ) -> list[Target]:
        """Targets that have had the session, or else most of the prompt; the least busy first."""
        if session:
            _, found = self.memory.find((session,), weights)
            if found:
                return found[:1]
        depth, found = self.memory.find(call.block_hashes, weights)
        if depth < self._routing.min_shared * len(call.block_hashes):
            return []
        return sorted(found, key=lambda target: loads[target] / weights[target])

    def _evened(
        self, ranked: list[Target], call: Call, weights: dict[Target, float], bound: float
    ) -> list[Target]:
        """The same, with those last whose caches are much fuller than the others', as far as is
        remembered.
        """
        held = {target: float(self.memory.num_held(target)) for target in weights}
        room = capacities(held, weights, bound=bound, least=len(call.block_hashes))
        return sorted(ranked, key=lambda target: held[target] >= room[target])

    def _way(self, rule: str, way: Way) -> _Way:
        left, canaries = 100.0, []
        for canary in way.canaries:
            percent = float(canary.percent)
            canaries.append((percent / left if left > 0 else 0.0, canary))
            left -= percent
        return _Way(
            rule=rule,
            salt=rule,
            tiers=way.tiers,
            canaries=tuple(canaries),
            shadows=tuple(
                (float(shadow.percent) / 100, target_of(shadow.target).target)
                for shadow in way.shadows
            ),
            deadline_s=self._routing.deadline_s if way.deadline_s is None else way.deadline_s,
            max_cost_nano=None if way.max_cost is None else to_nano(way.max_cost, "max_cost"),
        )

    def _add_backend_models(self, config: GatewayConfig) -> None:
        """A tier for each model's name that some backend has and no caller's name covers."""
        backends: dict[str, list[str]] = {}
        for name, backend in config.backends.items():
            for model in backend.models:
                backends.setdefault(model, []).append(f"{name}/{model}")
        for model, targets in backends.items():
            if model not in self._ways:
                tier = f"backend-model:{model}"
                self._tiers[tier] = _tier(model, TierSection(targets=tuple(targets)))
                self._ways[model] = self._way(tier, Way(tiers=(tier,)))


def route(call: Call, config: GatewayConfig, health: HealthView, load: LoadView) -> Plan:
    """Where a call goes, by a configuration alone and with nothing remembered; see `Router`.

    Raises:
        ModelNotServedError: no rule takes the call, and nothing has the model's name.
    """
    return Router(config).route(call, health, load)


def _tier(name: str, section: TierSection) -> _Tier:
    specs = [target_of(spec) for spec in section.targets]
    return _Tier(
        name,
        section,
        {spec.target: spec.weight for spec in specs},
        tuple(target_of(spec).target for spec in section.fallbacks),
    )


def _unit(call: Call, canary: Canary) -> str:
    """What a canary's share is counted by."""
    unit = {
        "request": "",
        "session": call.session_id and f"{call.tenant}\0{call.session_id}",
        "key": call.key.key_id,
        "tenant": call.tenant,
    }[canary.by]
    return unit or call.request_id
