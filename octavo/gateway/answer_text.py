"""What an answer says, whatever its route's shape: texts, calls of tools, why each choice ended.

Answers are those of any backend: what is missing or has another type is read as not there.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from octavo.gateway.model import Call, Route

JUDGED_ROUTES = frozenset[str](("chat", "completions", "messages", "responses"))
"""Those whose answers are text."""

_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
"""Reasons of Anthropic's messages and of responses, in the words of chats."""


class AnswerError(Exception):
    """An answer that cannot be read, or that tells of an error; the message says which."""


class ToolCall(NamedTuple):
    """A call that the model wants made; `arguments` is the JSON text as it came."""

    name: str
    arguments: str


class Said(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of an answer.

    Attributes:
        text: for the user; without reasoning, and without an echoed prompt.
        reasoning: what the model wrote to itself, where the backend tells it apart.
        refusal: the model's own word that it declines.
        finish: reason in the words of chats: `stop`, `length`, `tool_calls`, `content_filter`.
    """

    text: str
    reasoning: str = ""
    refusal: str = ""
    calls: tuple[ToolCall, ...] = ()
    finish: str = ""

    @property
    def shown(self) -> str:
        """The text, and the calls after it, one a line."""
        parts = [self.text or self.refusal] if self.text or self.refusal else []
        parts += [f"[calls {call.name}({call.arguments})]" for call in self.calls]
        return "\n".join(parts)


def decoded_answer(body: bytes) -> dict[str, Any]:
    """An answer's body as a JSON object.

    Raises:
        AnswerError: it is none.
    """
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        raise AnswerError("the answer is no JSON object") from None


def read_answer(route: Route, answer: Mapping[str, Any], body: Mapping[str, Any]) -> list[Said]:
    """The choices of a whole answer, at least one.

    Args:
        route: whose shape the answer has; one of `JUDGED_ROUTES`.
        answer: as the route gives it without streaming.
        body: of the request.

    Raises:
        AnswerError: there is none, or it tells of an error.
    """
    if answer.get("error"):
        raise AnswerError(f"the answer tells of an error: {_error(answer['error'])}")
    if route == "messages":
        return [_message(answer)]
    if route == "responses":
        return [_response(answer)]
    choices = [choice for choice in _list(answer.get("choices")) if isinstance(choice, dict)]
    if not choices:
        raise AnswerError("the answer has no choices")
    if route == "completions":
        return [_completion(choice, body) for choice in choices]
    return [_chat(choice) for choice in choices]


def answer_sha256(choices: Sequence[Said]) -> str:
    """SHA-256 of what an answer says, hexadecimal: of the text where it is one choice of nothing
    but text, else of a JSON list of every choice's text and calls.
    """
    if len(choices) == 1 and not choices[0].calls:
        data = choices[0].text.encode("utf-8", "surrogatepass")
    else:
        data = msgspec.json.encode([[said.text, said.calls] for said in choices])
    return hashlib.sha256(data).hexdigest()


def _error(error: object) -> str:
    message = error.get("message") if isinstance(error, dict) else error
    return str(message)[:200]


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _str(value: object) -> str:
    return value if isinstance(value, str) else ""


def text_of(content: object) -> str:
    """The text of a content: itself, or that of its parts one after the other."""
    if isinstance(content, str):
        return content
    parts = (_dict(part) for part in _list(content))
    return "".join(_str(part.get("text")) or _str(part.get("refusal")) for part in parts)


def _chat(choice: dict[str, Any]) -> Said:
    message = _dict(choice.get("message"))
    return Said(
        text=text_of(message.get("content")),
        reasoning=_str(message.get("reasoning")) or _str(message.get("reasoning_content")),
        refusal=_str(message.get("refusal")),
        calls=tuple(_chat_calls(message)),
        finish=_str(choice.get("finish_reason")),
    )


def _chat_calls(message: dict[str, Any]) -> Iterator[ToolCall]:
    legacy = message.get("function_call")
    functions = [_dict(_dict(call).get("function")) for call in _list(message.get("tool_calls"))]
    if isinstance(legacy, dict):
        functions.append(legacy)
    for function in functions:
        yield ToolCall(_str(function.get("name")), _str(function.get("arguments")))


def _completion(choice: dict[str, Any], body: Mapping[str, Any]) -> Said:
    text = _str(choice.get("text"))
    prompt = body.get("prompt")
    if body.get("echo") and isinstance(prompt, str):
        text = text.removeprefix(prompt)
    return Said(text=text, finish=_str(choice.get("finish_reason")))


def _message(answer: Mapping[str, Any]) -> Said:
    if not isinstance(answer.get("content"), list):
        raise AnswerError("the answer has no content")
    texts, thoughts, calls = [], [], []
    for block in map(_dict, answer["content"]):
        match block.get("type"):
            case "text":
                texts.append(_str(block.get("text")))
            case "thinking":
                thoughts.append(_str(block.get("thinking")))
            case "tool_use":
                given = block.get("input")
                # Text in its place is what `answer_collect` leaves of a call that is not whole.
                told = given if isinstance(given, str) else msgspec.json.encode(given).decode()
                calls.append(ToolCall(_str(block.get("name")), told))
    reason = _str(answer.get("stop_reason"))
    return Said(
        text="".join(texts),
        reasoning="".join(thoughts),
        calls=tuple(calls),
        finish=_FINISH.get(reason, reason),
    )


def _response(answer: Mapping[str, Any]) -> Said:
    if not isinstance(answer.get("output"), list):
        raise AnswerError("the answer has no output")
    if answer.get("status") in ("failed", "cancelled", "queued", "in_progress"):
        raise AnswerError(f"the response is {answer['status']}")
    texts, thoughts, refusals, calls = [], [], [], []
    for item in map(_dict, answer["output"]):
        match item.get("type"):
            case "message":
                for part in map(_dict, _list(item.get("content"))):
                    texts.append(_str(part.get("text")))
                    refusals.append(_str(part.get("refusal")))
            case "reasoning":
                thoughts.append(text_of(item.get("content")) or text_of(item.get("summary")))
            case "function_call":
                calls.append(ToolCall(_str(item.get("name")), _str(item.get("arguments"))))
    reason = _str(_dict(answer.get("incomplete_details")).get("reason"))
    whole = "tool_calls" if calls else "stop"
    return Said(
        text="".join(texts),
        reasoning="".join(thoughts),
        refusal="".join(refusals),
        calls=tuple(calls),
        finish=_FINISH.get(reason, reason) or whole,
    )


def conversation_text(call: Call) -> str:
    """What a call asks, as text for a person or a grader: one line `role: text` per message."""
    body = call.body
    if call.route == "completions":
        prompt = body.get("prompt")
        texts = prompt if isinstance(prompt, list) else [prompt]
        return "\n".join(text for text in texts if isinstance(text, str))
    lines = []
    instructions = text_of(body.get("system")) or text_of(body.get("instructions"))
    if instructions:
        lines.append(f"system: {instructions}")
    messages = body.get("input") if call.route == "responses" else body.get("messages")
    if isinstance(messages, str):
        lines.append(f"user: {messages}")
    for message in map(_dict, _list(messages)):
        lines += _message_lines(message)
    return "\n".join(lines)


def _message_lines(message: dict[str, Any]) -> Iterator[str]:
    role = _str(message.get("role"))
    content = message.get("content")
    if text_of(content):
        yield f"{role or 'assistant'}: {text_of(content)}"
    for called in _chat_calls(message):
        yield f"assistant calls: {called.name}({called.arguments})"
    for block in map(_dict, _list(content)):
        if block.get("type") == "tool_use":
            given = msgspec.json.encode(block.get("input")).decode()
            yield f"assistant calls: {_str(block.get('name'))}({given})"
        elif block.get("type") == "tool_result":
            yield f"tool: {text_of(block.get('content'))}"
    if message.get("type") == "function_call":
        yield f"assistant calls: {_str(message.get('name'))}({_str(message.get('arguments'))})"
    elif message.get("type") == "function_call_output":
        yield f"tool: {text_of(message.get('output'))}"
