"""Tools on the wire: what a request offers, what it asks for, and what answers hold.

Source: https://platform.openai.com/docs/api-reference/chat/create
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from octavo.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,128}")
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}}


class FunctionDefinition(msgspec.Struct, forbid_unknown_fields=True):
    """A function that the model may call; `parameters` is a JSON schema, which arguments are sure
    to fit if the tool is `strict`, or if the call is forced.
    """

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(msgspec.Struct, forbid_unknown_fields=True):
    """A tool. Functions are the only kind that is served."""

    function: FunctionDefinition
    type: Literal["function"]


class FunctionName(msgspec.Struct, forbid_unknown_fields=True):
    """Which function."""

    name: str


class NamedToolChoice(msgspec.Struct, forbid_unknown_fields=True):
    """A function that the model must call. Hugging Face's client leaves `type` out."""

    function: FunctionName
    type: Literal["function"] = "function"


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice


class FunctionCallAnswer(msgspec.Struct):
    """A call's name, and the JSON text of its arguments as the model wrote it."""

    name: str
    arguments: str


class ToolCallAnswer(msgspec.Struct):
    """A call in a message."""

    id: str
    function: FunctionCallAnswer
    type: str = "function"


class FunctionCallDelta(msgspec.Struct):
    """What a chunk adds to a call: its name in the first one, then pieces of its arguments."""

    name: str | UnsetType = UNSET
    arguments: str = ""


class ToolCallDelta(msgspec.Struct):
    """What a chunk adds to the call with this index; `id` and `type` are in the first one only."""

    index: int
    function: FunctionCallDelta
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


def check_tools(tools: Sequence[FunctionTool], choice: ToolChoice | None) -> None:
    """Refuse tools that no format can write, and choices of tools that there are not.

    Raises:
        InvalidRequestError: names the field.
    """
    names: set[str] = set()
    for index, tool in enumerate(tools):
        where = f"tools[{index}].function"
        name = tool.function.name
        if not _NAME.fullmatch(name):
            raise InvalidRequestError(
                f"{where}.name must be of 1 to 128 letters, digits, '_', '.' or '-'",
                param=f"{where}.name",
            )
        if name in names:
            raise InvalidRequestError(
                f"{where}.name: there are two tools named {name}", param=f"{where}.name"
            )
        names.add(name)
    if choice in (None, "none", "auto"):
        return
    if not tools:
        raise InvalidRequestError("tool_choice is only allowed with tools", param="tool_choice")
    if isinstance(choice, NamedToolChoice) and choice.function.name not in names:
        raise InvalidRequestError(
            f"tool_choice.function.name: no tool is named {choice.function.name[:128]!r}",
            param="tool_choice.function.name",
        )


def template_tools(tools: Sequence[FunctionTool]) -> list[dict[str, Any]]:
    """The tools as chat templates read them: some fail where a description or a schema is missing,
    so that both are always there.
    """
    return [
        {
            "type": "function",
            "function": {
                "name": tool.function.name,
                "description": tool.function.description or "",
                "parameters": tool.function.parameters or _NO_PARAMETERS,
            },
        }
        for tool in tools
    ]
