"""Wire types of `/v1/responses`.

Source: https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from octavo.errors import InvalidRequestError
from octavo.protocol.chat import TokenLogprobs
from octavo.protocol.decode import Int32, Int64
from octavo.protocol.errors import ErrorDetail
from octavo.protocol.generation import Neutral, check_neutral
from octavo.protocol.metadata import Metadata, check_metadata
from octavo.protocol.response_items import (
    InputItem,
    ListedItem,
    OutputItem,
    OutputText,
    ReasoningText,
    check_item,
)
from octavo.protocol.structured import JSONObjectFormat, TextFormat
from octavo.protocol.usage import CostFields

LOGPROBS = "message.output_text.logprobs"

NEUTRAL_RESPONSE_VALUES: Neutral = {
    "conversation": (None,),
    "context_management": (None, []),
    "moderation": (None,),
    "prompt": (None,),
    "prompt_cache_options": (None,),
    "prompt_cache_retention": (None, "in_memory"),
}


class ResponseFunctionTool(
    msgspec.Struct, tag_field="type", tag="function", forbid_unknown_fields=True
):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: str
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class NamedFunction(msgspec.Struct, tag_field="type", tag="function", forbid_unknown_fields=True):
    """The function that the model must call."""

    name: str


class ResponseSchemaFormat(
    msgspec.Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True
):
    """JSON by a schema."""

    name: str
    schema: dict[str, Any]
    strict: bool | None = None
    description: str | None = None


class TextConfig(msgspec.Struct, forbid_unknown_fields=True):
    """What the text must be. `verbosity` is not served."""

    format: TextFormat | JSONObjectFormat | ResponseSchemaFormat | None = None
    verbosity: None = None


class ReasoningConfig(msgspec.Struct, forbid_unknown_fields=True):
    """How much the model reasons. Its reasoning is given as it is: there is nobody who summarises
    it, which is what `auto` comes to.
    """

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None
    summary: Literal["auto"] | None = None


class ResponseStreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """Padding against traffic analysis is not served."""

    include_obfuscation: Literal[False] | None = None


class ResponseRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A request for a response: OpenAI's fields, and vLLM's extras. Null is as good as left out.

    `max_tool_calls` bounds calls of tools that the server runs, of which there are none.
    `metadata`, `user`, `safety_identifier`, `prompt_cache_key` and `service_tier` are labels: they
    are in the response again.
    """

    model: str
    input: str | list[InputItem] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: Int32 | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[ResponseFunctionTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedFunction | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Int32 | None = None
    text: TextConfig | None = None
    reasoning: ReasoningConfig | None = None
    truncation: Literal["auto", "disabled"] | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: Int32 | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    store: bool | None = None
    background: bool | None = None

    metadata: Metadata | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: Literal["auto", "default"] | None = None

    # vLLM's extras, as in chats.
    top_k: Int32 | None = None
    min_p: float | None = None
    seed: Int64 | None = None
    stop: str | list[str] | None = None
    repetition_penalty: float | None = None
    priority: Int32 | None = None
    cache_salt: str | None = None
    timeout: float | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    # Not served: only neutral values pass.
    conversation: str | dict[str, Any] | None = None
    context_management: list[Any] | None = None
    moderation: dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None

    @property
    def items(self) -> list[InputItem]:
        """The input; a text is a message of the user."""
        if isinstance(self.input, str):
            return [InputItem(type="message", role="user", content=self.input)]
        return self.input or []

    @property
    def has_logprobs(self) -> bool:
        """Whether the text's log-probabilities are asked for."""
        return LOGPROBS in (self.include or ())

    @property
    def is_stored(self) -> bool:
        """Whether the response is kept."""
        return self.store is not False

    def check(self) -> None:
        """Refuse what is not served and fields that contradict each other.

        Raises:
            InvalidRequestError: names the field.
        """
        check_neutral(self, NEUTRAL_RESPONSE_VALUES)
        if self.input is None and self.previous_response_id is None:
            raise InvalidRequestError("Missing required field: input", param="input")
        if isinstance(self.input, list):
            for index, item in enumerate(self.input):
                check_item(item, f"input[{index}]")
        check_metadata(self.metadata)
        if self.background and not self.is_stored:
            raise InvalidRequestError(
                "background needs store: what runs on can only be fetched from there",
                param="background",
            )
        if self.stream_options is not None and not self.stream:
            raise InvalidRequestError(
                "stream_options is only allowed when stream is true", param="stream_options"
            )
        if self.top_logprobs and not self.has_logprobs:
            raise InvalidRequestError(
                f"top_logprobs is only allowed when include has {LOGPROBS!r}",
                param="top_logprobs",
            )
        if self.max_tool_calls is not None and self.max_tool_calls < 1:
            raise InvalidRequestError(
                f"max_tool_calls must be at least 1, got {self.max_tool_calls}",
                param="max_tool_calls",
            )


class InputTokensDetails(msgspec.Struct):
    """How the input's tokens came to be computed. Writing to the cache costs nothing extra."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct):
    """What the output's tokens were for. The marks around reasoning count as reasoning."""

    reasoning_tokens: int = 0


class ResponseUsage(CostFields, frozen=True):
    """Token counts of a response."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class IncompleteDetails(msgspec.Struct):
    """Why an output is not whole: `max_output_tokens`, or `timeout`, which is vLLM's extra."""

    reason: str


class ResponseFailure(msgspec.Struct):
    """Why there is no output."""

    code: str
    message: str


ResponseStatus = Literal["completed", "failed", "in_progress", "cancelled", "queued", "incomplete"]


class Response(msgspec.Struct, kw_only=True):
    """A response, at whatever point it is."""

    id: str
    object: str = "response"
    created_at: int
    completed_at: int | None = None
    status: ResponseStatus
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    output: list[OutputItem] = []
    usage: ResponseUsage | None = None

    # As asked for.
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: int | None = None
    temperature: float
    top_p: float
    tools: list[ResponseFunctionTool] = []
    tool_choice: Literal["none", "auto", "required"] | NamedFunction = "auto"
    parallel_tool_calls: bool = True
    max_tool_calls: int | None = None
    text: TextConfig
    reasoning: ReasoningConfig
    truncation: str = "disabled"
    top_logprobs: int = 0
    store: bool = True
    background: bool = False
    metadata: Metadata = {}
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str = "default"

    @property
    def is_over(self) -> bool:
        """Whether nothing will be added any more."""
        return self.status not in ("queued", "in_progress")


class ResponseEvent(msgspec.Struct, kw_only=True):
    """An event of a stream; `type` says which fields it has."""

    type: str
    sequence_number: int
    response: Response | UnsetType = UNSET
    output_index: int | UnsetType = UNSET
    item: OutputItem | UnsetType = UNSET
    item_id: str | UnsetType = UNSET
    content_index: int | UnsetType = UNSET
    part: OutputText | ReasoningText | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    logprobs: list[TokenLogprobs] | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class ErrorEvent(msgspec.Struct, kw_only=True):
    """The event that tells of a stream that cannot go on."""

    type: str = "error"
    code: str | None
    message: str
    param: str | None
    sequence_number: int = 0
    error: ErrorDetail


class ItemList(msgspec.Struct, kw_only=True):
    """One page of input items."""

    object: str = "list"
    data: list[ListedItem]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ResponseDeleted(msgspec.Struct, kw_only=True):
    """What deleting answers."""

    id: str
    object: str = "response"
    deleted: bool = True
