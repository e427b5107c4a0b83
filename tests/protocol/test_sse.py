from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from octavo.protocol import sse
from octavo.protocol.chat import ChatChunkChoice, ChatCompletionChunk, ChatDelta
from octavo.protocol.completions import Completion, CompletionChoice
from octavo.protocol.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Callable


def chunk(text: str, *, usage: Usage | msgspec.UnsetType | None = msgspec.UNSET) -> object:
    choice = ChatChunkChoice(index=3, delta=ChatDelta(content=text))
    return ChatCompletionChunk(id="c", created=1, model='a "b" \\', choices=[choice], usage=usage)


def completion(text: str) -> object:
    return Completion(id="c", created=1, model="m", choices=[CompletionChoice(index=0, text=text)])


MAKERS: list[Callable[[str], object]] = [
    chunk,
    completion,
    lambda text: chunk(text, usage=None),
    lambda text: chunk(text, usage=Usage.of(prompt=1, completion=2, cached=0)),
]


@given(st.sampled_from(MAKERS), st.text())
def test_text_events_are_the_events(make: Callable[[str], object], text: str) -> None:
    made = sse.TextEvents(make).event(text)
    assert made == sse.event(make(text))
    assert made.count(b"\n") == 2


def test_an_event_is_one_line_of_data() -> None:
    assert sse.event({"a": "b\n\nc\r"}) == b'data: {"a":"b\\n\\nc\\r"}\n\n'
    assert sse.DONE == b"data: [DONE]\n\n"
    assert sse.KEEP_ALIVE.startswith(b":")
    assert sse.KEEP_ALIVE.endswith(b"\n\n")
