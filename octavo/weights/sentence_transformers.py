"""What sentence-transformers' files beside a checkpoint say of how its texts become vectors.

Values only. Modules that would change the vectors and are not known are refused, for without them
the vectors would be wrong. Format: modules.json of https://www.sbert.net, as `SentenceTransformer`
saves it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.types import PoolingType
from octavo.weights.sidecar import read_json

if TYPE_CHECKING:
    from pathlib import Path

MODULES = "modules.json"
_POOLINGS: dict[str, PoolingType] = {
    "cls_token": "cls",
    "mean_tokens": "mean",
    "lasttoken": "last",
}
_NAMES: dict[str, PoolingType] = {"cls": "cls", "mean": "mean", "lasttoken": "last"}


class SentenceFiles(msgspec.Struct, frozen=True, kw_only=True):
    """What the files say.

    Attributes:
        pooling_type: None where no module pools.
        is_normalized: whether a module gives vectors length 1.
        max_len: most tokens of a text; None: as many as the model can.
        lowercases: whether texts are put into lower case first.
    """

    pooling_type: PoolingType | None = None
    is_normalized: bool = False
    max_len: int | None = None
    lowercases: bool = False


def is_sentence_model(folder: Path) -> bool:
    """Whether a folder was saved by sentence-transformers as a model for embedding."""
    return (folder / MODULES).is_file()


def read_sentence_files(folder: Path) -> SentenceFiles | None:
    """What the folder's files say; None where it has none.

    Raises:
        CheckpointError: a file is damaged.
        UnsupportedModelError: a module, or a way of pooling, that Octavo does not have.
    """
    path = folder / MODULES
    if not path.is_file():
        return None
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        parts = [(str(m["type"]).rsplit(".", 1)[-1], str(m.get("path") or "")) for m in modules]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a list of modules: {error}") from error
    pooling: PoolingType | None = None
    is_normalized = False
    for kind, subfolder in parts:
        if kind == "Pooling":
            pooling = _pooling_type(folder / subfolder / "config.json")
        elif kind == "Normalize":
            is_normalized = True
        elif kind != "Transformer":
            raise UnsupportedModelError(
                f"{path}: the module {kind} is not supported (Transformer, Pooling, Normalize are)"
            )
    own = _optional(folder / "sentence_bert_config.json")
    max_len = own.get("max_seq_length")
    return SentenceFiles(
        pooling_type=pooling,
        is_normalized=is_normalized,
        max_len=max_len if isinstance(max_len, int) and max_len > 0 else None,
        lowercases=own.get("do_lower_case") is True,
    )


def _pooling_type(path: Path) -> PoolingType:
    config = read_json(path)
    named = config.get("pooling_mode")
    if isinstance(named, str):
        wanted = [named]
        known = _NAMES
    else:
        prefix = "pooling_mode_"
        wanted = [
            key.removeprefix(prefix)
            for key, value in config.items()
            if key.startswith(prefix) and value is True
        ]
        known = _POOLINGS
    if len(wanted) != 1 or wanted[0] not in known:
        raise UnsupportedModelError(
            f"{path}: pooling by {' and '.join(wanted) or 'nothing'} is not supported "
            "(cls, mean and the last token are)"
        )
    return known[wanted[0]]


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}
