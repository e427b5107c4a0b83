# ruff: noqa: RUF001 - DeepSeek's tokens are spelled with fullwidth bars
"""From an answer's text to reasoning, content and tool calls: which parsers, and both together.

The formats are chosen once for a model (`choose_formats`), a parser is made for each answer. Knows
no protocol: what becomes of the events is the server's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.errors import ConfigError
from octavo.text.reasoning import REASONING_PARSERS
from octavo.text.tools.events import CallArguments, CallBegin, Content, Event
from octavo.text.tools.harmony import HarmonyParser
from octavo.text.tools.registry import GPT_OSS, TOOL_PARSERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from octavo.text.tools.parser import AnswerPart, Tool

REASONING_FORMATS = tuple(sorted((*REASONING_PARSERS, GPT_OSS)))
"""Names that `--reasoning-parser` takes, beside `auto` and `none`."""

TOOL_FORMATS = tuple(sorted(TOOL_PARSERS))
"""Names that `--tool-call-parser` takes, beside `auto` and `none`."""

NUM_TAIL_TOKENS = 32
"""How much of a prompt's end may say how its answer begins."""

_Signs = tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...]
"""Format, texts that a template must have for it, texts that it must not have; the first counts."""

_TOOL_SIGNS: _Signs = (
    (GPT_OSS, ("<|channel|>", "<|message|>", "functions"), ()),
    ("qwen3_coder", ("<function=", "<parameter="), ("<seed:tool_call>",)),
    ("deepseek_v31", ("<｜tool▁calls▁begin｜>",), ("```json",)),
    ("deepseek_v3", ("<｜tool▁calls▁begin｜>", "```json"), ()),
    ("mistral", ("[TOOL_CALLS]",), ()),
    ("granite", ("<|start_of_role|>", "<|tool_call|>"), ()),
    ("granite", ("<|start_of_role|>", "<tool_call>"), ()),
    ("hermes", ("<tool_call>",), ("<arg_key>",)),
    ("pythonic", ("[func_name1(params_name1=params_value1",), ()),
    ("llama3_json", ("<|start_header_id|>", '"parameters": dictionary of argument name'), ()),
)
_REASONING_SIGNS: _Signs = (
    (GPT_OSS, ("<|channel|>analysis",), ()),
    ("mistral", ("[THINK]",), ()),
    ("granite", ("<|start_of_role|>", "<think>"), ()),
    ("granite", ("<|start_of_role|>", "Here is my thought process:"), ()),
    ("deepseek_r1", ("<｜Assistant｜>", "</think>"), ()),
    ("qwen3", ("</think>",), ()),
)


@dataclass(frozen=True)
class AnswerFormats:
    """How one model writes its answers.

    Attributes:
        tools: a name of `TOOL_FORMATS`, or None: calls are not read.
        reasoning: a name of `REASONING_FORMATS`, or None: reasoning stays in the content.
    """

    tools: str | None = None
    reasoning: str | None = None

    @property
    def is_harmony(self) -> bool:
        """Whether the one parser that does both is in charge; either name puts it there."""
        return GPT_OSS in (self.tools, self.reasoning)

    def markers(self, *, has_tools: bool) -> tuple[str, ...]:
        """Texts that must stay in an answer for its parsers to see, even if they are tokens that
        are otherwise left out.
        """
        if self.is_harmony:
            return HarmonyParser.markers
        markers = REASONING_PARSERS[self.reasoning].markers if self.reasoning else ()
        return (
            (*markers, *TOOL_PARSERS[self.tools].markers) if self.tools and has_tools else markers
        )

    def parser(
        self,
        tools: Sequence[Tool] = (),
        *,
        prompt_tail: str = "",
        continued: str = "",
        max_calls: int | None = None,
    ) -> AnswerParser | None:
        """A parser for one answer, or None where its text is its content.

        Args:
            tools: what is offered; none: text that looks like a call is content.
            prompt_tail: the end of the prompt, special tokens included.
            continued: the part of the answer that the prompt has.
            max_calls: more calls are dropped.
        """
        parts: list[AnswerPart] = []
        if self.is_harmony:
            parts = [HarmonyParser(tools, prompt_tail)]
        else:
            if self.reasoning:
                parts.append(REASONING_PARSERS[self.reasoning](prompt_tail, continued))
            if self.tools and tools:
                parts.append(TOOL_PARSERS[self.tools](tools))
        return AnswerParser(parts, max_calls) if parts else None


class AnswerParser:
    """Reads one answer: `push` its text as it comes, then `finish` once.

    Args:
        parts: parsers in a row: each reads what the one before it calls content.
        max_calls: more calls are dropped; None: all are kept.
    """

    def __init__(self, parts: Sequence[AnswerPart], max_calls: int | None = None) -> None:
        self._parts = parts
        self._max_calls = max_calls

    def push(self, text: str) -> list[Event]:
        """What this text adds."""
        return self._kept(self._pass([Content(text)] if text else [], 0))

    def finish(self) -> list[Event]:
        """What is left when the text has ended."""
        events: list[Event] = []
        for index, part in enumerate(self._parts):
            events += self._pass(part.finish(), index + 1)
        return self._kept(events)

    def _pass(self, events: list[Event], first: int) -> list[Event]:
        """The events after the parts from `first` on have read the content among them."""
        for part in self._parts[first:]:
            read: list[Event] = []
            for event in events:
                read += part.push(event.text) if isinstance(event, Content) else [event]
            events = read
        return events

    def _kept(self, events: list[Event]) -> list[Event]:
        most = self._max_calls
        if most is None:
            return events
        return [
            event
            for event in events
            if not isinstance(event, CallBegin | CallArguments) or event.index < most
        ]


def choose_formats(tools: str, reasoning: str, templates: Iterable[str]) -> AnswerFormats:
    """The formats that two settings name.

    Args:
        tools: a format's name, `none`, or `auto`: by what stands in the templates.
        reasoning: the same.
        templates: the sources of the model's chat templates.

    Raises:
        ConfigError: a name that there is not.
    """
    text = "\n".join(templates)
    return AnswerFormats(
        _choose(tools, "--tool-call-parser", TOOL_FORMATS, _TOOL_SIGNS, text),
        _choose(reasoning, "--reasoning-parser", REASONING_FORMATS, _REASONING_SIGNS, text),
    )


def _choose(name: str, flag: str, known: Sequence[str], signs: _Signs, text: str) -> str | None:
    if name == "none":
        return None
    if name == "auto":
        for found, present, absent in signs:
            if all(sign in text for sign in present) and not any(sign in text for sign in absent):
                return found
        return None
    if name not in known:
        raise ConfigError(f"{flag} must be auto, none or one of {', '.join(known)}, not {name!r}")
    return name
