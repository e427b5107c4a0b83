"""Multipart forms with one file, which goes to the disk as it comes.

Source: RFC 7578
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from octavo.errors import InvalidRequestError
from octavo.server.http import body_chunks
from octavo.server.state.database import unavailable
from octavo.server.state.files import UPLOAD, drop, scratch_file

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.requests import Request

    from octavo.server.state.files import FileStore

MAX_FIELD_BYTES = 4096
MAX_PARTS = 16
MAX_HEADER_BYTES = 8192
FLUSH_BYTES = 1024**2
"""How much of a file is gathered before it is written."""


@dataclass
class Upload:
    """A form that came.

    Attributes:
        path: a scratch file with the file's bytes; whoever gets this keeps or drops it.
        filename: as its sender calls it.
        fields: the form's other fields.
    """

    path: Path
    filename: str
    fields: dict[str, str]


async def receive_upload(request: Request, files: FileStore, *, max_bytes: int) -> Upload:
    """Read a form to its end.

    Args:
        request: its body was not read.
        files: where scratch files are.
        max_bytes: of the whole body.

    Raises:
        RequestError: it is no such form, too large, or the disk failed; nothing is left of it.
    """
    form = _Form(_boundary(request))
    path = await scratch_file(files, f"{UPLOAD}{uuid4().hex}")
    try:
        await _receive(request, form, path, max_bytes)
        if form.filename is None:
            raise InvalidRequestError("Missing required field: file", param="file")
        return Upload(path, form.filename, form.fields)
    except BaseException:
        await drop(path)
        raise


async def _receive(request: Request, form: _Form, path: Path, max_bytes: int) -> None:
    def write(data: bytes) -> None:
        with path.open("ab") as file:
            file.write(data)

    async def flush() -> None:
        data = b"".join(form.data)
        form.data.clear()
        form.num_gathered = 0
        try:
            await asyncio.to_thread(write, data)
        except OSError as exc:
            raise unavailable(exc) from exc

    async for chunk in body_chunks(request, max_bytes):
        form.push(chunk)
        if form.num_gathered >= FLUSH_BYTES:
            await flush()
    form.finish()
    await flush()


def _boundary(request: Request) -> bytes:
    from python_multipart.multipart import parse_options_header

    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise InvalidRequestError(
            "Send the file as multipart/form-data, with the fields file and purpose"
        )
    return boundary


@dataclass
class _Part:
    name: str | None = None
    filename: str | None = None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)


class _Form:
    """Reads the parts; the file's data are gathered, the fields' kept."""

    def __init__(self, boundary: bytes) -> None:
        from python_multipart.exceptions import FormParserError
        from python_multipart.multipart import MultipartParser

        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.data: list[bytes] = []
        self.num_gathered = 0
        self._errors = FormParserError
        self._num_parts = 0
        self._part = _Part()
        self._header = (bytearray(), bytearray())
        self._is_over = False
        callbacks: Any = {
            "on_part_begin": self._begin,
            "on_part_data": self._add,
            "on_part_end": self._end,
            "on_header_field": lambda data, start, end: self._add_header(0, data[start:end]),
            "on_header_value": lambda data, start, end: self._add_header(1, data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_end": self._finish,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except self._errors as exc:
            raise InvalidRequestError(f"The form's boundary is not valid: {exc}") from None

    def push(self, chunk: bytes) -> None:
        """Read a piece of the body.

        Raises:
            InvalidRequestError: it is no form.
        """
        try:
            self._parser.write(chunk)
        except self._errors as exc:
            raise InvalidRequestError(f"The request body is not a valid form: {exc}") from None

    def finish(self) -> None:
        """The body has ended.

        Raises:
            InvalidRequestError: the form has not.
        """
        if not self._is_over:
            raise InvalidRequestError("The request body is not a valid form: it ends too early")

    def _finish(self) -> None:
        self._is_over = True

    def _begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PARTS:
            raise InvalidRequestError(f"The form has more than {MAX_PARTS} parts")
        self._part = _Part()

    def _add_header(self, which: int, data: bytes) -> None:
        self._header[which].extend(data)
        if len(self._header[0]) + len(self._header[1]) > MAX_HEADER_BYTES:
            raise InvalidRequestError("A part's header is too long")

    def _end_header(self) -> None:
        name, value = self._header
        self._part.headers.append((bytes(name).lower(), bytes(value)))
        self._header = (bytearray(), bytearray())

    def _end_headers(self) -> None:
        from python_multipart.multipart import parse_options_header

        part = self._part
        disposition = dict(part.headers).get(b"content-disposition", b"")
        _, options = parse_options_header(disposition)
        name = options.get(b"name", b"").decode(errors="replace")
        if not name:
            raise InvalidRequestError("A part of the form has no name")
        part.name = name[:100]
        filename = options.get(b"filename")
        if part.name in self.fields or (part.name == "file" and self.filename is not None):
            raise InvalidRequestError(f"{part.name} is given twice", param=part.name)
        if (filename is not None) != (part.name == "file"):
            what = "a file" if part.name == "file" else "no file"
            raise InvalidRequestError(f"{part.name} must be {what}", param=part.name)
        if filename is not None:
            part.filename = self.filename = filename.decode(errors="replace")[:255] or "file"

    def _add(self, data: bytes, start: int, end: int) -> None:
        if self._part.filename is not None:
            self.data.append(bytes(data[start:end]))
            self.num_gathered += end - start
            return
        self._part.data.extend(data[start:end])
        if len(self._part.data) > MAX_FIELD_BYTES:
            name = self._part.name
            raise InvalidRequestError(f"{name} is longer than {MAX_FIELD_BYTES} bytes", param=name)

    def _end(self) -> None:
        if self._part.filename is None and self._part.name is not None:
            self.fields[self._part.name] = self._part.data.decode(errors="replace")
