"""One request to one backend, and its answer as far as the gateway must understand it.

Knows nothing of other backends, of health or of records: see `reply`.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import msgspec

from octavo.errors import UpstreamError
from octavo.gateway.model import Tokens
from octavo.gateway.reply_errors import (
    clean,
    failure_of,
    is_callers_fault,
    message_of,
    retry_after,
)
from octavo.gateway.sse_events import EventSplitter, StreamWatch, data_of, error_text, is_comment
from octavo.gateway.usage_cost import tells_cost, with_cost
from octavo.gateway.usage_of import parse_usage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from octavo.gateway.connection import Connection
    from octavo.gateway.model import Call
    from octavo.gateway.outgoing import Outgoing
    from octavo.gateway.upstream import Upstream

MAX_ANSWER_BYTES = 64 * 1024**2
MAX_ERROR_BYTES = 64 * 1024
ERROR_S = 2.0
"""How long the body of an error is waited for."""
AFTER_END_S = 1.0
"""How long a backend may take to end the body of a stream whose last event is here."""


class Exchange:
    """Sends one request; `release` must be called.

    Args:
        call: what is asked.
        upstream: the way to whom.

    Attributes:
        status: of the answer; 0: none has come.
        content_type: of the answer.
        body: the whole, where it is no stream.
        watch: what was seen of the stream; None: it is none.
        is_sent: something may have reached the backend.
        fault: what broke a stream off that had begun; None: nothing.
        first_event: reading of `time.perf_counter()`; None: none came.
    """

    __slots__ = (
        "_call",
        "_connection",
        "_ready",
        "_splitter",
        "_told",
        "_upstream",
        "body",
        "content_type",
        "fault",
        "first_event",
        "is_sent",
        "status",
        "told_reason",
        "watch",
    )

    def __init__(self, call: Call, upstream: Upstream) -> None:
        self.status = 0
        self.content_type = ""
        self.body = b""
        self.watch: StreamWatch | None = None
        self.is_sent = False
        self.fault: UpstreamError | None = None
        self.first_event: float | None = None
        self.told_reason = ""
        self._call = call
        self._upstream = upstream
        self._connection: Connection | None = None
        self._ready: list[bytes] = []
        self._splitter = EventSplitter()
        self._told: Tokens | None = None

    @property
    def finish_reason(self) -> str:
        """Why the answer ended, as its route spells it, or empty."""
        return self.told_reason if self.watch is None else self.watch.finish_reason

    @property
    def tokens(self) -> Tokens:
        """What the backend says it used, or an estimate, see `seams.Reply`. What time and money it
        took is told by our own engines alone.
        """
        watch = self.watch
        told = self._told if watch is None else watch.tokens
        if watch is not None and (told is None or not watch.has_finished):
            # Anthropic's first event and continuous counts tell of a part
            estimate = watch.estimate_output()
            if told is None:
                return Tokens(input=self._call.num_prompt_tokens, output=estimate)
            told = msgspec.structs.replace(told, output=max(told.output, estimate))
        if told is None:
            return Tokens()
        if not self._asks_cost:
            return msgspec.structs.replace(told, device_ns=None, cost_nano=None)
        return told

    @property
    def _asks_cost(self) -> bool:
        """Whether `outgoing` asks what the answer costs: for us, and not for the client."""
        return self._upstream.backend.kind == "octavo"

    async def begin(self, request: Outgoing, deadline: float) -> None:
        """Send, and wait for the whole answer, or for the first event of a stream.

        Args:
            request: ready to be sent.
            deadline: reading of `time.perf_counter()`.

        Raises:
            UpstreamError: there is no answer, none that can be read, or an error that is not the
                caller's; one that is the caller's is an answer.
        """
        call, timeouts = self._call, self._upstream.backend.timeouts
        connection = await self._send(request, deadline)
        self.status = connection.status
        if not 200 <= self.status < 300:
            await self._read_error(connection)
            return
        if connection.header(b"content-encoding") not in (b"", b"identity"):
            raise self._error("compresses its answer unasked", code="upstream_garbage")
        self.content_type = connection.header(b"content-type").decode("latin-1")
        if self.content_type.startswith("text/event-stream"):
            if not call.stream:
                raise self._error("sent a stream unasked", code="upstream_garbage")
            self.watch = StreamWatch(
                call.route, drops_usage=request.drops_usage, drops_cost=self._asks_cost
            )
            await self._first_event(connection)
            connection.expect_each(timeouts.idle, "more of its stream")
            return
        connection.expect(timeouts.total, "its answer")
        self.body = await connection.body(MAX_ANSWER_BYTES)
        try:
            told, self.told_reason = parse_usage(call.route, self.body)
        except msgspec.ValidationError:
            told = None  # JSON, and of a shape that we do not know
        except msgspec.DecodeError:
            raise self._error("sent an answer that is not JSON", code="upstream_garbage") from None
        self._told = told or Tokens(input=call.num_prompt_tokens, output=len(self.body) // 4)
        if self._asks_cost and tells_cost(self.body):
            self.body = with_cost(call.route, self.body)

    async def batches(self) -> AsyncGenerator[list[bytes], None]:
        """The events of a stream, those together that came together.

        Raises:
            UpstreamError: it breaks off, stands still, or ends before its end.
        """
        watch, connection = self.watch, self._connection
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
            if not watch.is_done:  # else the client has all of it
                error.may_retry = False
                self.fault = error
                raise

    def release(self) -> None:
        """Give the connection back; what has not ended is cancelled at the backend."""
        if self._connection is not None:
            self._upstream.release(self._connection)
            self._connection = None

    def clean(self, text: str) -> str:
        """A backend's words without keys."""
        return clean(text, self._upstream.secrets)

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
            self.is_sent = True
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
                self.release()
                is_new = True
            else:
                return connection

    async def _first_event(self, connection: Connection) -> None:
        """Comments keep a stream alive, and are no token."""
        num_seen = 0
        while True:
            piece = await connection.piece()
            if not piece:
                raise self._error(
                    "ended its stream before the first event", code="upstream_garbage"
                )
            self._ready += self._splitter.feed(piece)
            for event in self._ready[num_seen:]:
                if is_comment(event):
                    continue
                if error := error_text(event):
                    raise self._error(f"failed: {self.clean(error)}", code="upstream_error")
                if data_of(event)[:1] not in (b"{", b"["):
                    raise self._error("sent a stream of no JSON", code="upstream_garbage")
                self.first_event = perf_counter()
                return
            num_seen = len(self._ready)

    async def _read_error(self, connection: Connection) -> None:
        """An answer that the caller is at fault is given on.

        Raises:
            UpstreamError: it says anything else.
        """
        self.content_type = connection.header(b"content-type").decode("latin-1")
        connection.expect(ERROR_S, "the rest of an error")
        is_callers = is_callers_fault(self.status, self._call.route)
        try:
            self.body = await connection.body(MAX_ERROR_BYTES)
        except UpstreamError:
            if is_callers:
                raise
        for secret in self._upstream.secrets:  # which a backend may repeat to whoever asks
            self.body = self.body.replace(secret.encode(), b"***")
        if not is_callers:
            message = self.clean(message_of(self.body))
            after_s = retry_after(connection.header(b"retry-after"))
            raise failure_of(self._upstream.name, self.status, message, after_s)

    def _error(
        self, what: str, *, status: int = 502, code: str = "upstream_broken"
    ) -> UpstreamError:
        return UpstreamError(f"backend {self._upstream.name} {what}", status=status, code=code)
