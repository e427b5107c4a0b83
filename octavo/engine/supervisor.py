"""Keeps an engine running: watches the one that serves, and replaces it when it dies or hangs.

To the API server it is one `EngineClient` over the engines that come one after another. Knows
nothing of HTTP, nor of how an engine is started.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from octavo.errors import EngineUnavailableError, StartupError
from octavo.types import EngineStats, RequestOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from octavo.engine.client import AsyncEngine
    from octavo.types import Charge, Delta, EngineInfo, Pooled, PoolingParams, SamplingParams

logger = logging.getLogger("octavo.engine")

WINDOW_S = 600.0
"""Restarts longer ago than this are forgiven, seconds."""

POLL_S = 0.25
"""How often it is looked whether the engine hangs, seconds."""

BACKOFF_S = 1.0
"""Pause after an engine that could not even start, seconds."""

_NO_OPTIONS = RequestOptions()


class EngineSuccession:
    """One `EngineClient` over the engines that come one after another, as its caller tells.

    Args:
        engine: serves already; closed here.
        startup_s: how long another one's start takes, as far as known; callers are told to come
            back then.
    """

    def __init__(self, engine: AsyncEngine, *, startup_s: float) -> None:
        self._engine = engine
        self._startup_s = startup_s
        self._num_restarts = 0
        self._down_since: float | None = None
        self._given_up: str | None = None
        self._listener: Callable[[str, Charge], None] | None = None

    @property
    def info(self) -> EngineInfo:
        """What the newest engine reported when it was ready."""
        return self._engine.info

    @property
    def stats(self) -> EngineStats:
        """The engine's newest snapshot; counters begin anew with each engine, but for restarts."""
        is_up = self._engine.is_alive
        stats = self._engine.stats if is_up else EngineStats()
        return msgspec.structs.replace(stats, num_restarts=self._num_restarts, is_up=is_up)

    def ask_stats(self) -> None:
        """Make a newer snapshot come soon, if there is an engine."""
        if self._engine.is_alive:
            self._engine.ask_stats()

    @property
    def num_in_flight(self) -> int:
        """Requests that have not ended."""
        return self._engine.num_in_flight

    def check_health(self) -> None:
        """See `EngineClient.check_health`."""
        self._check_up()
        self._engine.check_health()

    def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        options: RequestOptions = _NO_OPTIONS,
    ) -> AsyncIterator[Delta]:
        """See `EngineClient.generate`; refuses at once while there is no engine."""
        self._check_up()
        return self._engine.generate(
            prompt_token_ids, params, request_id=request_id, options=options
        )

    async def pool(
        self,
        prompt_token_ids: Sequence[int],
        params: PoolingParams,
        *,
        request_id: str,
        options: RequestOptions = _NO_OPTIONS,
    ) -> Pooled:
        """See `EngineClient.pool`; refuses at once while there is no engine."""
        self._check_up()
        return await self._engine.pool(
            prompt_token_ids, params, request_id=request_id, options=options
        )

    def listen_for_charges(self, listener: Callable[[str, Charge], None]) -> None:
        """See `EngineClient.listen_for_charges`; of all engines, one after another."""
        self._listener = listener
        self._engine.listen_for_charges(listener)

    async def abort(self, request_id: str) -> None:
        """See `EngineClient.abort`."""
        await self._engine.abort(request_id)

    async def close(self) -> None:
        """See `EngineClient.close`. `watch` must have ended or been cancelled."""
        await self._engine.close()

    async def fail(self, what: str) -> None:
        """The engine has failed; its requests end with this error, and newcomers are refused."""
        self._down_since = time.monotonic()
        self._engine.die(what)
        await self._engine.close(timeout_s=0.0)

    def replace(self, engine: AsyncEngine, num_restarts: int, *, startup_s: float) -> None:
        """Another engine serves from now on, the `num_restarts`-th in the place of the first."""
        self._engine = engine
        if self._listener is not None:
            engine.listen_for_charges(self._listener)
        self._num_restarts = num_restarts
        self._startup_s = startup_s
        self._down_since = None

    def give_up(self, what: str) -> None:
        """No other engine will come, for this reason."""
        self._given_up = what

    def _check_up(self) -> None:
        if self._given_up is not None:
            raise EngineUnavailableError(
                f"{self._given_up}; it was not started again", code="engine_dead"
            )
        if self._engine.is_alive:
            return
        down_s = 0.0 if self._down_since is None else time.monotonic() - self._down_since
        raise EngineUnavailableError(
            "the engine failed and is being started again",
            code="engine_restarting",
            retry_after_s=max(1, math.ceil(self._startup_s - down_s)),
        )


class EngineSupervisor(EngineSuccession):
    """See the module. `watch` must run for as long as it serves.

    Args:
        engine: serves already; closed here.
        start: starts another one like it; raises `StartupError`.
        startup_s: how long that takes, as far as known; callers are told to come back then.
        max_restarts: within `WINDOW_S`.
        on_failure: called with what went wrong as soon as an engine fails.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        start: Callable[[], Awaitable[AsyncEngine]],
        *,
        startup_s: float,
        max_restarts: int,
        on_failure: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(engine, startup_s=startup_s)
        self._start = start
        self._max_restarts = max_restarts
        self._on_failure = on_failure
        self._restarted_at: deque[float] = deque()
        self._may_restart = True

    def stop_restarting(self) -> None:
        """From now on `watch` returns when the engine ends."""
        self._may_restart = False

    async def watch(self) -> str:
        """Replace engines that fail, until that is no longer allowed; returns what went wrong."""
        while True:
            what = await self._failure()
            failed_at = time.monotonic()
            logger.error("%s; each of its requests gets an error", what)
            if self._on_failure is not None:
                self._on_failure(what)
            await self.fail(what)
            if not await self._replace():
                self.give_up(what)
                return what
            logger.info(
                "the engine is back after %.1f s, restart %d",
                time.monotonic() - failed_at,
                self._num_restarts,
            )

    async def _failure(self) -> str:
        """Wait until the engine dies, or hangs and is killed."""
        engine = self._engine
        death = asyncio.ensure_future(engine.died())
        try:
            while not death.done():
                await asyncio.wait({death}, timeout=POLL_S)
                if not death.done() and engine.is_stuck:
                    engine.kill(f"the engine was stuck for {engine.stalled_s:.0f} s and was killed")
            return death.result()
        finally:
            death.cancel()

    async def _replace(self) -> bool:
        """Start engines until one runs; False when too many were started lately."""
        while self._may_restart and self._has_restarts_left():
            self._restarted_at.append(time.monotonic())
            self._num_restarts += 1
            begin = time.monotonic()
            try:
                engine = await self._start()
            except StartupError as error:
                logger.error("the engine could not be started again: %s", error)
                await asyncio.sleep(BACKOFF_S)
                continue
            self.replace(engine, self._num_restarts, startup_s=time.monotonic() - begin)
            return True
        return False

    def _has_restarts_left(self) -> bool:
        while self._restarted_at and time.monotonic() - self._restarted_at[0] > WINDOW_S:
            self._restarted_at.popleft()
        return len(self._restarted_at) < self._max_restarts
