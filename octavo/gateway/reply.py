"""One attempt at one backend, accounted for: to the client, to the health view, to the ledger."""

from __future__ import annotations

import asyncio
import time
from time import perf_counter
from typing import TYPE_CHECKING, cast

from octavo.errors import UpstreamError
from octavo.gateway.exchange import Exchange
from octavo.gateway.model import Attempt, TokenPrice, Tokens, actual
from octavo.gateway.reply_errors import BUSY, LIMITED, NOT_THERE, message_of, status_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from octavo.gateway.health import Health
    from octavo.gateway.model import Call, Status, Target
    from octavo.gateway.outgoing import Outgoing
    from octavo.gateway.upstream import Upstream


class BackendReply:
    """The answer of a backend. Implements `seams.Reply`; made by `Dispatcher`.

    Args:
        call: what is asked.
        tier: its name, for the record.
        target: who is asked; `health.begin` has said yes.
        upstream: the way there.
        health: is told what became of it.
        number: of the attempt.
        upstream_id: likewise.

    Attributes:
        target: who answers.
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
        self._call = call
        self._tier = tier
        self._upstream = upstream
        self._health = health
        self._number = number
        self._upstream_id = upstream_id
        self._begin = perf_counter()
        self._exchange = Exchange(call, upstream)
        self._attempt: Attempt | None = None

    @property
    def status(self) -> int:
        """See `seams.Reply`."""
        return self._exchange.status

    @property
    def content_type(self) -> str:
        """See `seams.Reply`."""
        return self._exchange.content_type

    @property
    def is_stream(self) -> bool:
        """Whether it has events; else it has a body."""
        return self._exchange.watch is not None

    @property
    def finish_reason(self) -> str:
        """See `seams.Reply`."""
        return self._exchange.finish_reason

    @property
    def tokens(self) -> Tokens:
        """See `seams.Reply`."""
        return self._exchange.tokens

    @property
    def attempt(self) -> Attempt:
        """The record, once it is closed."""
        assert self._attempt is not None
        return self._attempt

    async def begin(self, request: Outgoing, deadline: float) -> None:
        """Send, and wait until nothing can fail any more that another backend could mend.

        Raises:
            UpstreamError: it failed, and the attempt is closed.
        """
        exchange = self._exchange
        try:
            await exchange.begin(request, deadline)
        except UpstreamError as error:
            # A caller in a hurry says nothing of the backend
            timeouts = self._upstream.backend.timeouts
            patience_s = timeouts.first_token if self._call.stream else timeouts.total
            if not exchange.is_sent:
                patience_s = timeouts.connect
            is_ours = error.status == 504 and deadline - self._begin < patience_s
            self._tell(error, is_ours=is_ours)
            self._end(status_of(error), error.message)
            raise
        except BaseException as error:
            self._health.drop(self.target)
            if isinstance(error, asyncio.CancelledError):
                self._end("client_left", "the client left before an answer")
            else:
                self._end("error", "the gateway failed")
            raise
        self._health.succeed(self.target)

    async def read(self) -> bytes:
        """See `seams.Reply`. It is here already."""
        assert not self.is_stream
        return self._exchange.body

    async def events(self) -> AsyncGenerator[bytes, None]:
        """See `seams.Reply`. Comments, which keep a stream alive, are among them."""
        async for events in self.batches():
            for event in events:
                yield event

    def batches(self) -> AsyncGenerator[list[bytes], None]:
        """As `events`, those together that came together: one write does for them.

        Raises:
            UpstreamError: as `events`.
        """
        return self._exchange.batches()

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
        exchange = self._exchange
        error = exchange.fault
        if error is None and exchange.watch is not None and exchange.watch.error:
            error = UpstreamError(exchange.clean(exchange.watch.error))
        if error is not None:
            self._tell(error)
            if status in ("ok", "error", "timeout"):
                status, reason = status_of(error), reason or error.message
        elif status == "ok" and exchange.status >= 400:
            status, reason = "refused", reason or exchange.clean(message_of(exchange.body))
        return self._end(
            status, reason, tokens=tokens, answer_sha256=answer_sha256, judge=judge, score=score
        )

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
        now = perf_counter()
        exchange = self._exchange
        exchange.release()
        self._health.end(self.target)
        price = self._upstream.prices.get(self.target.model)
        if tokens is None:
            tokens = exchange.tokens
            is_unknown = status in ("timeout", "client_left") and not (
                tokens.input or tokens.output
            )
            if is_unknown and exchange.is_sent and isinstance(price, TokenPrice):
                # A provider takes its money for what it has read, whether or not we had an answer
                tokens = Tokens(input=self._call.num_prompt_tokens)
        cost_nano = tokens.cost_nano or 0
        if price is not None and (tokens.input or tokens.output):
            cost_nano = actual(tokens, price).cost_nano
        first = exchange.first_event
        self._attempt = Attempt(
            request_id=self._call.request_id,
            number=self._number,
            upstream_id=self._upstream_id,
            time_ns=time.time_ns(),
            tier=self._tier,
            backend=self.target.backend,
            model=self.target.model,
            status=cast("Status", status),
            http_status=exchange.status or None,
            tokens=tokens,
            cost_nano=cost_nano,
            currency="USD" if price is None else price.currency,
            ttft_ns=None if first is None else round((first - self._begin) * 1e9),
            e2e_ns=round((now - self._begin) * 1e9),
            answer_sha256=answer_sha256,
            reason=reason,
            judge=judge,
            score=score,
        )
        return self._attempt
