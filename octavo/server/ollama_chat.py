"""Ollama's requests as chat requests, and errors of those in Ollama's words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import InvalidRequestError
from octavo.protocol.chat import ChatCompletionRequest
from octavo.protocol.messages import (
    AssistantMessage,
    FunctionCall,
    SystemMessage,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from octavo.protocol.names import names, renamed
from octavo.protocol.ollama import OllamaChatRequest, OllamaOptions
from octavo.protocol.structured import JSONSchemaFormat, JSONSchemaSpec, StructuredOutputsSpec
from octavo.protocol.tools import FunctionTool
from octavo.server.thinking import thinking_kwargs, thinking_switch

if TYPE_CHECKING:
    from octavo.protocol.messages import Message
    from octavo.protocol.ollama import OllamaFields, OllamaMessage
    from octavo.server.context import ServerContext

LATEST = ":latest"
"""The tag that names have which say none."""

_OPTIONS = "|".join(OllamaOptions.__struct_fields__)
_NAMES = names(
    (r"max_(completion_)?tokens", "options.num_predict"),
    (r"repetition_penalty", "options.repeat_penalty"),
    (rf"({_OPTIONS})", r"options.\1"),
    (r"(response_format|structured_outputs).*", "format"),
    (r"reasoning_effort", "think"),
    (r"chat_template_kwargs.*", "think"),
)
_PROMPT_NAMES = names((r"messages.*", "prompt"))


def in_own_names(exc: InvalidRequestError, *, is_generation: bool = False) -> InvalidRequestError:
    """An error of the chat request in the words of the request that it was made from."""
    return renamed(renamed(exc, _NAMES), _PROMPT_NAMES if is_generation else ())


def served_name(context: ServerContext, name: str) -> str:
    """The served name that this is, with or without `:latest`.

    Raises:
        ModelNotServedError: there is none.
    """
    plain = name.removesuffix(LATEST)
    known = context.config.served_model_names
    served = name if name in known else plain if plain in known else name
    context.check_model(served)
    return served


def chat_request(
    context: ServerContext, body: OllamaFields, messages: list[Message]
) -> ChatCompletionRequest:
    """The chat request that asks the same of these messages.

    Raises:
        InvalidRequestError: names what cannot be asked.
    """
    options = body.options or OllamaOptions()
    options.check(context.engine.info.max_model_len)
    tools = body.tools or () if isinstance(body, OllamaChatRequest) else ()
    chat = ChatCompletionRequest(
        model=served_name(context, body.model),
        messages=messages,
        tools=[FunctionTool(tool.function, "function") for tool in tools] or None,
        max_tokens=options.num_predict if (options.num_predict or 0) > 0 else None,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        seed=None if options.seed == -1 else options.seed,
        stop=options.stop,
        repetition_penalty=options.repeat_penalty,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        logprobs=body.logprobs,
        top_logprobs=body.top_logprobs,
        stream=body.is_streamed,
    )
    if isinstance(body.format, dict):
        chat.response_format = JSONSchemaFormat(JSONSchemaSpec(name="format", schema=body.format))
    elif body.format == "json":
        chat.structured_outputs = StructuredOutputsSpec(json_object=True)
    elif body.format:
        raise InvalidRequestError('format must be "json" or a JSON schema', param="format")
    if isinstance(body.think, bool):
        chat.chat_template_kwargs = dict(thinking_kwargs(context, body.think, param="think"))
    elif body.think is not None:
        switch = thinking_switch(context)
        chat.chat_template_kwargs = {} if switch is None else {switch: True}
        chat.reasoning_effort = body.think
    return chat


def chat_messages(messages: list[OllamaMessage]) -> list[Message]:
    """The conversation in OpenAI's shape.

    Raises:
        InvalidRequestError: a field that the message's role has not, or an image.
    """
    calls = _Calls()
    return [
        _message(message, f"messages[{index}]", calls) for index, message in enumerate(messages)
    ]


_ROLE_FIELDS = {"assistant": ("thinking", "tool_calls"), "tool": ("tool_name", "tool_call_id")}


def _message(message: OllamaMessage, where: str, calls: _Calls) -> Message:
    if message.images:
        raise InvalidRequestError(
            f"{where}.images is not supported: this server takes text only", param=f"{where}.images"
        )
    for role, fields in _ROLE_FIELDS.items():
        for name in fields if role != message.role else ():
            if getattr(message, name):
                raise InvalidRequestError(
                    f"{where}.{name} is only allowed in a message of role {role}",
                    param=f"{where}.{name}",
                )
    content = message.content or ""
    match message.role:
        case "system":
            return SystemMessage(content)
        case "user":
            return UserMessage(content)
        case "assistant":
            made = [
                ToolCall(
                    calls.begin(call.function.name, call.id),
                    FunctionCall(
                        call.function.name, msgspec.json.encode(call.function.arguments).decode()
                    ),
                )
                for call in message.tool_calls or ()
            ]
            return AssistantMessage(
                content=content, tool_calls=made or None, reasoning=message.thinking or None
            )
        case "tool":
            call_id = message.tool_call_id or calls.end(message.tool_name)
            return ToolMessage(content, call_id, message.tool_name or None)


class _Calls:
    """Gives calls ids, which Ollama's clients need not keep, and results those of their calls."""

    def __init__(self) -> None:
        self._num = 0
        self._open: list[tuple[str, str]] = []

    def begin(self, name: str, call_id: str | None) -> str:
        """The id of a further call."""
        call_id = call_id or self._new()
        self._open.append((call_id, name))
        return call_id

    def end(self, name: str | None) -> str:
        """The id of the call that a result belongs to; of none, a new one."""
        named = [call for call in self._open if name in (None, call[1])]
        for call in named or self._open:
            self._open.remove(call)
            return call[0]
        return self._new()

    def _new(self) -> str:
        """Nine digits: Mistral's templates take nothing else."""
        self._num += 1
        return f"{self._num:09d}"


def generation_messages(prompt: str, system: str | None) -> list[Message]:
    """The conversation that a prompt is."""
    first: list[Any] = [SystemMessage(system)] if system else []
    return [*first, UserMessage(prompt)]
