"""One attempt at one backend: sent, answered, read, and accounted for."""

from __future__ import annotations

import asyncio
import time
from time import perf_counter
from typing import TYPE_CHECKING

import msgspec

from octavo.errors import UpstreamError
from octavo.gateway.model import Attempt, TokenPrice, Tokens, actual
from octavo.gateway.reply_errors import (
    BUSY,
    LIMITED,
    NOT_THERE,
    clean,
    failure_of,
    is_callers_fault,
    message_of,
    retry_after,
    status_of,
)
from octavo.gateway.sse_events import (
    EventSplitter,
    StreamWatch,
    data_of,
    error_text,
    is_comment,
)
from octavo.gateway.usage_of import parse_usage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from octavo.gateway.connection import Connection
    from octavo.gateway.health import Health
    from octavo.gateway.model import Call, Status, Target
    from octavo.gateway.outgoing import Outgoing
    from octavo.gateway.upstream import Upstream

MAX_ANSWER_BYTES = 64 * 1024**2
MAX_ERROR_BYTES = 64 * 1024
ERROR_S = 2.0
"""How long the body of an error is waited for."""
AFTER_END_S = 1.0
"""How long a backend may take to end the body of a stream whose last event is here."""


class BackendReply:
    """The answer of a backend. Implements `seams.Reply`; made by `Dispatcher`.

    Args:
        call: what is asked.
        tier: its name, for the record.
        target: who is asked; `health.begin` has said yes.
        upstream: the way there.
        health: is told what became of it.
        number, upstream_id: of the attempt.
    """

    def __init__(
        self,
        call: Call,
        tier: str,
        target: Target,
        upstream: Upstream,
        health: Health,
        *,
        number: int,
        upstream_id: str,
    ) -> None:
        self.target = target
        self.status = 0
        self.content_type = ""
        self._call = call
        self._tier = tier
        self._upstream = upstream
        self._health = health
        self._number = number
        self._upstream_id = upstream_id
        self._begin = perf_counter()
        self._ttft_ns: int | None = None
        self._connection: Connection | None = None
        self._is_sent = False
        self._body = b""
        self._ready: list[bytes] = []
        self._splitter = EventSplitter()
        self._watch: StreamWatch | None = None
        self._told: Tokens | None = None
        self._finish_reason = ""
        self._fault: UpstreamError | None = None
        self._attempt: Attempt | None = None

    @property
    def is_stream(self) -> bool:
        """Whether it has events; else it has a body."""
        return self._watch is not None

    @property
    def attempt(self) -> Attempt:
        """The record, once it is closed."""
        assert self._attempt is not None
        return self._attempt

    @property
    def finish_reason(self) -> str:
        """See `seams.Reply`."""
        return self._finish_reason if self._watch is None else self._watch.finish_reason

    @property
    def tokens(self) -> Tokens:
        """See `seams.Reply`. What time and money it took is told by our own engines alone."""
        told = self._told if self._watch is None else self._watch.tokens
        if self._watch is not None and told is not None and not self._watch.has_finished:
            # Anthropic's first event and continuous counts tell of a part
            told = msgspec.structs.replace(
                told, output=max(told.output, self._watch.estimate_output())
            )
        if told is None:
            if self._watch is not None:
                output = self._watch.estimate_output()
                return Tokens(input=self._call.num_prompt_tokens, output=output)
            return Tokens()
        if self._upstream.backend.kind != "octavo":
            return msgspec.structs.replace(told, device_ns=None, cost_nano=None)
        return told

    async def begin(self, request: Outgoing, deadline: float) -> None:
        """Send, and wait until nothing can fail any more that another backend could mend.

        Raises:
            UpstreamError: it failed, and the attempt is closed.
        """
        timeouts = self._upstream.backend.timeouts
        left_s = deadline - self._begin
        try:
            await self._exchange(request, deadline)
        except UpstreamError as error:
            self._fault = error
            patience_s = timeouts.first_token if self._call.stream else timeouts.total
            if not self._is_sent:
                patience_s = timeouts.connect
            # A caller in a hurry says nothing of the backend
            is_ours = error.status == 504 and left_s < patience_s
            self._tell(error, is_ours=is_ours)
            self._end(status_of(error), error.message)
            raise
        except asyncio.CancelledError:
            self._health.drop(self.target)
            self._end("client_left", "the client left before an answer")
            raise
        except BaseException:
            self._health.drop(self.target)
            self._end("error", "the gateway failed")
            raise
        self._health.succeed(self.target)

    async def read(self) -> bytes:
        """See `seams.Reply`. It is here already."""
        assert not self.is_stream
        return self._body

    async def events(self) -> AsyncGenerator[bytes, None]:
        """See `seams.Reply`. Comments, which keep a stream alive, are among them."""
        async for events in self.batches():
            for event in events:
                yield event

    async def batches(self) -> AsyncGenerator[list[bytes], None]:
        """As `events`, those together that came together: one write does for them.

        Raises:
            UpstreamError: as `events`.
        """
        watch, connection = self._watch, self._connection
        assert watch is not None
        assert connection is not None
        see = watch.see
        feed = self._splitter.feed
        try:
            while True:
                if seen := [event for event in map(see, self._ready) if event]:
                    yield seen
                if watch.is_done:
                    connection.expect(AFTER_END_S, "the end of its stream")
                piece = await connection.piece()
                if not piece:
                    break
                self._ready = feed(piece)
            if self._splitter.has_rest or not watch.is_whole:
                raise self._error("ended its stream before the end")
        except UpstreamError as error:
            if watch.is_done:
                return  # the client has all of it
            error.may_retry = False
            self._fault = error
            raise

    async def close(
        self,
        *,
        tokens: Tokens | None = None,
        status: Status | str = "ok",
        reason: str = "",
        answer_sha256: str = "",
        judge: str = "",
        score: float | None = None,
    ) -> Attempt:
        """See `seams.Reply`; called again, it gives the same.

        Args:
            tokens: what it used; None: `tokens`.
            status: how it ended; an answer that broke off is an error whatever is said here.
            reason: why, one line.
            answer_sha256: for the record.
            judge: likewise.
            score: likewise.
        """
        if self._attempt is not None:
            return self._attempt
        error = self._fault
        if error is None and self._watch is not None and self._watch.error:
            error = UpstreamError(self._clean(self._watch.error))
        if error is not None:
            self._tell(error)
            if status in ("ok", "error", "timeout"):
                status, reason = status_of(error), reason or error.message
        elif status == "ok" and self.status >= 400:
            status, reason = "refused", reason or self._clean(message_of(self._body))
        return self._end(
            status, reason, tokens=tokens, answer_sha256=answer_sha256, judge=judge, score=score
        )

    async def _exchange(self, request: Outgoing, deadline: float) -> None:
        call, timeouts = self._call, self._upstream.backend.timeouts
        connection = await self._send(request, deadline)
        status = self.status = connection.status
        if not 200 <= status < 300:
            await self._read_error(connection)
            return
        if connection.header(b"content-encoding") not in (b"", b"identity"):
            raise self._error("compresses its answer unasked", code="upstream_garbage")
        self.content_type = connection.header(b"content-type").decode("latin-1")
        if self.content_type.startswith("text/event-stream"):
            if not call.stream:
                raise self._error("sent a stream unasked", code="upstream_garbage")
            self._watch = StreamWatch(call.route, drops_usage=request.drops_usage)
            await self._first_event(connection)
            connection.expect_each(timeouts.idle, "more of its stream")
            return
        connection.expect(timeouts.total, "its answer")
        self._body = await connection.body(MAX_ANSWER_BYTES)
        try:
            told, self._finish_reason = parse_usage(call.route, self._body)
        except msgspec.ValidationError:
            told = None  # JSON, and of a shape that we do not know
        except msgspec.DecodeError:
            raise self._error("sent an answer that is not JSON", code="upstream_garbage") from None
        self._told = told or Tokens(input=call.num_prompt_tokens, output=len(self._body) // 4)

    async def _send(self, request: Outgoing, deadline: float) -> Connection:
        """Send, and wait for the head of the answer.

        A server may close a connection that was idle while we begin to use it. It has not seen the
        request then: it is sent again, once, over a new connection.
        """
        upstream, timeouts = self._upstream, self._upstream.backend.timeouts
        is_new = False
        while True:
            connect_s = min(timeouts.connect, deadline - perf_counter())
            connection = await upstream.acquire(connect_s, is_new=is_new)
            self._connection = connection
            self._is_sent = True
            limit_s = min(timeouts.total, deadline - perf_counter())
            connection.send(request.head, request.body, limit_s=limit_s)
            if self._call.stream:
                connection.expect(timeouts.first_token, "a first token")
            try:
                await connection.head()
            except UpstreamError as error:
                is_stale = connection.num_exchanges > 1 and not connection.has_answer
                if is_new or not is_stale or error.status == 504:
                    raise
                self._release()
                is_new = True
            else:
                return connection

    async def _first_event(self, connection: Connection) -> None:
        while True:
            piece = await connection.piece()
            if not piece:
                raise self._error(
                    "ended its stream before the first event", code="upstream_garbage"
                )
            self._ready += self._splitter.feed(piece)
            for event in self._ready:
                if is_comment(event):
                    continue
                if error := error_text(event):
                    raise self._error(f"failed: {self._clean(error)}", code="upstream_error")
                if data_of(event)[:1] not in (b"{", b"["):
                    raise self._error("sent a stream of no JSON", code="upstream_garbage")
                self._ttft_ns = round((perf_counter() - self._begin) * 1e9)
                return

    async def _read_error(self, connection: Connection) -> None:
        """An answer that the caller is at fault is given on.

        Raises:
            UpstreamError: it says anything else.
        """
        self.content_type = connection.header(b"content-type").decode("latin-1")
        connection.expect(ERROR_S, "the rest of an error")
        is_callers = is_callers_fault(self.status, self._call.route)
        try:
            self._body = await connection.body(MAX_ERROR_BYTES)
        except UpstreamError:
            if is_callers:
                raise
        if not is_callers:
            message = self._clean(message_of(self._body))
            after_s = retry_after(connection.header(b"retry-after"))
            raise failure_of(self.target.backend, self.status, message, after_s)

    def _tell(self, error: UpstreamError, *, is_ours: bool = False) -> None:
        """What a failure says of the backend."""
        health, target = self._health, self.target
        if error.code in (LIMITED, BUSY):
            health.limit(target, error.retry_after_s)
        elif is_ours or error.status == 503 or self.status in NOT_THERE:
            health.drop(target)
        else:
            health.fail(target, error.message)

    def _end(
        self,
        status: str,
        reason: str,
        *,
        tokens: Tokens | None = None,
        answer_sha256: str = "",
        judge: str = "",
        score: float | None = None,
    ) -> Attempt:
        self._release()
        self._health.end(self.target)
        price = self._upstream.prices.get(self.target.model)
        if tokens is None:
            tokens = self.tokens
            is_unknown = tokens == Tokens() and status in ("timeout", "client_left")
            if is_unknown and self._is_sent and isinstance(price, TokenPrice):
                # A provider takes its money for what it has read, whether or not we had an answer
                tokens = Tokens(input=self._call.num_prompt_tokens)
        cost_nano = tokens.cost_nano or 0
        if price is not None and tokens != Tokens():
            cost_nano = actual(tokens, price).cost_nano
        self._attempt = Attempt(
            request_id=self._call.request_id,
            number=self._number,
            upstream_id=self._upstream_id,
            time_ns=time.time_ns(),
            tier=self._tier,
            backend=self.target.backend,
            model=self.target.model,
            status=status,  # type: ignore[arg-type]
            http_status=self.status or None,
            tokens=tokens,
            cost_nano=cost_nano,
            currency="USD" if price is None else price.currency,
            ttft_ns=self._ttft_ns,
            e2e_ns=round((perf_counter() - self._begin) * 1e9),
            answer_sha256=answer_sha256,
            reason=reason,
            judge=judge,
            score=score,
        )
        return self._attempt

    def _release(self) -> None:
        if self._connection is not None:
            self._upstream.release(self._connection)
            self._connection = None

    def _error(
        self, what: str, *, status: int = 502, code: str = "upstream_broken"
    ) -> UpstreamError:
        return UpstreamError(f"backend {self.target.backend} {what}", status=status, code=code)

    def _clean(self, text: str) -> str:
        """A backend's words without what may be a key: some show parts of the one they got."""
        return clean(text, self._upstream.secrets)
