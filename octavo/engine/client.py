"""The engine as the API server's event loop sees it: checks requests, sends them, streams answers.

All state belongs to one event loop and nothing here blocks it. Knows nothing of HTTP, and of
processes only that one can end.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import time
from typing import TYPE_CHECKING, Self

import zmq

import octavo.errors
from octavo.engine.admission import (
    bad_words_token_ids,
    check_options,
    check_pooling,
    check_request,
)
from octavo.engine.dues import Dues
from octavo.engine.messages import (
    AbortRequests,
    AddPooling,
    AddRequest,
    EngineFailed,
    EngineReady,
    EngineStarted,
    Ping,
    Shutdown,
    StepOutputs,
)
from octavo.engine.output import OutputProcessor
from octavo.engine.pending import PendingStream, PendingVector
from octavo.engine.spawn import describe_exit
from octavo.errors import EngineUnavailableError, QueueFullError, StartupError
from octavo.observability.board import Gauge
from octavo.types import Delta, EngineStats, RequestOptions

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from octavo.engine.link import EngineHandle
    from octavo.engine.messages import Admission, ToEngine, TokenOutput
    from octavo.text.tokenizer import Tokenizer
    from octavo.types import (
        Charge,
        EngineInfo,
        FinishReason,
        Pooled,
        PoolingParams,
        SamplingParams,
    )

logger = logging.getLogger("octavo.engine")

MAX_MESSAGES_PER_TURN = 16
"""Messages taken before the loop's other tasks get their turn."""

LAST_WORDS_S = 0.2
"""How long a process's last messages may take to arrive after its end."""

LAST_CHARGES_S = 1.0
"""How long an engine that is closed gets for the steps in flight, to tell what requests cost."""


_NO_OPTIONS = RequestOptions()

QUEUE_FULL_RETRY_S = 1
"""What a caller whom the queue has no place for is told to wait, seconds."""


class AsyncEngine:
    """Implements `EngineClient` over an `EngineProcess` or `EngineLink`. Make it with `connect`.

    Attributes:
        info: what the engine reported when it was ready.
        process_startup_s: from the start of the process until it was connected.
    """

    def __init__(
        self,
        process: EngineHandle,
        tokenizer: Tokenizer | None,
        eos_token_ids: Sequence[int],
        max_num_queued_requests: int | None,
        watchdog_timeout_s: float,
        unread: Gauge | None,
    ) -> None:
        self.info: EngineInfo
        self.process_startup_s = 0.0
        self._process = process
        self._channel = process.channel
        self._tokenizer = tokenizer
        self._eos_token_ids = list(eos_token_ids)
        self._max_num_queued = max_num_queued_requests
        self._watchdog_timeout_s = watchdog_timeout_s
        self._num_sent = 0
        self._unread = Gauge() if unread is None else unread
        self._unread.value = 0
        self._stats = EngineStats()
        self._streams: dict[str, PendingStream | PendingVector] = {}
        self._dues = Dues()
        self._ids = itertools.count()
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[EngineInfo] = self._loop.create_future()
        self._death: asyncio.Future[str] = self._loop.create_future()
        self._is_closing = self._is_released = False
        self._last_message_at = time.monotonic()
        self._fd = int(self._channel.socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._fd, self._read)
        self._loop.call_soon(self._read)  # the descriptor tells of changes only
        process.watch(self._on_exit_in_thread)

    @classmethod
    async def connect(
        cls,
        process: EngineHandle,
        *,
        tokenizer: Tokenizer | None = None,
        eos_token_ids: Sequence[int] = (),
        max_num_queued_requests: int | None = None,
        watchdog_timeout_s: float = math.inf,
        unread: Gauge | None = None,
    ) -> Self:
        """Wait until the engine is ready.

        Args:
            process: just started; the result owns it, and a failure ends it.
            tokenizer: the model's; None: deltas have no text, and stop strings are refused.
            eos_token_ids: ids that end every request unless `ignore_eos`.
            max_num_queued_requests: more waiting requests are refused; None: no bound.
            watchdog_timeout_s: the engine is stuck when it does not answer for longer.
            unread: where to keep the number of requests that the engine has not told about yet,
                which all API servers of an engine add up; None: there is one.

        Raises:
            StartupError: the engine could not start; of the class that the engine process raised.
        """
        engine = cls(
            process, tokenizer, eos_token_ids, max_num_queued_requests, watchdog_timeout_s, unread
        )
        try:
            engine.info = await engine._ready
        except BaseException:
            await engine._release(timeout_s=0.0)
            raise
        engine._dues.is_metered = engine.info.work is not None
        known = [i for i in engine._eos_token_ids if 0 <= i < engine.info.vocab_size]
        engine._eos_token_ids = known
        return engine

    @property
    def stats(self) -> EngineStats:
        """The newest snapshot that the engine sent."""
        return self._stats

    @property
    def is_alive(self) -> bool:
        """False once the engine has died or was closed; it does not come back."""
        return not self._death.done() and not self._is_closing

    def ask_stats(self) -> None:
        """Make a newer snapshot come soon, even if nothing happens."""
        self._send(Ping())

    @property
    def num_in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._streams)

    @property
    def stalled_s(self) -> float:
        """Seconds since the engine last answered while it has requests; 0.0 while it has none."""
        return time.monotonic() - self._last_message_at if self._streams else 0.0

    async def died(self) -> str:
        """Wait until the engine process ends by itself; returns how it did."""
        return await asyncio.shield(self._death)

    @property
    def is_stuck(self) -> bool:
        """Whether it has been silent for longer than the watchdog lets it."""
        if self.stalled_s > self._watchdog_timeout_s:
            self._read()  # the silent one may be this loop, which was busy with something else
        return self.stalled_s > self._watchdog_timeout_s

    def check_health(self) -> None:
        """See `EngineClient.check_health`."""
        if not self.is_alive:
            raise self._unavailable()
        if self.is_stuck:
            raise EngineUnavailableError(
                f"the engine has been stuck for {self.stalled_s:.0f} s", code="engine_stuck"
            )

    def listen_for_charges(self, listener: Callable[[str, Charge], None]) -> None:
        """See `EngineClient.listen_for_charges`."""
        self._dues.listener = listener

    def kill(self, reason: str) -> None:
        """End the process at once, whatever it is at; its requests' error gives the reason."""
        self._process.kill()
        self.die(reason)  # now: a process that waits for its device may take its time to go

    async def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        options: RequestOptions = _NO_OPTIONS,
    ) -> AsyncGenerator[Delta, None]:
        """See `EngineClient.generate`. A slow reader gets several tokens in one delta."""
        prompt = list(prompt_token_ids)
        params = check_request(prompt, params, self.info, has_tokenizer=self._tokenizer is not None)
        check_options(options, self.info)
        engine_id = self._admit(request_id)
        stream = PendingStream(
            request_id, OutputProcessor(prompt, params, self._tokenizer), self._loop
        )
        message = AddRequest(
            engine_id,
            prompt,
            params,
            self._eos_token_ids,
            options.cache_salt,
            options.priority,
            options.tenant,
            self._bad_words(params),
        )
        timer = self._begin(stream, message, options.timeout_s)
        try:
            while True:
                delta = await stream.next()
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            if timer is not None:
                timer.cancel()
            if self._streams.pop(engine_id, None) is not None:
                self._abort(engine_id)

    async def pool(
        self,
        prompt_token_ids: Sequence[int],
        params: PoolingParams,
        *,
        request_id: str,
        options: RequestOptions = _NO_OPTIONS,
    ) -> Pooled:
        """See `EngineClient.pool`."""
        prompt = list(prompt_token_ids)
        check_pooling(prompt, params, self.info)
        check_options(options, self.info)
        engine_id = self._admit(request_id)
        pending = PendingVector(request_id, self._loop)
        message = AddPooling(engine_id, prompt, params, options.priority, options.tenant)
        timer = self._begin(pending, message, options.timeout_s)
        try:
            return await pending.wait()
        finally:
            if timer is not None:
                timer.cancel()
            if self._streams.pop(engine_id, None) is not None:
                self._abort(engine_id)

    def _admit(self, request_id: str) -> str:
        """The engine's id for a newcomer.

        Ids of our own: callers choose theirs, and one may come again while its last outputs are
        still on their way.

        Raises:
            EngineUnavailableError: there is no engine, or no place.
        """
        if not self.is_alive:
            raise self._unavailable()
        self._check_queue()
        return f"{request_id}:{self._channel.name}:{next(self._ids)}"

    def _begin(
        self, stream: PendingStream | PendingVector, message: Admission, timeout_s: float | None
    ) -> asyncio.TimerHandle | None:
        """Send a request off; what will end it when its time is up.

        The deadline is kept here: so it holds while the engine hangs, and needs no common clock.
        """
        if not self._streams:
            self._last_message_at = time.monotonic()
        if not self._send(message):
            raise self._unavailable()
        self._num_sent += 1
        self._unread.value = self._num_sent - self._stats.num_received
        self._streams[message.request_id] = stream
        self._dues.open(message.request_id, stream.request_id)
        if timeout_s is None:
            return None
        return self._loop.call_later(timeout_s, self._end, message.request_id, "timeout")

    def _bad_words(self, params: SamplingParams) -> list[list[int]]:
        if not params.bad_words or self._tokenizer is None:  # refused without a tokenizer
            return []
        return bad_words_token_ids(params.bad_words, self._tokenizer, self.info.vocab_size)

    async def abort(self, request_id: str) -> None:
        """End a request: its last delta says `abort`. Unknown ids are ignored."""
        for engine_id, stream in list(self._streams.items()):
            if stream.request_id == request_id:
                self._end(engine_id, "abort")

    async def close(self, timeout_s: float = 5.0) -> None:
        """Stop the engine and wait for its end. Requests in flight end with `abort`, and are
        charged with what they cost.

        Args:
            timeout_s: after as many seconds the process is terminated, and then killed.
        """
        if self._is_closing:
            return
        self._is_closing = True
        if not self._death.done():
            for engine_id in list(self._streams):
                self._end(engine_id, "abort")
            await self._dues.all_settled(min(timeout_s, LAST_CHARGES_S))
            self._send(Shutdown())
        self._end_all("abort", None)
        await self._release(timeout_s)

    async def _release(self, timeout_s: float) -> None:
        self._is_closing = self._is_released = True
        self._loop.remove_reader(self._fd)
        await asyncio.to_thread(self._process.stop, timeout_s)

    def _end(self, engine_id: str, reason: FinishReason) -> None:
        """End a request from this side, if it has not ended."""
        stream = self._streams.pop(engine_id, None)
        if stream is not None:
            self._abort(engine_id)
            stream.end(reason)

    def _abort(self, engine_id: str) -> None:
        """Have the engine forget a request; its charge is still to come."""
        self._send(AbortRequests([engine_id]))
        self._dues.leave(engine_id)

    def _check_queue(self) -> None:
        """Refuse a newcomer when the queue is full.

        The engine's last word says who waited after a step was planned. Those sent since then wait
        too, unless nobody did: then rows are free for as many as the engine said.
        """
        if self._max_num_queued is None:
            return
        stats = self._stats
        num_waiting = stats.num_waiting + self._unread.total
        num_free = 0 if stats.num_waiting else stats.num_free_rows
        if num_waiting >= self._max_num_queued + num_free:
            raise QueueFullError(
                f"{num_waiting} requests wait already, try again later",
                code="queue_full",
                retry_after_s=QUEUE_FULL_RETRY_S,
            )

    def _unavailable(self) -> EngineUnavailableError:
        reason = self._death.result() if self._death.done() else "the engine is shutting down"
        return EngineUnavailableError(reason, code="engine_dead")

    def _send(self, message: ToEngine) -> bool:
        if self._is_released:
            return False
        is_sent = self._channel.send(message)
        # Sending may take the descriptor's news of a message that came, so look for one.
        self._loop.call_soon(self._read)
        return is_sent

    def _read(self) -> None:
        """Take messages until there are none: the descriptor tells only of changes."""
        if self._is_released:
            return
        for _ in range(MAX_MESSAGES_PER_TURN):
            message = self._channel.receive()
            if message is None:
                return
            self._last_message_at = time.monotonic()
            if isinstance(message, StepOutputs):
                self._stats = message.stats
                self._unread.value = self._num_sent - message.stats.num_received
                for engine_id, charge in message.charges:
                    self._dues.settle(engine_id, charge)
                for output in message.outputs:
                    if output.finish_reason is not None:
                        self._dues.settle(output.request_id, output.charge)
                    self._deliver(output)
                for pooled in message.pooled:
                    self._dues.settle(pooled.request_id, pooled.charge)
                    pending = self._streams.pop(pooled.request_id, None)
                    if isinstance(pending, PendingVector):  # else it was aborted meanwhile
                        pending.push(pooled)
            elif isinstance(message, EngineStarted):
                self.process_startup_s = message.after_s
                self._process.forget_address()
            elif isinstance(message, EngineReady):
                self._stats = message.stats
                if not self._ready.done():
                    self._ready.set_result(message.info)
            elif not self._ready.done():
                self._ready.set_exception(_startup_error(message))
        self._loop.call_soon(self._read)

    def _deliver(self, output: TokenOutput) -> None:
        stream = self._streams.get(output.request_id)
        if not isinstance(stream, PendingStream):
            return  # aborted meanwhile
        try:
            stream.push(output)
        except Exception as error:  # one request's trouble is not the others'
            logger.exception("request %s: its output could not be read", stream.request_id)
            del self._streams[output.request_id]
            self._abort(output.request_id)
            stream.fail(f"the output could not be read: {error}")
            return
        if stream.processor.is_finished:
            del self._streams[output.request_id]
            if stream.processor.hit_stop_string:
                self._abort(output.request_id)

    def _on_exit_in_thread(self, code: int) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody asks any more
            self._loop.call_soon_threadsafe(
                self._loop.call_later, LAST_WORDS_S, self._on_exit, code
            )

    def _on_exit(self, code: int) -> None:
        what = f"the engine process ended with {describe_exit(code)}"
        if not self._ready.done():
            self._ready.set_exception(
                StartupError(f"{what} while it was starting; its log is above")
            )
        self.die(what)

    def die(self, what: str) -> None:
        """The engine has ended, and this is how: its requests end with an error, once."""
        self._read()
        if not self._is_closing and not self._death.done():
            self._death.set_result(what)
            self._end_all("error", what)

    def _end_all(self, reason: FinishReason, error: str | None) -> None:
        streams, self._streams = self._streams, {}
        self._dues.settle_all()
        for stream in streams.values():
            stream.end(reason, error)


def _startup_error(failed: EngineFailed) -> StartupError:
    """The engine's failure as an exception of the same class."""
    kind = getattr(octavo.errors, failed.kind, None)
    if isinstance(kind, type) and issubclass(kind, StartupError):
        return kind(failed.message)
    return StartupError(f"the engine failed to start: {failed.kind}: {failed.message}")
