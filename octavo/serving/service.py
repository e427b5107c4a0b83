"""A server's life: start, serve, drain, stop; with its front end in this process or in several.

The engine runs in a process of its own either way, and is watched and replaced from here.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from octavo.serving.front_end import (
    LAST_ANSWERS_S,
    FrontEnd,
    StartTimes,
    Text,
    load_front_end,
)
from octavo.serving.ledger import CLOSE_S, DeviceTimes, open_writer
from octavo.serving.loop import Signals, first_of

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Coroutine

    from octavo.config import EngineConfig, ServerConfig
    from octavo.engine.client import AsyncEngine
    from octavo.engine.link import EngineMonitor
    from octavo.engine.spawn import EngineProcess
    from octavo.engine.supervisor import EngineSupervisor
    from octavo.observability.board import Board
    from octavo.serving.workers import Workers

logger = logging.getLogger("octavo")

_T = TypeVar("_T")

EXIT_ENGINE_LOST = 70
"""Exit code when the engine, or API servers, failed too often: EX_SOFTWARE."""


@dataclass
class _Service:
    """What both kinds have. `process` is the newest engine process."""

    spawn: Callable[[], EngineProcess]
    process: EngineProcess
    engine_config: EngineConfig
    config: ServerConfig
    listener: socket.socket
    tls: ssl.SSLContext | None
    times: StartTimes

    async def run(self) -> int:
        """See `launch.serve`."""
        signals = Signals()
        start = asyncio.ensure_future(self._start())
        await first_of(start, signals.first)
        if not start.done():
            start.cancel()
            await asyncio.wait({start})
            return 128 + signals.first.result()
        engine = start.result()
        watching = asyncio.ensure_future(engine.watch())
        try:
            return await self._serve(engine, watching, signals)
        finally:
            watching.cancel()
            await asyncio.wait({watching})
            await engine.close()

    async def _start(self) -> EngineSupervisor:
        raise NotImplementedError

    async def _serve(
        self, engine: EngineSupervisor, watching: asyncio.Task[str], signals: Signals
    ) -> int:
        raise NotImplementedError

    def _log_start(self, engine: AsyncEngine) -> None:
        from octavo.server.listen import url_of
        from octavo.serving.start_log import log_start

        url = url_of(self.listener, is_tls=self.tls is not None)
        log_start(engine, self.config, url, self.times)

    def _log_lost(self, what: str) -> None:
        from octavo.engine.supervisor import WINDOW_S

        logger.error(
            "%s, and is not started again after %d restarts within %.0f minutes",
            what,
            self.config.max_engine_restarts,
            WINDOW_S / 60,
        )

    def _log_stopping(self, num_open: int) -> None:
        logger.info(
            "stopping: %d running requests have up to %.0f s, a second signal ends them",
            num_open,
            self.config.shutdown_timeout,
        )


@dataclass
class OneProcess(_Service):
    """The front end is in this process."""

    async def _start(self) -> EngineSupervisor:
        text, ledger = await asyncio.gather(
            load_front_end(self.engine_config, self.times),
            asyncio.to_thread(open_writer, self.config),
        )
        self.times.read_before()
        from octavo.engine.supervisor import EngineSupervisor
        from octavo.server.listen import listen

        engine = await self._connect(text)

        async def restart() -> AsyncEngine:
            self.process = self.spawn()
            return await self._connect(text)

        supervisor = EngineSupervisor(
            engine,
            restart,
            startup_s=time.perf_counter() - self.times.begin,
            max_restarts=self.config.max_engine_restarts,
        )
        try:
            times = None if ledger is None else DeviceTimes(ledger, self.config, supervisor)
            self._front_end = FrontEnd(
                *(supervisor, text, self.config, self.listener, self.tls),
                ledger=ledger,
                times=times,
            )
            listen(self.listener)
        except BaseException:
            await engine.close()
            raise
        self._log_start(engine)
        return supervisor

    async def _connect(self, text: Text) -> AsyncEngine:
        """The engine in `process`, once it is ready."""
        from octavo.engine.client import AsyncEngine

        return await AsyncEngine.connect(
            self.process,
            tokenizer=text.tokenizer,
            eos_token_ids=text.eos_token_ids,
            max_num_queued_requests=self.config.max_num_queued_requests,
            watchdog_timeout_s=self.config.watchdog_timeout,
        )

    async def _serve(
        self, engine: EngineSupervisor, watching: asyncio.Task[str], signals: Signals
    ) -> int:
        serving = self._front_end.start()
        try:
            await first_of(serving, watching, signals.first)
            engine.stop_restarting()
            if serving.done():
                serving.result()  # not asked to end: only a failure can be the reason
            if watching.done():
                self._log_lost(watching.result())
                await self._front_end.drain(LAST_ANSWERS_S, signals.second)
                return EXIT_ENGINE_LOST
            self._log_stopping(self._front_end.lifecycle.num_open)
            await self._front_end.drain(self.config.shutdown_timeout, signals.second)
            return 0
        finally:
            watching.cancel()
            await self._front_end.stop()


@dataclass
class SeveralProcesses(_Service):
    """The front ends are processes, which talk to the engine without us."""

    async def run(self) -> int:
        """See `launch.serve`."""
        from octavo.observability.board import Board
        from octavo.serving.workers import Workers

        self._monitor: EngineMonitor | None = None
        self._num_restarts = -1
        self._startup_s: float | None = None
        # Before the API servers open it: one makes the schema.
        ledger = await asyncio.to_thread(open_writer, self.config)
        self._ledger = ledger
        self._board: Board = Board.shared(self.config.api_server_count)
        self._workers: Workers = Workers(
            self.engine_config, self.config, self.listener, self._board, self._on_worker_end
        )
        try:
            return await super().run()
        finally:
            await self._workers.close()
            if ledger is not None:
                await asyncio.to_thread(ledger.close, CLOSE_S)

    async def _start(self) -> EngineSupervisor:
        await asyncio.to_thread(self.times.read_before)
        from octavo.engine.supervisor import EngineSupervisor

        engine, ready = await _both(self._connect(), self._workers.ready())
        self.times.tokenizer_s = max(times.tokenizer_s for times in ready)
        self.times.imports_s = max(times.imports_s for times in ready)

        async def restart() -> AsyncEngine:
            self.process = self.spawn()
            return await self._connect()

        self._startup_s = time.perf_counter() - self.times.begin
        self._log_start(engine)
        return EngineSupervisor(
            engine,
            restart,
            startup_s=self._startup_s,
            max_restarts=self.config.max_engine_restarts,
            on_failure=self._workers.engine_down,
        )

    async def _connect(self) -> AsyncEngine:
        """The engine in `process`, once it is ready; the API servers connect at the same time."""
        from octavo.engine.link import EngineMonitor
        from octavo.serving.messages import EngineUp

        self._num_restarts += 1
        assert self.process.clients_address is not None
        self._workers.engine_up(
            EngineUp(
                address=self.process.clients_address,
                num_restarts=self._num_restarts,
                startup_s=self._startup_s,
            )
        )
        self._monitor = await EngineMonitor.connect(
            self.process, watchdog_timeout_s=self.config.watchdog_timeout
        )
        return self._monitor

    def _on_worker_end(self, name: str) -> None:
        if self._monitor is not None and self._monitor.is_alive:
            self._monitor.forget_client(name)

    async def _serve(
        self, engine: EngineSupervisor, watching: asyncio.Task[str], signals: Signals
    ) -> int:
        giving_up = asyncio.ensure_future(self._workers.given_up())
        times = None if self._ledger is None else DeviceTimes(self._ledger, self.config, engine)
        if times is not None:
            times.start()
        try:
            await first_of(giving_up, watching, signals.first)
            engine.stop_restarting()
            patience_s, code = self.config.shutdown_timeout, 0
            if watching.done():
                self._log_lost(watching.result())
                self._workers.engine_down(watching.result(), is_last=True)
                patience_s, code = LAST_ANSWERS_S, EXIT_ENGINE_LOST
            elif giving_up.done():
                logger.error(
                    "%s; API servers failed too often, so the server ends: their log above tells "
                    "why, and --api-server-count 1 does without them",
                    giving_up.result(),
                )
                patience_s, code = LAST_ANSWERS_S, EXIT_ENGINE_LOST
            else:
                self._log_stopping(self._board.open_requests.total)
            draining = asyncio.ensure_future(self._workers.drain(patience_s))
            # Each of them keeps the time itself; who does not is killed.
            await first_of(draining, signals.second, timeout_s=patience_s + 3 * LAST_ANSWERS_S)
            if not draining.done():
                self._workers.end_at_once()
                await first_of(draining, timeout_s=3 * LAST_ANSWERS_S)
            draining.cancel()
            return code
        finally:
            giving_up.cancel()
            if times is not None:
                await times.stop()


async def _both(
    connecting: Coroutine[Any, Any, AsyncEngine], getting_ready: Coroutine[Any, Any, _T]
) -> tuple[AsyncEngine, _T]:
    """The results of both; as soon as one fails, its exception, and no engine."""
    engine = asyncio.ensure_future(connecting)
    ready = asyncio.ensure_future(getting_ready)
    try:
        await asyncio.wait({engine, ready}, return_when=asyncio.FIRST_EXCEPTION)
        for future in (engine, ready):
            if future.done():
                future.result()
        return engine.result(), ready.result()
    except BaseException:
        for future in (engine, ready):
            future.cancel()
        await asyncio.wait({engine, ready})
        if not engine.cancelled() and engine.exception() is None:
            await engine.result().close(timeout_s=0.0)
        if not ready.cancelled():
            ready.exception()
        raise
