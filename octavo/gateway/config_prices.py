"""Prices that budgets need: a hard budget lets nothing through whose cost is not known, so that a
model without a price is one that nobody who has such a budget can ever ask for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.gateway.config_backends import Backend
from octavo.gateway.config_budgets import Budget
from octavo.gateway.config_routes import Alias, Rule, TierSection, Way, target_of
from octavo.gateway.patterns import is_literal, matcher

if TYPE_CHECKING:
    from collections.abc import Iterator

    from octavo.gateway.config_lines import Lines


def check_prices(lines: Lines) -> None:
    """Report models without a price that a hard budget holds for, as far as that is plain from the
    names that lead to them.
    """
    budgets = {
        path.removeprefix("budgets.rules."): budget
        for path, budget in lines.found(Budget)
        if budget.kind == "hard"
    }
    if not budgets:
        return
    names = _names(lines)
    for path, backend in lines.found(Backend):
        for model, info in backend.models.items():
            if info.price is not None:
                continue
            asked = names.get((path.removeprefix("backends."), model), set())
            for name, budget in budgets.items():
                held = matcher(budget.models or ("*",))
                if any(is_literal(one) and held.match(one) for one in asked):
                    line = lines.at(f"budgets.rules.{name}")[0]
                    lines.report(
                        f"{path}.models.{model}",
                        f"needs a price: the budget {name!r} in line {line} lets nothing through "
                        "that has none",
                    )
                    break


def _names(lines: Lines) -> dict[tuple[str, str], set[str]]:
    """Per backend and model, the names by which callers come there; those of rules are patterns."""
    found: dict[tuple[str, str], set[str]] = {}
    routing = lines.get("routing")
    known = set(lines.names("models"))
    if routing is None or routing.serve_backend_models:
        for path, backend in lines.found(Backend):
            for model in backend.models:
                known.add(model)
                if model not in lines.names("models"):
                    found.setdefault((path.removeprefix("backends."), model), set()).add(model)
    for path, way in lines.found(Way):
        asked = {path.removeprefix("models.")} if isinstance(way, Alias) else set()
        if isinstance(way, Rule):
            asked = known if way.when.models is None else set(way.when.models)
        for target in _targets(lines, way):
            found.setdefault(target, set()).update(asked)
    return found


def _targets(lines: Lines, way: Way) -> Iterator[tuple[str, str]]:
    """Where a way leads; what does not exist is told of elsewhere."""
    names = {*way.tiers, *(name for canary in way.canaries for name in canary.tiers)}
    specs = [shadow.target for shadow in way.shadows]
    for name in names:
        tier = lines.get(f"tiers.{name}")
        if isinstance(tier, TierSection):
            specs += [*tier.targets, *tier.fallbacks]
    for spec in specs:
        if not isinstance(spec, str) or "/" in spec:
            target = target_of(spec)
            yield target.backend, target.model
