"""Runs parsers over texts in pieces."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from octavo.text.answers import AnswerFormats
from octavo.text.tools.events import Answer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
}
TIME: dict[str, Any] = {"name": "get_time", "parameters": {"type": "object", "properties": {}}}
TOOLS = (WEATHER, TIME)


def read(
    pieces: Iterable[str],
    tools_format: str | None,
    reasoning_format: str | None = None,
    *,
    tools: Sequence[dict[str, Any]] = TOOLS,
    prompt_tail: str = "",
    max_calls: int | None = None,
) -> Answer:
    """What a parser makes of a text in pieces, its random ids left out."""
    formats = AnswerFormats(tools_format, reasoning_format)
    parser = formats.parser(tools, prompt_tail=prompt_tail, max_calls=max_calls)
    assert parser is not None
    answer = Answer()
    for piece in pieces:
        answer.add(parser.push(piece))
    answer.add(parser.finish())
    for call in answer.calls:
        assert call.id
        call.id = ""
    return answer


def calls_of(answer: Answer) -> list[tuple[str, Any]]:
    """Names and arguments, decoded."""
    return [(call.name, json.loads(call.arguments)) for call in answer.calls]


def cut(text: str, edges: Iterable[int]) -> list[str]:
    places = sorted({0, len(text), *(edge for edge in edges if edge < len(text))})
    return [text[a:b] for a, b in itertools.pairwise(places)]


cuts = st.lists(st.integers(0, 400), max_size=12)
