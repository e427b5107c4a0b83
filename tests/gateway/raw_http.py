"""A client that sends any bytes, and a gateway in a thread for tests that share it."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from octavo.server.loop import new_loop
from tests.gateway.fake_upstream import FakeUpstream
from tests.gateway.running import Running, running

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

CHAT = "/v1/chat/completions"
WAIT_S = 2.0
"""How long bytes are waited for; what is refused is closed long before."""


class Answer(NamedTuple):
    """One answer; `rest` is what came after it on the same connection."""

    status: int
    headers: dict[str, str]
    body: bytes
    rest: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """Of an answer in OpenAI's shape."""
        error: dict[str, Any] = self.json["error"]
        return error


class ServedGateway:
    """A gateway, and the backend behind it, in the loop of a thread: raw sockets may block.

    Args:
        folder: of the configuration.
        text: makes it of the backend.

    Attributes:
        fake: the backend.
        gateway: the rest; `call` runs what needs its loop.
    """

    fake: FakeUpstream
    gateway: Running

    def __init__(self, folder: Path, text: Callable[[FakeUpstream], str]) -> None:
        self._folder = folder
        self._text = text
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: BaseException | None = None
        self._is_ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gateway")

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._is_ready.wait(20)
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._ends.set)
        self._thread.join(20)
        assert not self._thread.is_alive()

    @property
    def port(self) -> int:
        return int(self.gateway.url.rpartition(":")[2])

    def call(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run something in the gateway's loop."""
        assert self._loop is not None
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def idle(self) -> None:
        """Return when no request is worked on."""
        self.call(self.gateway.idle())

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)

    def send(self, data: bytes) -> bytes:
        """All that comes back until the server closes, or says no more for `WAIT_S`."""
        with self.connect() as sock:
            sock.sendall(data)
            return read_all(sock)

    def ask(
        self,
        target: str,
        body: bytes | Any = b"",
        *lines: str,
        method: str = "",
        version: str = "1.1",
    ) -> Answer:
        """One well-framed request, however odd the rest of it."""
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        head = [f"{method or ('POST' if body else 'GET')} {target} HTTP/{version}", "Host: here"]
        head += [f"Content-Length: {len(body)}"] if body else []
        text = "\r\n".join([*head, *lines, "Connection: close", "", ""])
        return parse(self.send(text.encode("latin-1") + body))

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=new_loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._ends = asyncio.Event()
        try:
            async with FakeUpstream() as fake, running(self._folder, self._text(fake)) as gateway:
                self.fake, self.gateway = fake, gateway
                self._is_ready.set()
                await self._ends.wait()
                for server in gateway.gateway.http.servers:  # `stop` leaves them to the process
                    server.close()
        except BaseException as error:
            self._failure = error
            self._is_ready.set()  # who waits for it raises it
        finally:
            await asyncio.sleep(0.01)  # uvloop closes servers in a later round


def read_all(sock: socket.socket) -> bytes:
    """What comes until the other side closes, or says no more for as long as the socket waits."""
    pieces = []
    try:
        while piece := sock.recv(65536):
            pieces.append(piece)
    except (TimeoutError, ConnectionResetError):
        pass
    return b"".join(pieces)


def parse(data: bytes) -> Answer:
    """The first answer among the bytes; it has a length, or chunks."""
    head, found, rest = data.partition(b"\r\n\r\n")
    assert found, f"no answer: {data[:200]!r}"
    lines = head.decode("latin-1").split("\r\n")
    split = (line.partition(":") for line in lines[1:])
    headers = {name.lower(): value.strip() for name, _, value in split}
    status = int(lines[0].split(" ")[1])
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while True:
            size, _, rest = rest.partition(b"\r\n")
            piece, rest = rest[: int(size, 16)], rest[int(size, 16) + 2 :]
            if not piece:
                return Answer(status, headers, body, rest)
            body += piece
    length = int(headers.get("content-length", 0))
    return Answer(status, headers, rest[:length], rest[length:])


def num_answers(data: bytes) -> int:
    """How many answers there are among the bytes."""
    return data.count(b"HTTP/1.1 ")
