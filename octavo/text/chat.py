"""Chat messages to the one text that a model was trained to see.

`ChatTemplate.render` gives what transformers' `apply_chat_template(tokenize=False)` gives, save
for kindnesses to templates that know one shape only: text parts become a string where a template
takes strings, and a string becomes a text part where it takes parts; a tool call's arguments become
a JSON text, and empty content null, where it takes those only. Which of them a template takes is
found by rendering a probe of each shape and looking for its text.

Knows nothing of tokens. Roles and fields are the template's business; here only shapes are checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2.exceptions import TemplateError

from octavo.errors import InvalidRequestError
from octavo.text.sandbox import BoundExceededError, ChatEnvironment, RefusedByTemplateError

if TYPE_CHECKING:
    from jinja2 import Template

_PROBE = "Octavo probes"
_PROBE_KEY = "octavo_probes"
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "probe",
        "description": "",
        "parameters": {"type": "object", "properties": {_PROBE_KEY: {"type": "string"}}},
    },
}
_PROBE_SECONDS = 1.0
_CONTINUE = "OCTAVO_CONTINUES_HERE "
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class _CallForm(NamedTuple):
    """The shape of an assistant message with tool calls.

    Attributes:
        is_text: arguments are the text of a JSON object, not the object.
        is_null: a message without content has null for it, not an empty string.
    """

    is_text: bool
    is_null: bool


class ChatTemplate:
    """A model's chat template, compiled.

    Attributes:
        source: the Jinja source.
        sources: it, and the source of the template for requests with tools, if that is another.
        error: why the source does not compile, or None. Rendering then raises it: completions can
            still be served.
    """

    def __init__(
        self,
        source: str,
        bos_token: str | None = None,
        eos_token: str | None = None,
        *,
        tool_source: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        """`tool_source` is used for requests with tools; `special_tokens` are further variables."""
        self.source = source
        self.error: str | None = None
        self._environment = ChatEnvironment()
        tokens = {"bos_token": bos_token, "eos_token": eos_token, **(special_tokens or {})}
        self._tokens = {name: text for name, text in tokens.items() if text is not None}
        self._template = self._compile(source)
        self._tool_template = self._compile(tool_source) if tool_source else self._template
        self.sources = (source,) if tool_source is None else (source, tool_source)

    def _compile(self, source: str) -> Template | None:
        try:
            return self._environment.compile_template(source)
        except (TemplateError, RecursionError, SyntaxError) as error:
            self.error = f"the model's chat template does not compile: {error}"
            return None

    def render(
        self,
        /,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt's text; encode it with `add_special_tokens=False`.

        Args:
            messages: in OpenAI's shape; left unchanged.
            add_generation_prompt: end with what starts the assistant's answer.
            tools: function schemas, for templates that know them.
            documents: for templates that know them.
            continue_final_message: end within the last message, for the model to go on.
            kwargs: further variables of the template, such as `enable_thinking`; a caller who
                passes a client's names on refuses those of the arguments above.

        Raises:
            InvalidRequestError: the template refuses the messages or fails on them, or their
                rendering is out of bounds; `param` names the field.
        """
        if not messages:
            raise InvalidRequestError("messages must not be empty", param="messages")
        if continue_final_message and add_generation_prompt:
            raise InvalidRequestError(
                "continue_final_message and add_generation_prompt exclude each other",
                param="continue_final_message",
            )
        try:
            chat = [self._read_message(index, message) for index, message in enumerate(messages)]
            variables = {
                **self._tokens,
                **_plain(kwargs),
                "messages": chat,
                "tools": _plain(tools),
                "documents": _plain(documents),
                "add_generation_prompt": add_generation_prompt,
            }
        except RecursionError:
            raise InvalidRequestError("messages are nested too deeply", param="messages") from None
        if not continue_final_message:
            return self._render(variables, has_tools=tools is not None)
        final = _mark_end(chat[-1])
        return _cut_at_mark(self._render(variables, has_tools=tools is not None), final)

    def _render(
        self, variables: Mapping[str, Any], *, has_tools: bool, max_seconds: float | None = None
    ) -> str:
        template = self._tool_template if has_tools else self._template
        if template is None:
            raise InvalidRequestError(f"{self.error}; use /v1/completions", param="messages")
        try:
            return self._environment.render(template, variables, max_seconds)
        except (RefusedByTemplateError, BoundExceededError) as error:
            raise InvalidRequestError(str(error), param="messages") from None
        except (RecursionError, MemoryError) as error:
            message = f"the chat template runs out of bounds ({type(error).__name__})"
            raise InvalidRequestError(message, param="messages") from None
        except Exception as error:  # a template is a stranger's program: it may raise anything
            message = f"the model's chat template cannot render these messages: {error}"
            raise InvalidRequestError(message, param="messages") from error

    def _read_message(self, index: int, message: Mapping[str, Any]) -> dict[str, Any]:
        """A copy in plain JSON types, without empty fields, in the shape the template takes."""
        where = f"messages[{index}]"
        if not isinstance(message, Mapping):
            raise InvalidRequestError(f"{where} must be an object", param=where)
        plain: dict[str, Any] = _plain({k: v for k, v in message.items() if v is not None})
        content = plain.get("content")
        if isinstance(content, list):
            texts = [
                _part_text(part, f"{where}.content[{number}]")
                for number, part in enumerate(content)
            ]
            if not self.takes_parts:
                plain["content"] = "\n".join(texts)
        elif isinstance(content, str):
            if not self.takes_strings:
                plain["content"] = [{"type": "text", "text": content}]
        elif content is not None:
            raise InvalidRequestError(
                f"{where}.content must be a string or a list of parts", param=f"{where}.content"
            )
        if plain.get("tool_calls"):
            self._shape_calls(plain)
        reasoning = next((plain[field] for field in _REASONING_FIELDS if field in plain), None)
        if reasoning is not None:  # templates read it under any of these names
            plain = {"thinking": reasoning, **plain, "reasoning_content": reasoning}
        return plain

    def _shape_calls(self, message: dict[str, Any]) -> None:
        """Give an assistant message's calls, and its empty content, the shapes the template takes.

        Arguments that are objects are spelled out for a template that appends them to a string.
        """
        form = self._call_form
        if form.is_text:
            for call in message["tool_calls"]:
                function = call.get("function") if isinstance(call, dict) else None
                if isinstance(function, dict) and isinstance(function.get("arguments"), dict):
                    function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
        if form.is_null and message.get("content") == "":
            message["content"] = None

    @cached_property
    def _call_form(self) -> _CallForm:
        """How the template takes an assistant's tool calls: the first form that it writes out.

        Objects come first: a template that takes both writes them as JSON, a string perhaps quoted.
        """
        forms = [
            _CallForm(is_text, is_null) for is_text in (False, True) for is_null in (False, True)
        ]
        return next((form for form in forms if self._shows_call(form)), forms[0])

    def _shows_call(self, form: _CallForm) -> bool:
        arguments: Any = {_PROBE_KEY: _PROBE}
        if form.is_text:
            arguments = json.dumps(arguments)
        call = {
            "id": "abcdefghi",  # nine letters or digits: Mistral's templates check
            "type": "function",
            "function": {"name": "probe", "arguments": arguments},
        }
        content = None if form.is_null else ""
        variables = {
            **self._tokens,
            "messages": [
                {"role": "user", "content": "Hello"},
                {"role": "assistant", "content": content, "tool_calls": [call]},
                {"role": "tool", "content": "Hello", "tool_call_id": "abcdefghi"},
            ],
            "tools": [_PROBE_TOOL],
            "documents": None,
            "add_generation_prompt": False,
        }
        try:
            text = self._render(variables, has_tools=True, max_seconds=_PROBE_SECONDS)
        except InvalidRequestError:
            return False
        # A template may write an object as Python spells it, or a string with its quotes escaped.
        return _PROBE in text and f"'{_PROBE_KEY}'" not in text and f'\\"{_PROBE_KEY}' not in text

    @cached_property
    def takes_parts(self) -> bool:
        """Whether the template writes out the text of a list of parts."""
        return self._shows_probe([{"type": "text", "text": _PROBE}])

    @cached_property
    def takes_strings(self) -> bool:
        """Whether the template writes out a string; true where it writes out neither shape."""
        return self._shows_probe(_PROBE) or not self.takes_parts

    def _shows_probe(self, content: Any) -> bool:
        variables = {
            **self._tokens,
            "messages": [{"role": "user", "content": content}],
            "tools": None,
            "documents": None,
            "add_generation_prompt": False,
        }
        try:
            text = self._render(variables, has_tools=False, max_seconds=_PROBE_SECONDS)
        except InvalidRequestError:
            return False
        # A template that takes strings may write a list as Python spells it.
        return _PROBE in text and f"'{_PROBE}'" not in text and f'"{_PROBE}"' not in text


def _part_text(part: Any, where: str) -> str:
    if not isinstance(part, dict):
        raise InvalidRequestError(f"{where} must be an object", param=where)
    kind = part.get("type")
    if kind != "text":
        raise InvalidRequestError(
            f"{where} has type {kind!r}; this model takes parts of type 'text' only", param=where
        )
    text = part.get("text")
    if not isinstance(text, str):
        raise InvalidRequestError(f"{where}.text must be a string", param=f"{where}.text")
    return text


def _plain(value: Any) -> Any:
    """A deep copy in JSON's own types: nothing with methods of its own enters the sandbox."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return f"<{type(value).__name__}>"


def _mark_end(message: dict[str, Any]) -> str:
    """Append the mark to the message's text, in place, and return the text without it."""
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + _CONTINUE
        return content
    for part in reversed(content or []):
        text: str = part["text"]
        part["text"] = text + _CONTINUE
        return text
    raise InvalidRequestError("the final message has no text to continue", param="messages")


def _cut_at_mark(rendered: str, final: str) -> str:
    mark = _CONTINUE.strip()
    place = rendered.rfind(mark)
    if place < 0 or final.strip() not in rendered:
        raise InvalidRequestError(
            "the model's chat template leaves out the final message: it cannot be continued",
            param="continue_final_message",
        )
    keeps_spaces = rendered.startswith(_CONTINUE, place)
    return rendered[:place] if keeps_spaces else rendered[:place].rstrip()
