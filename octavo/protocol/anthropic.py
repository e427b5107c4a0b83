"""Wire types of requests to Anthropic's `/v1/messages`. Answers are in `anthropic_answers`.

What the API has and this server has not is refused by name, unless its value asks for nothing.

Source: https://docs.claude.com/en/api/messages
"""

from __future__ import annotations

from typing import Any, Literal, TypeVar

import msgspec

from octavo.errors import InvalidRequestError
from octavo.protocol.decode import Int32, decode
from octavo.protocol.generation import Neutral, check_neutral

MIN_THINKING_BUDGET = 1024
"""Least `budget_tokens` (the API's bound)."""

NO_THREADS = "thread_unsupported_request"
"""Code of the error by which clients know to send the whole conversation each time."""

NEUTRAL_VALUES: Neutral = {
    "billing_policy": (None,),
    "compaction": (None,),
    "container": (None,),
    "diagnostics": (None,),
    "fallback_credit_token": (None,),
    "fallbacks": (None, []),
    "inference_geo": (None,),
    "mcp_servers": (None, []),
    "speed": (None, "standard"),
}


class AnthropicCacheControl(msgspec.Struct, forbid_unknown_fields=True):
    """A hint where a prefix ends that is worth keeping. Prefixes are found without."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class AnthropicTextBlock(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """A piece of text. Answers carry empty citations, which may be sent back."""

    text: str
    cache_control: AnthropicCacheControl | None = None
    citations: list[Any] | None = None


class AnthropicCaller(msgspec.Struct, forbid_unknown_fields=True):
    """Who called a tool: the model itself."""

    type: Literal["direct"]


class AnthropicToolUseBlock(
    msgspec.Struct, tag_field="type", tag="tool_use", forbid_unknown_fields=True
):
    """A call that the model made earlier."""

    id: str
    name: str
    input: dict[str, Any]
    cache_control: AnthropicCacheControl | None = None
    caller: AnthropicCaller | None = None
    toolset_name: None = None


class AnthropicToolResultBlock(
    msgspec.Struct, tag_field="type", tag="tool_result", forbid_unknown_fields=True
):
    """What a call came to."""

    tool_use_id: str
    content: str | list[AnthropicTextBlock] | None = None
    is_error: bool | None = None
    cache_control: AnthropicCacheControl | None = None
    toolset_name: None = None


class AnthropicThinkingBlock(
    msgspec.Struct, tag_field="type", tag="thinking", forbid_unknown_fields=True
):
    """The reasoning of an earlier answer. Its signature is not checked."""

    thinking: str
    signature: str


UserBlock = AnthropicTextBlock | AnthropicToolResultBlock
AssistantBlock = AnthropicTextBlock | AnthropicToolUseBlock | AnthropicThinkingBlock


class AnthropicUserMessage(
    msgspec.Struct, tag_field="role", tag="user", forbid_unknown_fields=True
):
    """What the user says, and what tools said."""

    content: str | list[UserBlock]


class AnthropicAssistantMessage(
    msgspec.Struct, tag_field="role", tag="assistant", forbid_unknown_fields=True
):
    """An earlier answer; at the end of the conversation, the beginning of the next one."""

    content: str | list[AssistantBlock]


class AnthropicSystemMessage(
    msgspec.Struct, tag_field="role", tag="system", forbid_unknown_fields=True
):
    """Instructions in the midst of a conversation."""

    content: str | list[AnthropicTextBlock]


AnthropicMessage = AnthropicUserMessage | AnthropicAssistantMessage | AnthropicSystemMessage


class AnthropicTool(msgspec.Struct, forbid_unknown_fields=True):
    """A tool that the caller runs, the only kind that is served; `input_schema` is a JSON schema.

    `eager_input_streaming` is a hint: inputs are always streamed while they are written.
    """

    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    cache_control: AnthropicCacheControl | None = None
    strict: bool | None = None
    eager_input_streaming: bool | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    defer_loading: bool | None = None
    input_examples: list[Any] | None = None


class AnthropicAutoChoice(msgspec.Struct, tag_field="type", tag="auto", forbid_unknown_fields=True):
    """The model decides whether to call."""

    disable_parallel_tool_use: bool | None = None


class AnthropicAnyChoice(msgspec.Struct, tag_field="type", tag="any", forbid_unknown_fields=True):
    """The model must call some tool."""

    disable_parallel_tool_use: bool | None = None


class AnthropicNamedChoice(
    msgspec.Struct, tag_field="type", tag="tool", forbid_unknown_fields=True
):
    """The model must call this tool."""

    name: str
    disable_parallel_tool_use: bool | None = None


class AnthropicNoChoice(msgspec.Struct, tag_field="type", tag="none", forbid_unknown_fields=True):
    """The model is told of no tool."""


AnthropicToolChoice = (
    AnthropicAutoChoice | AnthropicAnyChoice | AnthropicNamedChoice | AnthropicNoChoice
)

Display = Literal["summarized", "omitted"]


class AnthropicThinkingEnabled(
    msgspec.Struct, tag_field="type", tag="enabled", forbid_unknown_fields=True
):
    """The model reasons first. The budget is a target, the API says: `max_tokens` bounds."""

    budget_tokens: Int32
    display: Display | None = None


class AnthropicThinkingAdaptive(
    msgspec.Struct, tag_field="type", tag="adaptive", forbid_unknown_fields=True
):
    """The model reasons if it can."""

    display: Display | None = None


class AnthropicThinkingDisabled(
    msgspec.Struct, tag_field="type", tag="disabled", forbid_unknown_fields=True
):
    """The model does not reason."""


AnthropicThinking = AnthropicThinkingEnabled | AnthropicThinkingAdaptive | AnthropicThinkingDisabled


class AnthropicMetadata(msgspec.Struct, forbid_unknown_fields=True):
    """Who asks; without effect."""

    user_id: str | None = None


class AnthropicOutputFormat(msgspec.Struct, forbid_unknown_fields=True):
    """The answer's text is JSON by this schema."""

    type: Literal["json_schema"]
    schema: dict[str, Any]


class AnthropicOutputConfig(msgspec.Struct, forbid_unknown_fields=True):
    """What the answer shall be. Effort `high` is what there is without it."""

    effort: Literal["low", "medium", "high", "xhigh"] | None = None
    format: AnthropicOutputFormat | None = None


class AnthropicKeepThinking(
    msgspec.Struct, tag_field="type", tag="clear_thinking_20251015", forbid_unknown_fields=True
):
    """An edit that keeps all reasoning of earlier turns, as agents send it: nothing is changed."""

    keep: Literal["all"]


class AnthropicContextManagement(msgspec.Struct, forbid_unknown_fields=True):
    """Edits of the conversation on the server: none but the one that changes nothing."""

    edits: list[AnthropicKeepThinking] | None = None


class CountTokensRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A conversation whose tokens are to be counted. Null is the same as leaving a field out."""

    model: str
    messages: list[AnthropicMessage]
    system: str | list[AnthropicTextBlock] | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: AnthropicThinking | None = None
    output_config: AnthropicOutputConfig | None = None
    cache_control: AnthropicCacheControl | None = None
    context_management: AnthropicContextManagement | None = None

    # Not served: only neutral values pass.
    mcp_servers: list[Any] | None = None
    thread: dict[str, Any] | None = None
    speed: str | None = None

    def check(self) -> None:
        """Refuse what is not served, as far as it takes no look at the model.

        Raises:
            InvalidRequestError: names the field.
        """
        neutral = {name: NEUTRAL_VALUES[name] for name in NEUTRAL_VALUES if hasattr(self, name)}
        check_neutral(self, neutral)
        if self.thread is not None:
            raise InvalidRequestError(
                "thread is not supported by this server: send the whole conversation without it",
                param="thread",
                code=NO_THREADS,
            )
        for index, tool in enumerate(self.tools or ()):
            _check_tool(tool, f"tools[{index}]")
        thinking = self.thinking
        if (
            isinstance(thinking, AnthropicThinkingEnabled)
            and thinking.budget_tokens < MIN_THINKING_BUDGET
        ):
            raise InvalidRequestError(
                f"thinking.budget_tokens must be at least {MIN_THINKING_BUDGET}, "
                f"got {thinking.budget_tokens}",
                param="thinking.budget_tokens",
            )


class MessagesRequest(CountTokensRequest, kw_only=True):
    """A conversation to be answered, of at most `max_tokens` tokens."""

    max_tokens: Int32
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int32 | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = None

    cache_salt: str | None = None
    """vLLM's name, which Anthropic's API has not: who has another salt shares no prefix cache."""

    # Harmless.
    metadata: AnthropicMetadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    # Not served: only neutral values pass.
    billing_policy: dict[str, Any] | None = None
    compaction: dict[str, Any] | None = None
    container: Any = None
    diagnostics: dict[str, Any] | None = None
    fallback_credit_token: Any = None
    fallbacks: Any = None
    inference_geo: str | None = None


def _check_tool(tool: AnthropicTool, where: str) -> None:
    unserved = {
        "defer_loading": (tool.defer_loading, "set it to false"),
        "input_examples": (tool.input_examples, "put the examples into the description"),
    }
    for name, (value, hint) in unserved.items():
        if value:
            raise InvalidRequestError(
                f"{where}.{name} is not supported by this server: leave it out, or {hint}",
                param=f"{where}.{name}",
            )


class _ToolKind(msgspec.Struct):
    type: Any = None


class _ToolKinds(msgspec.Struct):
    tools: list[_ToolKind] | None = None


_T = TypeVar("_T", bound=CountTokensRequest)


def decode_request(body: bytes, kind: type[_T]) -> _T:
    """The body as a `kind`; a tool that only Anthropic's servers run is refused by its type.

    Raises:
        InvalidRequestError: as `decode` says.
    """
    try:
        return decode(body, kind)
    except InvalidRequestError as exc:
        if not (exc.param or "").startswith("tools["):
            raise
        tools = msgspec.json.decode(body, type=_ToolKinds).tools or ()
        for index, tool in enumerate(tools):
            if isinstance(tool.type, str) and tool.type != "custom":
                param = f"tools[{index}].type"
                raise InvalidRequestError(
                    f"{param} is {tool.type[:100]!r}, but this server runs no tools of its own: "
                    "offer tools with a name and an input_schema, and run them yourself",
                    param=param,
                ) from None
        raise
