"""Judges as the configuration names them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.gateway import config_judge_rules as rules
from octavo.gateway import config_judge_scores as scores
from octavo.gateway import config_judges as config
from octavo.gateway.judge import Combination, Guarded
from octavo.gateway.judge_model import ModelRule
from octavo.gateway.judge_rules import LengthRule, LogprobRule, RefusalRule
from octavo.gateway.judge_schema import RegexRule, SchemaRule
from octavo.gateway.judge_score import EvalRule, ServiceRule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from octavo.gateway.judge import Rule
    from octavo.gateway.judge_process import JudgeProcesses
    from octavo.gateway.model import Tier
    from octavo.gateway.seams import Judge


def build_judges(
    sections: Mapping[str, config.JudgeSection],
    *,
    tier_of: Callable[[str], Tier],
    processes: JudgeProcesses,
) -> dict[str, Judge]:
    """The judges by name. They keep to `seams.Judge`: they never raise, and end in time.

    Args:
        sections: without problems (`config_judges.judge_problems`).
        tier_of: tier by name, for models that grade.
        processes: where schemas and patterns are run.

    Raises:
        ConfigError: a function that is to give scores cannot be had.
    """
    made: dict[str, Judge] = {}

    def judge_of(name: str) -> Judge:
        if name not in made:
            made[name] = _build(name, sections[name], judge_of, tier_of, processes)
        return made[name]

    for name in sections:
        judge_of(name)
    return made


def _build(
    name: str,
    section: config.JudgeSection,
    judge_of: Callable[[str], Judge],
    tier_of: Callable[[str], Tier],
    processes: JudgeProcesses,
) -> Judge:
    needs_logprobs = False
    time_limit: float | None = None
    rule: Rule
    match section:
        case rules.LogprobJudge():
            rule, needs_logprobs = LogprobRule(section), True
        case rules.SchemaJudge():  # the processes keep the time of these two
            rule = SchemaRule(section, processes)
        case rules.RegexJudge():
            rule = RegexRule(section, processes)
        case rules.RefusalJudge():
            rule = RefusalRule(section)
        case rules.LengthJudge():
            rule = LengthRule(section)
        case scores.ModelJudge(time_limit=time_limit):
            rule = ModelRule(section, tier_of(section.tier), processes)
        case scores.EvalJudge(time_limit=time_limit):
            rule = EvalRule(section)
        case scores.ServiceJudge(time_limit=time_limit):
            rule = ServiceRule(section)
        case config.AllJudge() | config.AnyJudge():
            parts = [judge_of(part) for part in section.of]
            rule = Combination(parts, needs_all=isinstance(section, config.AllJudge))
            needs_logprobs = any(part.needs_logprobs for part in parts)
    return Guarded(
        name,
        rule,
        on_error=section.on_error,
        holds=section.hold == "whole",
        needs_logprobs=needs_logprobs,
        time_limit=time_limit,
    )
