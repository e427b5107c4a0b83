"""Which reader opens a path: a Hugging Face folder, or a GGUF file. Knows no names of models.

Importing this module and opening a checkpoint import neither torch nor numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.errors import CheckpointError, ModelNotFoundError, UnsupportedModelError
from octavo.weights.gguf import GGUFCheckpoint
from octavo.weights.gguf_header import MAGIC
from octavo.weights.safetensors_folder import FolderCheckpoint

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.config import LoadFormat
    from octavo.weights.checkpoint import Checkpoint

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def open_checkpoint(path: Path, *, load_format: LoadFormat = "auto") -> Checkpoint:
    """Open `path`; the caller closes the result.

    A folder without config.json that holds exactly one GGUF file counts as that file.

    Args:
        path: a file or folder.
        load_format: `dummy` opens it for its configuration alone: a folder needs no weights then.

    Raises:
        ModelNotFoundError: nothing is at `path`.
        CheckpointError: it is no checkpoint, or a damaged one.
        UnsupportedModelError: a checkpoint of a kind that Octavo does not read.
    """
    has_weights = load_format != "dummy"
    if not path.exists():
        raise ModelNotFoundError(f"{path}: no such file or folder")
    if path.is_dir():
        if (path / "config.json").exists():
            return FolderCheckpoint(path, has_weights=has_weights)
        ggufs = sorted(path.glob("*.gguf"))
        if len(ggufs) > 1:
            names = ", ".join(file.name for file in ggufs)
            raise CheckpointError(
                f"{path}: holds {len(ggufs)} GGUF files, name one of them: {names}"
            )
        if not ggufs:
            return FolderCheckpoint(path)
        return GGUFCheckpoint(ggufs[0], has_weights=has_weights)
    if path.suffix == ".gguf" or _magic(path) == MAGIC:
        return GGUFCheckpoint(path, has_weights=has_weights)
    if path.suffix == ".safetensors":
        raise CheckpointError(
            f"{path}: give the folder that holds it, with its config.json and tokenizer.json"
        )
    if path.suffix in PICKLE_SUFFIXES:
        raise UnsupportedModelError(
            f"{path}: Octavo never reads pickles; convert the model to safetensors"
        )
    raise CheckpointError(f"{path}: neither a GGUF file nor a Hugging Face folder")


def _magic(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
