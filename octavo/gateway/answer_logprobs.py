"""Log-probabilities that only a judge wants: asked for, read, and taken out of the answer again.

Anthropic's `/v1/messages` has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import InvalidRequestError
from octavo.gateway.sse_events import data_of, with_data

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo.gateway.answer_text import Said
    from octavo.gateway.model import Route

IN_RESPONSES = "message.output_text.logprobs"
"""What `include` of `/v1/responses` has to have."""

_encoder = msgspec.json.Encoder()


def asks_logprobs(route: Route, body: Mapping[str, Any]) -> bool:
    """Whether the client himself asks for them."""
    if route == "responses":
        include = body.get("include")
        return isinstance(include, list) and IN_RESPONSES in include
    asked = body.get("logprobs")
    return asked is not None and asked is not False


def with_logprobs(route: Route, body: bytes) -> bytes:
    """The body with log-probabilities of the sampled tokens asked for.

    Raises:
        InvalidRequestError: it is no JSON object.
    """
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError as exc:
        raise InvalidRequestError(f"the body is no JSON object: {exc}") from None
    match route:
        case "chat":
            fields["logprobs"] = msgspec.Raw(b"true")
        case "completions":
            fields["logprobs"] = msgspec.Raw(b"1")  # 0 is "none" to some servers
        case "responses":
            include = msgspec.json.decode(fields.get("include", b"null")) or []
            fields["include"] = msgspec.Raw(_encoder.encode([*include, IN_RESPONSES]))
        case _:
            return body
    return _encoder.encode(fields)


def without_logprobs(route: Route, body: bytes) -> bytes:
    """A whole answer's body without them, as it is where nobody asks. What is no JSON object is
    left as it is.
    """
    if b'"logprobs"' not in body:
        return body
    try:
        answer = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return body
    return _encoder.encode(_strip(route, answer)) if isinstance(answer, dict) else body


def event_without_logprobs(route: Route, event: bytes) -> bytes:
    """An event of a stream without them."""
    if b'"logprobs"' not in event:
        return event
    data = data_of(event)
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return event
    if not isinstance(value, dict):
        return event
    return with_data(event, _encoder.encode(_strip(route, value)))


def _strip(route: Route, value: dict[str, Any]) -> dict[str, Any]:
    if route == "responses":
        _strip_parts(value)
        return value
    choices = value.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict) and "logprobs" in choice:
            choice["logprobs"] = None
    return value


def _strip_parts(value: object) -> None:
    """Empty the lists of a response's parts, and of events that bring or end one.

    Only where the protocol has them: a call's arguments are text, and a tool's schema, which the
    response shows again, may well have a property of this name.
    """
    if not isinstance(value, dict):
        return
    if isinstance(value.get("logprobs"), list):
        value["logprobs"] = []
    for name in ("part", "item", "response"):
        _strip_parts(value.get(name))
    for name in ("content", "output"):
        parts = value.get(name)
        for part in parts if isinstance(parts, list) else ():
            _strip_parts(part)


def content_logprobs(
    route: Route, answer: Mapping[str, Any], said: list[Said], body: Mapping[str, Any]
) -> list[list[float]]:
    """Log-probabilities of each choice's tokens; of those that make its text, where they can be
    told from a reasoning model's tokens and from marks around them. Empty: there are none.

    Args:
        route: whose shape the answer has.
        answer: a whole one.
        said: what `read_answer` found in it.
        body: of the request.
    """
    if route == "messages":
        return [[]]
    if route == "responses":
        return [_response_logprobs(answer)]
    result: list[list[float]] = []
    for choice, one in zip(answer["choices"], said, strict=True):
        told = choice.get("logprobs")
        if not isinstance(told, dict):
            result.append([])
        elif route == "completions":
            result.append(_completion_logprobs(told, body))
        else:
            tokens = told.get("content")
            result.append(_tokens_of_text(tokens, one) if isinstance(tokens, list) else [])
    return result


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _tokens_of_text(tokens: list[Any], said: Said) -> list[float]:
    """The tokens that make the text, or the calls where there is no text.

    Servers tell all tokens that the model wrote: those before the text are reasoning, those after
    it marks. Where nothing spells the text, as with calls whose arguments a parser has made anew,
    only the reasoning is left out.
    """
    pieces, values = [], []
    for token in tokens:
        if not isinstance(token, dict):
            continue
        spelled, value = token.get("bytes"), _number(token.get("logprob"))
        if value is None:
            continue
        try:
            piece = bytes(spelled) if isinstance(spelled, list) else None
        except (TypeError, ValueError):
            piece = None
        pieces.append(str(token.get("token", "")).encode() if piece is None else piece)
        values.append(value)
    written = b"".join(pieces)
    begin, end = 0, len(written)
    thought, text = said.reasoning.strip().encode(), said.text.strip().encode()
    if thought and thought in written:
        begin = written.index(thought) + len(thought)
    if text and text in written[begin:]:
        begin = written.index(text, begin)
        end = begin + len(text)
    result = []
    offset = 0
    for piece, value in zip(pieces, values, strict=True):
        if offset < end and offset + len(piece) > begin:
            result.append(value)
        offset += len(piece)
    return result


def _completion_logprobs(told: dict[str, Any], body: Mapping[str, Any]) -> list[float]:
    """Without an echoed prompt's."""
    values = told.get("token_logprobs")
    if not isinstance(values, list):
        return []
    prompt, offsets = body.get("prompt"), told.get("text_offset")
    if body.get("echo") and isinstance(prompt, str) and isinstance(offsets, list):
        values = [v for v, at in zip(values, offsets, strict=False) if at >= len(prompt)]
    return [value for value in map(_number, values) if value is not None]


def _response_logprobs(answer: Mapping[str, Any]) -> list[float]:
    result = []
    for item in answer.get("output") or ():
        for part in (item.get("content") or ()) if isinstance(item, dict) else ():
            for token in (part.get("logprobs") or ()) if isinstance(part, dict) else ():
                value = _number(token.get("logprob")) if isinstance(token, dict) else None
                if value is not None:
                    result.append(value)
    return result
