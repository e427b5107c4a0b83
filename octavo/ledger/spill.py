"""Where entries wait on disk while the database cannot take them.

One append-only file per process and stretch of trouble, on disk (fsync) before anyone is told that
an entry is safe. A frame is a marker, the payload's kind, length and CRC, and the payload in
MessagePack. A tail that was torn off by a crash is noticed and left out: nobody was told of it. If
bytes in the middle went bad, reading goes on at the next marker, and the file is kept beside for
whoever wants to look at it.

A file belongs to the process that holds its lock (flock), which ends with the process, by kill -9
too. So any process may read in the files of dead ones, and only those.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import struct
import zlib
from typing import TYPE_CHECKING
from uuid import uuid4

import msgspec

from octavo.ledger.record import (
    AttemptRecord,
    EngineTime,
    Entry,
    EscalationRecord,
    Outcome,
    UsageRecord,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

logger = logging.getLogger("octavo.ledger")

_MARK = b"\xf5OL\x01"
_HEAD = struct.Struct(">4sBII")  # marker, kind, length of the payload, CRC of kind and payload
_KINDS: tuple[type[Entry], ...] = (
    UsageRecord, Outcome, EngineTime, AttemptRecord, EscalationRecord
)  # fmt: skip
_NAME_LEN = 12
_SUFFIX = ".spill"
_MAX_PAYLOAD = 2**24

_encoder = msgspec.msgpack.Encoder()
_decoders = [msgspec.msgpack.Decoder(kind) for kind in _KINDS]


def encode_frame(entry: Entry) -> bytes:
    """An entry as it stands in the file."""
    kind = _KINDS.index(type(entry))
    payload = _encoder.encode(entry)
    return _HEAD.pack(_MARK, kind, len(payload), _crc(kind, payload)) + payload


def read_frames(data: bytes | mmap.mmap) -> Iterator[Entry | int]:
    """What a file's bytes say: entries and, where bytes are bad, how many were passed over.

    A bad end is told too: whether it was torn off or went bad later, nobody can know.
    """
    position = 0
    while position < len(data):
        entry, end = _frame_at(data, position)
        if entry is not None:
            yield entry
            position = end
            continue
        bad = position
        while entry is None and position < len(data):
            found = data.find(_MARK, position + 1)
            position = found if found >= 0 else len(data)
            entry, _ = _frame_at(data, position)
        yield position - bad


def _frame_at(data: bytes | mmap.mmap, position: int) -> tuple[Entry | None, int]:
    begin = position + _HEAD.size
    if begin > len(data):
        return None, position
    mark, kind, length, crc = _HEAD.unpack(data[position:begin])
    if mark != _MARK or kind >= len(_KINDS) or length > min(_MAX_PAYLOAD, len(data) - begin):
        return None, position
    payload = data[begin : begin + length]
    if _crc(kind, payload) != crc:
        return None, position
    try:
        return _decoders[kind].decode(payload), begin + length
    except Exception:  # sound bytes of another version's entry
        return None, position


def _crc(kind: int, payload: bytes) -> int:
    return zlib.crc32(payload, kind + 1)


class SpillFile:
    """A file that this process appends to. For one thread at a time.

    Args:
        stem: the files' common path without its end; `STEM.<name>.spill` is made.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, stem: Path) -> None:
        stem.parent.mkdir(parents=True, exist_ok=True)
        self.path = stem.with_name(f"{stem.name}.{uuid4().hex[:_NAME_LEN]}{_SUFFIX}")
        # Locked before it has the name that others look for, or they would take it for a dead
        # process's.
        hidden = self.path.with_suffix(".new")
        self._fd = os.open(hidden, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            hidden.rename(self.path)
            sync_folder(self.path.parent)
        except OSError:
            self.close()
            hidden.unlink(missing_ok=True)
            raise
        self._size = 0

    def append(self, entries: Sequence[Entry]) -> None:
        """Write entries; they are on disk when this returns.

        Raises:
            OSError: no room; the file is as it was.
        """
        data = b"".join(map(encode_frame, entries))
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(self._fd, data[written:], self._size + written)
            os.fsync(self._fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)

    def close(self) -> None:
        """Let go of the file: it stays, and is anyone's to read in."""
        os.close(self._fd)


class FoundSpill:
    """A dead process's file, or one that this process closed; locked while it is open."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    def entries(self) -> Iterator[Entry]:
        """All entries in order; logs what could not be read, and keeps a copy of such a file."""
        size = os.fstat(self._fd).st_size
        if not size:
            return
        bad = tail = 0
        with mmap.mmap(self._fd, size, access=mmap.ACCESS_READ) as data:
            for found in read_frames(data):
                if isinstance(found, int):
                    bad += found
                    tail = found
                else:
                    tail = 0
                    yield found
        if bad > tail:
            kept = self.path.with_suffix(".damaged")
            with contextlib.suppress(OSError):
                os.link(self.path, kept)
            logger.error(
                "%d bytes of %s are damaged, and records are missing from the ledger; the file "
                "is kept as %s", bad, self.path, kept,
            )  # fmt: skip
        elif bad:
            logger.info("left out the last %d bytes of %s, torn off by a crash", bad, self.path)

    def remove(self) -> None:
        """Delete the file: all of it is in the ledger."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)


def find_spills(stem: Path) -> Iterator[FoundSpill]:
    """The files that no living process holds, oldest first; each is closed before the next one."""
    # As long as our names are, or the ledger `a` would take the files of a ledger `a.b`.
    pattern = f"{_escape(stem.name)}.{'?' * _NAME_LEN}{_SUFFIX}"

    def age(path: Path) -> float:
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
        return 0.0

    for path in sorted(stem.parent.glob(pattern), key=age):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between finding and locking it another process may have read it in and deleted it.
            if os.fstat(fd).st_nlink:
                yield FoundSpill(path, fd)
        except BlockingIOError:
            continue
        finally:
            os.close(fd)


def sync_folder(folder: Path) -> None:
    """Make a new file's name in this folder survive the loss of power."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _escape(name: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)
