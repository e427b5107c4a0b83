"""Small JSON files that lie beside a checkpoint's tensors."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from octavo.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

GENERATION_CONFIG = "generation_config.json"


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object.

    Raises:
        CheckpointError: it cannot be read, or is none.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from error
    return parse_object(path, data, "file")


def parse_object(path: Path, data: bytes | bytearray, what: str) -> dict[str, Any]:
    """The JSON object in `data`, which is `what` of `path`.

    Raises:
        CheckpointError: it is none, or a key occurs twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key occurs twice")
        return result

    try:
        value = json.loads(data.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the {what} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: the {what} is not a JSON object")
    return value


def read_generation_config(folder: Path) -> dict[str, Any]:
    """What the model's authors recommend for sampling, or {} where they say nothing.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = folder / GENERATION_CONFIG
    return read_json(path) if path.exists() else {}
