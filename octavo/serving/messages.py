"""What the parent of several API servers and they tell each other: a line of JSON each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import msgspec

from octavo.config import EngineConfig, ServerConfig

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

_In = TypeVar("_In")

MAX_LINE_BYTES = 2**24
"""A configuration with many API keys is long."""


class WorkerStart(msgspec.Struct, tag="start", frozen=True, kw_only=True):
    """The first message to an API server.

    Attributes:
        index: which of them it is, from 0; its row on the board.
        name: what the engine calls it; no other one ever had it.
        is_first: it may log what all of them would say alike.
        num_workers: how many there are.
        listener_fd, board_fd: descriptors that it inherited.
        engine, server: the configurations.
    """

    index: int
    name: str
    is_first: bool
    num_workers: int
    listener_fd: int
    board_fd: int
    engine: EngineConfig
    server: ServerConfig


class EngineUp(msgspec.Struct, tag="engine_up", frozen=True, kw_only=True):
    """An engine was started: connect to it, and serve when it is ready.

    Attributes:
        address: for API servers.
        num_restarts: engines that were started in the place of the first one.
        startup_s: how long a start took, once that is known.
    """

    address: str
    num_restarts: int
    startup_s: float | None = None


class EngineDown(msgspec.Struct, tag="engine_down", frozen=True, kw_only=True):
    """The engine failed. Its requests end; another one is being started, unless it is the last."""

    what: str
    is_last: bool = False


class Drain(msgspec.Struct, tag="drain", frozen=True, kw_only=True):
    """Take no more requests, and end when the last one has, or after so many seconds."""

    patience_s: float


class EndAtOnce(msgspec.Struct, tag="end", frozen=True, kw_only=True):
    """End what runs, and then yourself."""


class WorkerReady(msgspec.Struct, tag="ready", frozen=True, kw_only=True):
    """The API server takes connections; how long its parts took, seconds."""

    tokenizer_s: float
    imports_s: float


class WorkerFailed(msgspec.Struct, tag="failed", frozen=True, kw_only=True):
    """The API server could not start.

    Attributes:
        kind: the name of a `StartupError` class, or of another exception.
        message: one line for the user.
    """

    kind: str
    message: str


ToWorker = WorkerStart | EngineUp | EngineDown | Drain | EndAtOnce
FromWorker = WorkerReady | WorkerFailed


def line_of(message: ToWorker | FromWorker) -> bytes:
    """A message as it is sent."""
    return msgspec.json.encode(message) + b"\n"


class Messages(Generic[_In]):
    """The messages that come from a stream, until it ends: `async for` over them.

    Args:
        reader: made with a limit of `MAX_LINE_BYTES`.
        kind: their union.
    """

    def __init__(self, reader: asyncio.StreamReader, kind: object) -> None:
        self._reader = reader
        self._decode = msgspec.json.Decoder(kind).decode

    async def __aiter__(self) -> AsyncIterator[_In]:
        while True:
            try:
                line = await self._reader.readline()
            except ConnectionError:
                return
            if not line.endswith(b"\n"):
                return
            message: _In = self._decode(line)
            yield message
