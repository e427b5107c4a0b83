"""What an answer's text is bound to: the structure that is asked for, and calls that are forced.

Between the request's words and the engine's: formats of calls and of reasoning are in `text`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from octavo.errors import InvalidRequestError
from octavo.protocol.tools import NamedToolChoice
from octavo.text.grammar.lark import MarkerTokens
from octavo.text.reasoning import REASONING_PARSERS
from octavo.text.tools.registry import TOOL_PARSERS

if TYPE_CHECKING:
    from octavo.protocol.chat import ChatCompletionRequest
    from octavo.server.prompts import TokenizerLike
    from octavo.text.answers import AnswerFormats
    from octavo.types import SamplingParams, StructuredOutputs


FALLBACK_FORMAT = "hermes"
"""How calls that are forced are written by a model whose own way is not known."""


class AnswerBinding:
    """Binds one model's answers.

    Args:
        formats: how it writes them.
        tokenizer: it tells which markers are tokens.
    """

    def __init__(self, formats: AnswerFormats, tokenizer: TokenizerLike) -> None:
        self._formats = formats
        markers = TOOL_PARSERS[formats.tools or FALLBACK_FORMAT].markers
        self._tokens = MarkerTokens.of(tokenizer, markers)
        self._starts: tuple[int, ...] = ()
        self._ends: tuple[int, ...] = ()
        if formats.reasoning and not formats.is_harmony:
            parser = REASONING_PARSERS[formats.reasoning]
            self._starts = _tokens_of(tokenizer, parser.starts)
            self._ends = _tokens_of(tokenizer, [end for ends in parser.ends for end in ends])

    def bind(
        self, params: SamplingParams, body: ChatCompletionRequest, prompt_tail: str
    ) -> SamplingParams:
        """The parameters of an answer with what its text must be.

        Args:
            params: with the structure that the request asks for.
            body: the request.
            prompt_tail: the end of the prompt, special tokens included.

        Raises:
            InvalidRequestError: calls cannot be forced or promised, or a structure cannot be had in
                the model's format.
        """
        content = params.structured_outputs
        spec = self._forced(body)
        if spec is None and content is not None and self._formats.is_harmony:
            raise body.in_own_names(
                InvalidRequestError(
                    "structured_outputs: this model writes in channels, where only calls of "
                    "tools can be bound to a schema: leave it out, or offer a tool",
                    param="structured_outputs",
                )
            )
        if spec is None:
            spec = self._promised(body, content)
        if spec is None:
            return params
        spec = self._behind_reasoning(spec, body, prompt_tail)
        return msgspec.structs.replace(params, structured_outputs=spec)

    def _forced(self, body: ChatCompletionRequest) -> StructuredOutputs | None:
        """What a request that must be answered with calls is bound to."""
        if not body.forces_calls:
            return None
        from octavo.text.grammar.tool_calls import forced_calls  # not for the server's start

        choice = body.tool_choice
        name = choice.function.name if isinstance(choice, NamedToolChoice) else None
        return forced_calls(
            [msgspec.to_builtins(tool.function) for tool in body.offered_tools],
            self._formats.tools or FALLBACK_FORMAT,
            self._tokens,
            names=None if name is None else [name],
            several=name is None and body.parallel_tool_calls is not False,
        )

    def _promised(
        self, body: ChatCompletionRequest, content: StructuredOutputs | None
    ) -> StructuredOutputs | None:
        """What an answer is bound to that may have calls or none."""
        tools = body.offered_tools
        if not tools or (content is None and not any(tool.function.strict for tool in tools)):
            return content
        from octavo.text.grammar.optional_calls import optional_calls  # not for the server's start

        assert self._formats.tools is not None  # checked before
        return optional_calls(
            [msgspec.to_builtins(tool.function) for tool in tools],
            self._formats.tools,
            self._tokens,
            content=content,
            several=body.parallel_tool_calls is not False,
        )

    def _behind_reasoning(
        self, spec: StructuredOutputs, body: ChatCompletionRequest, prompt_tail: str
    ) -> StructuredOutputs:
        """The structure of what follows the model's reasoning, which stays free.

        Where the end of reasoning is no token, there is none.
        """
        if not (self._ends and self._formats.reasoning):
            return spec
        parser = REASONING_PARSERS[self._formats.reasoning](prompt_tail, body.continued_text)
        if parser.is_open:
            return msgspec.structs.replace(spec, reasoning_end_token_ids=self._ends)
        if body.continued_text or not self._starts:
            return spec
        if any(prompt_tail.rstrip().endswith(end) for ends in parser.ends for end in ends):
            return spec  # the template has closed it
        return msgspec.structs.replace(
            spec, reasoning_end_token_ids=self._ends, reasoning_start_token_ids=self._starts
        )


def _tokens_of(tokenizer: TokenizerLike, markers: list[str] | tuple[str, ...]) -> tuple[int, ...]:
    """The ids of those markers that are one token."""
    encoded = (tokenizer.encode(marker, add_special_tokens=False) for marker in markers)
    return tuple(sorted({ids[0] for ids in encoded if len(ids) == 1}))
