"""From a stream's events to the answer that the route gives without streaming.

As the official clients do it (`openai.lib.streaming`, `anthropic.lib.streaming`), but without their
types: what a backend sends beside the protocol's own fields is kept.

Sources: https://platform.openai.com/docs/api-reference/chat-streaming,
https://platform.openai.com/docs/api-reference/responses-streaming and
https://docs.claude.com/en/api/messages-streaming
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from octavo.gateway.answer_text import AnswerError
from octavo.gateway.sse_events import data_of, is_comment

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from octavo.gateway.model import Route

_RESPONSE_ENDS = frozenset(
    ("response.completed", "response.incomplete", "response.failed", "response.cancelled")
)


class _Text(list[str]):
    """A text that grows: pieces, so that a long one does not cost the square of its length."""


class Collector:
    """Grows an answer, event by event. One per stream.

    Args:
        route: whose stream it is: chat, completions, messages or responses.
    """

    def __init__(self, route: Route) -> None:
        self._whole: _Message | _Response | _Choices
        match route:
            case "messages":
                self._whole = _Message()
            case "responses":
                self._whole = _Response()
            case "chat":
                self._whole = _Chat()
            case _:
                self._whole = _Choices()

    def add(self, event: bytes) -> None:
        """Take an event as it came, whole; comments and `[DONE]` bring nothing.

        Raises:
            AnswerError: it is no JSON object, tells of an error, or has no event's shape.
        """
        if event.startswith(b"data: {") and event.find(b"\n") == len(event) - 2:
            data = event[6:]  # one line, as nearly all are
        elif is_comment(event) or (data := data_of(event)).strip() in (b"", b"[DONE]"):
            return
        try:
            value = msgspec.json.decode(data)
        except (msgspec.DecodeError, RecursionError):
            raise AnswerError("an event of the stream is no JSON") from None
        if not isinstance(value, dict):
            raise AnswerError("an event of the stream is no JSON object")
        error = value.get("error")
        if error or value.get("type") == "error":
            message = error.get("message") if isinstance(error, dict) else error
            raise AnswerError(f"the stream tells of an error: {str(message)[:200]}")
        try:
            self._whole.add(value)
        except (TypeError, AttributeError):
            raise AnswerError("an event of the stream has no event's shape") from None

    def whole(self) -> dict[str, Any]:
        """The answer. Nothing may be added after.

        Raises:
            AnswerError: its end is missing.
        """
        try:
            return self._whole.whole()
        except (TypeError, AttributeError):
            raise AnswerError("an event of the stream has no event's shape") from None


async def take_events(
    batches: AsyncIterator[Sequence[bytes]], collector: Collector, held: list[bytes], most: int
) -> bool:
    """Take a stream into memory; whether it was all of it, as it has at most so many bytes.

    Raises:
        AnswerError: an event tells of an error, or cannot be read.
        UpstreamError: it breaks off.
    """
    num_bytes = 0
    async for batch in batches:
        for event in batch:
            held.append(event)
            num_bytes += len(event)
            if num_bytes <= most:
                collector.add(event)
        if num_bytes > most:
            return False
    return True


def _grow(whole: dict[str, Any], delta: dict[str, Any]) -> None:
    """Add what a delta brings: text and lists grow, objects too; null brings nothing."""
    for name, value in delta.items():
        old = whole.get(name)
        if value is None:
            whole.setdefault(name)
        elif isinstance(value, str):
            if isinstance(old, _Text):
                old.append(value)
            else:
                whole[name] = _Text((value,))
        elif isinstance(value, dict):
            if not isinstance(old, dict):
                old = whole[name] = {}
            _grow(old, value)
        elif isinstance(value, list):
            if isinstance(old, list):
                old += value
            else:
                whole[name] = list(value)
        else:
            whole[name] = value


def _joined(value: Any) -> Any:
    """The value with its texts joined; what came whole is left as it is."""
    if isinstance(value, _Text):
        return "".join(value)
    if isinstance(value, dict):
        return {name: _joined(part) for name, part in value.items()}
    return value


class _Choices:
    """Of `/v1/completions`."""

    def __init__(self) -> None:
        self._answer: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}

    def add(self, chunk: dict[str, Any]) -> None:
        answer = self._answer
        for name, value in chunk.items():
            if name == "choices":
                for delta in value or ():
                    index = delta.get("index", 0)
                    choice = self._choices.get(index)
                    if choice is None:
                        choice = self._choices[index] = {"index": index}
                    self._add_choice(choice, delta)
            elif answer.get(name) is None or (name == "usage" and value is not None):
                answer[name] = value

    def whole(self) -> dict[str, Any]:
        if not self._choices:
            raise AnswerError("the stream has no choices")
        for choice in self._choices.values():
            if choice.get("finish_reason") is None:
                raise AnswerError("the stream breaks off: it tells no finish reason")
        ordered = [self._choices[index] for index in sorted(self._choices)]
        return self._answer | {"choices": [self._whole_choice(choice) for choice in ordered]}

    def _add_choice(self, choice: dict[str, Any], delta: dict[str, Any]) -> None:
        for name, value in delta.items():
            if name in ("finish_reason", "stop_reason"):
                if value is not None or name not in choice:
                    choice[name] = value
            elif name != "index":
                self._add_field(choice, name, value)

    def _add_field(self, choice: dict[str, Any], name: str, value: Any) -> None:
        _grow(choice, {name: value})

    def _whole_choice(self, choice: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = _joined(choice)
        return result


class _Chat(_Choices):
    """Of `/v1/chat/completions`."""

    def _add_field(self, choice: dict[str, Any], name: str, value: Any) -> None:
        if name != "delta":
            _grow(choice, {name: value})
            return
        message = choice.setdefault("message", {})
        for part, added in (value or {}).items():
            if part == "role":
                message[part] = message.get(part) or added
            elif part == "tool_calls":
                calls = message.setdefault(part, {})
                for call in added or ():
                    _grow_call(calls, call)
            else:
                _grow(message, {part: added})

    def _whole_choice(self, choice: dict[str, Any]) -> dict[str, Any]:
        given = choice.pop("message", {})
        calls = given.pop("tool_calls", None)
        message = {"role": "assistant", "content": None, "refusal": None} | _joined(given)
        if calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = [_whole_call(calls[index]) for index in sorted(calls)]
        return {**super()._whole_choice(choice), "message": message}

    def whole(self) -> dict[str, Any]:
        return super().whole() | {"object": "chat.completion"}


def _grow_call(calls: dict[int, dict[str, Any]], delta: dict[str, Any]) -> None:
    index = delta.get("index")
    if not isinstance(index, int):  # Google's face leaves it out, and sends each call whole
        index = len(calls) if delta.get("id") else max(0, len(calls) - 1)
    call = calls.setdefault(index, {})
    for name, value in delta.items():
        if name == "function":
            function = call.setdefault(name, {})
            for part, added in (value or {}).items():
                if part == "arguments":
                    _grow(function, {part: added})
                elif added and not function.get(part):  # some send the name with every piece
                    function[part] = added
        elif name != "index" and value and not call.get(name):
            call[name] = value


def _whole_call(call: dict[str, Any]) -> dict[str, Any]:
    function = {"arguments": ""} | _joined(call.get("function") or {})
    function["arguments"] = function["arguments"] or ""
    return {"type": "function", **call, "function": function}


class _Response:
    """Of `/v1/responses`: the last event has all of it."""

    def __init__(self) -> None:
        self._last: dict[str, Any] | None = None

    def add(self, event: dict[str, Any]) -> None:
        if event.get("type") in _RESPONSE_ENDS and isinstance(event.get("response"), dict):
            self._last = event["response"]

    def whole(self) -> dict[str, Any]:
        if self._last is None:
            raise AnswerError("the stream breaks off: its response has no end")
        return self._last


class _Message:
    """Of `/v1/messages`."""

    def __init__(self) -> None:
        self._message: dict[str, Any] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self._inputs: dict[int, list[str]] = {}
        self._is_whole = False

    def add(self, event: dict[str, Any]) -> None:
        index = event.get("index", 0)
        match event.get("type"):
            case "message_start":
                self._message = dict(event.get("message") or {})
            case "content_block_start":
                block: dict[str, Any] = {}
                for name, value in (event.get("content_block") or {}).items():
                    is_text = isinstance(value, str) and name in ("text", "thinking")
                    block[name] = _Text((value,)) if is_text else value
                self._blocks[index] = block
            case "content_block_delta":
                self._add_delta(index, event.get("delta") or {})
            case "message_delta":
                self._message |= event.get("delta") or {}
                usage = self._message["usage"] = dict(self._message.get("usage") or {})
                for name, value in (event.get("usage") or {}).items():
                    if value is not None or name not in usage:
                        usage[name] = value
            case "message_stop":
                self._is_whole = True

    def _add_delta(self, index: int, delta: dict[str, Any]) -> None:
        block = self._blocks.setdefault(index, {})
        match delta.get("type"):
            case "input_json_delta":
                self._inputs.setdefault(index, []).append(delta.get("partial_json") or "")
            case "citations_delta":
                block["citations"] = [*(block.get("citations") or ()), delta.get("citation")]
            case "signature_delta":
                block["signature"] = delta.get("signature")
            case _:
                _grow(block, {name: value for name, value in delta.items() if name != "type"})

    def whole(self) -> dict[str, Any]:
        if not self._message or not self._is_whole:
            raise AnswerError("the stream breaks off: its message has no end")
        content = []
        for index in sorted(self._blocks):
            block = _joined(self._blocks[index])
            text = "".join(self._inputs.get(index, ()))
            if text:
                block["input"] = _input(text)
            content.append(block)
        return self._message | {"content": content}


def _input(text: str) -> Any:
    """The input of a call; of one that was cut off, the text that there is."""
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text
