"""What a checkpoint is to the rest of the house: configuration, generation defaults, named tensors.

Knows nothing of models: names and configuration are as the file spells them; `models/` translates.
Importing this module does not import torch; reading a tensor does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray


class StoredTensor(Protocol):
    """One tensor as it lies in the file, not yet read.

    Attributes:
        name: as the file spells it.
        shape: in torch's order, rows (out features) first.
        dtype: how it is stored: `bfloat16`, `float32`, `Q4_1`, `Q6_K`, ...
        num_bytes: in the file.
    """

    name: str
    shape: tuple[int, ...]
    num_bytes: int

    @property
    def dtype(self) -> str:
        """See the class."""
        ...

    def load(self, dtype: torch.dtype) -> torch.Tensor:
        """The tensor on the CPU, dequantized where it is packed, in `dtype`.

        The caller owns the result; it does not alias the file.
        """
        ...


@runtime_checkable
class PlainTensor(StoredTensor, Protocol):
    """A tensor whose elements lie in the file as they do in memory, of a dtype that torch has."""

    def read_into(self, target: memoryview, start: int) -> None:
        """Fill `target` with the tensor's bytes from `start` on; from several threads at once.

        Raises:
            CheckpointError: the file has become shorter since it was opened.
        """
        ...


@runtime_checkable
class BlockTensor(StoredTensor, Protocol):
    """A matrix that is stored as integers, or may be: `dtype` says whether as ggml's blocks."""

    def packed(self) -> NDArray[np.uint8]:
        """Its blocks, (rows, bytes per row), C-contiguous; to be left unchanged.

        Raises:
            CheckpointError: the file has become shorter since it was opened.
        """
        ...


class Checkpoint(Protocol):
    """A readable checkpoint: a Hugging Face folder or one GGUF file.

    Attributes:
        path: the folder or file.
        format: which of the two.
        architecture: `config.json`'s `architectures[0]` (`LlamaForCausalLM`), or GGUF's
            `general.architecture` (`llama`).
        config: `config.json`, or GGUF's metadata, as the file has it. GGUF's large token arrays
            are in it too (`tokenizer.ggml.tokens`), as lists.
        generation_config: `generation_config.json` of the folder, or beside the GGUF file; or {}.
        num_bytes: size of all tensors in the file.
        has_blocks: whether tensors may be `BlockTensor`s.
        has_weights: False where it was opened for its configuration alone.
    """

    path: Path
    format: Literal["safetensors", "gguf"]
    architecture: str
    config: Mapping[str, Any]
    generation_config: Mapping[str, Any]
    num_bytes: int
    has_blocks: bool
    has_weights: bool

    def tensors(self) -> Iterator[StoredTensor]:
        """Every tensor once, in the order that reads the file fastest."""
        ...

    def close(self) -> None:
        """Unmap the files. Tensors already loaded stay valid."""
        ...
