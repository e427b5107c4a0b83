"""From texts, messages or token ids to prompts that fit the model. Knows no HTTP and no engine.

Long texts are encoded in a thread, so that one caller's book does not hold up everybody's tokens.
"""

from __future__ import annotations

import asyncio
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from octavo.engine.admission import check_logit_bias
from octavo.errors import InvalidRequestError
from octavo.protocol.messages import check_final_message, template_messages, text_of

if TYPE_CHECKING:
    from collections.abc import Collection, Container, Mapping, Sequence

    from octavo.protocol.messages import Message
    from octavo.types import SamplingParams

MAX_CHARS_PER_TOKEN = 256
"""No vocabulary in use has a longer token (the longest are runs of 128 spaces)."""

MAX_TEMPLATE_CHARS = 2**17
"""Longest chat template that a request may bring; the longest in use have a quarter of it."""

MAX_COMPILED_TEMPLATES = 8
"""Chat templates of requests that are kept compiled, those used last."""

MAX_INLINE_CHARS = 2048
"""Longer texts are encoded in a thread; this many take about a millisecond."""


class ChatTemplateLike(Protocol):
    """What the server asks of a chat template."""

    @property
    def sources(self) -> Sequence[str]:
        """Its source, and that of the one for requests with tools where there is one."""
        ...

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool,
        tools: list[dict[str, Any]] | None,
        **kwargs: Any,
    ) -> str:
        """The prompt's text.

        Raises:
            InvalidRequestError: the template refuses the messages.
        """
        ...


class TokenizerLike(Protocol):
    """What the server asks of a tokenizer. `encode` must be safe to call from several threads."""

    @property
    def vocab_size(self) -> int:
        """Every id that `decode` takes is below it."""
        ...

    @property
    def special_token_ids(self) -> Container[int]:
        """What `skip_special_tokens` leaves out."""
        ...

    @property
    def eos_token_ids(self) -> Collection[int]:
        """Every id that ends generation."""
        ...

    @property
    def chat_template(self) -> ChatTemplateLike | None:
        """The model's template, or None."""
        ...

    def compile_chat_template(self, source: str, /) -> ChatTemplateLike:
        """Another template for this model.

        Raises:
            InvalidRequestError: the source is no template.
        """
        ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The text's token ids."""
        ...

    def encode_texts(
        self,
        first: str,
        second: str | None = None,
        *,
        add_special_tokens: bool = True,
        max_len: int | None = None,
    ) -> tuple[list[int], int | None]:
        """Token ids of a text or a pair, cut to `max_len`; where a second token type begins."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The ids' text."""
        ...

    def token_text(self, token_id: int, /) -> str:
        """One token's text, its leading space included."""
        ...

    def token_bytes(self, token_id: int, /) -> bytes:
        """One token's UTF-8 bytes; they may be a piece of a character."""
        ...


class PromptEncoder:
    """Encodes and checks prompts for one model.

    Args:
        tokenizer: the model's.
        vocab_size: rows of the model's output layer, which every id must be below.
        max_model_len: most tokens of prompt and output together.
        trusts_chat_templates: requests may bring a chat template of their own.
    """

    def __init__(
        self,
        tokenizer: TokenizerLike,
        *,
        vocab_size: int,
        max_model_len: int,
        trusts_chat_templates: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.max_model_len = max_model_len
        self._vocab_size = vocab_size
        self._trusts_chat_templates = trusts_chat_templates
        self._compiled = lru_cache(MAX_COMPILED_TEMPLATES)(tokenizer.compile_chat_template)

    async def encode(self, text: str, *, add_special_tokens: bool, param: str) -> list[int]:
        """A text's token ids, at least one.

        Raises:
            InvalidRequestError: no text can be that long and fit, or it has no tokens; `param`
                is the name of its field.
        """
        longest = self.max_model_len * MAX_CHARS_PER_TOKEN
        if len(text) > longest:
            raise InvalidRequestError(
                f"{param} has {len(text)} characters, which cannot fit the maximum context length "
                f"of {self.max_model_len} tokens: shorten it",
                param=param,
                code="context_length_exceeded",
            )

        def encode() -> list[int]:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)

        is_short = len(text) <= MAX_INLINE_CHARS
        ids = encode() if is_short else await asyncio.to_thread(encode)
        if not ids:
            raise InvalidRequestError(f"{param} has no tokens", param=param)
        return ids

    async def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool | None,
        continue_final_message: bool | None,
        template_kwargs: Mapping[str, Any] | None,
        add_special_tokens: bool = False,
        tools: list[dict[str, Any]] | None = None,
        chat_template: str | None = None,
        reasoning_effort: str | None = None,
    ) -> list[int]:
        """The token ids of messages rendered by a chat template.

        Args:
            messages: the conversation.
            add_generation_prompt: end with what starts the answer; None: unless it goes on.
            continue_final_message: end within the last message.
            template_kwargs: further variables of the template.
            add_special_tokens: around what the template rendered.
            tools: offered to the model.
            chat_template: the request's own; None: the model's.
            reasoning_effort: a variable of templates that know it.

        Raises:
            InvalidRequestError: there is no template, it refuses the messages or does not know the
                effort, or they are too long; or requests may not bring templates.
        """
        add_prompt, continues = check_final_message(
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        template = await self._template(chat_template)
        kwargs = _with_effort(template_kwargs or {}, reasoning_effort, template)
        dicts = template_messages(messages)

        def render() -> str:
            return template.render(
                dicts,
                add_generation_prompt=add_prompt,
                continue_final_message=continues,
                tools=tools,
                **kwargs,
            )

        num_chars = sum(len(text_of(message)) for message in messages)
        is_short = num_chars <= MAX_INLINE_CHARS and not tools and chat_template is None
        text = render() if is_short else await asyncio.to_thread(render)
        return await self.encode(text, add_special_tokens=add_special_tokens, param="messages")

    async def _template(self, source: str | None) -> ChatTemplateLike:
        """The request's template, or the model's."""
        if source is not None:
            if not self._trusts_chat_templates:
                raise InvalidRequestError(
                    "chat_template is not taken from requests by this server: leave it out, or "
                    "start the server with --trust-request-chat-template",
                    param="chat_template",
                )
            if len(source) > MAX_TEMPLATE_CHARS:
                raise InvalidRequestError(
                    f"chat_template must have at most {MAX_TEMPLATE_CHARS} characters",
                    param="chat_template",
                )
            return await asyncio.to_thread(self._compiled, source)
        template = self.tokenizer.chat_template
        if template is None:
            raise InvalidRequestError(
                "This model has no chat template: use /v1/completions", param="messages"
            )
        return template

    def check_params(self, params: SamplingParams) -> None:
        """Refuse parameters that name token ids which the model does not have.

        Raises:
            InvalidRequestError: names the first of them: `stop_token_ids[3]`, `logit_bias.123`.
        """
        self.check_ids(params.stop_token_ids, param="stop_token_ids")
        self.check_ids(params.allowed_token_ids or (), param="allowed_token_ids")
        check_logit_bias(params.logit_bias, self._vocab_size)

    def truncate(self, ids: list[int], num_kept: int | None, params: SamplingParams) -> list[int]:
        """The prompt's last tokens.

        Args:
            ids: the prompt.
            num_kept: how many of them; -1: as many as leave room for `max_tokens`, or for one
                token where that is None; None: all.
            params: as the request asks.
        """
        if num_kept is None:
            return ids
        if num_kept == -1:
            num_kept = max(1, self.max_model_len - (params.max_tokens or 1))
        return ids[-num_kept:]

    def check_ids(self, ids: Sequence[int], *, param: str) -> None:
        """Refuse token ids that the model does not have.

        Raises:
            InvalidRequestError: names the first of them: `prompt[3]`.
        """
        check_token_ids(ids, self._vocab_size, param=param)

    def fit(
        self, params: SamplingParams, num_prompt_tokens: int, *, prompt: str, max_tokens: str
    ) -> SamplingParams:
        """The parameters with `max_tokens` set to what is left of the context if it was None.

        Args:
            params: as the request asks.
            num_prompt_tokens: length of the prompt, tokens.
            prompt: the caller's name for the prompt's field.
            max_tokens: the caller's name for the bound's field.

        Raises:
            InvalidRequestError: they do not fit (code `context_length_exceeded`), or `min_tokens`
                is more than what is left.
        """
        room = self.max_model_len - num_prompt_tokens
        wanted = params.max_tokens
        if room >= 1 and wanted is None:
            return msgspec.structs.replace(params, max_tokens=room)
        if room >= 1 and wanted is not None and wanted <= room:
            return params
        context = f"the maximum context length is {self.max_model_len} tokens"
        has = f"{prompt} has {num_prompt_tokens} tokens"
        if room < 1:
            raise InvalidRequestError(
                f"{context} and {has}, which leaves no room for an answer: shorten {prompt}",
                param=prompt,
                code="context_length_exceeded",
            )
        raise InvalidRequestError(
            f"{context}, but {has} and {max_tokens} is {wanted}: "
            f"shorten {prompt}, or ask for at most {room}",
            param=max_tokens,
            code="context_length_exceeded",
        )


def _with_effort(
    kwargs: Mapping[str, Any], effort: str | None, template: ChatTemplateLike
) -> Mapping[str, Any]:
    """The template's variables with the effort among them.

    Raises:
        InvalidRequestError: the template does not look at it, or it is there with another value.
    """
    if effort is None:
        return kwargs
    if not any("reasoning_effort" in source for source in template.sources):
        raise InvalidRequestError(
            "reasoning_effort: this model's chat template does not know it: leave it out",
            param="reasoning_effort",
        )
    if kwargs.get("reasoning_effort", effort) != effort:
        raise InvalidRequestError(
            "reasoning_effort and chat_template_kwargs.reasoning_effort contradict each other: "
            "give one of them",
            param="reasoning_effort",
        )
    return {**kwargs, "reasoning_effort": effort}


def check_token_ids(ids: Sequence[int], vocab_size: int, *, param: str) -> None:
    """Refuse ids outside 0..vocab_size - 1.

    Raises:
        InvalidRequestError: names the first of them: `tokens[3]`.
    """
    if not ids or (min(ids) >= 0 and max(ids) < vocab_size):
        return
    index = next(i for i, token_id in enumerate(ids) if not 0 <= token_id < vocab_size)
    raise InvalidRequestError(
        f"{param}[{index}] is {ids[index]}, but token ids go from 0 to {vocab_size - 1}",
        param=f"{param}[{index}]",
    )
