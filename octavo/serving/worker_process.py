"""Starts the process of one of several API servers, and talks to it. The parent's side."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

from octavo.serving.messages import MAX_LINE_BYTES, FromWorker, Messages, WorkerStart, line_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from octavo.serving.messages import ToWorker

_BOOT = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from octavo.serving.worker import worker_process; "
    "sys.exit(worker_process(int(sys.argv[2])))"
)


class WorkerProcess:
    """A running API server. Start it from the main thread: on Linux it dies with that.

    Args:
        start: what it is told; it inherits the descriptors that this names.
    """

    def __init__(self, start: WorkerStart) -> None:
        self.index = start.index
        self.name = start.name
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._popen = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-c", _BOOT, "octavo-api-server", str(os.getpid())),
                    *sys.path,
                ],
                stdin=theirs.fileno(),
                stdout=2,  # standard output is the command's
                pass_fds=(start.listener_fd, start.board_fd),
                process_group=0,  # Ctrl-C in the terminal is for us alone
            )
        self._writer: asyncio.StreamWriter | None = None
        self._unsent = [line_of(start)]

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._popen.pid

    def send(self, message: ToWorker) -> None:
        """Send, or keep until somebody reads `messages`. What comes too late is lost."""
        line = line_of(message)
        if self._writer is None:
            self._unsent.append(line)
        elif not self._writer.is_closing():
            self._writer.write(line)

    async def messages(self) -> AsyncIterator[FromWorker]:
        """All that it says, until it ends."""
        reader, writer = await asyncio.open_unix_connection(sock=self._socket, limit=MAX_LINE_BYTES)
        for line in self._unsent:
            writer.write(line)
        self._writer = writer
        received: Messages[FromWorker] = Messages(reader, FromWorker)
        try:
            async for message in received:
                yield message
        finally:
            writer.close()

    async def wait(self) -> int:
        """Wait for its end; the exit code."""
        return await asyncio.to_thread(self._popen.wait)

    def kill(self) -> None:
        """End it at once, and collect it."""
        self._popen.kill()
        self._popen.wait()
        self._socket.close()
