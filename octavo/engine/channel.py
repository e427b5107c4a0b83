"""The two ends of the socket between API server and engine process.

One ZeroMQ DEALER at each end of an `ipc://` address in a folder that only this user may enter. With
several API servers, each has a DEALER at a second address, where the engine has one ROUTER. Neither
end ever blocks on sending and nothing is dropped: queues are bounded by what the requests in flight
can produce. Knows nothing of what the messages mean, nor of event loops.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import zmq

from octavo.engine.messages import FromEngine, ToEngine

logger = logging.getLogger("octavo.engine")

MAX_ADDRESS_LEN = 100
"""Bytes of a socket's path; the operating systems allow 104 to 108."""

_In = TypeVar("_In")
_Out = TypeVar("_Out")


class Channel(Generic[_In, _Out]):
    """One end. Use the classes below.

    Args:
        address: `ipc://...`.
        incoming: the union of messages that this end receives.
        binds: whether this end made the address. The other may connect before it exists.
        kind: ZeroMQ's type of socket.
        name: what this end is called at a ROUTER.
    """

    def __init__(
        self,
        address: str,
        incoming: Any,
        *,
        binds: bool,
        kind: zmq.SocketType = zmq.DEALER,
        name: str = "",
    ) -> None:
        self.address = address
        self.name = name
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(incoming).decode
        self._context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(kind)
        self.socket.setsockopt(zmq.SNDHWM, 0)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 10)
        if name:
            self.socket.setsockopt(zmq.ROUTING_ID, name.encode())
        if binds:
            self.socket.bind(address)
        else:
            self.socket.connect(address)

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._context.closed

    def send(self, message: _Out) -> bool:
        """Send; False when there is nobody at the other end."""
        try:
            self.socket.send(self._encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> _In | None:
        """The next message, or None when none has come. A malformed one is logged and skipped."""
        while True:
            try:
                data = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return None
            message = self._decoded(data)
            if message is not None:
                return message

    def _decoded(self, data: bytes) -> _In | None:
        try:
            message: _In = self._decode(data)
        except msgspec.DecodeError as error:  # ValidationError is one
            logger.error("dropped a malformed message of %d bytes: %s", len(data), error)
            return None
        return message

    def wait(self, timeout_s: float | None = None) -> None:
        """Block until a message has come, or for `timeout_s` seconds."""
        self.socket.poll(None if timeout_s is None else int(timeout_s * 1000))

    def close(self, linger_s: float = 0.0) -> None:
        """Close, and wait at most `linger_s` seconds for what was sent to leave."""
        self.socket.close(linger=int(linger_s * 1000))
        self._context.term()


class ServerChannel(Channel[FromEngine, ToEngine]):
    """The API server's end; it owns the folder of the address, `folder`."""

    def __init__(self, address: str) -> None:
        super().__init__(address, FromEngine, binds=True)


class EngineChannel(Channel[ToEngine, FromEngine]):
    """The engine process's end."""

    def __init__(self, address: str) -> None:
        super().__init__(address, ToEngine, binds=False)


class ClientChannel(Channel[FromEngine, ToEngine]):
    """One of several API servers' end, under a name that no other one ever had."""

    def __init__(self, address: str, name: str) -> None:
        super().__init__(address, FromEngine, binds=False, name=name)


class ClientsChannel(Channel[ToEngine, FromEngine]):
    """The engine process's end towards several API servers."""

    def __init__(self, address: str) -> None:
        super().__init__(address, ToEngine, binds=True, kind=zmq.ROUTER)

    def receive_from(self) -> tuple[str, ToEngine] | None:
        """The next message and its sender's name, or None when none has come."""
        while True:
            try:
                name, *parts = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return None
            message = self._decoded(b"".join(parts))
            if message is not None:
                return name.decode(errors="replace"), message

    def send_to(self, name: str, message: FromEngine) -> None:
        """Send to a client. What nobody can receive any more is dropped."""
        self.socket.send_multipart((name.encode(), self._encode(message)), zmq.NOBLOCK)


def new_address(parent: Path | None = None) -> str:
    """An address in a new folder with mode 0700; `remove_address` deletes the folder.

    Args:
        parent: where to make the folder; None: where temporary files go.
    """
    return f"ipc://{private_folder(parent)}/engine"


def clients_address(address: str) -> str:
    """Where several API servers find the engine whose own address this is."""
    return address.removesuffix("/engine") + "/clients"


def private_folder(parent: Path | None = None) -> Path:
    """A new folder with mode 0700 and a path short enough for sockets."""
    folder = tempfile.mkdtemp(prefix="octavo-", dir=parent)
    if len(folder) + len("/clients") > MAX_ADDRESS_LEN:  # a deep $TMPDIR
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix="octavo-", dir="/tmp")
    return Path(folder)


def remove_address(address: str) -> None:
    """Delete an address's folder. What is connected already stays connected."""
    shutil.rmtree(Path(address.removeprefix("ipc://")).parent, ignore_errors=True)
