"""What stands before a GGUF file's data, versions 2 and 3: metadata, and the table of tensors.

Knows what the bytes say, not what is made of them (`gguf`). The format is specified in ggml's
`docs/gguf.md`.

A file is hostile until proven otherwise: each length is held against the bytes that are left before
anything is allocated for it, so that memory stays within a small multiple of the file's size.
"""

from __future__ import annotations

import math
import mmap
import struct
from typing import TYPE_CHECKING, Any

from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.weights.block_formats import FORMATS

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MAX_DIMS = 4
MAX_ARRAY_DEPTH = 4
MAX_KEY_LEN = 65535

NATIVE_STRINGS = 1024
"""Strings of an array from which on native code reads them, where there is any."""

_BOOL, _STRING, _ARRAY = 7, 8, 9
# Code in the `struct` module of each scalar type, by the number that the file stores.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


def map_file(path: Path) -> mmap.mmap:
    """The whole file, read-only.

    Raises:
        CheckpointError: it cannot be read, or does not begin as a GGUF file does.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(len(MAGIC))
            if magic != MAGIC:
                raise CheckpointError(f"{path}: not a GGUF file (it does not begin with 'GGUF')")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error


class HeaderReader:
    """A cursor over the mapped file. Every read checks that its bytes are there.

    Args:
        path: of the file, for messages.
        data: see `map_file`.
    """

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path = path
        self._data = data
        self._size = len(data)
        self._pos = 0

    def header(self) -> tuple[int, dict[str, Any]]:
        """The number of tensors, and the metadata. To be called first.

        Raises:
            CheckpointError: the file is cut off, or contradicts itself.
            UnsupportedModelError: it is big-endian.
        """
        self._pos = len(MAGIC)
        version = self._u32("the version")
        if version not in VERSIONS:
            if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
                raise UnsupportedModelError(f"{self._path}: big-endian GGUF is not supported")
            raise self._error(f"GGUF version {version} is not one of {VERSIONS}")
        num_tensors = self._u64("the number of tensors")
        num_entries = self._u64("the number of metadata entries")
        # an entry takes at least a length, a type and one byte; a tensor two lengths, a type and
        # an offset
        self._need(num_entries * 13 + num_tensors * 24, f"{num_entries} entries of metadata")
        metadata: dict[str, Any] = {}
        for _ in range(num_entries):
            key = self._key("a metadata key")
            if key in metadata:
                raise self._error(f"metadata key {key!r} occurs twice")
            metadata[key] = self._value(self._u32(f"the type of {key!r}"), key, 0)
        return num_tensors, metadata

    def tensor_table(
        self, num_tensors: int, metadata: Mapping[str, Any]
    ) -> list[tuple[str, tuple[int, ...], str, int, int]]:
        """(name, shape, format, offset in the file, bytes) of each tensor, extents checked.

        Raises:
            CheckpointError: as `header`.
        """
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._error(f"general.alignment is {alignment!r}, not a power of two")
        self._need(num_tensors * 24, f"{num_tensors} tensors")
        table: dict[str, tuple[tuple[int, ...], str, int, int]] = {}
        for _ in range(num_tensors):
            name = self._key("a tensor's name")
            if name in table:
                raise self._error(f"tensor {name!r} occurs twice")
            table[name] = self._tensor_entry(name, alignment)
        data_start = -(-self._pos // alignment) * alignment
        for name, (_, _, offset, num_bytes) in table.items():
            if data_start + offset + num_bytes > self._size:
                raise self._error(
                    f"truncated: tensor {name!r} ends at byte {data_start + offset + num_bytes}, "
                    f"the file at {self._size}"
                )
        return [
            (name, shape, dtype, data_start + offset, num_bytes)
            for name, (shape, dtype, offset, num_bytes) in table.items()
        ]

    def _tensor_entry(self, name: str, alignment: int) -> tuple[tuple[int, ...], str, int, int]:
        """Shape, format, offset within the data, bytes."""
        num_dims = self._u32(f"the dimensions of {name!r}")
        if num_dims > MAX_DIMS:
            raise self._error(
                f"tensor {name!r} has {num_dims} dimensions, at most {MAX_DIMS} are allowed"
            )
        shape = tuple(reversed([self._u64(f"the shape of {name!r}") for _ in range(num_dims)]))
        number = self._u32(f"the format of {name!r}")
        offset = self._u64(f"the offset of {name!r}")
        fmt = FORMATS.get(number)
        if fmt is None:
            raise self._error(f"tensor {name!r} has format number {number}, which is not known")
        row_len = shape[-1] if shape else 1
        if row_len % fmt.block_size:
            raise self._error(
                f"tensor {name!r}: rows of {row_len} are no whole number of {fmt.name} blocks "
                f"of {fmt.block_size}"
            )
        if offset % alignment:
            raise self._error(f"tensor {name!r}: offset {offset} is not a multiple of {alignment}")
        num_bytes = math.prod(shape[:-1]) * fmt.row_bytes(row_len)
        if num_bytes == 0 and any(extent > self._size for extent in shape):
            raise self._error(f"tensor {name!r}: shape {shape} makes no sense")
        return shape, fmt.name, offset, num_bytes

    def _value(self, kind: int, key: str, depth: int) -> Any:
        code = _SCALARS.get(kind)
        if code is not None:
            return self._numbers(code, 1, key)[0]
        if kind == _BOOL:
            return self._numbers("B", 1, key)[0] != 0
        if kind == _STRING:
            return self._strings(1, key)[0]
        if kind == _ARRAY:
            return self._array(key, depth + 1)
        raise self._error(f"metadata key {key!r} has unknown type {kind}")

    def _array(self, key: str, depth: int) -> list[Any]:
        if depth > MAX_ARRAY_DEPTH:
            raise self._error(f"metadata key {key!r}: arrays nested deeper than {MAX_ARRAY_DEPTH}")
        kind = self._u32(f"the element type of {key!r}")
        count = self._u64(f"the length of {key!r}")
        code = _SCALARS.get(kind)
        if code is not None:
            return list(self._numbers(code, count, key))
        if kind == _BOOL:
            return [value != 0 for value in self._numbers("B", count, key)]
        if kind == _STRING:
            return self._strings(count, key)
        if kind == _ARRAY:
            self._need(count * 12, f"{count} arrays of {key!r}")
            return [self._array(key, depth + 1) for _ in range(count)]
        raise self._error(f"metadata key {key!r} is an array of unknown type {kind}")

    def _numbers(self, code: str, count: int, key: str) -> tuple[Any, ...]:
        num_bytes = count * struct.calcsize("<" + code)
        self._need(num_bytes, f"the value of {key!r}")
        values = struct.unpack_from(f"<{count}{code}", self._data, self._pos)
        self._pos += num_bytes
        return values

    def _strings(self, count: int, key: str) -> list[str]:
        """`count` strings. The one hot loop of this module: vocabularies have 10^5 of them."""
        self._need(count * 8, f"{count} strings of {key!r}")
        if count >= NATIVE_STRINGS and (found := self._native_strings(count)) is not None:
            return found
        data, pos, size = self._data, self._pos, self._size
        from_bytes = int.from_bytes
        strings: list[str] = []
        append = strings.append
        try:
            for _ in range(count):
                # A slice beyond the end is short, never an error, and makes `pos` exceed `size`,
                # which is looked at once, below; a short length field reads as a small number and
                # moves `pos` beyond the end as well.
                start = pos + 8
                pos = start + from_bytes(data[pos:start], "little")
                append(data[start:pos].decode())
                if pos > size:
                    break
        except UnicodeDecodeError:
            if pos <= size:
                raise self._error(f"string {len(strings)} of {key!r} is not UTF-8") from None
        if pos > size:
            raise self._error(
                f"truncated: string {len(strings)} of {key!r} goes beyond the file's end"
            )
        self._pos = pos
        return strings

    def _native_strings(self, count: int) -> list[str] | None:
        """The same by native code; None where that is not there, or finds something amiss."""
        from octavo.kernels import cpu
        from octavo.kernels.cpu.strings import TooShortError, read_strings

        if cpu.why_not() is not None:
            return None
        for bytes_each in (24, 96, 384):
            try:
                data = self._data[self._pos : self._pos + count * bytes_each]
                strings, num_bytes = read_strings(data, count)
            except TooShortError:
                continue
            except ValueError:
                return None
            self._pos += num_bytes
            return strings
        return None

    def _key(self, what: str) -> str:
        start = self._pos
        length = self._u64(f"the length of {what}")
        if length > MAX_KEY_LEN:
            raise self._error(
                f"{what} at byte {start} claims {length} bytes, {MAX_KEY_LEN} are allowed"
            )
        self._pos = start
        return self._strings(1, what)[0]

    def _u32(self, what: str) -> int:
        self._need(4, what)
        (value,) = _U32.unpack_from(self._data, self._pos)
        self._pos += 4
        return int(value)

    def _u64(self, what: str) -> int:
        self._need(8, what)
        (value,) = _U64.unpack_from(self._data, self._pos)
        self._pos += 8
        return int(value)

    def _need(self, num_bytes: int, what: str) -> None:
        left = self._size - self._pos
        if num_bytes > left:
            raise self._error(f"truncated: {what} needs {num_bytes} bytes, {left} are left")

    def _error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: {problem}")
