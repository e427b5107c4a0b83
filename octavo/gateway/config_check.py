"""What must be right between the sections of a configuration: names that are meant to be somewhere
else, rules that nothing reaches, prices that a budget needs.

Looks at what could be read, so that one error does not hide others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.errors import ConfigError
from octavo.gateway.config_backends import Backend, check_backends
from octavo.gateway.config_judges import judge_problems
from octavo.gateway.config_keys import InlineKey
from octavo.gateway.config_prices import check_prices
from octavo.gateway.config_routes import Rule, Shadow, TierSection, Way, target_of
from octavo.gateway.config_values import did_you_mean
from octavo.gateway.model import JUDGE_TIER, SHADOW_TIER
from octavo.gateway.patterns import covers

if TYPE_CHECKING:
    from collections.abc import Iterable

    from octavo.gateway.config_lines import Lines
    from octavo.gateway.config_routes import TargetSpec


def check(lines: Lines) -> None:
    """Report what is wrong between the sections."""
    _check_targets(lines)
    _check_ways(lines)
    _check_rules(lines)
    _check_judges(lines)
    _check_keys(lines)
    _check_currency(lines)
    check_prices(lines)
    _check_stores(lines)


def _unknown(lines: Lines, path: str, what: str, name: str, known: Iterable[str]) -> None:
    """Report a name that is nowhere."""
    lines.report(path, f"there is no {what} named {name[:100]!r}{did_you_mean(name, known)}")


def _check_names(lines: Lines, path: str, what: str, names: Iterable[str], section: str) -> None:
    """Report those of a list that a section does not have."""
    known = lines.names(section)
    for index, name in enumerate(names):
        if name not in known:
            _unknown(lines, f"{path}[{index}]", f"{what} in `{section}`", name, known)


def _check_target(lines: Lines, path: str, spec: TargetSpec) -> None:
    try:
        target = target_of(spec)
    except ValueError as error:
        lines.report(path, str(error))
        return
    is_long = not isinstance(spec, str)
    backends = lines.names("backends")
    if target.backend not in backends:
        where = f"{path}.backend" if is_long else path
        _unknown(lines, where, "backend in `backends`", target.backend, backends)
        return
    models = lines.names(f"backends.{target.backend}.models")
    if models and target.model not in models:
        where = f"{path}.model" if is_long else path
        _unknown(lines, where, f"model at backend {target.backend}", target.model, models)


def _check_targets(lines: Lines) -> None:
    for path, tier in lines.found(TierSection):
        if path in (f"tiers.{SHADOW_TIER}", f"tiers.{JUDGE_TIER}"):
            lines.report(path, "this name is the gateway's own, for records: take another")
        seen: set[tuple[str, str]] = set()
        for field in ("targets", "fallbacks"):
            for index, spec in enumerate(getattr(tier, field)):
                where = f"{path}.{field}[{index}]"
                _check_target(lines, where, spec)
                if isinstance(spec, str) and "/" not in spec:
                    continue
                target = target_of(spec)
                if (target.backend, target.model) in seen:
                    lines.report(where, "the tier has this target twice")
                seen.add((target.backend, target.model))
        judges = lines.names("judges")
        if tier.judge and tier.judge not in judges:
            _unknown(lines, f"{path}.judge", "judge in `judges`", tier.judge, judges)
    for path, shadow in lines.found(Shadow):
        _check_target(lines, f"{path}.target", shadow.target)


def _check_ways(lines: Lines) -> None:
    for path, way in lines.found(Way):
        _check_names(lines, f"{path}.tiers", "tier", way.tiers, "tiers")
        for index, canary in enumerate(way.canaries):
            where = f"{path}.canaries[{index}].tiers"
            _check_names(lines, where, "tier", canary.tiers, "tiers")


def _check_rules(lines: Lines) -> None:
    known = {*lines.names("models")}
    for path, _ in lines.found(Backend):
        known.update(lines.names(f"{path}.models"))
    before: list[tuple[str, Rule]] = []
    for path, rule in lines.found(Rule):
        for earlier_path, earlier in before:
            if earlier.name == rule.name:
                lines.report(f"{path}.name", f"{earlier_path} has the name {rule.name!r} already")
            if covers(earlier.when, rule.when, known):
                line = lines.at(earlier_path)[0]
                lines.report(
                    path,
                    f"nothing reaches this rule: {earlier.name!r} in line {line} takes all that it "
                    "is for; put it before that one",
                )
                break
        before.append((path, rule))


def _check_judges(lines: Lines) -> None:
    names = lines.names("judges")
    judges = {name: lines.get(f"judges.{name}") for name in names}
    if all(judge is not None for judge in judges.values()):
        for steps, message in judge_problems(judges, lines.names("tiers")):
            where = "".join(f"[{s}]" if isinstance(s, int) else f".{s}" for s in steps)
            lines.report(f"judges{where}", message)


def _check_keys(lines: Lines) -> None:
    seen: dict[str, str] = {}
    for path, key in lines.found(InlineKey):
        if key.id in seen:
            lines.report(f"{path}.id", f"{seen[key.id]} has the id {key.id!r} already")
        seen.setdefault(key.id, path)
        _check_names(lines, f"{path}.limits", "limit", key.limits, "limits.rules")
        _check_names(lines, f"{path}.budgets", "budget", key.budgets, "budgets.rules")


def _check_currency(lines: Lines) -> None:
    backends = {path.removeprefix("backends."): backend for path, backend in lines.found(Backend)}
    try:
        check_backends(backends)
    except ConfigError as error:
        path, _, rest = str(error).partition(" ")
        lines.report(path, rest)


def _check_stores(lines: Lines) -> None:
    """What limits and budgets are counted in must be there."""
    for section in ("limits", "budgets"):
        found = lines.get(section)
        if found is None:
            continue
        if found.store == "redis" and "redis_url" not in lines.names(""):
            lines.report(f"{section}.store", "needs `redis_url`, at the top: redis://host:6379/0")
        if found.store == "ledger" and "url" not in lines.names("ledger"):
            lines.report(f"{section}.store", "needs `ledger.url`: sqlite:///path/ledger.db")
