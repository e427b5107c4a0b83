"""What a client gets of an answer that went through `escalate`: as it comes, or from memory.

All keep to `seams.Outcome`, and have `batches` like `reply.BackendReply`: events that may be
written at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from octavo.gateway.answer_collect import Collector
from octavo.gateway.answer_logprobs import event_without_logprobs, without_logprobs
from octavo.gateway.answer_text import AnswerError

if TYPE_CHECKING:
    from collections.abc import (
        AsyncGenerator,
        AsyncIterator,
        Awaitable,
        Callable,
        Mapping,
        Sequence,
    )

    from octavo.gateway.model import Attempt, Call, Route, Tier, Tokens
    from octavo.gateway.seams import Reply

ESCALATION = "x-octavo-escalation"
"""Header of answers that were not simply the first tier's."""


def batches_of(reply: Reply) -> AsyncGenerator[Sequence[bytes], None]:
    """A reply's events, those together that came together where it can tell."""
    batches: Callable[[], AsyncGenerator[Sequence[bytes], None]] | None
    batches = getattr(reply, "batches", None)
    return _singly(reply) if batches is None else batches()


async def _singly(reply: Reply) -> AsyncGenerator[Sequence[bytes], None]:
    async for event in reply.events():
        yield (event,)


def is_stream(reply: Reply) -> bool:
    """Whether a reply has events; else it has a body."""
    return reply.content_type.startswith("text/event-stream")


class _Outcome:
    """What all have: whose answer it is, and what of it the client sees.

    Args:
        reply: whose status and content type it has.
        tier: whose it is.
        headers: for the client.
        strips: takes log-probabilities out; None: it stays as it is.
    """

    def __init__(
        self, reply: Reply, tier: Tier, headers: Mapping[str, str], strips: Route | None
    ) -> None:
        self.tier = tier
        self.headers = headers
        self.target = reply.target
        self.status = reply.status
        self.content_type = reply.content_type
        self._strips = strips

    async def events(self) -> AsyncIterator[bytes]:
        """See `seams.Reply`."""
        async for batch in self.batches():
            for event in batch:
                yield event

    def batches(self) -> AsyncGenerator[Sequence[bytes], None]:
        """The events, those together that may be written at once."""
        raise NotImplementedError

    def _shown(self, batch: Sequence[bytes]) -> Sequence[bytes]:
        route = self._strips
        return batch if route is None else [event_without_logprobs(route, e) for e in batch]

    def _shown_body(self, body: bytes) -> bytes:
        return body if self._strips is None else without_logprobs(self._strips, body)


class PassedOutcome(_Outcome):
    """An answer that is passed on as it comes.

    Args:
        reply: open.
        tier, headers, strips: as for `_Outcome`.
        ended: told of the attempt when it is closed.
        before: batches that were taken from the reply already.
        rest: where the further ones come from then; None: from the reply's beginning.
    """

    is_whole = False

    def __init__(
        self,
        reply: Reply,
        tier: Tier,
        headers: Mapping[str, str],
        ended: Callable[[Attempt], None],
        *,
        before: Sequence[bytes] = (),
        rest: AsyncIterator[Sequence[bytes]] | None = None,
        strips: Route | None = None,
    ) -> None:
        super().__init__(reply, tier, headers, strips)
        self._reply = reply
        self._ended = ended
        self._before = before
        self._rest = rest
        self._attempt: Attempt | None = None

    @property
    def tokens(self) -> Tokens:
        """See `seams.Reply`."""
        return self._reply.tokens

    @property
    def finish_reason(self) -> str:
        """See `seams.Reply`."""
        return self._reply.finish_reason

    async def read(self) -> bytes:
        """See `seams.Reply`."""
        return self._shown_body(await self._reply.read())

    def batches(self) -> AsyncGenerator[Sequence[bytes], None]:
        """The events, those together that may be written at once."""
        if self._rest is None and self._strips is None:
            return batches_of(self._reply)
        return self._changed()

    async def _changed(self) -> AsyncGenerator[Sequence[bytes], None]:
        if self._before:
            yield self._shown(self._before)
        async for batch in batches_of(self._reply) if self._rest is None else self._rest:
            yield self._shown(batch)

    async def close(
        self,
        *,
        tokens: Tokens | None = None,
        status: str = "ok",
        reason: str = "",
        answer_sha256: str = "",
        judge: str = "",
        score: float | None = None,
    ) -> Attempt:
        """See `seams.Reply.close`; called again, it gives the same."""
        if self._attempt is None:
            self._attempt = await self._reply.close(
                tokens=self._reply.tokens if tokens is None else tokens,
                status=status,
                reason=reason,
                answer_sha256=answer_sha256,
                judge=judge,
                score=score,
            )
            self._ended(self._attempt)
            self._attempt = await self._after(self._attempt)
        return self._attempt

    async def _after(self, attempt: Attempt) -> Attempt:
        """What is still to be done when the attempt has ended; the attempt as it is then."""
        return attempt


class WatchedOutcome(PassedOutcome):
    """An answer that is passed on as it comes, and judged when the client has it.

    Args:
        reply, tier, headers, ended, strips: as for `PassedOutcome`.
        call: what was asked.
        judge: judges the whole answer, and gives the attempt as it is then.
        max_bytes: longer answers are not judged.
    """

    def __init__(
        self,
        reply: Reply,
        tier: Tier,
        headers: Mapping[str, str],
        ended: Callable[[Attempt], None],
        *,
        call: Call,
        judge: Callable[[Attempt, Mapping[str, Any]], Awaitable[Attempt]],
        max_bytes: int,
        strips: Route | None = None,
    ) -> None:
        super().__init__(reply, tier, headers, ended, strips=strips)
        self._judge = judge
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._collector: Collector | None = Collector(call.route)
        self._body: bytes | None = None

    async def read(self) -> bytes:
        """See `seams.Reply`."""
        self._body = await self._reply.read()
        return self._shown_body(self._body)

    async def batches(self) -> AsyncGenerator[Sequence[bytes], None]:
        """The events, those together that may be written at once."""
        async for batch in batches_of(self._reply):
            for event in batch:
                self._see(event)
            yield self._shown(batch)

    async def _after(self, attempt: Attempt) -> Attempt:
        """Waits for the judge."""
        answer = self._answer() if attempt.status == "ok" else None
        return attempt if answer is None else await self._judge(attempt, answer)

    def _see(self, event: bytes) -> None:
        self._num_bytes += len(event)
        if self._collector is None:
            return
        try:
            self._collector.add(event)
        except AnswerError:
            self._collector = None
        if self._num_bytes > self._max_bytes:
            self._collector = None

    def _answer(self) -> dict[str, Any] | None:
        """The whole answer; None: there is none that can be read, or it is too long."""
        try:
            if self._body is not None:
                if len(self._body) > self._max_bytes:
                    return None
                return msgspec.json.decode(self._body, type=dict[str, Any])
            return None if self._collector is None else self._collector.whole()
        except (AnswerError, msgspec.DecodeError, RecursionError):
            return None


class HeldOutcome(_Outcome):
    """An answer that is here whole, and judged. Its attempt has ended.

    Args:
        reply: closed.
        tier, strips: as for `_Outcome`.
        body: the answer's, where it is no stream.
        held: the events of a stream, as they came.
        attempt: its record.
        tell: makes the record another.
    """

    is_whole = True

    def __init__(
        self,
        reply: Reply,
        tier: Tier,
        *,
        body: bytes,
        held: Sequence[bytes],
        attempt: Attempt,
        tell: Callable[[Attempt], None],
        strips: Route | None,
    ) -> None:
        super().__init__(reply, tier, {}, strips)
        self.finish_reason = reply.finish_reason
        self.attempt = attempt
        self._body = body
        self._held = held
        self._tell = tell

    @property
    def tokens(self) -> Tokens:
        """Of the whole answer."""
        return self.attempt.tokens

    def amend(self, **changes: Any) -> None:
        """Change the record."""
        self.attempt = msgspec.structs.replace(self.attempt, **changes)
        self._tell(self.attempt)

    async def read(self) -> bytes:
        """The whole body."""
        return self._shown_body(self._body)

    async def batches(self) -> AsyncGenerator[Sequence[bytes], None]:
        """All events: they may be written at once."""
        yield self._shown(self._held)

    async def close(
        self,
        *,
        tokens: Tokens | None = None,
        status: str = "ok",
        reason: str = "",
        answer_sha256: str = "",
        judge: str = "",
        score: float | None = None,
    ) -> Attempt:
        """The record. What the backend used, and what the judge said, is known: only how it ended
        at the client counts of what is told here.
        """
        if status != "ok" and self.attempt.status == "ok":
            why = "; ".join(filter(None, (reason, self.attempt.reason)))
            self.amend(status=status, reason=why)
        return self.attempt
