"""GGUF files: metadata, and tensors as they lie in the file.

Knows the container, not models, not how its head is written (`gguf_header`) and not how blocks are
decoded (`gguf_blocks`). Opening a file imports neither torch nor numpy and touches only the
metadata's pages.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, Literal

from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.weights.block_formats import FORMATS_BY_NAME
from octavo.weights.gguf_header import HeaderReader, map_file
from octavo.weights.sidecar import read_generation_config

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray

SERIAL_ELEMENTS = 1 << 14
"""Elements that torch converts without its thread pool, whose barriers, thousands of them, take
seconds when another process has one of the cores."""


class GGUFTensor:
    """One tensor of a GGUF file (`StoredTensor`).

    Attributes:
        name, dtype: as the file spells them; dtype is a key of `FORMATS_BY_NAME`.
        shape: rows first, which is the reverse of the file's order.
        num_bytes: in the file.
        offset: of the first byte, from the file's start.
    """

    __slots__ = ("_checkpoint", "dtype", "name", "num_bytes", "offset", "shape")

    def __init__(
        self,
        checkpoint: GGUFCheckpoint,
        name: str,
        shape: tuple[int, ...],
        dtype: str,
        offset: int,
        num_bytes: int,
    ) -> None:
        self._checkpoint = checkpoint
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self.offset = offset
        self.num_bytes = num_bytes

    def __repr__(self) -> str:
        return f"GGUFTensor({self.name!r}, shape={self.shape}, dtype={self.dtype})"

    def packed(self) -> NDArray[np.uint8]:
        """The stored bytes, (rows, bytes_per_row), read-only, not copied.

        The view keeps the file mapped for as long as it lives, also after `close()`.
        """
        import numpy as np

        row_len = self.shape[-1] if self.shape else 1
        row_bytes = FORMATS_BY_NAME[self.dtype].row_bytes(row_len)
        rows = math.prod(self.shape[:-1])
        if self.num_bytes == 0:
            return np.empty((rows, row_bytes), np.uint8)
        flat = np.frombuffer(self._checkpoint.mapped(), np.uint8, self.num_bytes, self.offset)
        return flat.reshape(rows, row_bytes)

    def load(self, dtype: torch.dtype) -> torch.Tensor:
        """The decoded tensor in `dtype`, owned by the caller.

        Raises:
            UnsupportedModelError: the block format has no decoder.
        """
        import numpy as np
        import torch

        from octavo.weights.gguf_blocks import CHUNK_ELEMENTS, can_dequantize, dequantize

        if not can_dequantize(self.dtype):
            raise UnsupportedModelError(
                f"{self._checkpoint.path}: tensor {self.name} is stored as {self.dtype}, which "
                "Octavo does not decode; use a file quantized as Q4_K_M, Q6_K, Q8_0 or BF16"
            )
        out = torch.empty(self.shape, dtype=dtype)
        packed = self.packed().reshape(-1)
        if dtype == torch.float32:
            dequantize(packed, self.dtype, out.view(-1).numpy())
            return out
        # Through a scratch that stays in the cache, so that float32 copies of large tensors never
        # exist as a whole.
        _, block_size, block_bytes = FORMATS_BY_NAME[self.dtype]
        flat = out.view(-1)
        scratch = np.empty(CHUNK_ELEMENTS, np.float32)
        for start in range(0, flat.numel(), CHUNK_ELEMENTS):
            stop = min(start + CHUNK_ELEMENTS, flat.numel())
            codes = packed[start // block_size * block_bytes : stop // block_size * block_bytes]
            values = torch.from_numpy(dequantize(codes, self.dtype, scratch[: stop - start]))
            for part, target in zip(
                torch.split(values, SERIAL_ELEMENTS),
                torch.split(flat[start:stop], SERIAL_ELEMENTS),
                strict=True,
            ):
                target.copy_(part)
        return out


class GGUFCheckpoint:
    """A GGUF file, mapped into memory (`Checkpoint`).

    Args:
        path: the file.
        has_weights: whether its tensors are there to be loaded, or only to be looked at.

    Raises:
        CheckpointError: the file is not GGUF, is cut off, or contradicts itself.
        UnsupportedModelError: a sound file of a kind that Octavo does not read.
    """

    format: Literal["safetensors", "gguf"] = "gguf"
    has_blocks = True

    def __init__(self, path: Path, *, has_weights: bool = True) -> None:
        self.path = path
        self.has_weights = has_weights
        self._map = map_file(path)
        try:
            reader = HeaderReader(path, self._map)
            num_tensors, metadata = reader.header()
            self.config: Mapping[str, Any] = metadata
            self.generation_config: Mapping[str, Any] = read_generation_config(path.parent)
            self.architecture = _architecture(path, metadata)
            self._tensors = [
                GGUFTensor(self, *entry) for entry in reader.tensor_table(num_tensors, metadata)
            ]
        except BaseException:
            self.close()
            raise
        self._tensors.sort(key=lambda tensor: tensor.offset)
        self.num_bytes = sum(tensor.num_bytes for tensor in self._tensors)

    def mapped(self) -> mmap.mmap:
        """The whole file. ValueError on use after `close()`."""
        return self._map

    def tensors(self) -> Iterator[GGUFTensor]:
        """Every tensor once, in the file's order of data."""
        return iter(self._tensors)

    def close(self) -> None:
        """Unmap the file, unless views of `packed()` are alive: then with the last of them."""
        with contextlib.suppress(BufferError):
            self._map.close()


def _architecture(path: Path, metadata: Mapping[str, Any]) -> str:
    if metadata.get("split.count", 0) not in (0, 1):
        raise UnsupportedModelError(
            f"{path}: one of {metadata['split.count']} parts of a model; join them first "
            "(llama-gguf-split --merge)"
        )
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise CheckpointError(f"{path}: the metadata has no general.architecture")
    return architecture
