"""Sections of judges that look at the answer alone: at its text, its calls of tools, how it ended,
how sure the model was. They ask nobody, and know nothing of other judges and of tiers.
"""

from __future__ import annotations

from typing import Any

from octavo.gateway.config_judge_base import (
    BaseJudge,
    check_finite,
    check_pattern,
    check_seconds,
)
from octavo.gateway.judge_defaults import DEFAULT_REFUSALS


class LogprobJudge(BaseJudge, frozen=True, kw_only=True, tag_field="kind", tag="logprob"):
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
            check_finite(name, value)
            if value is not None and value > 0:
                raise ValueError(f"{name} must not be above 0: it is a log-probability")


class SchemaJudge(BaseJudge, frozen=True, kw_only=True, tag_field="kind", tag="json_schema"):
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
        check_seconds("time_limit", self.time_limit)


class RegexJudge(BaseJudge, frozen=True, kw_only=True, tag_field="kind", tag="regex"):
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
                check_pattern(f"{name}[{index}]", pattern)
        check_seconds("time_limit", self.time_limit)


class RefusalJudge(BaseJudge, frozen=True, kw_only=True, tag_field="kind", tag="refusal"):
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


class LengthJudge(BaseJudge, frozen=True, kw_only=True, tag_field="kind", tag="length"):
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
