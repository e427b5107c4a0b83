"""Anthropic's conversations as chat requests, and errors of those in Anthropic's words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from octavo.errors import InvalidRequestError
from octavo.protocol import anthropic as api
from octavo.protocol.chat import ChatCompletionRequest
from octavo.protocol.messages import (
    AssistantMessage,
    FunctionCall,
    SystemMessage,
    TextPart,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from octavo.protocol.names import names, renamed
from octavo.protocol.structured import JSONSchemaFormat, JSONSchemaSpec
from octavo.protocol.tools import FunctionDefinition, FunctionName, FunctionTool, NamedToolChoice
from octavo.server.thinking import can_think, thinking_kwargs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.protocol.messages import Content, Message
    from octavo.protocol.tools import ToolChoice
    from octavo.server.context import ServerContext

_NAMES = names(
    (r"stop", "stop_sequences"),
    (r"max_completion_tokens", "max_tokens"),
    (r"(tools\[\d+\])\.function\.parameters(.*)", r"\1.input_schema\2"),
    (r"(tools\[\d+\])\.function(.*)", r"\1\2"),
    (r"tool_choice\.function(.*)", r"tool_choice\1"),
    (r"parallel_tool_calls", "tool_choice.disable_parallel_tool_use"),
    (r"response_format.*", "output_config.format"),
    (r"reasoning_effort", "output_config.effort"),
    (r"chat_template_kwargs.*", "thinking"),
    (r"continue_final_message", "messages"),
)

_ERROR = "Error: "
"""In front of a failed call's result: templates have no other way to tell of it."""


def in_own_names(exc: InvalidRequestError) -> InvalidRequestError:
    """An error of the chat request in the words of the request that it was made from."""
    return renamed(exc, _NAMES)


def chat_request(context: ServerContext, body: api.CountTokensRequest) -> ChatCompletionRequest:
    """The chat request that asks the same.

    Raises:
        InvalidRequestError: names what cannot be asked.
    """
    body.check()
    messages, continues = _messages(body)
    config = body.output_config or api.AnthropicOutputConfig()
    choice, parallel = _tool_choice(body.tool_choice)
    chat = ChatCompletionRequest(
        model=body.model,
        messages=messages,
        continue_final_message=continues or None,
        tools=[_tool(tool) for tool in body.tools or ()] or None,
        tool_choice=choice,
        parallel_tool_calls=parallel,
        chat_template_kwargs=_thinking(context, body.thinking) or None,
        reasoning_effort=None if config.effort == "high" else config.effort,
    )
    if config.format is not None:
        spec = JSONSchemaSpec(name="output", schema=config.format.schema)
        chat.response_format = JSONSchemaFormat(spec)
    if isinstance(body, api.MessagesRequest):
        chat.max_tokens = body.max_tokens
        chat.temperature = body.temperature
        chat.top_p = body.top_p
        chat.top_k = body.top_k
        chat.stop = body.stop_sequences
        chat.stream = body.stream
        chat.cache_salt = body.cache_salt
    return chat


def _thinking(context: ServerContext, thinking: api.AnthropicThinking | None) -> dict[str, Any]:
    match thinking:
        case api.AnthropicThinkingEnabled():
            return dict(thinking_kwargs(context, True, param="thinking"))
        case api.AnthropicThinkingDisabled():
            return dict(thinking_kwargs(context, False, param="thinking"))
        case api.AnthropicThinkingAdaptive() if can_think(context):
            return dict(thinking_kwargs(context, True, param="thinking"))
    return {}


def _tool(tool: api.AnthropicTool) -> FunctionTool:
    function = FunctionDefinition(tool.name, tool.description, tool.input_schema, tool.strict)
    return FunctionTool(function, "function")


def _tool_choice(choice: api.AnthropicToolChoice | None) -> tuple[ToolChoice | None, bool | None]:
    """The choice, and whether several calls are allowed."""
    match choice:
        case None:
            return None, None
        case api.AnthropicNoChoice():
            return "none", None
        case api.AnthropicAutoChoice(disable_parallel_tool_use=disables):
            kind: ToolChoice = "auto"
        case api.AnthropicAnyChoice(disable_parallel_tool_use=disables):
            kind = "required"
        case api.AnthropicNamedChoice(name, disables):
            kind = NamedToolChoice(FunctionName(name), "function")
    return kind, False if disables else None


def _messages(body: api.CountTokensRequest) -> tuple[list[Message], bool]:
    """The messages, and whether the last one is to be gone on with."""
    given = list(body.messages)
    continues = bool(given) and isinstance(given[-1], api.AnthropicAssistantMessage)
    if continues and not given[-1].content:  # an answer whose beginning is empty
        del given[-1]
        continues = False
    messages: list[Message] = []
    if body.system:
        messages.append(SystemMessage(_content(_blocks(body.system, "system"))))
    for index, message in enumerate(given):
        where = f"messages[{index}].content"
        if not message.content:
            raise InvalidRequestError(f"{where} must not be empty", param=where)
        match message:
            case api.AnthropicUserMessage(content):
                _add_user(messages, _blocks(content, where), where)
            case api.AnthropicAssistantMessage(content):
                _add_assistant(messages, _blocks(content, where))
            case api.AnthropicSystemMessage(content):
                messages.append(SystemMessage(_content(_blocks(content, where))))
    last = messages[-1] if continues else None
    if isinstance(last, AssistantMessage) and (last.tool_calls or not last.content):
        where = f"messages[{len(given) - 1}].content"
        raise InvalidRequestError(
            f"{where} is the end of the conversation and not a text that can be gone on with: "
            "give the tools' results, or end with the user",
            param=where,
        )
    return messages, continues


_Block = TypeVar("_Block")


def _blocks(
    content: str | Sequence[_Block], where: str
) -> Sequence[_Block | api.AnthropicTextBlock]:
    """The content as blocks.

    Raises:
        InvalidRequestError: a block cites something: there are no documents.
    """
    if isinstance(content, str):
        return [api.AnthropicTextBlock(content)]
    for index, block in enumerate(content):
        if isinstance(block, api.AnthropicTextBlock) and block.citations:
            param = f"{where}[{index}].citations"
            raise InvalidRequestError(f"{param} is not supported: leave it out", param=param)
    return content


def _content(blocks: Sequence[Any]) -> Content:
    """The texts of blocks of text."""
    if len(blocks) == 1:
        text: str = blocks[0].text
        return text
    return [TextPart(block.text) for block in blocks]


def _add_user(messages: list[Message], blocks: Sequence[api.UserBlock], where: str) -> None:
    """Append a turn of the user's: results of calls become messages of their own."""
    for index, block in enumerate(blocks):
        if isinstance(block, api.AnthropicToolResultBlock):
            content = _result(block, f"{where}[{index}].content")
            messages.append(ToolMessage(content, block.tool_use_id))
            continue
        last = messages[-1] if messages else None
        if isinstance(last, UserMessage):
            parts = [TextPart(last.content)] if isinstance(last.content, str) else last.content
            last.content = [*parts, TextPart(block.text)]
        else:
            messages.append(UserMessage(block.text))


def _result(block: api.AnthropicToolResultBlock, where: str) -> Content:
    content = _content(_blocks(block.content or "", where))
    if not block.is_error:
        return content
    if isinstance(content, str):
        return content if content.startswith(_ERROR) else _ERROR + content
    return [TextPart(_ERROR), *content]


def _add_assistant(messages: list[Message], blocks: Sequence[api.AssistantBlock]) -> None:
    """Append an answer, to the one before if nothing is between them."""
    last = messages[-1] if messages else None
    if not isinstance(last, AssistantMessage):
        last = AssistantMessage(content="")
        messages.append(last)
    calls = list(last.tool_calls or ())
    text, reasoning = str(last.content), last.reasoning or ""
    for block in blocks:
        match block:
            case api.AnthropicTextBlock():
                text += block.text
            case api.AnthropicThinkingBlock():
                reasoning += block.thinking
            case api.AnthropicToolUseBlock():
                arguments = msgspec.json.encode(block.input).decode()
                calls.append(ToolCall(block.id, FunctionCall(block.name, arguments)))
    last.content, last.reasoning, last.tool_calls = text, reasoning or None, calls or None
