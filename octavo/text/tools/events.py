"""What a parser of answers says: text, reasoning, and tool calls, as they come.

Events of one kind that follow each other may be joined or split at any character: only what they
amount to (`Answer`) has a meaning.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable


class Content(msgspec.Struct, frozen=True, tag=True):
    """Text for the user."""

    text: str


class Reasoning(msgspec.Struct, frozen=True, tag=True):
    """Text that the model wrote to itself."""

    text: str


class CallBegin(msgspec.Struct, frozen=True, tag=True):
    """A tool call begins; `index` counts the answer's calls from 0."""

    index: int
    id: str
    name: str


class CallArguments(msgspec.Struct, frozen=True, tag=True):
    """A piece of the JSON text of a call's arguments."""

    index: int
    text: str


Event = Content | Reasoning | CallBegin | CallArguments


@dataclass
class Call:
    """A tool call; `arguments` is a JSON text, cut off where the answer was."""

    id: str
    name: str
    arguments: str = ""


@dataclass
class Answer:
    """What events amount to."""

    content: str = ""
    reasoning: str = ""
    calls: list[Call] = field(default_factory=list)

    def add(self, events: Iterable[Event]) -> None:
        """Append further events."""
        for event in events:
            match event:
                case Content(text):
                    self.content += text
                case Reasoning(text):
                    self.reasoning += text
                case CallBegin(_, call_id, name):
                    self.calls.append(Call(call_id, name))
                case CallArguments(index, text):
                    self.calls[index].arguments += text


def merged(events: Iterable[Event]) -> list[Event]:
    """The same, with neighbours of one kind joined."""
    result: list[Event] = []
    for event in events:
        last = result[-1] if result else None
        if isinstance(event, Content) and isinstance(last, Content):
            result[-1] = Content(last.text + event.text)
        elif isinstance(event, Reasoning) and isinstance(last, Reasoning):
            result[-1] = Reasoning(last.text + event.text)
        elif (
            isinstance(event, CallArguments)
            and isinstance(last, CallArguments)
            and event.index == last.index
        ):
            result[-1] = CallArguments(event.index, last.text + event.text)
        else:
            result.append(event)
    return result
