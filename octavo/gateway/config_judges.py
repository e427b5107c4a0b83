"""The sections `judges` and `escalation` of the gateway's configuration: when an answer is good
enough, and what happens where it is not. Values only; the kinds that judge by themselves are
described in `config_judge_rules` and `config_judge_scores`.

A judge is named, has a `kind`, and is used by tiers (`judge: NAME`) and by other judges
(`kind: all` and `kind: any`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from octavo.gateway.config_judge_base import BaseJudge, check_seconds
from octavo.gateway.config_judge_rules import (
    LengthJudge,
    LogprobJudge,
    RefusalJudge,
    RegexJudge,
    SchemaJudge,
)
from octavo.gateway.config_judge_scores import EvalJudge, ModelJudge, ServiceJudge

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping


class _Combination(BaseJudge, frozen=True, kw_only=True):
    """What judges of judges have."""

    of: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.of:
            raise ValueError("of must name at least one judge")


class AllJudge(_Combination, frozen=True, kw_only=True, tag_field="kind", tag="all"):
    """Passes where all of its judges do; they are asked in order until one does not.

    Attributes:
        hold: counts for all of them, over their own.
        on_error: as for every judge; those that fail follow their own.
        of: names of judges, cheap ones first.
    """


class AnyJudge(_Combination, frozen=True, kw_only=True, tag_field="kind", tag="any"):
    """Passes where one of its judges does; they are asked in order until one does.

    Attributes:
        hold: counts for all of them, over their own.
        on_error: as for every judge; those that fail follow their own.
        of: names of judges, cheap ones first.
    """


JudgeSection = (
    LogprobJudge
    | SchemaJudge
    | RegexJudge
    | RefusalJudge
    | LengthJudge
    | ModelJudge
    | EvalJudge
    | ServiceJudge
    | AllJudge
    | AnyJudge
)
"""A value of the section `judges`."""


class EscalationSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What happens around judgements.

    Attributes:
        if_next_fails: the answer was not good enough, and no better one can be had: the next tier
            fails, refuses, is too dear or too late. `answer`: the client gets the best there is,
            with the header `x-octavo-escalation: failed`; `error`: he gets an error.
        if_tier_fails: no target of a tier answers. `next`: the next tier is asked; `error`: the
            client gets the error.
        max_held_bytes: of one answer; a longer one is passed on without a judgement.
        max_shadows: shadow requests at a time; more are left out.
        shadow_deadline: seconds for one.
    """

    if_next_fails: Literal["answer", "error"] = "answer"
    if_tier_fails: Literal["next", "error"] = "next"
    max_held_bytes: int = 16 << 20
    max_shadows: int = 16
    shadow_deadline: float = 120.0

    def __post_init__(self) -> None:
        if self.max_held_bytes < 1024:
            raise ValueError("max_held_bytes must be at least 1024")
        if self.max_shadows < 0:
            raise ValueError("max_shadows must be at least 0")
        check_seconds("shadow_deadline", self.shadow_deadline)


def judge_problems(
    judges: Mapping[str, JudgeSection], tiers: Collection[str]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """What is wrong between the judges, and between them and the tiers.

    Yields:
        where, from the section `judges` on (`("strict", "of", 1)`), and what to do about it.
    """
    for name, judge in judges.items():
        if isinstance(judge, ModelJudge) and judge.tier not in tiers:
            yield (name, "tier"), f"there is no tier named {judge.tier!r}"
        if not isinstance(judge, AllJudge | AnyJudge):
            continue
        for index, part in enumerate(judge.of):
            if part not in judges:
                yield (name, "of", index), f"there is no judge named {part!r}"
            elif name in _reached(judges, part):
                yield (name, "of", index), f"the judge {part!r} rests on {name!r} itself"


def _reached(judges: Mapping[str, JudgeSection], first: str) -> set[str]:
    """Names of all judges that one rests on, itself included."""
    seen: set[str] = set()
    to_see = [first]
    while to_see:
        name = to_see.pop()
        if name in seen:
            continue
        seen.add(name)
        judge = judges.get(name)
        if isinstance(judge, AllJudge | AnyJudge):
            to_see += judge.of
    return seen
