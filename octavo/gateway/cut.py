"""How a stream ends that has reached its ceiling: the events after the last one that was passed on,
in the shape of the stream's route. The reason that they tell is `budget`. Pure.

Sources: https://platform.openai.com/docs/api-reference/chat-streaming,
https://platform.openai.com/docs/api-reference/responses-streaming and
https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.gateway.sse_events import data_of
from octavo.protocol import sse

if TYPE_CHECKING:
    from octavo.gateway.model import Call

REASON = "budget"
"""Why the answer ended: `finish_reason`, or what its route calls that."""


def cut_events(call: Call, first: bytes, last: bytes, num_output_tokens: int) -> bytes:
    """What ends a stream that is cut.

    Args:
        call: what was asked.
        first: the stream's first event.
        last: the last event that was passed on.
        num_output_tokens: until now, an estimate.
    """
    if call.route == "messages":
        return _messages(last, num_output_tokens)
    if call.route == "responses":
        return _responses(_value(first), _value(last), num_output_tokens)
    value = _value(first)
    head = {
        "id": value.get("id", call.request_id),
        "object": value.get("object", "chat.completion.chunk"),
        "created": value.get("created", int(time.time())),
        "model": value.get("model", call.model),
    }
    said: dict[str, Any] = {"text": ""} if call.route == "completions" else {"delta": {}}
    choices = [
        {"index": index, **said, "finish_reason": REASON} for index in range(call.num_choices)
    ]
    return sse.event({**head, "choices": choices}) + sse.DONE


def _messages(last: bytes, num_output_tokens: int) -> bytes:
    """Anthropic's: the block that is open is closed, and the message tells why it ends."""
    value = _value(last)
    events = []
    if value.get("type") in ("content_block_start", "content_block_delta"):
        stop = {"type": "content_block_stop", "index": value.get("index", 0)}
        events.append(sse.named_event("content_block_stop", stop))
    delta = {
        "type": "message_delta",
        "delta": {"stop_reason": REASON, "stop_sequence": None},
        "usage": {"output_tokens": num_output_tokens},
    }
    events.append(sse.named_event("message_delta", delta))
    events.append(sse.named_event("message_stop", {"type": "message_stop"}))
    return b"".join(events)


def _responses(first: dict[str, Any], last: dict[str, Any], num_output_tokens: int) -> bytes:
    """OpenAI's Responses: `response.incomplete`, with the response as it was at its beginning."""
    begun = first.get("response")
    response = {
        **(begun if isinstance(begun, dict) else {"object": "response", "output": []}),
        "status": "incomplete",
        "incomplete_details": {"reason": REASON},
        "usage": {
            "input_tokens": 0,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": num_output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": num_output_tokens,
        },
    }
    number = last.get("sequence_number")
    event = {
        "type": "response.incomplete",
        "sequence_number": number + 1 if isinstance(number, int) else 0,
        "response": response,
    }
    return sse.named_event("response.incomplete", event)


def _value(event: bytes) -> dict[str, Any]:
    """An event's JSON object; empty where it has none."""
    try:
        value = msgspec.json.decode(data_of(event))
    except (msgspec.DecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
