"""One of several API servers: a process of its own over an engine that its parent started.

Loads the tokenizer while the engine loads the model, connects to the engine that the parent names,
and to the next one when that fails. Never outlives its parent, and never ends the engine.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from typing import TYPE_CHECKING

from octavo.engine.process import EXIT_ORPHANED, die_with
from octavo.errors import StartupError
from octavo.serving.front_end import FrontEnd, StartTimes, Text, load_front_end
from octavo.serving.ledger import open_writer
from octavo.serving.loop import Signals, first_of, new_loop
from octavo.serving.messages import (
    MAX_LINE_BYTES,
    Drain,
    EndAtOnce,
    EngineDown,
    EngineUp,
    FromWorker,
    Messages,
    ToWorker,
    WorkerFailed,
    WorkerReady,
    WorkerStart,
    line_of,
)

if TYPE_CHECKING:
    from octavo.engine.client import AsyncEngine
    from octavo.engine.supervisor import EngineSuccession
    from octavo.observability.board import Board

logger = logging.getLogger("octavo")

EXIT_STARTUP_FAILED = 1


def worker_process(parent_pid: int) -> int:
    """Everything that the process does; its exit code. Standard input is a socket to the parent."""
    die_with(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(_run())


async def _run() -> int:
    to_parent = socket.socket(fileno=os.dup(0))
    with open(os.devnull, "rb") as nothing:  # noqa: ASYNC230, PTH123
        os.dup2(nothing.fileno(), 0)  # a child of ours must not hold what tells of our end
    reader, writer = await asyncio.open_unix_connection(sock=to_parent, limit=MAX_LINE_BYTES)
    messages: Messages[ToWorker] = Messages(reader, ToWorker)
    async for message in messages:
        assert isinstance(message, WorkerStart)
        break
    else:
        os._exit(EXIT_ORPHANED)
    worker = _Worker(message, writer)
    listening = asyncio.ensure_future(worker.listen(messages))
    try:
        return await worker.run()
    except StartupError as error:
        failed = WorkerFailed(kind=type(error).__name__, message=str(error))
    except Exception as error:
        logger.exception("an API server failed")
        failed = WorkerFailed(kind=type(error).__name__, message=str(error) or "no reason given")
    finally:
        listening.cancel()
    worker.tell(failed)
    await writer.drain()
    return EXIT_STARTUP_FAILED


class _Worker:
    def __init__(self, start: WorkerStart, writer: asyncio.StreamWriter) -> None:
        from octavo.observability.board import Board
        from octavo.observability.logs import configure_logs
        from octavo.server.listen import tls_context

        configure_logs(start.server.log_level)
        for fd in (start.listener_fd, start.board_fd):
            os.set_inheritable(fd, False)
        self._start = start
        self._config = start.server
        self._writer = writer
        self._times = StartTimes()
        self._signals = Signals((signal.SIGTERM,))
        self._patience_s = self._config.shutdown_timeout
        self._is_ended_by_parent = False
        self._listener = socket.socket(fileno=start.listener_fd)
        self._tls = tls_context(self._config)
        self._board: Board = Board.attached(start.board_fd, start.num_workers, start.index)
        self._engines: asyncio.Queue[EngineUp] = asyncio.Queue()
        self._connecting: asyncio.Task[AsyncEngine] | None = None
        self._succession: EngineSuccession | None = None
        self._failing: asyncio.Task[None] | None = None

    def tell(self, message: FromWorker) -> None:
        """Send to the parent."""
        self._writer.write(line_of(message))

    async def listen(self, messages: Messages[ToWorker]) -> None:
        """Do what the parent says. Its end is ours."""
        async for message in messages:
            if isinstance(message, EngineUp):
                self._engines.put_nowait(message)
            elif isinstance(message, EngineDown):
                self._on_engine_down(message)
            elif isinstance(message, Drain):
                self._patience_s = message.patience_s
                self._is_ended_by_parent = True
                self._signals.begin(signal.SIGTERM)
            elif isinstance(message, EndAtOnce):
                self._signals.end_at_once(signal.SIGTERM)
        os._exit(EXIT_ORPHANED)

    async def run(self) -> int:
        """Start, serve until told to end, and drain; the exit code."""
        starting = asyncio.ensure_future(self._make_front_end())
        await first_of(starting, self._signals.first)
        if not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
            return 0
        front_end, text = starting.result()
        serving = front_end.start()
        following = asyncio.ensure_future(self._follow(text))
        times = self._times
        self.tell(WorkerReady(tokenizer_s=times.tokenizer_s, imports_s=times.imports_s))
        try:
            await first_of(serving, following, self._signals.first)
            for task in (serving, following):
                if task.done():
                    task.result()  # not asked to end: only a failure can be the reason
            if not self._is_ended_by_parent:
                front_end.close_door()  # the others take who comes now
            await front_end.drain(self._patience_s, self._signals.second)
            return 0
        finally:
            following.cancel()
            await asyncio.wait({following})
            await front_end.stop()

    async def _make_front_end(self) -> tuple[FrontEnd, Text]:
        begin = time.perf_counter()
        text, ledger = await asyncio.gather(
            load_front_end(self._start.engine, self._times),
            asyncio.to_thread(open_writer, self._config, keeps_house=False),
        )
        from octavo.engine.supervisor import EngineSuccession
        from octavo.server.listen import listen

        engine, up = await self._next_engine(text)
        startup_s = time.perf_counter() - begin if up.startup_s is None else up.startup_s
        self._succession = EngineSuccession(engine, startup_s=startup_s)
        self._succession.replace(engine, up.num_restarts, startup_s=startup_s)
        server_log = logging.getLogger("octavo.server")
        if not self._start.is_first:
            server_log.setLevel(logging.ERROR)  # another one has said it
        front_end = FrontEnd(
            *(self._succession, text, self._config, self._listener, self._tls, self._board),
            ledger=ledger,
        )
        server_log.setLevel(logging.NOTSET)
        listen(self._listener)  # the first one of us opens the door
        return front_end, text

    async def _follow(self, text: Text) -> None:
        """Go over to each engine that comes."""
        assert self._succession is not None
        while True:
            begin = time.perf_counter()
            engine, up = await self._next_engine(text)
            startup_s = time.perf_counter() - begin if up.startup_s is None else up.startup_s
            self._succession.replace(engine, up.num_restarts, startup_s=startup_s)

    async def _next_engine(self, text: Text) -> tuple[AsyncEngine, EngineUp]:
        """Connected to the next engine that becomes ready."""
        from octavo.engine.client import AsyncEngine
        from octavo.engine.link import EngineLink

        while True:
            up = await self._engines.get()
            self._connecting = asyncio.ensure_future(
                AsyncEngine.connect(
                    EngineLink(up.address, self._start.name),
                    tokenizer=text.tokenizer,
                    eos_token_ids=text.eos_token_ids,
                    max_num_queued_requests=self._config.max_num_queued_requests,
                    watchdog_timeout_s=self._config.watchdog_timeout,
                    unread=self._board.unread_requests,
                )
            )
            try:
                await asyncio.wait({self._connecting})
                if not self._connecting.cancelled():  # else it failed before it was ready
                    return self._connecting.result(), up
            finally:
                self._connecting.cancel()
                self._connecting = None

    def _on_engine_down(self, message: EngineDown) -> None:
        while not self._engines.empty():
            self._engines.get_nowait()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._succession is None:
            return
        self._failing = asyncio.ensure_future(self._succession.fail(message.what))
        if message.is_last:
            self._succession.give_up(message.what)
