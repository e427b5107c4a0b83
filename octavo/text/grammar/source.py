"""From what a request asks for to llguidance's grammar text, within bounds.

Knows no tokenizer. What is refused here costs nothing; what a grammar costs beyond its size only
compiling it tells (`check.py`).
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from octavo.errors import InvalidRequestError

if TYPE_CHECKING:
    from octavo.types import StructuredOutputs

MAX_CHARS = 2**17
"""Longest schema (as JSON text), expression, grammar, or choices in all: 128 Ki characters."""

MAX_DEPTH = 64
"""Deepest nesting of a schema's arrays and objects."""

PARAM = "structured_outputs"
"""What errors name; callers put the name of their own field in its place."""

WHITESPACE = r" {1,4}|\r?\n[ \t]{0,64}"
"""Between JSON's tokens, each time at most once: what people and programs write. The library's own
rule is any amount, which a small model fills its whole output with."""

_GBNF_RULE = re.compile(r"^\s*[\w-]+\s*::=", re.MULTILINE)


def grammar_text(spec: StructuredOutputs) -> str:
    """The grammar as llguidance reads it.

    Raises:
        InvalidRequestError: too large, too deep, or no JSON where there must be some.
    """
    from llguidance import LLMatcher

    if spec.regex is not None:
        return str(LLMatcher.grammar_from_regex(_bounded(spec.regex, "the regular expression")))
    if spec.choice is not None:
        return str(LLMatcher.grammar_from_lark(_alternatives(list(spec.choice))))
    if spec.grammar is not None:
        return str(LLMatcher.grammar_from_lark(_lark(spec.grammar)))
    schema = schema_of(spec)
    try:
        return str(LLMatcher.grammar_from_json_schema(schema, {"whitespace_pattern": WHITESPACE}))
    except ValueError as error:
        raise _refused(f"the schema cannot be used: {error}") from None


def schema_of(spec: StructuredOutputs) -> dict[str, Any]:
    """The schema of what asks for JSON, as an object.

    Raises:
        InvalidRequestError: too large, too deep, no JSON, or no schema that allows anything.
    """
    schema: Any = {"type": "object"} if spec.json_object else spec.json
    if isinstance(schema, str):
        try:
            schema = json.loads(_bounded(schema, "the schema"))
        except (ValueError, RecursionError):
            raise _refused("the schema is not valid JSON") from None
    if not isinstance(schema, dict | bool):
        raise _refused("a schema must be an object, true or false")
    if schema is False:
        raise _refused("the schema false allows nothing")
    check_depth(schema)
    _bounded(json.dumps(schema, ensure_ascii=False), "the schema")
    return {} if schema is True else schema


def _refused(message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{PARAM}: {message}", param=PARAM)


def _bounded(text: str, what: str) -> str:
    if len(text) > MAX_CHARS:
        raise _refused(f"{what} has {len(text)} characters, at most {MAX_CHARS} are allowed")
    return text


def _alternatives(choices: list[str]) -> str:
    if not all(choices):
        raise _refused("an empty string is no choice")
    _bounded("".join(choices), "choice")
    return "start: " + "\n     | ".join(quoted(choice) for choice in dict.fromkeys(choices))


def quoted(text: str) -> str:
    """A text as Lark's literal, which takes no control character as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _lark(grammar: str) -> str:
    _bounded(grammar, "the grammar")
    if not _GBNF_RULE.search(grammar):
        return grammar
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return str(any_to_lark(grammar))
    except Exception as error:  # the converter's parser fails in many ways
        raise _refused(f"the GBNF grammar cannot be read: {error}") from None


def check_depth(value: Any, depth: int = 0) -> None:
    """Return if a schema is not nested too deeply.

    Raises:
        InvalidRequestError: it is.
    """
    if depth > MAX_DEPTH:
        raise _refused(f"the schema is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for part in value.values():
            check_depth(part, depth + 1)
    elif isinstance(value, list):
        for part in value:
            check_depth(part, depth + 1)
