"""The sections `judges` and `escalation` of the gateway's configuration: when an answer is good
enough, and what happens where it is not. Values only.

A judge is named, has a `kind`, and is used by tiers (`judge: NAME`) and by other judges
(`kind: all` and `kind: any`).
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import msgspec

from octavo.gateway.backend_url import is_link_local
from octavo.gateway.judge_defaults import DEFAULT_PROMPT, DEFAULT_REFUSALS, DEFAULT_SCORE
from octavo.gateway.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

OnError = Literal["pass", "escalate"]
Hold = Literal["whole", "none"]

MAX_SECONDS = 600.0
MAX_PATTERN_CHARS = 4096


class _Judge(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all judges have."""

    hold: Hold = "whole"
    on_error: OnError = "escalate"


def _check_pattern(where: str, pattern: str) -> None:
    if len(pattern) > MAX_PATTERN_CHARS:
        raise ValueError(f"{where} must have at most {MAX_PATTERN_CHARS} characters")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{where} is no regular expression: {error}") from None


def _check_seconds(where: str, value: float) -> None:
    if not 0 < value <= MAX_SECONDS:
        raise ValueError(f"{where} must be above 0 and at most {MAX_SECONDS:.0f} seconds")


def _check_finite(where: str, value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{where} must be a finite number")


class LogprobJudge(_Judge, frozen=True, kw_only=True, tag_field="kind", tag="logprob"):
    """How sure the model was: log-probabilities (natural) of the tokens of its answer, without its
    reasoning. The gateway asks the backend for them, and takes them out of the answer again where
    the client had not. Anthropic's route has none.

    Attributes:
        hold: `whole`: the answer is held back until it is judged. `none`: it is passed on as it
            comes, judged afterwards, and the judgement only goes on record.
        on_error: what a judge that fails comes to, here an answer without log-probabilities.
        mean: passes where the tokens' mean is at least this; left out: not looked at.
        minimum: passes where the least probable token has at least this; left out: not looked at.
    """

    mean: float | None = None
    minimum: float | None = None

    def __post_init__(self) -> None:
        if self.mean is None and self.minimum is None:
            raise ValueError("a judge of kind logprob needs `mean` or `minimum`")
        for name in ("mean", "minimum"):
            value = getattr(self, name)
            _check_finite(name, value)
            if value is not None and value > 0:
                raise ValueError(f"{name} must not be above 0: it is a log-probability")


class SchemaJudge(_Judge, frozen=True, kw_only=True, tag_field="kind", tag="json_schema"):
    """Whether the answer is JSON that fits a schema, and calls of tools fit theirs. Checked in a
    process of its own, which is ended where it takes too long: schemas come from clients.

    Attributes:
        hold: as for every judge: `whole` or `none`.
        on_error: what a schema comes to that cannot be read or takes too long.
        schema: left out: the one that the request itself asks for; requests that ask for none pass.
        calls: whether the arguments of calls are checked by the tools' schemas.
        time_limit: seconds for one answer.
    """

    schema: dict[str, Any] | None = None
    calls: bool = True
    time_limit: float = 1.0

    def __post_init__(self) -> None:
        _check_seconds("time_limit", self.time_limit)


class RegexJudge(_Judge, frozen=True, kw_only=True, tag_field="kind", tag="regex"):
    """Whether the answer's text has what it must, and nothing that it must not: regular expressions
    (Python's), found anywhere. Searched in a process of its own, which is ended where it takes too
    long.

    Attributes:
        hold: as for every judge: `whole` or `none`.
        on_error: what a search comes to that takes too long.
        must: patterns that must all be found.
        must_not: patterns of which none may be found.
        time_limit: seconds for one answer.
    """

    must: tuple[str, ...] = ()
    must_not: tuple[str, ...] = ()
    time_limit: float = 1.0

    def __post_init__(self) -> None:
        if not self.must and not self.must_not:
            raise ValueError("a judge of kind regex needs `must` or `must_not`")
        for name in ("must", "must_not"):
            for index, pattern in enumerate(getattr(self, name)):
                _check_pattern(f"{name}[{index}]", pattern)
        _check_seconds("time_limit", self.time_limit)


class RefusalJudge(_Judge, frozen=True, kw_only=True, tag_field="kind", tag="refusal"):
    """Whether the model declined: by the answer's own word (`refusal`, `content_filter`), or by
    phrases near its beginning. Case and the shape of apostrophes do not count.

    Attributes:
        hold: as for every judge: `whole` or `none`.
        on_error: as for every judge; this one has nothing that fails.
        phrases: left out: a list of usual ones in English, German, French and Spanish.
        within: characters of the beginning that are searched; an answer that quotes a refusal
            further down is none.
    """

    phrases: tuple[str, ...] = DEFAULT_REFUSALS
    within: int = 300

    def __post_init__(self) -> None:
        if not all(phrase.strip() for phrase in self.phrases):
            raise ValueError("phrases must not be empty: they would be in every answer")
        if self.within < 1:
            raise ValueError("within must be at least 1")


class LengthJudge(_Judge, frozen=True, kw_only=True, tag_field="kind", tag="length"):
    """How long the answer is, and why it ended. An answer that is only calls of tools has no text,
    and passes `min_chars`.

    Attributes:
        hold: as for every judge: `whole` or `none`.
        on_error: as for every judge; this one has nothing that fails.
        min_chars: of the text.
        max_chars: of the text; left out: no bound.
        bad_finish: finish reasons that fail, in the words of chats: `length`, `content_filter`.
    """

    min_chars: int = 1
    max_chars: int | None = None
    bad_finish: tuple[str, ...] = ("length",)

    def __post_init__(self) -> None:
        if self.min_chars < 0:
            raise ValueError("min_chars must be at least 0")
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ValueError("max_chars must not be below min_chars")


class ModelJudge(_Judge, frozen=True, kw_only=True, tag_field="kind", tag="model"):
    """A model that grades. What it costs is an attempt of the call.

    Attributes:
        hold: as for every judge: `whole` or `none`.
        on_error: what a grader comes to that does not answer, or not with a score.
        tier: who grades.
        prompt: with `{prompt}`, the conversation, and `{answer}`; other braces are left as they
            are, and what is put in is not searched again.
        score: regular expression whose first group is the score; the last match counts.
        passes_at: least score that passes.
        max_tokens: of the grader's answer.
        max_chars: of the conversation, and of the answer; the midst of longer ones is left out.
        time_limit: seconds.
    """

    tier: str
    passes_at: float
    prompt: str = DEFAULT_PROMPT
    score: str = DEFAULT_SCORE
    max_tokens: int = 64
    max_chars: int = 24_000
    time_limit: float = 60.0

    def __post_init__(self) -> None:
        if "{answer}" not in self.prompt:
            raise ValueError("prompt must have {answer}: nothing would be judged")
        _check_pattern("score", self.score)
        if re.compile(self.score).groups < 1:
            raise ValueError("score must have a group: (...) around the number")
        _check_finite("passes_at", self.passes_at)
        if self.max_tokens < 1:
            raise ValueError("max_tokens must be at least 1")
        if self.max_chars < 100:
            raise ValueError("max_chars must be at least 100")
        _check_seconds("time_limit", self.time_limit)


class EvalJudge(_Judge, frozen=True, kw_only=True, tag_field="kind", tag="eval"):
    """A score by Python code: `async def name(request: dict, answer: dict) -> float`. It runs in
    the gateway's own process, and must not block it.

    Attributes:
        hold: as for every judge: `whole` or `none`.
        on_error: what code comes to that raises, takes too long, or gives no number.
        function: `module:function`, or the name of an entry point in the group `octavo.judges`.
        passes_at: least score that passes; True counts as 1, False as 0.
        time_limit: seconds.
    """

    function: str
    passes_at: float
    time_limit: float = 10.0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z_][\w.-]*(:[A-Za-z_][\w.]*)?", self.function):
            raise ValueError("function must be `module:function`, or an entry point's name")
        _check_finite("passes_at", self.passes_at)
        _check_seconds("time_limit", self.time_limit)


class ServiceJudge(_Judge, frozen=True, kw_only=True, tag_field="kind", tag="service"):
    """A score by a service: it gets a POST of `{"request_id", "route", "model", "request",
    "answer"}` and answers `{"score": 0.7, "reason": "optional"}`. It sees prompts and answers.

    Attributes:
        hold: as for every judge: `whole` or `none`.
        on_error: what a service comes to that does not answer, or not with a score.
        url: http or https; redirects are not followed.
        headers: sent along: `Authorization: Bearer ${SCORE_KEY}`.
        passes_at: least score that passes.
        time_limit: seconds.
        allow_link_local: its address may be in 169.254.0.0/16 or fe80::/10, where clouds keep their
            machines' credentials.
    """

    url: str
    passes_at: float
    headers: dict[str, Secret] = {}
    time_limit: float = 10.0
    allow_link_local: bool = False

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            is_good = parts.port != 0
        except ValueError:
            is_good = False
        if not is_good or parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("url must be http://host:port/path or https://...")
        if parts.username is not None or parts.password is not None:
            raise ValueError("url must not have a user or password: use headers")
        if not (self.url.isascii() and self.url.isprintable()) or " " in self.url:
            raise ValueError("url must be printable ASCII without spaces")
        if not self.allow_link_local and is_link_local(parts.hostname):
            raise ValueError(
                "url is a link-local address, where clouds keep credentials: "
                "set allow_link_local if the service is there"
            )
        for name in self.headers:
            if not re.fullmatch(r"[A-Za-z0-9-]{1,64}", name):
                raise ValueError(f"headers: {name[:64]!r} is no header's name")
        _check_finite("passes_at", self.passes_at)
        _check_seconds("time_limit", self.time_limit)


class AllJudge(_Judge, frozen=True, kw_only=True, tag_field="kind", tag="all"):
    """Passes where all of its judges do; they are asked in order until one does not.

    Attributes:
        hold: counts for all of them, over their own.
        on_error: as for every judge; those that fail follow their own.
        of: names of judges, cheap ones first.
    """

    of: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.of:
            raise ValueError("of must name at least one judge")


class AnyJudge(_Judge, frozen=True, kw_only=True, tag_field="kind", tag="any"):
    """Passes where one of its judges does; they are asked in order until one does.

    Attributes:
        hold: counts for all of them, over their own.
        on_error: as for every judge; those that fail follow their own.
        of: names of judges, cheap ones first.
    """

    of: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.of:
            raise ValueError("of must name at least one judge")


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
        _check_seconds("shadow_deadline", self.shadow_deadline)


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
