# ruff: noqa: RUF001 - DeepSeek's tokens are spelled with fullwidth bars
"""Grammars of answers that may be calls of tools, or something else.

For tools whose arguments are promised to fit their schemas (`strict`) while the model is free to
call or not, and for answers that follow a schema where they are no calls.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from octavo.errors import InvalidRequestError
from octavo.text.grammar.lark import ANY_TEXT, LarkWriter, literal, regex
from octavo.text.grammar.source import schema_of
from octavo.text.grammar.tool_calls import bounded_grammar, calls_rule
from octavo.types import StructuredOutputs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from octavo.text.grammar.lark import MarkerTokens
    from octavo.text.tools.parser import Tool

_OPENINGS: Mapping[str, tuple[str, ...]] = {
    "deepseek_v3": ("<｜tool▁calls▁begin｜>",),
    "deepseek_v31": ("<｜tool▁calls▁begin｜>",),
    "granite": ("<|tool_call|>", "<tool_call>"),
    "hermes": ("<tool_call>",),
    "mistral": ("[TOOL_CALLS]",),
    "qwen3_coder": ("<tool_call>",),
}
"""What begins a call wherever it stands in an answer."""

_FIRST_CHARS: Mapping[str, str] = {"llama3_json": r"\{", "pythonic": r"\["}
"""What begins a call where it is the answer's first character that is no space."""


def optional_calls(
    tools: Sequence[Tool],
    tool_format: str,
    tokens: MarkerTokens,
    *,
    content: StructuredOutputs | None = None,
    several: bool = True,
) -> StructuredOutputs:
    """What an output must be so that calls in it fit their tools, and the rest the content's own
    structure.

    Args:
        tools: what the request offers. The arguments of those that are not `strict` are any object.
        tool_format: a name of `TOOL_PARSERS`.
        tokens: which of the format's markers are tokens.
        content: what an output without calls must be; None: any text, also before calls.
        several: whether more than one call may come.

    Raises:
        InvalidRequestError: the format cannot write such answers for sure; its `param` is `tools`.
    """
    writer = LarkWriter(tokens)
    offered = [tool if tool.get("strict") else _loose(tool) for tool in tools]
    try:
        calls = calls_rule(writer, offered, tool_format, several=several)
        if content is not None:
            start = f"{_content(writer, content)} | {calls}"
        elif tool_format in _FIRST_CHARS:
            first = regex(rf"(?s:\s*{_FIRST_CHARS[tool_format]}.*)")
            text = writer.terminal(f"{regex(ANY_TEXT)} & ~{first}")
            start = f"{text} | {calls}"
        elif tool_format in _OPENINGS:
            openings = "|".join(map(re.escape, _OPENINGS[tool_format]))
            anywhere = regex(f"(?s:.*)({openings})(?s:.*)")
            text = writer.terminal(f"{regex(ANY_TEXT)} & ~{anywhere}")
            start = f"{text} ({calls})?"
        else:
            raise InvalidRequestError(
                "tools: this model writes in channels, where arguments can be promised only for "
                "calls that are forced: set strict to false, or tool_choice to required"
            )
        return StructuredOutputs(grammar=bounded_grammar(writer, start))
    except InvalidRequestError as error:
        message = error.message.replace("tool_choice: a call cannot be forced", "tools", 1)
        raise InvalidRequestError(message, param="tools") from None


def _loose(tool: Tool) -> Tool:
    return {"name": tool["name"], "parameters": {"type": "object", "additionalProperties": True}}


def _content(writer: LarkWriter, content: StructuredOutputs) -> str:
    if content.regex is not None:
        return writer.terminal(regex(content.regex))
    if content.choice is not None:
        return writer.choice([literal(choice) for choice in content.choice])
    if content.grammar is not None:
        raise InvalidRequestError(
            "structured_outputs.grammar cannot be had beside tools: set tool_choice to none"
        )
    return writer.json(schema_of(content))
