"""How a family of routes spells what is not an answer: errors, and the frame of its streams.

What went wrong is decided elsewhere (`errors.py`); a dialect only writes it down as the clients of
its protocol expect it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.protocol import sse
from octavo.protocol.anthropic_answers import AnthropicError, Ping
from octavo.protocol.anthropic_answers import event as anthropic_event
from octavo.protocol.errors import ErrorBody
from octavo.protocol.ollama_answers import OllamaError, line

if TYPE_CHECKING:
    from collections.abc import Callable

    import msgspec

    from octavo.errors import RequestError


@dataclass(frozen=True, slots=True)
class Dialect:
    """One protocol's frame.

    Attributes:
        error_body: the JSON value of an error's answer.
        error_event: the bytes that tell of an error in the middle of a stream.
        media_type: of a stream.
        end: the bytes at the end of every stream, after an error too.
        keep_alive: bytes that say nothing, for a stream that is silent; none: it stays silent.
        error_type: of an error's answer, for documentation: what `error_body` returns.
        id_header: a further header with the request's id, beside `X-Request-Id`; none: "".
    """

    error_body: Callable[[RequestError], Any]
    error_event: Callable[[RequestError], bytes]
    media_type: str = "text/event-stream; charset=utf-8"
    end: bytes = b""
    keep_alive: bytes = sse.KEEP_ALIVE
    error_type: type[msgspec.Struct] = ErrorBody
    id_header: str = ""


OPENAI = Dialect(
    error_body=ErrorBody.of,
    error_event=lambda exc: sse.event(ErrorBody.of(exc)),
    end=sse.DONE,
)
"""OpenAI's, and of every route that has no other."""

ANTHROPIC = Dialect(
    error_body=AnthropicError.of,
    error_event=lambda exc: anthropic_event(AnthropicError.of(exc)),
    keep_alive=anthropic_event(Ping()),
    error_type=AnthropicError,
    id_header="request-id",
)
"""Of `/v1/messages`. Its streams end with an event of their own, errors with nothing after them."""

OLLAMA = Dialect(
    error_body=OllamaError.of,
    error_event=lambda exc: line(OllamaError.of(exc)),
    media_type="application/x-ndjson",
    keep_alive=b"",
    error_type=OllamaError,
)
"""Of `/api/...`: lines of JSON, where there is nothing that a reader would skip."""
