"""Hugging Face folders: config.json, and safetensors in one file or in shards with an index.

Knows the container, not models; a layer of integers comes out as one tensor (`group_tensor`). Reads
no pickle and runs no code from the folder. Opening imports no torch. The file format is specified
in safetensors' README ("Format").
"""

from __future__ import annotations

import math
import os
import threading
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.weights.group_config import read_group_config
from octavo.weights.group_tensor import GroupTensor, join_groups
from octavo.weights.sidecar import parse_object, read_generation_config, read_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_HEADER_LEN = 100_000_000
"""Bytes of a safetensors header; the reference implementation refuses larger ones too."""


class _StoredType(NamedTuple):
    dtype: str
    item_bytes: int


# By the name in the header: torch's name and bytes per element.
_TYPES = {
    "F64": _StoredType("float64", 8),
    "F32": _StoredType("float32", 4),
    "F16": _StoredType("float16", 2),
    "BF16": _StoredType("bfloat16", 2),
    "F8_E4M3": _StoredType("float8_e4m3fn", 1),
    "F8_E5M2": _StoredType("float8_e5m2", 1),
    "I64": _StoredType("int64", 8),
    "I32": _StoredType("int32", 4),
    "I16": _StoredType("int16", 2),
    "I8": _StoredType("int8", 1),
    "U64": _StoredType("uint64", 8),
    "U32": _StoredType("uint32", 4),
    "U16": _StoredType("uint16", 2),
    "U8": _StoredType("uint8", 1),
    "BOOL": _StoredType("bool", 1),
}


class FolderTensor:
    """One tensor of a safetensors file (`StoredTensor`).

    Attributes:
        name: as the file spells it.
        shape: as the file has it, which is torch's order.
        dtype: torch's name of the stored type.
        num_bytes: in the file.
        offset: of the first byte, from the file's start.
    """

    __slots__ = ("_shard", "dtype", "name", "num_bytes", "offset", "shape")

    def __init__(
        self, shard: _Shard, name: str, shape: tuple[int, ...], dtype: str, offset: int, end: int
    ) -> None:
        self._shard = shard
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self.offset = offset
        self.num_bytes = end - offset

    def __repr__(self) -> str:
        return f"FolderTensor({self.name!r}, shape={self.shape}, dtype={self.dtype})"

    def load(self, dtype: torch.dtype) -> torch.Tensor:
        """The tensor in `dtype`, owned by the caller; safe to call from several threads.

        Raises:
            CheckpointError: the file has become shorter since it was opened.
        """
        import torch

        stored = torch.empty(self.shape, dtype=getattr(torch, self.dtype))
        if self.num_bytes:
            # read(2) into the tensor's own memory: no copy, and a file that is cut off meanwhile
            # gives an error, where a mapping would kill the process.
            raw: Any = stored.view(-1).view(torch.uint8).numpy()
            self.read_into(memoryview(raw), 0)
        return stored.to(dtype)

    def read_into(self, target: memoryview, start: int) -> None:
        """See `PlainTensor`."""
        self._shard.read_into(target, self.offset + start)


class FolderCheckpoint:
    """A Hugging Face folder (`Checkpoint`). Every shard's header is read and checked at once.

    Args:
        path: the folder.
        has_weights: False: files with weights need not be there, and are not looked at.

    Raises:
        CheckpointError: a file is missing, truncated, corrupt or contradicts another.
        UnsupportedModelError: the weights are pickles only, or quantized in a way that is not read.
    """

    format: Literal["safetensors", "gguf"] = "safetensors"

    def __init__(self, path: Path, *, has_weights: bool = True) -> None:
        self.path = path
        self.has_weights = has_weights
        if not (path / "config.json").exists():
            raise CheckpointError(
                f"{path}: neither a Hugging Face folder (no config.json) nor a folder with one "
                "GGUF file"
            )
        self.config: Mapping[str, Any] = read_json(path / "config.json")
        self.generation_config: Mapping[str, Any] = read_generation_config(path)
        self.architecture = _architecture(path, self.config)
        self._shards: list[_Shard] = []
        self._tensors: list[FolderTensor | GroupTensor] = []
        try:
            self._tensors += self._read_tensors() if has_weights else []
        except BaseException:
            self.close()
            raise
        self.num_bytes = sum(tensor.num_bytes for tensor in self._tensors)
        self.has_blocks = any(isinstance(tensor, GroupTensor) for tensor in self._tensors)

    def _read_tensors(self) -> list[FolderTensor | GroupTensor]:
        """Out of every shard's header."""
        try:
            groups = read_group_config(self.config)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{self.path / 'config.json'}: {error}") from None
        tensors: list[FolderTensor] = []
        for file, expected in _weight_files(self.path).items():
            tensors += self._read_shard(self.path / file, expected)
        return list(tensors) if groups is None else join_groups(self.path, groups, tensors)

    def _read_shard(self, path: Path, expected: set[str] | None) -> list[FolderTensor]:
        shard = _Shard(path)
        self._shards.append(shard)
        tensors = shard.tensors()
        if expected is not None:
            missing = expected - {tensor.name for tensor in tensors}
            if missing:
                raise CheckpointError(
                    f"{path}: has no tensor {min(missing)!r}, which {INDEX_FILE} places in it"
                )
            tensors = [tensor for tensor in tensors if tensor.name in expected]
        return tensors

    def tensors(self) -> Iterator[FolderTensor | GroupTensor]:
        """Every tensor once, shard by shard, in the order of their data."""
        return iter(self._tensors)

    def close(self) -> None:
        """Close the files. Tensors already loaded stay valid."""
        for shard in self._shards:
            shard.close()


class _Shard:
    """One open safetensors file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            self._file = FileIO(path, "rb")
            self._size = os.fstat(self._file.fileno()).st_size
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: is missing") from error
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error

    def close(self) -> None:
        if hasattr(self, "_file"):  # else it could not be opened
            self._file.close()

    __del__ = close

    def read_into(self, target: memoryview, offset: int) -> None:
        """Fill `target` with the bytes from `offset` on."""
        done = 0
        while done < len(target):
            try:
                num_read = self._read_at(target[done:], offset + done)
            except OSError as error:
                raise self._error(f"cannot be read: {error.strerror or error}") from error
            if not num_read:
                raise self._error(f"truncated: ends at byte {offset + done}")
            done += num_read

    def _read_at(self, target: memoryview, offset: int) -> int:
        """Read once, without moving what other threads read."""
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [target], offset)
        with self._lock:  # not every platform reads without a position
            self._file.seek(offset)
            return self._file.readinto(target) or 0

    def tensors(self) -> list[FolderTensor]:
        """Every tensor, in the order of their data, which must lie without holes."""
        if self._size < 8:
            raise self._error("truncated: shorter than its own header's length field")
        field = bytearray(8)
        self.read_into(memoryview(field), 0)
        header_len = int.from_bytes(field, "little")
        if header_len > MAX_HEADER_LEN:
            raise self._error("not a safetensors file (a header of impossible length)")
        data_start = 8 + header_len
        if data_start > self._size:
            raise self._error(
                f"truncated: the header ends at byte {data_start}, the file at {self._size}"
            )
        header = bytearray(header_len)
        self.read_into(memoryview(header), 8)
        tensors = [
            self._tensor(name, entry, data_start)
            for name, entry in parse_object(self.path, header, "header").items()
            if name != "__metadata__"
        ]
        tensors.sort(key=lambda tensor: (tensor.offset, tensor.num_bytes))
        end = data_start
        for tensor in tensors:
            if tensor.offset != end:
                raise self._error(
                    f"tensor {tensor.name!r} starts at byte {tensor.offset}, not at {end}"
                )
            end += tensor.num_bytes
        if end > self._size:
            raise self._error(f"truncated: its tensors end at byte {end}, the file at {self._size}")
        if end < self._size:
            raise self._error(f"holds {self._size - end} bytes beyond its last tensor")
        return tensors

    def _tensor(self, name: str, entry: Any, data_start: int) -> FolderTensor:
        try:
            stored, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
            sound = all(type(value) is int and 0 <= value < 2**63 for value in (*shape, begin, end))
        except (TypeError, KeyError, ValueError):
            sound = False
        if not sound:
            raise self._error(f"the header's entry for tensor {name!r} is malformed")
        kind = _TYPES.get(stored) if isinstance(stored, str) else None
        if kind is None:
            raise UnsupportedModelError(
                f"{self.path}: tensor {name!r} has type {stored!r}, which is not supported"
            )
        if end - begin != math.prod(shape) * kind.item_bytes:
            raise self._error(
                f"tensor {name!r} of shape {shape} and type {stored} cannot take "
                f"{end - begin} bytes"
            )
        if end == begin and any(extent > self._size for extent in shape):
            raise self._error(f"tensor {name!r}: shape {shape} makes no sense")
        return FolderTensor(
            self, name, tuple(shape), kind.dtype, data_start + begin, data_start + end
        )

    def _error(self, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: {problem}")


def _weight_files(path: Path) -> dict[str, set[str] | None]:
    """Files with weights, and which tensors the index expects in each (None: there is no index)."""
    if (path / SINGLE_FILE).exists():
        return {SINGLE_FILE: None}
    index_path = path / INDEX_FILE
    if index_path.exists():
        weight_map = read_json(index_path).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index_path}: has no weight_map")
        files: dict[str, set[str] | None] = {}
        for name, file in sorted(weight_map.items(), key=lambda item: str(item[1])):
            # a plain name, so that an index cannot point outside its folder
            if not isinstance(file, str) or Path(file).name != file or file in ("", ".", ".."):
                raise CheckpointError(f"{index_path}: {file!r} is no name of a file")
            expected = files.setdefault(file, set())
            assert expected is not None
            expected.add(name)
        return files
    if any(path.glob("*.safetensors")):
        raise CheckpointError(
            f"{path}: has safetensors, but neither {SINGLE_FILE} nor {INDEX_FILE}"
        )
    if any(path.glob("*.bin")) or any(path.glob("*.pt")) or any(path.glob("*.pth")):
        raise UnsupportedModelError(
            f"{path}: holds its weights as pickles, which Octavo never reads; convert the model "
            "to safetensors"
        )
    raise CheckpointError(
        f"{path}: has no {SINGLE_FILE} (Octavo reads safetensors and GGUF, never pickles); to "
        "measure the model's shapes without its weights, give --load-format dummy"
    )


def _architecture(path: Path, config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise CheckpointError(f"{path / 'config.json'}: names no architectures")
    return names[0]
