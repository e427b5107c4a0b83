"""Wire types of answers of Anthropic's `/v1/messages`: the message, its stream's events, errors.

Source: https://docs.claude.com/en/api/messages and https://docs.claude.com/en/api/messages-streaming
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from octavo.protocol import sse
from octavo.protocol.anthropic import NO_THREADS
from octavo.protocol.usage import CostFields

if TYPE_CHECKING:
    from octavo.errors import RequestError
    from octavo.protocol.usage import Usage

StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]


class AnthropicText(msgspec.Struct, tag_field="type", tag="text"):
    """Text for the user."""

    text: str = ""
    citations: None = None


class AnthropicThinkingAnswer(msgspec.Struct, tag_field="type", tag="thinking"):
    """What the model wrote to itself. The signature is a digest of it, by which clients know that
    the block is whole.
    """

    thinking: str = ""
    signature: str = ""


class AnthropicToolUse(msgspec.Struct, tag_field="type", tag="tool_use", kw_only=True):
    """A call of a tool. Of a call that was cut off, `input` has what was whole."""

    id: str
    name: str
    input: dict[str, Any] = {}


AnthropicBlock = AnthropicText | AnthropicThinkingAnswer | AnthropicToolUse


class AnthropicUsage(CostFields, frozen=True):
    """Token counts. `input_tokens` were computed; what was found in the cache is counted apart."""

    input_tokens: int
    output_tokens: int
    cache_read_input_tokens: int
    cache_creation_input_tokens: int = 0
    service_tier: str = "standard"

    @classmethod
    def of(cls, usage: Usage) -> AnthropicUsage:
        """From counts in OpenAI's shape."""
        cached = usage.prompt_tokens_details.cached_tokens
        return cls(usage.prompt_tokens - cached, usage.completion_tokens, cached)


class AnthropicAnswer(msgspec.Struct, kw_only=True):
    """The answer: in a stream's beginning without content and reason."""

    id: str
    type: str = "message"
    role: str = "assistant"
    model: str
    content: list[AnthropicBlock] = []
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    usage: AnthropicUsage


class TokenCount(msgspec.Struct):
    """How long a conversation is."""

    input_tokens: int


class MessageStart(msgspec.Struct, tag_field="type", tag="message_start"):
    """The first event."""

    message: AnthropicAnswer


class BlockStart(msgspec.Struct, tag_field="type", tag="content_block_start"):
    """A block begins."""

    index: int
    content_block: AnthropicBlock


class AnthropicTextDelta(msgspec.Struct, tag_field="type", tag="text_delta"):
    """Further text."""

    text: str


class AnthropicThinkingDelta(msgspec.Struct, tag_field="type", tag="thinking_delta"):
    """Further reasoning."""

    thinking: str


class AnthropicSignatureDelta(msgspec.Struct, tag_field="type", tag="signature_delta"):
    """The signature of a block of reasoning, at its end."""

    signature: str


class AnthropicInputDelta(msgspec.Struct, tag_field="type", tag="input_json_delta"):
    """A further piece of the JSON text of a call's input."""

    partial_json: str


AnthropicBlockDelta = (
    AnthropicTextDelta | AnthropicThinkingDelta | AnthropicSignatureDelta | AnthropicInputDelta
)


class BlockDelta(msgspec.Struct, tag_field="type", tag="content_block_delta"):
    """What a block gets."""

    index: int
    delta: AnthropicBlockDelta


class BlockStop(msgspec.Struct, tag_field="type", tag="content_block_stop"):
    """A block is whole."""

    index: int


class AnthropicEnd(msgspec.Struct):
    """Why the answer ended."""

    stop_reason: StopReason
    stop_sequence: str | None = None


class MessageDelta(msgspec.Struct, tag_field="type", tag="message_delta"):
    """The end of the answer; the counts are of the whole of it."""

    delta: AnthropicEnd
    usage: AnthropicUsage


class MessageStop(msgspec.Struct, tag_field="type", tag="message_stop"):
    """The last event."""


class Ping(msgspec.Struct, tag_field="type", tag="ping"):
    """Nothing: the stream lives."""


AnthropicEvent = (
    MessageStart | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop | Ping
)
"""The events of a stream, beside errors."""


def event(value: AnthropicEvent | AnthropicError) -> bytes:
    """An event on the wire: its name is its type."""
    return sse.named_event(str(value.__struct_config__.tag), value)


ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}
"""By HTTP status; others are `api_error`."""


class AnthropicErrorDetails(msgspec.Struct):
    """A more exact word for programs."""

    error_code: str


class AnthropicErrorDetail(msgspec.Struct):
    """What went wrong: a word for programs, a line for a person."""

    type: str
    message: str
    details: AnthropicErrorDetails | UnsetType = UNSET


class AnthropicError(msgspec.Struct, tag_field="type", tag="error"):
    """The body of an error, and the event that tells of one."""

    error: AnthropicErrorDetail
    request_id: str | None = None

    @classmethod
    def of(cls, exc: RequestError) -> AnthropicError:
        """The body that tells of this exception."""
        kind = ERROR_TYPES.get(exc.status, "api_error")
        detail = AnthropicErrorDetail(kind, exc.message)
        if exc.code == NO_THREADS:
            detail.details = AnthropicErrorDetails(exc.code)
        return cls(detail, exc.request_id)
