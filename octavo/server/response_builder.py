"""From the parts of a turn to a response and the events that tell how it grew.

An event is its number and its bytes. A response that is not streamed is made by the same steps, so
that both say the same.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING

from octavo.protocol import sse
from octavo.protocol.response_items import (
    OutputCall,
    OutputMessage,
    OutputReasoning,
    OutputText,
    ReasoningText,
    new_id,
)
from octavo.protocol.responses import (
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    Response,
    ResponseEvent,
    ResponseFailure,
    ResponseUsage,
)
from octavo.server.answers import chat_logprobs
from octavo.text.tools.events import CallArguments, CallBegin, Content, Reasoning

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.errors import RequestError
    from octavo.protocol.chat import TokenLogprobs
    from octavo.protocol.response_items import ItemStatus
    from octavo.protocol.responses import ResponseStatus
    from octavo.protocol.usage import Usage
    from octavo.server.prompts import TokenizerLike
    from octavo.server.turn import Part
    from octavo.text.tools.events import Event


class ResponseBuilder:
    """Grows a response. Call `begin`, `add` for each part, then one of the ends.

    Args:
        response: as it was asked for, with no output.
        tokenizer: for log-probabilities.
        has_logprobs: the text's are shown.
        has_events: False: nobody wants the events, and there are none.

    Attributes:
        response: as it is now.
        num_events: so far.
    """

    def __init__(
        self,
        response: Response,
        tokenizer: TokenizerLike,
        *,
        has_logprobs: bool,
        has_events: bool,
    ) -> None:
        self.response = response
        self.num_events = 0
        self._tokenizer = tokenizer
        self._has_logprobs = has_logprobs
        self._has_events = has_events
        self._events: list[tuple[int, bytes]] = []
        self._is_open = False  # the last item still grows
        self._held = ""  # whitespace that may be between calls only
        self._logprobs: list[TokenLogprobs] = []  # of tokens whose text has not come yet
        self._num_reasoning = 0
        self._num_unsure = 0  # tokens before the first text: marks
        self._is_reasoning = False

    def begin(self) -> list[tuple[int, bytes]]:
        """The response runs."""
        self._say("response.created", response=self.response)
        self.response.status = "in_progress"
        self._say("response.in_progress", response=self.response)
        return self._told()

    def add(self, part: Part) -> list[tuple[int, bytes]]:
        """What a part adds."""
        self._count(part.events, len(part.delta.token_ids))
        if self._has_logprobs and part.delta.logprobs:
            self._logprobs += chat_logprobs(self._tokenizer, part.delta.logprobs).content
        for event in part.events:
            match event:
                case Reasoning(text):
                    self._add_reasoning(text)
                case Content(text):
                    self._add_text(text)
                case CallBegin(_, call_id, name):
                    self._begin_call(call_id, name)
                case CallArguments(_, text):
                    self._add_arguments(text)
        return self._told()

    def end(self, reason: str, usage: Usage) -> list[tuple[int, bytes]]:
        """The answer has ended.

        Args:
            reason: a chat's finish reason.
            usage: of the turn.
        """
        is_whole = reason in ("stop", "tool_calls")
        if not self.response.output or self._logprobs:
            self._add_text("", is_last=True)
        self._close("completed" if is_whole else "incomplete")
        details = OutputTokensDetails(self._num_reasoning)
        self.response.usage = ResponseUsage(
            usage.prompt_tokens,
            InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
            usage.completion_tokens,
            details,
            usage.total_tokens,
            gpu_seconds=usage.gpu_seconds,
            cost=usage.cost,
            currency=usage.currency,
        )
        if is_whole:
            return self._end("completed")
        if reason == "abort":
            error = ResponseFailure("server_error", "The server stopped before the answer's end")
            return self._end("failed", error)
        why = "max_output_tokens" if reason == "length" else reason
        self.response.incomplete_details = IncompleteDetails(why)
        return self._end("incomplete")

    def fail(self, error: RequestError) -> list[tuple[int, bytes]]:
        """It cannot go on."""
        self._close("incomplete")
        failure = ResponseFailure(error.code or "server_error", error.message)
        return self._end("failed", failure)

    def cancel(self) -> list[tuple[int, bytes]]:
        """Nobody wants it any more."""
        self._close("incomplete")
        return self._end("cancelled")

    def _end(
        self, status: ResponseStatus, error: ResponseFailure | None = None
    ) -> list[tuple[int, bytes]]:
        self.response.status = status
        self.response.error = error
        if status == "completed":
            self.response.completed_at = int(time.time())
        self._say(f"response.{status}", response=self.response)
        return self._told()

    def _say(self, event_type: str, **fields: object) -> None:
        if not self._has_events:
            return
        number = self.num_events
        event = ResponseEvent(type=event_type, sequence_number=number)
        for name, value in fields.items():
            setattr(event, name, value)
        self.num_events += 1
        # Encoded now: what it shows goes on growing.
        self._events.append((number, sse.named_event(event_type, event)))

    def _told(self) -> list[tuple[int, bytes]]:
        events, self._events = self._events, []
        return events

    @property
    def _index(self) -> int:
        return len(self.response.output) - 1

    def _item(self) -> OutputMessage | OutputReasoning | OutputCall | None:
        return self.response.output[-1] if self._is_open else None

    def _open(self, item: OutputMessage | OutputReasoning | OutputCall) -> None:
        self._close("completed")
        self.response.output.append(item)
        self._is_open = True

    def _close(self, status: ItemStatus) -> None:
        """End the item that grows."""
        item = self._item()
        if item is None:
            return
        where = {"output_index": self._index, "item_id": item.id}
        if isinstance(item, OutputCall):
            self._say(
                "response.function_call_arguments.done",
                **where,
                name=item.name,
                arguments=item.arguments,
            )
        elif isinstance(item, OutputReasoning):
            text = item.content[0].text
            self._say("response.reasoning_text.done", **where, content_index=0, text=text)
            self._say("response.content_part.done", **where, content_index=0, part=item.content[0])
        else:
            part = item.content[0]
            self._say(
                "response.output_text.done",
                **where,
                content_index=0,
                text=part.text,
                logprobs=part.logprobs or [],
            )
            self._say("response.content_part.done", **where, content_index=0, part=part)
        item.status = status
        self._say("response.output_item.done", output_index=self._index, item=item)
        self._is_open = False

    def _add_reasoning(self, text: str) -> None:
        self._logprobs.clear()
        item = self._item()
        if not isinstance(item, OutputReasoning):
            item = OutputReasoning(id=new_id("rs"), status="in_progress", content=[])
            self._open(item)
            self._say("response.output_item.added", output_index=self._index, item=item)
            self._begin_part(item, ReasoningText(""))
        item.content[0].text += text
        self._say(
            "response.reasoning_text.delta",
            output_index=self._index,
            item_id=item.id,
            content_index=0,
            delta=text,
        )

    def _add_text(self, text: str, *, is_last: bool = False) -> None:
        item = self._item()
        if not isinstance(item, OutputMessage):
            self._held += text
            if not (self._held.strip() or is_last):
                return
            text, self._held = self._held, ""
            if is_last and not text.strip() and self.response.output:
                return  # only marks and breaks came after reasoning or calls
            item = OutputMessage(id=new_id("msg"), status="in_progress", content=[])
            self._open(item)
            self._say("response.output_item.added", output_index=self._index, item=item)
            self._begin_part(item, OutputText("", [], []))
        if not text and not self._logprobs:
            return
        part = item.content[0]
        part.text += text
        logprobs, self._logprobs = self._logprobs, []
        if part.logprobs is not None:
            part.logprobs += logprobs
        self._say(
            "response.output_text.delta",
            output_index=self._index,
            item_id=item.id,
            content_index=0,
            delta=text,
            logprobs=logprobs,
        )

    def _begin_part(
        self, item: OutputMessage | OutputReasoning, part: OutputText | ReasoningText
    ) -> None:
        item.content.append(part)  # type: ignore[arg-type]
        self._say(
            "response.content_part.added",
            output_index=self._index,
            item_id=item.id,
            content_index=0,
            part=part,
        )

    def _begin_call(self, call_id: str, name: str) -> None:
        self._logprobs.clear()
        self._held = ""
        item = OutputCall(
            id=new_id("fc"), call_id=call_id, name=name, arguments="", status="in_progress"
        )
        self._open(item)
        self._say("response.output_item.added", output_index=self._index, item=item)

    def _add_arguments(self, text: str) -> None:
        item = self._item()
        assert isinstance(item, OutputCall)  # parsers end a call before they begin the next thing
        item.arguments += text
        self._say(
            "response.function_call_arguments.delta",
            output_index=self._index,
            item_id=item.id,
            delta=text,
        )

    def _count(self, events: Sequence[Event], num_tokens: int) -> None:
        """Count a part's tokens as reasoning or not.

        A part is one token, or the few that came while the server was busy: of one that has the
        end of the reasoning, the tokens are shared out by the length of their text.
        """
        lengths = [0, 0]
        for event in events:
            if not isinstance(event, CallBegin):
                lengths[isinstance(event, Reasoning)] += len(event.text)
        if not events:
            if self._is_reasoning:
                self._num_reasoning += num_tokens
            elif not self.response.output:
                self._num_unsure += num_tokens
            return
        if lengths[True]:
            share = lengths[True] / sum(lengths)
            self._num_reasoning += math.ceil(share * num_tokens) + self._num_unsure
        self._num_unsure = 0
        self._is_reasoning = isinstance(events[-1], Reasoning)
