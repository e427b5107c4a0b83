"""A tiny GGUF file, a wheel around it, and a server that can misbehave as networks do."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import struct
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


def make_gguf(num_values: int = 60_000) -> bytes:
    """A sound GGUF file with one F32 tensor of random values, so that it does not compress."""

    def string(text: str) -> bytes:
        return struct.pack("<Q", len(text)) + text.encode()

    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 2)
    for key, value in {"general.architecture": "llama", "general.license": "mit"}.items():
        head += string(key) + struct.pack("<I", 8) + string(value)
    head += string("w") + struct.pack("<IQIQ", 1, num_values, 0, 0)
    head += bytes(-len(head) % 32)
    values = np.random.default_rng(7).normal(size=num_values).astype("<f4")
    return head + values.tobytes()


@pytest.fixture(scope="session")
def gguf_bytes() -> bytes:
    return make_gguf()


@pytest.fixture(autouse=True)
def _own_store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each test has a store of its own, but for those that need the real models."""
    if request.node.get_closest_marker("model") is None:
        monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "octavo-home"))


def make_wheel(folder: Path, package: str, version: str, files: dict[str, bytes]) -> Path:
    """A wheel that pip accepts."""
    module = package.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
    wheel = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {**files, f"{info}/METADATA": metadata.encode(), f"{info}/WHEEL": wheel.encode()}
    record = ""
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(data)}\n"
    record += f"{info}/RECORD,,\n"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr(f"{info}/RECORD", record)
    return path


@pytest.fixture
def wheel_maker() -> Callable[[Path, str, str, dict[str, bytes]], Path]:
    return make_wheel


class FileServer:
    """Serves bytes by path over HTTP.

    Attributes:
        files: by path, such as `/files/x.whl`.
        refuses: only paths that begin so take part in `breaks` and `statuses`.
        breaks: the connection ends after so many bytes of a body, once per entry, in order.
        statuses: answered instead of a body, once per entry, in order.
        types, headers: content type and further headers, by path.
        ranges: whether Range is honoured.
        requests: (path, Range header) of each request so far.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.types: dict[str, str] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.breaks: list[int] = []
        self.statuses: list[int] = []
        self.ranges = True
        self.refuses = "/files/"
        self.requests: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._answer(self)

            def do_HEAD(self) -> None:
                outer._answer(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, request: Any, client_address: Any) -> None:
                if not isinstance(sys.exc_info()[1], ConnectionError):  # the client may just go
                    super().handle_error(request, client_address)

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        wanted = handler.headers.get("Range")
        self.requests.append((path, wanted))
        data = self.files.get(path)
        is_file = path.startswith(self.refuses) and not path.endswith(".metadata")
        if data is None or (is_file and self.statuses):
            handler.send_response(404 if data is None else self.statuses.pop(0))
            for header, value in self.headers.get(path, {}).items():
                handler.send_header(header, value)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        start = 0
        if wanted and self.ranges:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            if start >= len(data):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(data)}")
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            handler.send_response(200)
        body = data[start:]
        handler.send_header("Content-Type", self.types.get(path, "application/octet-stream"))
        handler.send_header("Content-Length", str(len(body)))
        for header, value in self.headers.get(path, {}).items():
            handler.send_header(header, value)
        if is_file and self.breaks:
            body = body[: self.breaks.pop(0)]
            handler.close_connection = True
            handler.send_header("Connection", "close")
        handler.end_headers()
        if handler.command == "HEAD":
            return
        with contextlib.suppress(ConnectionError):  # the client may have gone
            handler.wfile.write(body)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server of files; no proxy of the machine's stands before it."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = FileServer()
    yield server
    server.close()
