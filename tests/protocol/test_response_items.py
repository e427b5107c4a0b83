"""Items of responses as chat messages: nothing said is lost, and turns are put together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import InvalidRequestError
from octavo.protocol.messages import AssistantMessage, ToolMessage, template_messages, text_of
from octavo.protocol.response_items import InputItem, check_item, kind_of, listed, to_messages

if TYPE_CHECKING:
    from collections.abc import Sequence


def items(*dicts: dict[str, Any]) -> list[InputItem]:
    return msgspec.convert(list(dicts), list[InputItem])


def call(call_id: str = "c", **fields: Any) -> dict[str, Any]:
    least = {"call_id": call_id, "name": "f", "arguments": '{"a": 1}'}
    return {"type": "function_call", **least, **fields}


def output(call_id: str = "c", text: Any = "1") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": text}


def thought(text: str) -> dict[str, Any]:
    part = {"type": "reasoning_text", "text": text}
    return {"type": "reasoning", "summary": [], "content": [part]}


def shapes(found: Sequence[Any]) -> list[Any]:
    return [
        (
            message["role"],
            message["content"],
            message.get("reasoning_content"),
            *(one["function"]["name"] for one in message.get("tool_calls", ())),
        )
        for message in template_messages(found)
    ]


def test_an_assistants_turn_is_one_message() -> None:
    user = {"role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    said = {"role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]}
    found = to_messages(
        items(
            user,
            thought("hm"),
            said,
            call("1"),
            call("2", name="g"),
            output("2"),
            output("1", [{"type": "input_text", "text": "one"}]),
            thought("so"),
            said,
            said,
        )
    )
    assert shapes(found) == [
        ("user", "hi", None),
        ("assistant", "Let me see.", "hm", "f", "g"),
        ("tool", "1", None),
        ("tool", "one", None),
        ("assistant", "Let me see.", "so"),
        ("assistant", "Let me see.", None),
    ]


def test_other_servers_summaries_stand_for_reasoning() -> None:
    summary = [{"type": "summary_text", "text": "It thought."}]
    (message,) = to_messages(items({"type": "reasoning", "summary": summary}))
    assert isinstance(message, AssistantMessage)
    assert message.reasoning == "It thought."


def test_cut_calls_are_left_out() -> None:
    found = to_messages(items(call(arguments='{"a', status="incomplete")))
    assert found == []
    with pytest.raises(InvalidRequestError, match="not in the conversation"):
        to_messages(items(output()))


texts = st.text(min_size=1, max_size=4)
some_items = st.lists(
    st.one_of(
        texts.map(lambda text: {"role": "user", "content": text}),
        texts.map(lambda text: {"role": "assistant", "content": text}),
        texts.map(lambda text: {"role": "system", "content": text}),
        texts.map(thought),
        st.just(call()),
        texts.map(lambda text: output(text=text)),
    ),
    max_size=12,
)


@given(some_items)
def test_nothing_that_was_said_is_lost(dicts: list[dict[str, Any]]) -> None:
    given_items = items(call(), *dicts)  # so that every output has its call
    for index, item in enumerate(given_items):
        check_item(item, f"input[{index}]")
    found = to_messages(given_items)
    assert "".join(text_of(message) for message in found) == "".join(
        str(one.get("content") if "role" in one else one["output"])
        for one in dicts
        if "role" in one or one["type"] == "function_call_output"
    )
    turns = [message for message in found if isinstance(message, AssistantMessage)]
    assert sum(len(turn.tool_calls or ()) for turn in turns) == 1 + dicts.count(call())
    thoughts = [one["content"][0]["text"] for one in dicts if one.get("type") == "reasoning"]
    assert [turn.reasoning for turn in turns if turn.reasoning] == thoughts
    assert sum(isinstance(message, ToolMessage) for message in found) == sum(
        one.get("type") == "function_call_output" for one in dicts
    )
    template_messages(found)
    # What is kept of the items means the same.
    kept = msgspec.json.encode([listed(item) for item in given_items])
    again = msgspec.json.decode(kept, type=list[InputItem])
    assert to_messages(again) == found
    assert [kind_of(item) for item in again] == [kind_of(item) for item in given_items]
