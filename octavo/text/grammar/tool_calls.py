# ruff: noqa: RUF001 - DeepSeek's tokens are spelled with fullwidth bars
"""Grammars of which every output is a call of a tool, written as one model family writes calls.

What such an output says, the parsers in `text.tools` read. Calls are written as the chat templates
write them: that is what the models have seen. Knows no tokenizer beyond its markers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.errors import InvalidRequestError
from octavo.text.grammar.lark import ANY_TEXT, LarkWriter, literal, regex
from octavo.text.grammar.parameters import COMPOSING, Parameters
from octavo.text.grammar.plain_values import plain_value
from octavo.text.grammar.python_values import python_value
from octavo.text.grammar.source import MAX_CHARS, check_depth
from octavo.text.tools.registry import TOOL_PARSERS
from octavo.types import StructuredOutputs

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from octavo.text.grammar.lark import MarkerTokens
    from octavo.text.tools.parser import Tool

PARAM = "tool_choice"
"""What errors name."""

MAX_TOOLS = 512
"""Most tools that one of may be called."""

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,128}")
_PYTHON_KEY = re.compile(r"[A-Za-z0-9_]{1,256}")
_TAG_KEY = re.compile(r"[^<>\n]{1,256}")


@dataclass(frozen=True)
class _Call:
    """A tool that may be called."""

    name: str
    schema: dict[str, Any]


def forced_calls(
    tools: Sequence[Tool],
    tool_format: str,
    tokens: MarkerTokens,
    *,
    names: Collection[str] | None = None,
    several: bool = True,
) -> StructuredOutputs:
    """What an output must be so that it is calls of tools, whose arguments their schemas allow.

    An object whose schema says nothing of other properties than those it lists gets no others.
    The answer of a model that speaks Harmony may begin with its analysis; any other reasoning must
    be over.

    Args:
        tools: what the request offers.
        tool_format: a name of `TOOL_PARSERS`.
        tokens: which of the format's markers are tokens.
        names: tools that may be called; None: all.
        several: whether more than one call may come. Harmony has one call in an answer.

    Raises:
        InvalidRequestError: the format cannot write such calls for sure; names `tool_choice`.
    """
    writer = LarkWriter(tokens)
    start = calls_rule(writer, tools, tool_format, names=names, several=several)
    return StructuredOutputs(grammar=bounded_grammar(writer, start))


def calls_rule(
    writer: LarkWriter,
    tools: Sequence[Tool],
    tool_format: str,
    *,
    names: Collection[str] | None = None,
    several: bool = True,
) -> str:
    """What stands for the calls in a grammar; see `forced_calls`."""
    called = [_call(tool) for tool in tools if names is None or tool["name"] in names]
    missing = sorted(set(names or ()) - {call.name for call in called})
    if missing:
        raise _refused(f"there is no tool named {missing[0][:128]!r}")
    if not called:
        raise _refused("a call needs a tool")
    if len(called) > MAX_TOOLS:
        raise _refused(f"at most {MAX_TOOLS} tools can be chosen from, there are {len(called)}")
    try:
        return _FORMATS[tool_format](writer, called, several)
    except InvalidRequestError as error:
        raise _refused(error.message) from None


def bounded_grammar(writer: LarkWriter, start: str) -> str:
    """The whole grammar.

    Raises:
        InvalidRequestError: it is too long.
    """
    grammar = writer.grammar(start)
    if len(grammar) > MAX_CHARS:
        raise _refused(f"the tools' schemas are too long: at most {MAX_CHARS} characters in all")
    return grammar


def _refused(message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{PARAM}: a call cannot be forced: {message}", param=PARAM)


def _call(tool: Tool) -> _Call:
    name, schema = str(tool["name"]), tool.get("parameters")
    if not _NAME.fullmatch(name):
        raise _refused("a tool's name must be of 1 to 128 letters, digits, '_', '.' or '-'")
    if schema is None:
        return _Call(name, {"type": "object", "properties": {}, "additionalProperties": False})
    if not isinstance(schema, Mapping):
        raise _refused(f"the parameters of {name} must be a schema of an object")
    try:
        check_depth(schema)
    except InvalidRequestError:
        raise _refused(f"the parameters of {name} are nested too deeply") from None
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise _refused(f"the parameters of {name} must be a schema of an object")
    return _Call(name, _closed({**schema, "type": "object"}))


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without properties that it does not list, if it lists all that it speaks of."""
    properties, required = schema.get("properties"), schema.get("required", [])
    if (
        isinstance(properties, Mapping)
        and isinstance(required, list)
        and not schema.keys() & (COMPOSING | {"additionalProperties"})
        and all(name in properties for name in required)
    ):
        return {**schema, "additionalProperties": False}
    return schema


def _json_call(writer: LarkWriter, call: _Call, key: str) -> str:
    # One terminal for each of JSON's tokens: so other JSON may stand where the call may, of which
    # these are the beginning; a terminal, once begun, is not given up for a shorter one.
    head = ("{", '"name"', ":", " ", f'"{call.name}"', ",", " ", f'"{key}"', ":", " ")
    return f"{' '.join(map(literal, head))} {writer.json(call.schema)} {literal('}')}"


def _json_calls(writer: LarkWriter, calls: Sequence[_Call], key: str = "arguments") -> str:
    """One object that is a call."""
    return writer.choice([_json_call(writer, call, key) for call in calls])


def _tagged(writer: LarkWriter, calls: Sequence[_Call], several: bool) -> str:
    """Hermes': tags around each object."""
    begin, end = writer.marker("<tool_call>"), writer.marker("</tool_call>")
    line = literal("\n")
    one = writer.rule(f"{begin} {line} {_json_calls(writer, calls)} {line} {end}")
    return writer.repeated(one, line, several=several)


def _listed(writer: LarkWriter, calls: Sequence[_Call], several: bool) -> str:
    """A list of objects."""
    items = writer.repeated(_json_calls(writer, calls), literal(", "), several=several)
    return f"{literal('[')} {items} {literal(']')}"


def _bare(writer: LarkWriter, calls: Sequence[_Call], several: bool) -> str:
    """Llama 3's: nothing but objects."""
    one = _json_calls(writer, calls, "parameters")
    return writer.repeated(one, literal("; "), several=several)


def _granite(writer: LarkWriter, calls: Sequence[_Call], several: bool) -> str:
    if "</tool_call>" in writer.tokens:
        return _tagged(writer, calls, several)  # Granite 4
    is_new = "<tool_call>" in writer.tokens and "<|tool_call|>" not in writer.tokens
    begin = writer.marker("<tool_call>" if is_new else "<|tool_call|>")
    return f"{begin} {_listed(writer, calls, several)}"


def _mistral(writer: LarkWriter, calls: Sequence[_Call], several: bool) -> str:
    begin = writer.marker("[TOOL_CALLS]")
    if "[ARGS]" not in writer.tokens:
        return f"{begin} {literal(' ')}? {_listed(writer, calls, several)}"
    call_id = ""
    if "[CALL_ID]" in writer.tokens:
        call_id = f"({writer.marker('[CALL_ID]')} {regex('[A-Za-z0-9]{9}')})?"
    args = writer.marker("[ARGS]")
    one = writer.choice(
        [
            f"{begin} {literal(call.name)} {call_id} {args} {writer.json(call.schema)}"
            for call in calls
        ]
    )
    return f"{one}+" if several else one


def _deepseek_v31(writer: LarkWriter, calls: Sequence[_Call], several: bool) -> str:
    separator = writer.marker("<｜tool▁sep｜>")
    bodies = [f"{literal(call.name)} {separator} {writer.json(call.schema)}" for call in calls]
    return _deepseek(writer, bodies, "", several=several)


def _deepseek_v3(writer: LarkWriter, calls: Sequence[_Call], several: bool) -> str:
    separator = writer.marker("<｜tool▁sep｜>")
    bodies = []
    for call in calls:
        head, tail = literal(f"{call.name}\n```json\n"), literal("\n```")
        arguments = writer.json(call.schema)
        bodies.append(f"{literal('function')} {separator} {head} {arguments} {tail}")
    return _deepseek(writer, bodies, literal("\n"), several=several)


def _deepseek(writer: LarkWriter, bodies: list[str], between: str, *, several: bool) -> str:
    begin, end = writer.marker("<｜tool▁call▁begin｜>"), writer.marker("<｜tool▁call▁end｜>")
    one = writer.rule(f"{begin} {writer.choice(bodies)} {end}")
    all_begin, all_end = (
        writer.marker("<｜tool▁calls▁begin｜>"),
        writer.marker("<｜tool▁calls▁end｜>"),
    )
    return f"{all_begin} {writer.repeated(one, between, several=several)} {all_end}"


def _harmony(writer: LarkWriter, calls: Sequence[_Call], several: bool) -> str:
    """An analysis perhaps, then one message to a function: the model stops behind it."""
    channel, message = writer.marker("<|channel|>"), writer.marker("<|message|>")
    start = f"{writer.marker('<|start|>')} {literal('assistant')}"
    json_type = f"{writer.marker('<|constrain|>')} {literal('json')}"
    body = writer.choice(
        [
            f"{channel} {literal(f'commentary to=functions.{call.name} ')} {json_type} {message} "
            f"{writer.json(call.schema)}"
            for call in calls
        ]
    )
    before = f"({start})?"
    if "<|end|>" in writer.tokens.special:
        text = writer.terminal(regex(ANY_TEXT))
        end = writer.marker("<|end|>")
        before = f"({channel} {literal('analysis')} {message} {text} {end} {start} | {start})?"
    return f"{before} {body}"


def _pythonic(writer: LarkWriter, calls: Sequence[_Call], several: bool) -> str:
    def body(call: _Call) -> str:
        parameters = Parameters(call.name, call.schema, _PYTHON_KEY)

        def argument(name: str) -> str:
            return f"{literal(name + '=')} {python_value(writer, parameters, name)}"

        arguments = parameters.in_order(writer, argument, separator=literal(", "))
        return f"{literal(call.name + '(')} {arguments} {literal(')')}"

    one = writer.choice([body(call) for call in calls])
    items = writer.repeated(one, literal(", "), several=several)
    return f"{literal('[')} {items} {literal(']')}"


def _qwen3_coder(writer: LarkWriter, calls: Sequence[_Call], several: bool) -> str:
    def body(call: _Call) -> str:
        parameters = Parameters(call.name, call.schema, _TAG_KEY)

        def argument(name: str) -> str:
            head = literal(f"<parameter={name}>\n")
            return f"{head} {plain_value(writer, parameters, name)}"

        head, tail = literal(f"\n<function={call.name}>\n"), literal("</function>\n")
        return f"{head} {parameters.in_order(writer, argument)} {tail}"

    begin, end = writer.marker("<tool_call>"), writer.marker("</tool_call>")
    one = writer.rule(f"{begin} {writer.choice([body(call) for call in calls])} {end}")
    return writer.repeated(one, literal("\n"), several=several)


_FORMATS: Mapping[str, Callable[[LarkWriter, Sequence[_Call], bool], str]] = {
    "deepseek_v3": _deepseek_v3,
    "deepseek_v31": _deepseek_v31,
    "gpt_oss": _harmony,
    "granite": _granite,
    "hermes": _tagged,
    "llama3_json": _bare,
    "mistral": _mistral,
    "pythonic": _pythonic,
    "qwen3_coder": _qwen3_coder,
}
assert _FORMATS.keys() == TOOL_PARSERS.keys()
