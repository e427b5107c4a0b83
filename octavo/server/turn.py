"""One turn of a conversation: from a chat request to what its answers say, event by event.

Every route that chats is made of this: it turns its own body into a `ChatCompletionRequest`, and
the parts that come of it into its own words. Knows no wire format of an answer.
"""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

import msgspec

from octavo.errors import EngineUnavailableError, InvalidRequestError
from octavo.protocol.tools import template_tools
from octavo.server.answers import collect
from octavo.server.choices import Choices, PromptToRun
from octavo.server.parsing import finish_reason, read_whole
from octavo.text.tools.events import CallBegin, Content, merged

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from octavo.protocol.chat import ChatCompletionRequest
    from octavo.protocol.usage import Usage
    from octavo.server.account import Account
    from octavo.server.answers import Output
    from octavo.server.context import ServerContext
    from octavo.text.answers import AnswerParser
    from octavo.text.tools.events import Answer, Event
    from octavo.types import Delta, RequestOptions, SamplingParams


@dataclass(frozen=True, slots=True)
class Part:
    """What one delta adds to one choice.

    Attributes:
        index: of the choice.
        events: what its text says, neighbours of one kind joined; may be none.
        delta: the delta itself.
        finish_reason: of the choice, as chats tell it; set in its last part only.
    """

    index: int
    events: list[Event]
    delta: Delta
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class Choice:
    """A finished answer: what its text says, the output it was read from, and why it ended."""

    answer: Answer
    output: Output
    finish_reason: str | None


async def encode_messages(context: ServerContext, body: ChatCompletionRequest) -> list[int]:
    """The conversation as the model reads it, token ids; its length is not checked.

    Raises:
        InvalidRequestError: the template refuses the messages.
    """
    return await context.prompts.encode_chat(
        body.messages,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        template_kwargs=body.chat_template_kwargs,
        add_special_tokens=bool(body.add_special_tokens),
        tools=template_tools(body.offered_tools) or None,
        chat_template=body.chat_template,
        reasoning_effort=body.reasoning_effort,
    )


class ChatTurn:
    """One or several answers to a conversation. Make it with `start`.

    Attributes:
        id: of the answer; the engine's requests are named after it.
        created: when it was made, seconds since the epoch.
        model: the served name.
        prompt_token_ids: the conversation as the model reads it.
        usage: token counts so far.
        is_clipped: the answer may be shorter than was asked for, as the context ends before.
    """

    def __init__(
        self,
        context: ServerContext,
        answer_id: str,
        prompt_token_ids: list[int],
        choices: Choices,
        parsers: list[AnswerParser | None],
        *,
        is_clipped: bool = False,
    ) -> None:
        self.id = answer_id
        self.created = int(time.time())
        self.model = context.model_name
        self.prompt_token_ids = prompt_token_ids
        self.is_clipped = is_clipped
        self._choices = choices
        self._parsers = parsers
        self._has_calls = [False] * len(parsers)

    @classmethod
    async def start(
        cls,
        context: ServerContext,
        body: ChatCompletionRequest,
        *,
        account: Account,
        options: RequestOptions,
        answer_id: str | None = None,
        prompt_token_ids: list[int] | None = None,
        is_plain: bool = False,
        clips: bool = False,
    ) -> ChatTurn:
        """Check the request, render and encode the conversation; nothing runs yet.

        Args:
            context: the server's.
            body: what is asked.
            account: of the HTTP request.
            options: how to treat it.
            answer_id: None: a new one, as OpenAI's chats have.
            prompt_token_ids: stands for the messages; None: they are rendered and encoded.
            is_plain: the answer's text is all content, whatever the model's formats are.
            clips: an answer that may be longer than the context has room for is not refused, but
                ends there.

        Raises:
            RequestError: the request cannot be served.
        """
        context.check_model(body.model)
        context.check_task("generate")
        body.check()
        context.reading.check(body)
        params = body.sampling_params(context.defaults)
        encoder = context.prompts
        encoder.check_params(params)
        ids = prompt_token_ids
        if ids is None:
            ids = await encode_messages(context, body)
        ids = encoder.truncate(ids, body.truncate_prompt_tokens, params)
        if not is_plain:
            params = context.reading.params(params, body, ids)
        await context.check_grammar(params, body)
        wanted = params.max_tokens
        if clips:
            params = msgspec.structs.replace(params, max_tokens=None)
        try:
            params = encoder.fit(
                params, len(ids), prompt="messages", max_tokens=body.max_tokens_field
            )
        except InvalidRequestError as exc:
            raise body.in_own_names(exc) from None
        is_clipped = False
        if clips and wanted is not None:
            params, is_clipped = _bounded(params, wanted)
        answer_id = answer_id or f"chatcmpl-{uuid4().hex}"
        choices = Choices(
            context,
            body,
            [PromptToRun(ids, params)],
            answer_id=answer_id,
            account=account,
            options=options,
        )
        parsers = [
            None if is_plain else context.reading.parser(body, ids)
            for _ in range(choices.num_choices)
        ]
        return cls(context, answer_id, ids, choices, parsers, is_clipped=is_clipped)

    @property
    def num_choices(self) -> int:
        """How many answers there will be."""
        return self._choices.num_choices

    @property
    def usage(self) -> Usage:
        """Token counts so far."""
        return self._choices.usage.usage

    @property
    def account(self) -> Account:
        """Of the HTTP request."""
        return self._choices.account

    async def whole_usage(self) -> Usage:
        """Token counts when all has been run, with what it cost if that was asked for."""
        return await self._choices.whole_usage()

    def has_parser(self, index: int) -> bool:
        """Whether a choice's text may be anything but content."""
        return self._parsers[index] is not None

    async def complete(self) -> list[Choice]:
        """All answers at their end.

        Raises:
            RequestError: the engine refuses the request.
            EngineError: the engine failed.
        """
        async with aclosing(self._choices.run()) as deltas:
            outputs = await collect(deltas, None, self.num_choices)
        choices = []
        for parser, output in zip(self._parsers, outputs, strict=True):
            answer = read_whole(parser, output.text)
            reason = finish_reason(output.finish_reason, has_calls=bool(answer.calls))
            choices.append(Choice(answer, output, reason))
        return choices

    async def parts(self) -> AsyncGenerator[Part, None]:
        """The answers as they come. Each choice ends with a part that has a `finish_reason`.

        Raises:
            RequestError: before the first part: the engine refuses the request.
            EngineError: the engine failed.
        """
        async with aclosing(self._choices.run()) as deltas:
            async for index, delta in deltas:
                events = self._read(index, delta)
                reason = finish_reason(delta.finish_reason, has_calls=self._has_calls[index])
                yield Part(index, events, delta, reason)

    def _read(self, index: int, delta: Delta) -> list[Event]:
        parser = self._parsers[index]
        if parser is None:
            return [Content(delta.text)] if delta.text else []
        events = parser.push(delta.text)
        if delta.finish_reason is not None:
            events += parser.finish()
        events = merged(events)
        self._has_calls[index] |= any(isinstance(event, CallBegin) for event in events)
        return events


def unfinished(reason: str | None) -> EngineUnavailableError:
    """For protocols that have no word for an answer which was ended from outside."""
    return EngineUnavailableError(
        f"the answer was ended before it was whole ({reason})", code="unfinished"
    )


def _bounded(params: SamplingParams, wanted: int) -> tuple[SamplingParams, bool]:
    """The parameters with no more than the wanted length, and whether that is more than theirs."""
    room = params.max_tokens
    assert room is not None  # fitted to the context
    return msgspec.structs.replace(params, max_tokens=min(room, wanted)), wanted > room
