"""A model that grades. What it costs is an attempt of the judged call.

After "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena" (Zheng et al. 2023), single-answer
grading.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.gateway.answer_text import conversation_text, read_answer
from octavo.gateway.judge import JudgeError, Verdict
from octavo.gateway.judge_defaults import PROMPT_FIELDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo.gateway.config_judge_scores import ModelJudge
    from octavo.gateway.judge_process import JudgeProcesses
    from octavo.gateway.model import Call, Tier
    from octavo.gateway.seams import Ask

SCORE_TIME_S = 1.0
TOKENS_PER_CHAR = 2
"""At the most: a character has up to four bytes, and text a token per two of them."""
NUM_ROLE_TOKENS = 64
"""For the roles before a conversation's messages."""

_FIELD = re.compile(r"\{(" + "|".join(PROMPT_FIELDS) + r")\}")


class ModelRule:
    """See `config_judge_scores.ModelJudge`.

    Args:
        section: of the configuration.
        tier: who grades.
        processes: where the score is searched for.
    """

    def __init__(self, section: ModelJudge, tier: Tier, processes: JudgeProcesses) -> None:
        self._section = section
        self._tier = tier
        self._processes = processes

    async def verdict(
        self, call: Call, answer: Mapping[str, Any], *, deadline: float, ask: Ask
    ) -> Verdict:
        """Passes where every choice gets a score that is high enough; the lowest counts.

        Raises:
            JudgeError: the grader gives no score.
            UpstreamError: it does not answer.
        """
        lowest = math.inf
        for said in read_answer(call.route, answer, call.body):
            lowest = min(lowest, await self._score(call, said.shown, ask))
            if lowest < self._section.passes_at:
                break
        passes = lowest >= self._section.passes_at
        why = "" if passes else f"graded {lowest:g}, below {self._section.passes_at:g}"
        return Verdict(passes, lowest, why)

    def asks(self, call: Call) -> list[tuple[Call, Tier]]:
        """What it asks at the most: once per choice, about the conversation and the answer."""
        section = self._section
        most = TOKENS_PER_CHAR * section.max_chars
        answer = most if call.max_tokens is None else min(most, 2 * call.max_tokens)
        given = min(most, 2 * call.num_prompt_tokens + NUM_ROLE_TOKENS)
        asked = grading_call(call, self._body(section.prompt))
        asked = msgspec.structs.replace(
            asked, num_prompt_tokens=asked.num_prompt_tokens + given + answer
        )
        return [(asked, self._tier)] * call.num_choices

    async def _score(self, call: Call, answer: str, ask: Ask) -> float:
        section = self._section
        prompt = render_prompt(
            section.prompt,
            {
                "prompt": shortened(conversation_text(call), section.max_chars),
                "answer": shortened(answer, section.max_chars),
            },
        )
        body = self._body(prompt)
        graded = await ask(grading_call(call, body), self._tier, msgspec.json.encode(body))
        text = read_answer("chat", graded, body)[0].text
        found = await self._processes.run(
            {"kind": "find", "pattern": section.score, "text": text}, time_limit=SCORE_TIME_S
        )
        try:
            score = float(found["found"])
        except (TypeError, ValueError):
            raise JudgeError(f"the grader gives no score: {text[:100]!r}") from None
        if not math.isfinite(score):
            raise JudgeError(f"the grader gives no score: {text[:100]!r}")
        return score

    def _body(self, prompt: str) -> dict[str, Any]:
        return {
            "model": self._tier.name,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self._section.max_tokens,
            "temperature": 0,
        }


def render_prompt(template: str, values: Mapping[str, str]) -> str:
    """The template with its fields replaced, once: what is put in is data, and not searched for
    fields. No other syntax: attributes, indices and formats of `str.format` do nothing.
    """
    return _FIELD.sub(lambda match: values[match[1]], template)


def shortened(text: str, max_chars: int) -> str:
    """The text without its midst, where it is longer: its beginning and end tell most."""
    if len(text) <= max_chars:
        return text
    half = max_chars // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


def grading_call(call: Call, body: dict[str, Any]) -> Call:
    """The call by which a grader is asked, on behalf of the judged one.

    Its prompt is taken to have a token per two bytes: text has fewer, in any language.
    """
    text = body["messages"][0]["content"]
    return msgspec.structs.replace(
        call,
        route="chat",
        path="/v1/chat/completions",
        model=body["model"],
        stream=False,
        body=body,
        num_prompt_chars=len(text),
        num_prompt_tokens=len(text.encode("utf-8", "surrogatepass")) // 2 + 32,
        block_hashes=(),
        has_tools=False,
        has_schema=False,
        has_images=False,
        max_tokens=body["max_tokens"],
        num_choices=1,
    )
