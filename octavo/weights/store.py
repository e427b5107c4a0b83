"""The model store: which models are on this machine, under which names, and where.

Knows nothing of networks (`fetch` brings models in). One folder per model, in
`default_home()/models`, holds its manifest, and its file where the store owns it:

    models/smollm2/manifest.json
    models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    models/org--name/manifest.json          points into the Hugging Face cache
    models/my-model/manifest.json           points to a path of the user's

A model is in the store when its manifest is: that is written last, and in one step.
"""

from __future__ import annotations

import difflib
import os
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from octavo.config import default_home
from octavo.errors import CheckpointError, ConfigError, ModelNotFoundError
from octavo.weights.catalog import CATALOG

MANIFEST = "manifest.json"
_NAME = re.compile(r"[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)


class StoredModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model that was pulled. Its fields are the manifest.

    Attributes:
        name: what users type.
        path: the GGUF file or Hugging Face folder, absolute.
        format, architecture: as `Checkpoint` has them.
        num_bytes: of all tensors.
        license: SPDX identifier, a license's own name, or None where the model does not say.
        source: `catalog`, `hub` or `path`.
        pulled_at: ISO 8601, UTC.
    """

    name: str
    path: str
    format: Literal["safetensors", "gguf"]
    architecture: str
    num_bytes: int
    license: str | None
    source: Literal["catalog", "hub", "path"]
    pulled_at: str

    @property
    def is_present(self) -> bool:
        """Whether its file or folder is still there."""
        return Path(self.path).exists()


class Removal(msgspec.Struct, frozen=True):
    """What `remove` did.

    Attributes:
        name: the model's.
        freed_bytes: of the files deleted.
        kept: the file or folder left in place because it belongs to the user or to the Hugging
            Face cache; None when there is none.
    """

    name: str
    freed_bytes: int
    kept: Path | None


def models_folder() -> Path:
    """Where the store lies; need not exist."""
    return default_home() / "models"


def is_valid_name(name: str) -> bool:
    """Whether `name` can name a model: `word` or `org/word`, so never a way out of the store."""
    return _NAME.fullmatch(name) is not None and "--" not in name


def model_folder(name: str) -> Path:
    """The folder of the model `name`; need not exist.

    Raises:
        ModelNotFoundError: no model can have this name.
    """
    if not is_valid_name(name):
        raise ModelNotFoundError(f"{name!r} is not a model's name")
    return models_folder() / name.replace("/", "--")


def find(name: str) -> StoredModel | None:
    """The pulled model `name`, or None. Its file may have gone since (`is_present`).

    Raises:
        CheckpointError: its manifest is damaged.
    """
    return _read_manifest(model_folder(name) / MANIFEST) if is_valid_name(name) else None


def list_models() -> list[StoredModel]:
    """Every pulled model, by name.

    Raises:
        CheckpointError: a manifest is damaged.
    """
    manifests = sorted(models_folder().glob(f"*/{MANIFEST}"))
    models = [model for path in manifests if (model := _read_manifest(path)) is not None]
    return sorted(models, key=lambda model: model.name)


def register(
    name: str,
    path: Path,
    source: Literal["catalog", "hub", "path"],
    license: str | None = None,  # noqa: A002
) -> StoredModel:
    """Open the checkpoint at `path`, and enter it under `name`.

    Raises:
        CheckpointError, UnsupportedModelError: it does not open.
    """
    from octavo.weights.open import open_checkpoint

    checkpoint = open_checkpoint(path)
    try:
        own = checkpoint.config.get("general.license")
        model = StoredModel(
            name=name,
            path=str(path.absolute()),
            format=checkpoint.format,
            architecture=checkpoint.architecture,
            num_bytes=checkpoint.num_bytes,
            license=license or (own if isinstance(own, str) else None),
            source=source,
            pulled_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
    finally:
        checkpoint.close()
    folder = model_folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{MANIFEST}.{os.getpid()}"
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(model)))
    draft.replace(folder / MANIFEST)
    return model


def remove(name: str) -> Removal:
    """Forget the model `name` and delete what the store owns of it.

    Raises:
        ModelNotFoundError: no such model was pulled.
    """
    folder = model_folder(name)
    if not folder.is_dir():
        raise ModelNotFoundError(f"no model {name!r} to remove{_suggest(name, _pulled_names())}")
    model = _read_manifest(folder / MANIFEST, lenient=True)
    kept = None
    if model is not None and folder.absolute() not in Path(model.path).parents:
        kept = Path(model.path)
    freed = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    # the manifest first, so that an interruption leaves no entry without its file
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder)
    return Removal(name, freed, kept)


def resolve(name: str) -> Path:
    """The checkpoint that `name` means, without any network.

    In this order: a path that holds a model, a pulled model, a model in the Hugging Face cache, any
    other path that exists (opening it then says what is wrong with it).

    Raises:
        ModelNotFoundError: none of these; the message says what to do.
    """
    if not name:
        raise ModelNotFoundError("the model's name is empty")
    path = Path(name).expanduser()
    if _holds_model(path):
        return path
    model = find(name)
    if model is not None and model.is_present:
        return Path(model.path)
    cached = find_in_hub_cache(name)
    if cached is not None:
        return cached
    if path.exists():
        return path
    raise ModelNotFoundError(_not_found(name, model))


def find_in_hub_cache(name: str) -> Path | None:
    """The snapshot of the Hugging Face model `name` in the hub's cache, or None. Offline."""
    if not is_valid_name(name) or name in CATALOG:
        return None
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    return Path(config).parent if isinstance(config, str) else None


def _holds_model(path: Path) -> bool:
    try:
        if path.is_file():
            return True
        return path.is_dir() and ((path / "config.json").exists() or any(path.glob("*.gguf")))
    except OSError:
        return False


def _not_found(name: str, gone: StoredModel | None) -> str:
    if gone is not None:
        return f"{name}: {gone.path} is gone; run `octavo pull {name}` again, or `octavo rm {name}`"
    if name in CATALOG:
        return f"{name} is not on this machine yet; run `octavo pull {name}`"
    looks_like_path = name.startswith((".", "/", "~")) or name.endswith(".gguf")
    if looks_like_path or not is_valid_name(name):
        return f"{name}: no such file or folder"
    known = _suggest(name, [*CATALOG, *_pulled_names()])
    if "/" in name:
        return f"{name} is neither a path nor pulled; run `octavo pull {name}`{known}"
    return f"no model {name!r}{known}; a Hugging Face model is named as in `octavo pull org/name`"


def _suggest(name: str, names: list[str]) -> str:
    names = sorted(set(names))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return f" (did you mean {' or '.join(near)}?)"
    return f" (known names: {', '.join(names)})" if names else ""


def _pulled_names() -> list[str]:
    return [path.parent.name.replace("--", "/") for path in models_folder().glob(f"*/{MANIFEST}")]


def _read_manifest(path: Path, *, lenient: bool = False) -> StoredModel | None:
    """The manifest at `path`; None when there is none, or when it is damaged and `lenient`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=StoredModel)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        if lenient:
            return None
        raise CheckpointError(
            f"{path}: damaged ({error}); run `octavo rm {path.parent.name.replace('--', '/')}`"
        ) from error


def name_for_path(path: Path) -> str:
    """A store name for a file or folder of the user's: its own name in allowed characters.

    Raises:
        ConfigError: nothing is left of it.
    """
    stem = path.stem if path.suffix == ".gguf" else path.name
    name = re.sub(r"-{2,}", "-", re.sub(r"[^A-Za-z0-9_.-]+", "-", stem)).strip("-.")
    if not is_valid_name(name):
        raise ConfigError(f"{path}: no name can be made of {path.name!r}; rename it")
    return name
