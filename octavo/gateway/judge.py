"""What judges share: verdicts, failures, combinations. Kinds are in `judge_*`."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from octavo.errors import OctavoError
from octavo.gateway.answer_text import AnswerError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from octavo.gateway.config_judge_base import OnError
    from octavo.gateway.model import Call, Tier
    from octavo.gateway.seams import Ask, Judge

logger = logging.getLogger(__name__)

MAX_REASON_CHARS = 300


class Verdict(msgspec.Struct, frozen=True):
    """What a judge says, see `seams.Verdict`."""

    passes: bool
    score: float | None = None
    reason: str = ""


class JudgeError(OctavoError):
    """A judge cannot judge; the message says why."""


class Rule(Protocol):
    """What a kind of judge does; `Guarded` makes a `seams.Judge` of it.

    One that asks models has `asks`, and one that keeps something `aclose`, as `Guarded` has them.
    """

    async def verdict(
        self, call: Call, answer: Mapping[str, Any], *, deadline: float, ask: Ask
    ) -> Verdict:
        """Judge an answer.

        Raises:
            JudgeError: it cannot; so do errors of others (`UpstreamError`, `AnswerError`).
        """
        ...


class Guarded:
    """A judge whose failures are verdicts.

    Args:
        name: in the configuration.
        rule: what it does.
        on_error: what a failure comes to.
        holds, needs_logprobs: see `seams.Judge`.
        time_limit: of one judgement, seconds; None: the call's deadline alone.
    """

    def __init__(
        self,
        name: str,
        rule: Rule,
        *,
        on_error: OnError,
        holds: bool,
        needs_logprobs: bool = False,
        time_limit: float | None = None,
    ) -> None:
        self.name = name
        self.holds = holds
        self.needs_logprobs = needs_logprobs
        self._rule = rule
        self._passes_on_error = on_error == "pass"
        self._time_limit = time_limit

    async def judge(
        self, call: Call, answer: Mapping[str, Any], *, deadline: float, ask: Ask
    ) -> Verdict:
        """See `seams.Judge.judge`."""
        now = time.perf_counter()
        end = deadline if self._time_limit is None else min(deadline, now + self._time_limit)
        try:
            async with asyncio.timeout(max(0.0, end - now)):
                found = await self._rule.verdict(call, answer, deadline=end, ask=ask)
        except TimeoutError:
            return self._failed("it takes too long")
        except (OctavoError, AnswerError) as exc:
            return self._failed(str(exc))
        except Exception as exc:
            # Code of others may run here: whatever it raises must not become the client's.
            logger.exception("the judge %s failed", self.name)
            return self._failed(f"{type(exc).__name__}: {exc}")
        return msgspec.structs.replace(found, reason=one_line(found.reason))

    def asks(self, call: Call) -> Sequence[tuple[Call, Tier]]:
        """See `seams.Judge.asks`."""
        asks: Callable[[Call], Sequence[tuple[Call, Tier]]] | None
        asks = getattr(self._rule, "asks", None)
        return () if asks is None else asks(call)

    async def aclose(self) -> None:
        """Free what the rule keeps."""
        close = getattr(self._rule, "aclose", None)
        if close is not None:
            await close()

    def _failed(self, why: str) -> Verdict:
        return Verdict(self._passes_on_error, None, one_line(f"judge {self.name} failed: {why}"))


class Combination:
    """`all` or `any` of some judges, asked in order until one decides."""

    def __init__(self, judges: Sequence[Judge], *, needs_all: bool) -> None:
        self._judges = judges
        self._needs_all = needs_all

    def asks(self, call: Call) -> Sequence[tuple[Call, Tier]]:
        """What all of them ask."""
        return [asked for judge in self._judges for asked in judge.asks(call)]

    async def verdict(
        self, call: Call, answer: Mapping[str, Any], *, deadline: float, ask: Ask
    ) -> Verdict:
        """That of the judge that decides; of the last one where none does."""
        reasons: list[str] = []
        score = None
        for judge in self._judges:
            found = await judge.judge(call, answer, deadline=deadline, ask=ask)
            score = found.score
            if found.passes != self._needs_all:
                return Verdict(found.passes, score, found.reason)
            if found.reason:
                reasons.append(found.reason)
        return Verdict(self._needs_all, score, "; ".join(reasons))


def one_line(text: str) -> str:
    """The text on one line, bounded: for records and logs."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_REASON_CHARS else line[: MAX_REASON_CHARS - 3] + "..."
