"""Items of `/v1/responses`: what a conversation is made of there, and the chat messages it means.

Source: https://platform.openai.com/docs/api-reference/responses
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import msgspec
from msgspec import UNSET, UnsetType

from octavo.errors import InvalidRequestError
from octavo.protocol.chat import TokenLogprobs
from octavo.protocol.messages import (
    AssistantMessage,
    DeveloperMessage,
    FunctionCall,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.protocol.messages import Message

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class InputText(msgspec.Struct, tag_field="type", tag="input_text", forbid_unknown_fields=True):
    """Text that is given to the model."""

    text: str


class OutputText(msgspec.Struct, tag_field="type", tag="output_text", forbid_unknown_fields=True):
    """Text that the model wrote. There are never annotations: there is no search."""

    text: str
    annotations: list[Any] = []
    logprobs: list[TokenLogprobs] | None = None


class Refusal(msgspec.Struct, tag_field="type", tag="refusal", forbid_unknown_fields=True):
    """An earlier answer of another server's model."""

    refusal: str


class ReasoningText(
    msgspec.Struct, tag_field="type", tag="reasoning_text", forbid_unknown_fields=True
):
    """Text that the model wrote to itself."""

    text: str


class SummaryText(msgspec.Struct, tag_field="type", tag="summary_text", forbid_unknown_fields=True):
    """What another server made of a model's reasoning."""

    text: str


ContentPart = InputText | OutputText | Refusal | ReasoningText


class InputItem(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One item of a conversation, of any type; `to_messages` checks which fields a type has.

    It is one struct because a message may leave out its `type`. Items of answers may be sent back
    as they came.
    """

    type: Literal["message", "function_call", "function_call_output", "reasoning"] | None = None
    id: str | None = None
    status: ItemStatus | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[ContentPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputText] | None = None
    summary: list[SummaryText] | None = None
    encrypted_content: None = None
    phase: None = None
    caller: None = None
    namespace: None = None


class OutputMessage(msgspec.Struct, kw_only=True, tag_field="type", tag="message"):
    """What the model says."""

    id: str
    role: str = "assistant"
    status: ItemStatus
    content: list[OutputText]


class OutputReasoning(msgspec.Struct, kw_only=True, tag_field="type", tag="reasoning"):
    """What the model wrote to itself; nobody summarises it."""

    id: str
    status: ItemStatus
    summary: list[SummaryText] = []
    content: list[ReasoningText]


class OutputCall(msgspec.Struct, kw_only=True, tag_field="type", tag="function_call"):
    """A function that the model wants called; `arguments` is a JSON text."""

    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus


OutputItem = OutputMessage | OutputReasoning | OutputCall


class ListedItem(msgspec.Struct, kw_only=True):
    """An input item as it is shown again: with an id, and content in parts."""

    type: str
    id: str
    status: ItemStatus = "completed"
    role: str | UnsetType = UNSET
    content: list[ContentPart] | UnsetType = UNSET
    call_id: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    output: str | list[InputText] | UnsetType = UNSET
    summary: list[SummaryText] | UnsetType = UNSET


_FIELDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "message": (("role", "content"), ()),
    "function_call": (("call_id", "name", "arguments"), ()),
    "function_call_output": (("call_id", "output"), ("name",)),
    "reasoning": ((), ("summary", "content")),
}
"""Per type: fields that it must have, and that it may have beside `id` and `status`."""

_ID_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
}


def new_id(prefix: str) -> str:
    """A new id of one of OpenAI's kinds: `msg_...`."""
    return f"{prefix}_{uuid4().hex}"


def kind_of(item: InputItem) -> str:
    """The item's type; a message need not say it."""
    return item.type or "message"


def check_item(item: InputItem, where: str) -> None:
    """Refuse an item that lacks a field of its type, or has one of another.

    Args:
        item: of a request.
        where: its name: `input[3]`.

    Raises:
        InvalidRequestError: names the field.
    """
    kind = kind_of(item)
    needed, allowed = _FIELDS[kind]
    for name in msgspec.structs.asdict(item):
        value, param = getattr(item, name), f"{where}.{name}"
        if name in needed and value is None:
            raise InvalidRequestError(f"Missing required field: {param}", param=param)
        if value is not None and name not in (*needed, *allowed, "type", "id", "status"):
            raise InvalidRequestError(f"{param} is no field of an item of type {kind}", param=param)
    if isinstance(item.content, list):
        _check_parts(item.content, _part_types(item), f"{where}.content")
    if kind == "function_call":
        try:
            msgspec.json.decode(item.arguments or "{}", type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError):
            param = f"{where}.arguments"
            raise InvalidRequestError(f"{param} must spell a JSON object", param=param) from None


def _part_types(item: InputItem) -> tuple[type[ContentPart], ...]:
    if kind_of(item) == "reasoning":
        return (ReasoningText,)
    return (OutputText, Refusal) if item.role == "assistant" else (InputText,)


def _check_parts(
    parts: Sequence[ContentPart], kinds: tuple[type[ContentPart], ...], where: str
) -> None:
    for index, part in enumerate(parts):
        if not isinstance(part, kinds):
            param = f"{where}[{index}].type"
            names = " or ".join(str(kind.__struct_config__.tag) for kind in kinds)
            raise InvalidRequestError(f"{param} must be {names} here", param=param)
        if isinstance(part, OutputText) and part.annotations:
            param = f"{where}[{index}].annotations"
            raise InvalidRequestError(f"{param} is not supported: leave it out", param=param)


def text_of_content(content: str | Sequence[ContentPart | SummaryText] | None) -> str:
    """The text of a content, its parts one after the other."""
    if isinstance(content, str):
        return content
    parts = content or ()
    return "".join(part.refusal if isinstance(part, Refusal) else part.text for part in parts)


def listed(item: InputItem) -> ListedItem:
    """The item as it is kept and shown again."""
    kind = kind_of(item)
    result = ListedItem(type=kind, id=item.id or new_id(_ID_PREFIXES[kind]))
    result.status = item.status or "completed"
    for name in ("role", "call_id", "name", "arguments", "output", "summary"):
        value = getattr(item, name)
        if value is not None:
            setattr(result, name, value)
    content = item.content
    if isinstance(content, str):
        is_answer = item.role == "assistant"
        result.content = [OutputText(content) if is_answer else InputText(content)]
    elif content is not None:
        result.content = content
    return result


def to_messages(items: Sequence[InputItem]) -> list[Message]:
    """The chat messages that checked items mean.

    Reasoning, an answer and calls that follow each other are one message of the assistant. Calls
    that were cut off are left out.

    Raises:
        InvalidRequestError: an output of a call that is not there.
    """
    messages: list[Message] = []
    call_ids: set[str] = set()
    open_turn: AssistantMessage | None = None

    def turn(*, is_new: bool) -> AssistantMessage:
        nonlocal open_turn
        if open_turn is None or is_new:
            open_turn = AssistantMessage(content="")
            messages.append(open_turn)
        return open_turn

    for item in items:
        match kind_of(item):
            case "reasoning":
                text = text_of_content(item.content) or text_of_content(item.summary)
                if text:
                    turn(is_new=True).reasoning = text
            case "function_call" if item.status != "incomplete":
                call = ToolCall(
                    item.call_id or "", FunctionCall(item.name or "", item.arguments or "")
                )
                call_ids.add(call.id)
                message = turn(is_new=False)
                message.tool_calls = [*(message.tool_calls or ()), call]
            case "function_call_output":
                if item.call_id not in call_ids:
                    raise InvalidRequestError(
                        f"input has an output of the call {(item.call_id or '')[:100]!r}, which is "
                        "not in the conversation: send the function_call item before it",
                        param="input",
                    )
                open_turn = None
                messages.append(ToolMessage(text_of_content(item.output), item.call_id))
            case "message" if item.role == "assistant":
                is_new = open_turn is None or bool(open_turn.content or open_turn.tool_calls)
                turn(is_new=is_new).content = text_of_content(item.content)
            case "message":
                open_turn = None
                kinds = {"user": UserMessage, "developer": DeveloperMessage}
                kind: Any = kinds.get(item.role or "", SystemMessage)
                messages.append(kind(text_of_content(item.content)))
    return messages
