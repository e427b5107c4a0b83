"""Between what models write and what chats are made of: reasoning, content and tool calls.

The formats are in `text`, the wire types in `protocol`; here is what joins them.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec

from octavo.errors import InvalidRequestError
from octavo.protocol.chat import AssistantAnswer, ChatDelta
from octavo.protocol.tools import (
    FunctionCallAnswer,
    FunctionCallDelta,
    ToolCallAnswer,
    ToolCallDelta,
)
from octavo.server.binding import FALLBACK_FORMAT, AnswerBinding
from octavo.text.answers import NUM_TAIL_TOKENS, AnswerFormats, choose_formats
from octavo.text.tools.events import Answer, CallArguments, CallBegin, Content, Reasoning

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from octavo.config import ServerConfig
    from octavo.protocol.chat import ChatCompletionRequest
    from octavo.server.prompts import TokenizerLike
    from octavo.text.answers import AnswerParser
    from octavo.text.tools.events import Event
    from octavo.types import FinishReason, SamplingParams

logger = logging.getLogger("octavo.server")


class AnswerReading:
    """How one server reads its model's answers.

    Args:
        formats: the model's.
        tokenizer: the model's; it tells which markers are special tokens.
    """

    def __init__(self, formats: AnswerFormats, tokenizer: TokenizerLike) -> None:
        self.formats = formats
        self._tokenizer = tokenizer
        self._binding = AnswerBinding(formats, tokenizer)
        self._shown = {
            has_tools: _special_ids(tokenizer, formats.markers(has_tools=has_tools))
            for has_tools in (False, True)
        }

    def check(self, body: ChatCompletionRequest) -> None:
        """Refuse tools for a model whose calls cannot be read.

        Raises:
            InvalidRequestError: names `tools`.
        """
        if body.offered_tools and self.formats.tools is None and not body.forces_calls:
            raise InvalidRequestError(
                "tools: how this model writes calls is not known to this server, which was started "
                "without --tool-call-parser NAME: leave them out, set tool_choice to none, or "
                "force calls by setting it to required",
                param="tools",
            )

    def params(
        self,
        params: SamplingParams,
        body: ChatCompletionRequest,
        prompt_token_ids: Sequence[int],
    ) -> SamplingParams:
        """The parameters with what the text is bound to, and with the special tokens that the
        parsers must see kept in it.

        Raises:
            InvalidRequestError: the text cannot be bound to it.
        """
        shown = self._shown[bool(body.offered_tools)]
        if shown:
            params = msgspec.structs.replace(params, shown_token_ids=shown)
        return self._binding.bind(params, body, self._tail(prompt_token_ids))

    def parser(
        self, body: ChatCompletionRequest, prompt_token_ids: Sequence[int]
    ) -> AnswerParser | None:
        """A parser for one answer, or None where its text is its content."""
        formats = self.formats
        if formats.tools is None and body.forces_calls:
            formats = replace(formats, tools=FALLBACK_FORMAT)
        if formats == AnswerFormats():
            return None
        return formats.parser(
            [msgspec.to_builtins(tool.function) for tool in body.offered_tools],
            prompt_tail=self._tail(prompt_token_ids),
            continued=body.continued_text,
            max_calls=1 if body.parallel_tool_calls is False else None,
        )

    def _tail(self, prompt_token_ids: Sequence[int]) -> str:
        """The end of a prompt, special tokens included."""
        tail = prompt_token_ids[-NUM_TAIL_TOKENS:]
        return self._tokenizer.decode(tail, skip_special_tokens=False)


def _special_ids(tokenizer: TokenizerLike, markers: Iterable[str]) -> tuple[int, ...]:
    """The ids of those markers that are special tokens: they would be left out of the text."""
    tokens = (tokenizer.encode(marker, add_special_tokens=False) for marker in markers)
    special = tokenizer.special_token_ids
    return tuple(sorted({ids[0] for ids in tokens if len(ids) == 1 and ids[0] in special}))


def answer_reading(config: ServerConfig, tokenizer: TokenizerLike) -> AnswerReading:
    """How to read answers by the server's settings and the model's chat template; logs it.

    Raises:
        ConfigError: there is no such format.
    """
    template = tokenizer.chat_template
    sources = template.sources if template is not None else ()
    formats = choose_formats(config.tool_call_parser, config.reasoning_parser, sources)
    for what, asked, found in (
        ("tool calls are", config.tool_call_parser, formats.tools),
        ("reasoning is", config.reasoning_parser, formats.reasoning),
    ):
        why = ", by the chat template" if asked == "auto" else ""
        logger.info("%s read as: %s%s", what, found or "none", why)
    if formats.tools and not any("tools" in source for source in sources):
        logger.warning("the model's chat template shows no tools to the model")
    return AnswerReading(formats, tokenizer)


def read_whole(parser: AnswerParser | None, text: str) -> Answer:
    """What a finished answer's text says."""
    if parser is None:
        return Answer(text)
    answer = Answer()
    answer.add(parser.push(text))
    answer.add(parser.finish())
    return answer


def assistant_answer(answer: Answer) -> AssistantAnswer:
    """The message that says it; content is null where there are calls and nothing else."""
    message = AssistantAnswer(content=answer.content)
    if answer.reasoning:
        message.reasoning = answer.reasoning
    if answer.calls:
        message.content = answer.content or None
        message.tool_calls = [
            ToolCallAnswer(call.id, FunctionCallAnswer(call.name, call.arguments))
            for call in answer.calls
        ]
    return message


def chat_deltas(events: Iterable[Event]) -> list[ChatDelta]:
    """The events in chunks, each with one thing: a call's beginning takes arguments along."""
    deltas: list[ChatDelta] = []
    begun: ToolCallDelta | None = None
    for event in events:
        match event:
            case Content(text):
                deltas.append(ChatDelta(content=text))
            case Reasoning(text):
                deltas.append(ChatDelta(reasoning=text))
            case CallBegin(index, call_id, name):
                begun = ToolCallDelta(index, FunctionCallDelta(name), call_id, "function")
                deltas.append(ChatDelta(tool_calls=[begun]))
            case CallArguments(index, text):
                if begun is not None and begun.index == index:
                    begun.function.arguments += text
                else:
                    call = ToolCallDelta(index, FunctionCallDelta(arguments=text))
                    deltas.append(ChatDelta(tool_calls=[call]))
    return deltas


def finish_reason(reason: FinishReason | None, *, has_calls: bool) -> str | None:
    """The reason as chats tell it: `tool_calls` for an answer with calls that ended by itself."""
    return "tool_calls" if reason == "stop" and has_calls else reason
