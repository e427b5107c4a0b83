from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from octavo.observability.board import Board
from octavo.server.accept import Acceptor
from octavo.server.listen import bind, listen


class Counting(asyncio.Protocol):
    """Knows how many of its kind are connected."""

    def __init__(self, connected: set[Any]) -> None:
        self._connected = connected

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._connected.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connected.discard(self)


@pytest.mark.parametrize("num", [2, 3])
async def test_connections_are_shared_out(num: int) -> None:
    board = Board.shared(num)
    listener = bind("127.0.0.1", 0)
    listen(listener)
    address = listener.getsockname()
    connected: list[set[Any]] = [set() for _ in range(num)]
    acceptors = []
    for index in range(num):
        gauge = Board.attached(board.fd or 0, num, index).connections
        mine = connected[index]
        acceptors.append(
            Acceptor(listener.dup(), lambda m=mine: Counting(m), gauge, lambda m=mine: len(m))
        )
    listener.close()
    for acceptor in acceptors:
        acceptor.start()
    clients: list[socket.socket] = []

    async def connect(count: int) -> None:
        clients.extend(socket.create_connection(address) for _ in range(count))  # a burst
        while sum(map(len, connected)) < len(clients):  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    await connect(10 * num)
    assert max(map(len, connected)) - min(map(len, connected)) <= 2
    # Who stops leaves the others to it, and those who are left take all.
    acceptors[0].stop()
    before = len(connected[0])
    await connect(4)
    assert len(connected[0]) == before
    for acceptor in acceptors[1:]:
        acceptor.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    for client in clients:
        client.close()
    while any(connected):  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_one_that_does_not_answer_holds_nobody_up() -> None:
    board = Board.shared(2)
    listener = bind("127.0.0.1", 0)
    listen(listener)
    connected: set[Any] = set()
    board.connections.value = 5
    board.forget(1)  # looks as if it had room, but takes nobody
    acceptor = Acceptor(listener, lambda: Counting(connected), board.connections, lambda: 5)
    acceptor.start()
    with socket.create_connection(listener.getsockname()):
        async with asyncio.timeout(5):
            while not connected:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
    acceptor.stop()
    while connected:  # noqa: ASYNC110
        await asyncio.sleep(0.001)
