"""Chat messages on the wire, and the dictionaries that chat templates read.

Knows no template: what a model makes of a role or a tool call is its template's affair.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from octavo.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RESERVED_TEMPLATE_KWARGS = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "documents",
        "messages",
        "self",
        "tools",
    }
)
"""Names that `chat_template_kwargs` must not set: they are the template's own inputs."""


class TextPart(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """A part of a message. Text is the only kind that is served."""

    text: str


Content = str | list[TextPart]


class SystemMessage(msgspec.Struct, tag_field="role", tag="system", forbid_unknown_fields=True):
    """Instructions to the model."""

    content: Content
    name: str | None = None


class DeveloperMessage(
    msgspec.Struct, tag_field="role", tag="developer", forbid_unknown_fields=True
):
    """OpenAI's newer name of a system message; templates see `system`."""

    content: Content
    name: str | None = None


class UserMessage(msgspec.Struct, tag_field="role", tag="user", forbid_unknown_fields=True):
    """What the user says."""

    content: Content
    name: str | None = None


class FunctionCall(msgspec.Struct, forbid_unknown_fields=True):
    """A call that the model made earlier; `arguments` is a JSON text."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct, forbid_unknown_fields=True):
    """A tool call of an earlier answer."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class AssistantMessage(
    msgspec.Struct, tag_field="role", tag="assistant", forbid_unknown_fields=True
):
    """An earlier answer. Empty fields that answers carry may be sent back as they came.

    `reasoning_content` is the older name of `reasoning`.
    """

    content: Content | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[Any] | None = None


class ToolMessage(msgspec.Struct, tag_field="role", tag="tool", forbid_unknown_fields=True):
    """The result of a tool call."""

    content: Content
    tool_call_id: str
    name: str | None = None


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage

_TEMPLATE_ROLES: dict[type, str] = {
    SystemMessage: "system",
    DeveloperMessage: "system",
    UserMessage: "user",
    AssistantMessage: "assistant",
    ToolMessage: "tool",
}


def text_of(message: Message) -> str:
    """A message's text, its parts one after the other."""
    content = message.content or ""
    return content if isinstance(content, str) else "".join(part.text for part in content)


def template_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as chat templates read them.

    Lists of parts stay lists: the template knows whether it takes them. `developer` becomes
    `system`; a tool call's arguments become the object that they spell.

    Raises:
        InvalidRequestError: no messages, an assistant message with nothing in it, or arguments
            that are no JSON object.
    """
    if not messages:
        raise InvalidRequestError("messages must not be empty", param="messages")
    return [_template_message(message, index) for index, message in enumerate(messages)]


def _template_message(message: Message, index: int) -> dict[str, Any]:
    content = message.content
    result: dict[str, Any] = {
        "role": _TEMPLATE_ROLES[type(message)],
        "content": msgspec.to_builtins(content) if content else "",
    }
    if message.name is not None:
        result["name"] = message.name
    if isinstance(message, ToolMessage):
        result["tool_call_id"] = message.tool_call_id
    elif isinstance(message, AssistantMessage):
        if content is None and not message.tool_calls:
            param = f"messages[{index}].content"
            raise InvalidRequestError(
                f"{param} must be a text when the message has no tool_calls", param=param
            )
        if message.annotations:
            param = f"messages[{index}].annotations"
            raise InvalidRequestError(f"{param} is not supported: leave it out", param=param)
        reasoning = {message.reasoning, message.reasoning_content} - {None}
        if len(reasoning) > 1:
            param = f"messages[{index}].reasoning_content"
            raise InvalidRequestError(
                f"{param} and reasoning contradict each other: give one of them", param=param
            )
        if reasoning:
            result["reasoning_content"] = reasoning.pop()
        if message.tool_calls:
            result["tool_calls"] = [
                _template_tool_call(call, f"messages[{index}].tool_calls[{position}]")
                for position, call in enumerate(message.tool_calls)
            ]
    return result


def _template_tool_call(call: ToolCall, where: str) -> dict[str, Any]:
    try:
        arguments = msgspec.json.decode(call.function.arguments or "{}", type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        param = f"{where}.function.arguments"
        raise InvalidRequestError(f"{param} must spell a JSON object", param=param) from None
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": call.id, "type": call.type, "function": function}


def check_template_kwargs(kwargs: Mapping[str, Any] | None) -> None:
    """Refuse extra template variables that would replace the template's own inputs.

    Raises:
        InvalidRequestError: names the variable.
    """
    for name in kwargs or ():
        if name in RESERVED_TEMPLATE_KWARGS:
            raise InvalidRequestError(
                f"chat_template_kwargs must not set {name}", param=f"chat_template_kwargs.{name}"
            )


def check_final_message(
    *, add_generation_prompt: bool | None, continue_final_message: bool | None
) -> tuple[bool, bool]:
    """The two settings of how a rendered prompt ends, in force.

    Raises:
        InvalidRequestError: both are asked for; a prompt has one end.
    """
    if add_generation_prompt and continue_final_message:
        raise InvalidRequestError(
            "continue_final_message and add_generation_prompt must not both be true",
            param="continue_final_message",
        )
    continues = bool(continue_final_message)
    if add_generation_prompt is None:
        return not continues, continues
    return add_generation_prompt, continues
