"""Several API servers on one engine, as their parent sees them: starts, replaces and ends them.

All share the parent's listening socket, so that nobody's death closes the door: who comes while one
is started anew is served by the others. (With a socket each, SO_REUSEPORT, the system would go on
to give the dead one its share; Unix sockets have no such thing; and any process of the same user
could take a share of our callers.) Who takes a connection is `Acceptor`'s concern.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING

import octavo.errors
from octavo.engine.spawn import describe_exit
from octavo.errors import StartupError
from octavo.serving.messages import (
    Drain,
    EndAtOnce,
    EngineDown,
    EngineUp,
    WorkerFailed,
    WorkerReady,
    WorkerStart,
)
from octavo.serving.worker_process import WorkerProcess

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from octavo.config import EngineConfig, ServerConfig
    from octavo.observability.board import Board
    from octavo.serving.messages import ToWorker

logger = logging.getLogger("octavo")

WINDOW_S = 60.0
"""Ends of API servers longer ago than this are forgiven, seconds."""

MAX_FAILURES = 5
"""API servers that may fail within `WINDOW_S`; one more ends the server."""


class Workers:
    """See the module. Belongs to the parent's event loop, in its main thread.

    Args:
        engine, config: what each is started with.
        listener: the socket that all of them inherit.
        board: with a row for each.
        on_end: called with the name of an API server that has ended.
    """

    def __init__(
        self,
        engine: EngineConfig,
        config: ServerConfig,
        listener: socket.socket,
        board: Board,
        on_end: Callable[[str], None],
    ) -> None:
        self._engine = engine
        self._config = config
        self._listener = listener
        self._board = board
        self._on_end = on_end
        loop = asyncio.get_running_loop()
        self._first_ready: list[asyncio.Future[WorkerReady]] = [
            loop.create_future() for _ in range(config.api_server_count)
        ]
        self._given_up: asyncio.Future[str] = loop.create_future()
        self._workers: dict[int, WorkerProcess] = {}
        self._num_started = 0
        self._failed_at: deque[float] = deque()
        self._engine_up: EngineUp | None = None
        self._is_ending = False
        self._tasks = [
            asyncio.ensure_future(self._keep(index)) for index in range(config.api_server_count)
        ]

    async def ready(self) -> list[WorkerReady]:
        """Wait until all take connections.

        Raises:
            StartupError: one could not start.
        """
        return list(await asyncio.gather(*self._first_ready))

    async def given_up(self) -> str:
        """Wait until they failed too often; returns how the last one did."""
        return await asyncio.shield(self._given_up)

    def engine_up(self, message: EngineUp) -> None:
        """All of them, and those to come, connect to this engine."""
        self._engine_up = message
        self._send(message)

    def engine_down(self, what: str, *, is_last: bool = False) -> None:
        """The engine failed: every request that they work on ends with an error."""
        self._engine_up = None
        self._send(EngineDown(what=what, is_last=is_last))

    async def drain(self, patience_s: float) -> None:
        """Let all of them finish what they work on, and wait for their end."""
        self._is_ending = True
        self._send(Drain(patience_s=patience_s))
        await asyncio.wait(self._tasks)

    def end_at_once(self) -> None:
        """While they drain: end what still runs."""
        self._send(EndAtOnce())

    async def close(self) -> None:
        """Kill those that are left."""
        self._is_ending = True
        for worker in self._workers.values():
            worker.kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        for future in self._first_ready:
            if future.done() and not future.cancelled():
                future.exception()  # nobody may have asked

    def _send(self, message: ToWorker) -> None:
        for worker in self._workers.values():
            worker.send(message)

    async def _keep(self, index: int) -> None:
        try:
            await self._run(index)
        except Exception as error:  # no process to be had, or a bug: nobody else would tell
            logger.exception("API server %d cannot be kept running", index)
            what = f"API server {index} cannot be kept running: {error}"
            if not self._first_ready[index].done():
                self._first_ready[index].set_exception(StartupError(what))
            elif not self._given_up.done():
                self._given_up.set_result(what)

    async def _run(self, index: int) -> None:
        """Keep one API server running."""
        while not self._is_ending:
            worker = self._spawn(index)
            is_ready = False
            try:
                async for message in worker.messages():
                    if isinstance(message, WorkerReady):
                        is_ready = True
                        if not self._first_ready[index].done():
                            self._first_ready[index].set_result(message)
                    else:
                        self._on_failed(index, message)
                code = await worker.wait()
            finally:
                worker.kill()
                self._board.forget(index)
                self._workers.pop(index, None)
            self._on_end(worker.name)
            if self._is_ending:
                return
            what = f"API server {index} (process {worker.pid}) ended with {describe_exit(code)}"
            if not self._first_ready[index].done():
                self._first_ready[index].set_exception(
                    StartupError(f"{what} while it was starting; its log is above")
                )
            if self._first_ready[index].exception() is not None:
                return
            if code == 0 and is_ready:
                logger.info("%s, as it was told, and is started anew", what)
            elif self._may_restart():
                logger.error("%s; its connections are lost, and it is started anew", what)
            else:
                if not self._given_up.done():
                    self._given_up.set_result(what)
                return
            self._board.count_restart(index)

    def _spawn(self, index: int) -> WorkerProcess:
        assert self._board.fd is not None
        start = WorkerStart(
            index=index,
            name=f"api{index}.{self._num_started}",
            is_first=self._num_started == 0,
            num_workers=self._config.api_server_count,
            listener_fd=self._listener.fileno(),
            board_fd=self._board.fd,
            engine=self._engine,
            server=self._config,
        )
        self._num_started += 1
        worker = self._workers[index] = WorkerProcess(start)
        if self._engine_up is not None:
            worker.send(self._engine_up)
        return worker

    def _on_failed(self, index: int, message: WorkerFailed) -> None:
        """One could not start, and says why."""
        error = _startup_error(message)
        if not self._first_ready[index].done():
            self._first_ready[index].set_exception(error)
        else:
            logger.error("API server %d failed: %s", index, error)

    def _may_restart(self) -> bool:
        now = time.monotonic()
        self._failed_at.append(now)
        while now - self._failed_at[0] > WINDOW_S:
            self._failed_at.popleft()
        return len(self._failed_at) <= MAX_FAILURES


def _startup_error(failed: WorkerFailed) -> StartupError:
    """The failure as an exception of the same class."""
    kind = getattr(octavo.errors, failed.kind, None)
    if isinstance(kind, type) and issubclass(kind, StartupError):
        return kind(failed.message)
    return StartupError(f"an API server failed: {failed.kind}: {failed.message}")
