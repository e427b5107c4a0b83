"""Judges that only look at the answer: how sure the model was, whether it declined, how long it is.

Of an answer with several choices, the worst decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.gateway.answer_logprobs import content_logprobs
from octavo.gateway.answer_text import read_answer
from octavo.gateway.judge import JudgeError, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo.gateway.config_judge_rules import LengthJudge, LogprobJudge, RefusalJudge
    from octavo.gateway.model import Call
    from octavo.gateway.seams import Ask


class LogprobRule:
    """See `config_judge_rules.LogprobJudge`. Its score is the mean, or the minimum where only
    that is bounded.
    """

    def __init__(self, section: LogprobJudge) -> None:
        self._mean = section.mean
        self._minimum = section.minimum

    async def verdict(
        self, call: Call, answer: Mapping[str, Any], *, deadline: float, ask: Ask
    ) -> Verdict:
        """Passes where the bounds hold for every choice.

        Raises:
            JudgeError: a choice has no log-probabilities.
        """
        choices = content_logprobs(
            call.route, answer, read_answer(call.route, answer, call.body), call.body
        )
        if not all(choices):
            raise JudgeError("the answer has no log-probabilities")
        mean = min(sum(values) / len(values) for values in choices)
        minimum = min(min(values) for values in choices)
        score = minimum if self._mean is None else mean
        if self._mean is not None and mean < self._mean:
            return Verdict(False, score, f"mean logprob {mean:.3f} is below {self._mean:g}")
        if self._minimum is not None and minimum < self._minimum:
            return Verdict(False, score, f"least logprob {minimum:.3f} is below {self._minimum:g}")
        return Verdict(True, score)


class RefusalRule:
    """See `config_judge_rules.RefusalJudge`."""

    def __init__(self, section: RefusalJudge) -> None:
        self._phrases = [_plain(phrase) for phrase in section.phrases]
        self._within = section.within

    async def verdict(
        self, call: Call, answer: Mapping[str, Any], *, deadline: float, ask: Ask
    ) -> Verdict:
        """Fails where a choice declines."""
        for said in read_answer(call.route, answer, call.body):
            if said.refusal:
                return Verdict(False, None, "the model refuses")
            if said.finish == "content_filter":
                return Verdict(False, None, "a content filter has stopped the answer")
            begin = _plain(said.text.lstrip()[: self._within])
            for phrase in self._phrases:
                if phrase in begin:
                    return Verdict(False, None, f"refusal: {phrase!r}")
        return Verdict(True)


def _plain(text: str) -> str:
    """For comparison: small letters, straight apostrophes, single spaces."""
    for mark in "\u2018\u2019\u02bc\u00b4`":
        text = text.replace(mark, "'")
    return " ".join(text.casefold().split())


class LengthRule:
    """See `config_judge_rules.LengthJudge`. Its score is the shortest text's length, characters."""

    def __init__(self, section: LengthJudge) -> None:
        self._min = section.min_chars
        self._max = section.max_chars
        self._bad_finish = frozenset(section.bad_finish)

    async def verdict(
        self, call: Call, answer: Mapping[str, Any], *, deadline: float, ask: Ask
    ) -> Verdict:
        """Passes where every choice has a good length and a good end."""
        choices = read_answer(call.route, answer, call.body)
        score = float(min(len(said.text.strip()) for said in choices))
        for said in choices:
            num_chars = len(said.text.strip())
            if said.finish in self._bad_finish:
                return Verdict(False, score, f"finish reason {said.finish}")
            if num_chars < self._min and not said.calls:
                return Verdict(False, score, f"{num_chars} characters, fewer than {self._min}")
            if self._max is not None and num_chars > self._max:
                return Verdict(False, score, f"{num_chars} characters, more than {self._max}")
        return Verdict(True, score)
