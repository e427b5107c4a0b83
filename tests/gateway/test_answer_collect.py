"""Streams, cut in any way, come to the answer that the official clients read in them, and to the
one that would have come without streaming.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

import pytest
from anthropic.lib.streaming._messages import accumulate_event
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from openai._models import construct_type
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from octavo.gateway.answer_collect import Collector
from octavo.gateway.answer_text import AnswerError, answer_sha256, read_answer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from octavo.gateway.model import Route

EXAMPLES = int(os.environ.get("STATEFUL_EXAMPLES", "30"))

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
some_texts = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30)
names = st.text("abc_", min_size=1, max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(texts, values, max_size=3)
logprobs = st.floats(-20, 0)
USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}


def collected(route: Route, events: Iterable[bytes]) -> dict[str, Any]:
    collector = Collector(route)
    for event in events:
        collector.add(event)
    return collector.whole()


def raw(value: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps(value).encode()


@st.composite
def cut(draw: st.DrawFn, text: str) -> list[str]:
    """The text in pieces, of which some may be empty."""
    places = draw(st.lists(st.integers(0, len(text)), max_size=4).map(sorted))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


def token(text: str, logprob: float) -> dict[str, Any]:
    data = list(text.encode())
    return {"token": text, "logprob": logprob, "bytes": data, "top_logprobs": []}


@st.composite
def calls(draw: st.DrawFn) -> list[dict[str, Any]]:
    made = draw(st.lists(st.tuples(names, objects), max_size=3))
    return [
        {
            "id": f"call_{index}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for index, (name, arguments) in enumerate(made)
    ]


@st.composite
def chats(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An answer, and chunks that bring it."""
    base = {"id": "c1", "created": 1, "model": "m", "system_fingerprint": None}
    whole, per_choice = [], []
    for index in range(draw(st.integers(1, 3))):
        content, called = draw(texts), draw(calls())
        reasoning = draw(st.none() | some_texts)
        finish = "tool_calls" if called else draw(st.sampled_from(["stop", "length"]))
        message: dict[str, Any] = {"role": "assistant", "content": content or None, "refusal": None}
        if content == "" and not called:
            message["content"] = ""
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        if reasoning is not None:
            message["reasoning"] = reasoning
            deltas += [{"reasoning": piece} for piece in draw(cut(reasoning))]
        pieces = draw(cut(content))
        deltas += [{"content": piece} for piece in pieces]
        if called:
            message["tool_calls"] = called
            for number, call in enumerate(called):
                function = call["function"]
                head = {"name": function["name"], "arguments": ""}
                first = {"index": number, "id": call["id"], "type": "function", "function": head}
                deltas.append({"tool_calls": [first]})
                deltas += [
                    {"tool_calls": [{"index": number, "function": {"arguments": piece}}]}
                    for piece in draw(cut(function["arguments"]))
                ]
        choices = [
            {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            for delta in deltas
        ]
        told = None
        if draw(st.booleans()):
            told = {"content": [], "refusal": None}
            for choice in choices:
                piece = choice["delta"].get("content")
                if piece:
                    one = token(piece, draw(logprobs))
                    told["content"].append(one)
                    choice["logprobs"] = {"content": [one], "refusal": None}
            told = told if told["content"] else None
        choices.append({"index": index, "delta": {}, "logprobs": None, "finish_reason": finish})
        per_choice.append(choices)
        whole.append(
            {"index": index, "message": message, "logprobs": told, "finish_reason": finish}
        )
    left = [choices[1:] for choices in per_choice]
    chunks = [choices[0] for choices in per_choice]  # OpenAI's client wants them in order
    while any(left):
        which = draw(st.sampled_from([choices for choices in left if choices]))
        chunks.append(which.pop(0))
    head = base | {"object": "chat.completion.chunk"}
    stream = [head | {"choices": [choice]} for choice in chunks]
    answer = base | {"object": "chat.completion", "choices": whole}
    if draw(st.booleans()):
        stream.append(head | {"choices": [], "usage": USAGE})
        answer["usage"] = USAGE
    return answer, stream


@settings(max_examples=EXAMPLES, deadline=None)
@given(chats())
def test_chats(made: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    answer, chunks = made
    events = [b": keep-alive\n\n", *map(raw, chunks), b"data: [DONE]\n\n"]
    found = collected("chat", events)
    assert found == answer
    state = ChatCompletionStreamState()
    for chunk in chunks:
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    theirs = state.current_completion_snapshot
    ours = ChatCompletion.model_validate(found)
    for one, other in zip(ours.choices, theirs.choices, strict=True):
        assert one.finish_reason == other.finish_reason
        assert (one.message.content or "") == (other.message.content or "")
        called = [
            (call.id, call.function.name, call.function.arguments)
            for call in one.message.tool_calls or ()
            if call.type == "function"
        ]
        assert called == [
            (call.id, call.function.name, call.function.arguments)
            for call in other.message.tool_calls or ()
        ]
        mine = [(t.token, t.logprob) for t in (one.logprobs and one.logprobs.content) or ()]
        assert mine == [
            (t.token, t.logprob) for t in (other.logprobs and other.logprobs.content) or ()
        ]
    streamed, whole = read_answer("chat", found, {}), read_answer("chat", answer, {})
    assert answer_sha256(streamed) == answer_sha256(whole)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.data(), st.lists(some_texts, min_size=1, max_size=3))
def test_completions(data: st.DataObject, says: list[str]) -> None:
    base = {"id": "c1", "object": "text_completion", "created": 1, "model": "m"}
    chunks, choices = [], []
    for index, text in enumerate(says):
        told: dict[str, Any] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        offset = 0
        for piece in data.draw(cut(text)):
            one = {
                "tokens": [piece],
                "token_logprobs": [data.draw(logprobs)],
                "top_logprobs": [{piece: -1.0}],
                "text_offset": [offset],
            }
            offset += len(piece)
            for name, added in one.items():
                told[name] += added
            choice = {"index": index, "text": piece, "logprobs": one, "finish_reason": None}
            chunks.append(base | {"choices": [choice]})
        end = {"index": index, "text": "", "logprobs": None, "finish_reason": "stop"}
        chunks.append(base | {"choices": [end]})
        choices.append({"index": index, "text": text, "logprobs": told, "finish_reason": "stop"})
    found = collected("completions", map(raw, chunks))
    assert found == base | {"choices": choices}
    parsed = Completion.model_validate(found)
    assert [choice.text for choice in parsed.choices] == says


@st.composite
def messages(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An answer of Anthropic's API, and events that bring it."""
    usage = {"input_tokens": 3, "output_tokens": 1, "cache_read_input_tokens": 2}
    base = {"id": "m1", "type": "message", "role": "assistant", "model": "m"}
    start = base | {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": start}, {"type": "ping"}]
    content: list[dict[str, Any]] = []
    for index in range(draw(st.integers(1, 3))):
        kind = draw(st.sampled_from(["text", "thinking", "tool_use"]))
        deltas: list[dict[str, Any]]
        if kind == "text":
            text = draw(texts)
            begin, whole = {"type": kind, "text": ""}, {"type": kind, "text": text}
            deltas = [{"type": "text_delta", "text": piece} for piece in draw(cut(text))]
        elif kind == "thinking":
            text = draw(texts)
            begin = {"type": kind, "thinking": "", "signature": ""}
            whole = {"type": kind, "thinking": text, "signature": "abc"}
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in draw(cut(text))]
            deltas.append({"type": "signature_delta", "signature": "abc"})
        else:
            given_ = draw(objects)
            begin = {"type": kind, "id": f"t{index}", "name": "f", "input": {}}
            whole = begin | {"input": given_}
            deltas = [
                {"type": "input_json_delta", "partial_json": piece}
                for piece in draw(cut(json.dumps(given_)))
            ]
        events.append({"type": "content_block_start", "index": index, "content_block": begin})
        events += [
            {"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas
        ]
        events.append({"type": "content_block_stop", "index": index})
        content.append(whole)
    end = {"stop_reason": "end_turn", "stop_sequence": None}
    events.append({"type": "message_delta", "delta": end, "usage": {"output_tokens": 9}})
    events.append({"type": "message_stop"})
    answer = base | end | {"content": content, "usage": usage | {"output_tokens": 9}}
    return answer, events


@settings(max_examples=EXAMPLES, deadline=None)
@given(messages())
def test_messages(made: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    answer, events = made
    found = collected("messages", (b"event: %b\n%b" % (e["type"].encode(), raw(e)) for e in events))
    assert found == answer
    snapshot = None
    buffers: dict[int, bytes] = {}
    for event in events:
        if event["type"] != "ping":
            value: Any = construct_type(type_=RawMessageStreamEvent, value=event)
            snapshot = accumulate_event(event=value, current_snapshot=snapshot, json_bufs=buffers)
    assert snapshot is not None
    theirs = snapshot.to_dict(exclude_none=True)
    ours = Message.model_validate(found).to_dict(exclude_none=True)
    assert ours["usage"] == theirs["usage"]
    assert ours["stop_reason"] == theirs["stop_reason"]
    for one, other in zip(ours["content"], theirs["content"], strict=True):  # type: ignore[call-overload]
        assert {name: other[name] for name in one} == one


def test_responses_end_with_all_of_it() -> None:
    done = {"id": "r1", "status": "completed", "output": []}
    events = [
        {"type": "response.created", "response": {"id": "r1", "status": "in_progress"}},
        {"type": "response.output_text.delta", "delta": "a"},
        {"type": "response.completed", "response": done},
    ]
    assert collected("responses", map(raw, events)) == done
    with pytest.raises(AnswerError, match="breaks off"):
        collected("responses", map(raw, events[:2]))


CHUNK = {"id": "c1", "choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}


@pytest.mark.parametrize(
    ("route", "events", "message"),
    [
        ("chat", [raw(CHUNK)], "finish reason"),
        ("chat", [b"data: [DONE]\n\n"], "no choices"),
        ("chat", [raw(CHUNK), b"data: {\n\n"], "no JSON"),
        ("chat", [raw([1])], "no JSON object"),
        ("chat", [raw({"error": {"message": "out of memory"}})], "out of memory"),
        ("chat", [raw({"choices": [{"index": 0, "delta": "text"}]})], "shape"),
        ("chat", [raw({"choices": 7})], "shape"),
        ("completions", [raw({"choices": [None]})], "shape"),
        ("messages", [b"event: ping\ndata: {}\n\n"], "breaks off"),
        ("messages", [raw({"type": "error", "error": {"message": "overloaded"}})], "overloaded"),
    ],
)
def test_streams_that_are_none(route: Route, events: list[bytes], message: str) -> None:
    with pytest.raises(AnswerError, match=message):
        collected(route, events)


FIELDS = (
    *("choices", "delta", "message", "index", "tool_calls", "function", "content", "type", "item"),
    *("response", "output", "content_block", "usage", "logprobs", "text", "status", "name"),
    *("finish_reason", "error", "arguments", "input", "function_call"),
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(FIELDS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.sampled_from(["chat", "completions", "messages", "responses"]),
    st.lists(json_values, max_size=4),
)
def test_whatever_a_backend_sends_is_an_answer_or_an_error(route: Route, sent: list[Any]) -> None:
    collector = Collector(route)
    with contextlib.suppress(AnswerError):
        for value in sent:
            collector.add(raw(value))
        read_answer(route, collector.whole(), {})
    for value in sent:
        if isinstance(value, dict):
            with contextlib.suppress(AnswerError):
                read_answer(route, value, {})


def test_calls_without_index_are_whole_ones() -> None:
    """As Google's OpenAI-compatible face sends them."""
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    other = {"id": "2", "type": "function", "function": {"name": "g", "arguments": '{"a":1}'}}
    deltas = [{"role": "assistant", "tool_calls": [call]}, {"tool_calls": [other]}]
    chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    found = collected("chat", map(raw, chunks))
    assert found["choices"][0]["message"]["tool_calls"] == [call, other]


def test_a_long_stream_costs_no_square_of_its_length() -> None:
    collector = Collector("chat")
    event = raw({"choices": [{"index": 0, "delta": {"content": "x" * 50}}]})
    for _ in range(20_000):
        collector.add(event)
    collector.add(raw({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
    assert len(collector.whole()["choices"][0]["message"]["content"]) == 1_000_000
