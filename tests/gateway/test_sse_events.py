"""Streams cut into events, compared with what OpenAI's client reads out of the whole."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from octavo.errors import UpstreamError
from octavo.gateway.model import Tokens
from octavo.gateway.sse_events import (
    EventSplitter,
    StreamWatch,
    data_of,
    error_message,
    error_text,
    is_comment,
)
from octavo.protocol import sse

LINES = st.sampled_from(
    [
        b'data: {"a":1}',
        b"data: [DONE]",
        b"data:x",
        b": keep-alive",
        b"event: message_stop",
        b"id: 7",
        b'data: {"text":"\\n\\n \\r\\n"}',
        "data: Öl 🙂".encode(),
    ]
)


def chunk(**more: Any) -> dict[str, Any]:
    """A chunk of /v1/chat/completions."""
    choice = {"index": 0, "delta": {"content": "a"}, "finish_reason": None}
    return {"id": "1", "object": "chat.completion.chunk", "choices": [choice]} | more


@given(
    events=st.lists(st.lists(LINES, min_size=1, max_size=3), max_size=6),
    end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    cuts=st.lists(st.integers(0, 200), max_size=8),
)
def test_events_are_the_same_wherever_they_are_cut(
    events: list[list[bytes]], end: bytes, cuts: list[int]
) -> None:
    whole = b"".join(end.join(lines) + end + end for lines in events)
    places = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    splitter = EventSplitter()
    found = [event for a, b in pairwise(places) for event in splitter.feed(whole[a:b])]
    assert b"".join(found) == whole or end == b"\r"  # b"\r\n" may have been cut in the middle
    assert splitter.has_rest is False
    read = [(one.event, one.data) for one in SSEDecoder().iter_bytes(iter([whole]))]
    ours = [(one.event, one.data) for one in SSEDecoder().iter_bytes(iter(found))]
    assert ours == read
    if end == b"\n":
        assert len(found) == len(events)


def test_one_byte_at_a_time() -> None:
    whole = b'data: {"a":1}\n\n: x\n\nevent: e\ndata: 2\n\ndata: 3'
    splitter = EventSplitter()
    found = [event for byte in whole for event in splitter.feed(bytes([byte]))]
    assert found == [b'data: {"a":1}\n\n', b": x\n\n", b"event: e\ndata: 2\n\n"]
    assert splitter.has_rest


def test_an_event_without_end_is_no_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.gateway.sse_events.MAX_EVENT_BYTES", 1000)
    splitter = EventSplitter()
    for _ in range(9):
        assert splitter.feed(b"data: " + b"x" * 100) == []
    with pytest.raises(UpstreamError, match="no end"):
        splitter.feed(b"x" * 100)


@pytest.mark.parametrize("spaces", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize("drops", [True, False])
def test_usage_that_we_asked_for_is_taken_out(spaces: tuple[str, str], drops: bool) -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    given_ = [
        chunk(usage=None),
        {"usage": None} | chunk(),
        chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "length"}], usage=None),
        chunk(choices=[], usage=usage),
    ]
    events = [b"data: %b\n\n" % json.dumps(one, separators=spaces).encode() for one in given_]
    watch = StreamWatch("chat", drops_usage=drops)
    seen = [watch.see(event) for event in [*events, sse.DONE]]
    assert watch.tokens == Tokens(input=7, output=2)
    assert watch.finish_reason == "length"
    assert watch.is_done
    if drops:
        assert seen[3] == b""
        left = [json.loads(data_of(event)) for event in seen[:3]]
        assert not any("usage" in one for one in left)
        assert left == [{k: v for k, v in one.items() if k != "usage"} for one in given_[:3]]
    else:
        assert seen == [*events, sse.DONE]


def test_what_a_model_says_is_not_taken_for_usage() -> None:
    says = '{"usage":{"prompt_tokens":1}},"usage":null,"finish_reason":"stop" data: {"error"'
    event = sse.event(chunk(choices=[{"index": 0, "delta": {"content": says}}]))
    watch = StreamWatch("chat", drops_usage=True)
    assert watch.see(event) == event
    assert watch.tokens is None
    assert (watch.finish_reason, watch.error) == ("", "")


def test_a_last_chunk_with_usage_and_choices_stays() -> None:
    event = sse.event(chunk(usage={"prompt_tokens": 3, "completion_tokens": 1}))
    watch = StreamWatch("chat", drops_usage=True)
    assert watch.see(event) == event
    assert watch.tokens == Tokens(input=3, output=1)


def test_messages_tell_input_first_and_output_last() -> None:
    start = {
        "type": "message_start",
        "message": {"usage": {"input_tokens": 5, "cache_read_input_tokens": 3, "output_tokens": 1}},
    }
    end = {
        "type": "message_delta",
        "delta": {"stop_reason": "max_tokens"},
        "usage": {"output_tokens": 9},
    }
    watch = StreamWatch("messages")
    watch.see(sse.named_event("message_start", start))
    assert watch.tokens == Tokens(input=8, cached=3, output=1)
    watch.see(sse.named_event("message_delta", end))
    assert watch.tokens == Tokens(input=8, cached=3, output=9)
    assert watch.finish_reason == "max_tokens"
    assert not watch.is_done
    watch.see(sse.named_event("message_stop", {"type": "message_stop"}))
    assert watch.is_done


@pytest.mark.parametrize(
    ("status", "reason"),
    [("completed", "completed"), ("incomplete", "max_output_tokens"), ("failed", "failed")],
)
def test_responses_end_with_one_of_three_events(status: str, reason: str) -> None:
    response = {"status": status, "usage": {"input_tokens": 4, "output_tokens": 2}}
    if status == "incomplete":
        response["incomplete_details"] = {"reason": reason}
    watch = StreamWatch("responses")
    begun = {"type": "response.created", "response": {"status": "in_progress", "usage": None}}
    watch.see(sse.named_event("response.created", begun))
    assert not watch.is_whole
    kind = f"response.{status}"
    watch.see(sse.named_event(kind, {"type": kind, "response": response}))
    assert watch.is_done
    assert watch.tokens == Tokens(input=4, output=2)
    assert watch.finish_reason == reason


def test_errors_in_streams() -> None:
    openai = sse.event({"error": {"message": "the engine\n has died", "code": 500}})
    anthropic = sse.named_event(
        "error", {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    )
    assert error_text(openai) == "the engine has died"
    assert error_text(anthropic) == "Overloaded"
    assert error_text(sse.event(chunk())) == ""
    assert error_text(b'data: {"error"\n\n') == "an error that cannot be read"
    watch = StreamWatch("chat")
    watch.see(openai)
    assert watch.error
    assert watch.is_whole
    assert error_message(b'{"message": "old shape"}') == "old shape"
    assert error_message(b'{"error": "plain"}') == "plain"
    assert error_message(b"<html>") == ""


def test_comments() -> None:
    assert is_comment(sse.KEEP_ALIVE)
    assert not is_comment(b": a\ndata: 1\n\n")
    assert not is_comment(sse.DONE)
    watch = StreamWatch("chat")
    assert watch.see(sse.KEEP_ALIVE) == sse.KEEP_ALIVE
    assert watch.num_events == 0


def test_output_is_estimated_by_events_and_their_length() -> None:
    watch = StreamWatch("chat")
    for text in ("a", "b", "c" * 41):
        watch.see(sse.event(chunk(choices=[{"index": 0, "delta": {"content": text}}])))
    assert watch.estimate_output() == 13
