"""Wire types of `/v1/chat/completions`.

Source: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from octavo.errors import InvalidRequestError
from octavo.protocol.decode import Int32
from octavo.protocol.generation import (
    GenerationRequest,
    Neutral,
    check_neutral,
    sampling_params,
)
from octavo.protocol.logprobs import PromptLogprobs
from octavo.protocol.messages import (
    Message,
    check_template_kwargs,
    template_messages,
    text_of,
)
from octavo.protocol.tools import (
    FunctionTool,
    ToolCallAnswer,
    ToolCallDelta,
    ToolChoice,
    check_tools,
)
from octavo.protocol.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo.types import SamplingParams

NEUTRAL_CHAT_VALUES: Neutral = {
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "verbosity": (None,),
    "web_search_options": (None,),
    "echo": (None, False),
}


class ChatCompletionRequest(GenerationRequest, kw_only=True):
    """A chat request.

    `max_completion_tokens` and `max_tokens` are two names of one bound; without it the answer may
    fill the context. `add_generation_prompt` is true unless `continue_final_message` is.
    """

    messages: list[Message]
    max_tokens: Int32 | None = None
    max_completion_tokens: Int32 | None = None
    logprobs: bool | None = None
    top_logprobs: Int32 | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | None = None

    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    # Not served: only neutral values pass.
    functions: list[Any] | None = None
    function_call: str | dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    verbosity: str | None = None
    web_search_options: dict[str, Any] | None = None
    echo: bool | None = None

    def check(self) -> None:
        """Refuse what is not served and fields that contradict each other.

        Raises:
            InvalidRequestError: names the field.
        """
        check_neutral(self, NEUTRAL_CHAT_VALUES)
        super().check()
        check_template_kwargs(self.chat_template_kwargs)
        check_tools(self.tools or (), self.tool_choice)
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidRequestError(
                "top_logprobs is only allowed when logprobs is true", param="top_logprobs"
            )
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise InvalidRequestError(
                "max_tokens and max_completion_tokens contradict each other: give one of them",
                param="max_tokens",
            )

    @property
    def offered_tools(self) -> list[FunctionTool]:
        """The tools that the model is told of."""
        return [] if self.tool_choice == "none" else self.tools or []

    @property
    def forces_calls(self) -> bool:
        """Whether the answer must be calls."""
        return self.tool_choice not in (None, "none", "auto")

    @property
    def continued_text(self) -> str:
        """The text that the answer goes on from; nothing where it is a message of its own."""
        return text_of(self.messages[-1]) if self.continue_final_message and self.messages else ""

    @property
    def max_tokens_field(self) -> str:
        """The name by which the caller bounds the answer's length."""
        if self.max_completion_tokens is not None:
            return "max_completion_tokens"
        return "max_tokens"

    def template_messages(self) -> list[dict[str, Any]]:
        """The messages as chat templates read them, see `messages.template_messages`."""
        return template_messages(self.messages)

    def sampling_params(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """How the engine shall sample, see `generation.sampling_params`.

        Raises:
            InvalidRequestError: a value is out of range; `param` is this API's name for it.
        """
        try:
            return sampling_params(
                self,
                max_tokens=getattr(self, self.max_tokens_field),
                logprobs=(self.top_logprobs or 0) if self.logprobs else None,
                defaults=defaults,
            )
        except InvalidRequestError as exc:
            raise self.in_own_names(exc) from None

    def in_own_names(self, exc: InvalidRequestError) -> InvalidRequestError:
        """The error with SamplingParams' field names turned into those of this request."""
        if exc.param == "structured_outputs" and (self.forces_calls or self.offered_tools):
            message = exc.message.replace("structured_outputs", "tools", 1)
            return InvalidRequestError(message, param="tools", code=exc.code)
        exc = super().in_own_names(exc)
        names = {"logprobs": "top_logprobs", "max_tokens": self.max_tokens_field}
        name = names.get(exc.param or "")
        if exc.param is None or name is None:
            return exc
        message = exc.message.replace(exc.param, name)
        return InvalidRequestError(message, param=name, code=exc.code)


class TopLogprob(msgspec.Struct):
    """A token's text, log-probability and UTF-8 bytes (its text may be a piece of a character)."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprobs(msgspec.Struct):
    """The token at one position and the most probable alternatives."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    """Log-probabilities of a choice's tokens."""

    content: list[TokenLogprobs]
    refusal: None = None


class AssistantAnswer(msgspec.Struct, kw_only=True):
    """The message of a choice."""

    role: str = "assistant"
    content: str | None
    refusal: None = None
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallAnswer] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, kw_only=True):
    """One choice of an answer."""

    index: int = 0
    message: AssistantAnswer
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(msgspec.Struct, kw_only=True):
    """The answer without streaming."""

    id: str
    object: str = "chat.completion"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[PromptLogprobs | None] | UnsetType = UNSET


class ChatDelta(msgspec.Struct, kw_only=True):
    """What a chunk adds to the message."""

    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, kw_only=True):
    """What a chunk adds to one choice. `stop_reason` is in the finish chunk only."""

    index: int = 0
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletionChunk(msgspec.Struct, kw_only=True):
    """One event of a stream."""

    id: str
    object: str = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
