"""The model store: names, manifests, what `resolve` finds, and that `remove` stays inside."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING

import huggingface_hub.constants
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import CheckpointError, ConfigError, ModelNotFoundError
from octavo.weights import store

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def gguf_file(tmp_path: Path, gguf_bytes: bytes) -> Path:
    path = tmp_path / "own" / "model.gguf"
    path.parent.mkdir()
    path.write_bytes(gguf_bytes)
    return path


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache as huggingface_hub lays it out, with one model."""
    cache = tmp_path / "hub"
    repository = cache / "models--org--model"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return snapshot


def test_register_list_find_remove(gguf_file: Path) -> None:
    model = store.register("mine", gguf_file, "path")
    assert store.list_models() == [model]
    assert store.find("mine") == model
    assert model.path == str(gguf_file)
    assert model.is_present
    assert datetime.fromisoformat(model.pulled_at).tzinfo is not None
    removal = store.remove("mine")
    assert removal.kept == gguf_file
    assert gguf_file.exists()
    assert store.list_models() == []
    with pytest.raises(ModelNotFoundError, match="no model 'mine' to remove"):
        store.remove("mine")


def test_files_of_the_store_are_deleted(gguf_bytes: bytes) -> None:
    folder = store.model_folder("owned")
    folder.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(gguf_bytes)
    store.register("owned", folder / "m.gguf", "catalog", "MIT")
    removal = store.remove("owned")
    assert removal.kept is None
    assert removal.freed_bytes > len(gguf_bytes)
    assert not folder.exists()


def test_names_with_an_organisation(gguf_file: Path) -> None:
    store.register("org/model", gguf_file, "path")
    assert [model.name for model in store.list_models()] == ["org/model"]
    assert store.resolve("org/model") == gguf_file
    store.remove("org/model")
    assert store.find("org/model") is None


@pytest.mark.parametrize(
    "name", ["..", ".", "", "../x", "a/../b", "a/b/c", "/etc", ".partial", "a--b"]
)
def test_names_never_leave_the_store(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="not a model's name"):
        store.remove(name)


@given(name=st.text(alphabet="ab./-_\\\0 \n", max_size=8))
def test_valid_names_map_to_folders_of_the_store(name: str) -> None:
    if store.is_valid_name(name):
        folder = store.model_folder(name)
        assert folder.parent == store.models_folder()
        assert folder.name not in ("", ".", "..")
        assert not folder.name.startswith(".")
        assert folder.name.replace("--", "/") == name


def test_a_damaged_manifest_is_named_and_can_be_removed(gguf_file: Path) -> None:
    store.register("mine", gguf_file, "path")
    manifest = store.model_folder("mine") / store.MANIFEST
    manifest.write_text('{"name": "mine"}')
    with pytest.raises(CheckpointError, match=r"manifest\.json: damaged .* `octavo rm mine`"):
        store.list_models()
    store.remove("mine")
    assert store.list_models() == []


def test_the_manifest_is_plain_json(gguf_file: Path) -> None:
    store.register("mine", gguf_file, "path")
    folder = store.model_folder("mine")
    assert json.loads((folder / store.MANIFEST).read_text())["architecture"] == "llama"
    assert [path.name for path in folder.iterdir()] == [store.MANIFEST]


def test_resolve_prefers_a_path_that_holds_a_model(
    gguf_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.register("own", gguf_file, "path")
    monkeypatch.chdir(gguf_file.parent.parent)
    # ./own is a folder with a GGUF file
    assert str(store.resolve("own")) == "own"
    gguf_file.rename(gguf_file.with_suffix(".txt"))
    store.register("own", gguf_file.with_suffix(".txt"), "path")
    # ./own holds no model any more, so that the name means what was pulled
    assert store.resolve("own") == gguf_file.with_suffix(".txt")


def test_resolve_of_a_path_without_a_model_leaves_the_error_to_opening(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert store.resolve(str(tmp_path / "empty")) == tmp_path / "empty"


def test_resolve_finds_the_hub_cache_offline(hub_cache: Path) -> None:
    assert store.resolve("org/model") == hub_cache
    with pytest.raises(ModelNotFoundError, match="run `octavo pull org/other`"):
        store.resolve("org/other")


def test_resolve_says_what_to_do(gguf_file: Path, hub_cache: Path) -> None:
    store.register("mine", gguf_file, "path")
    cases = {
        "smollm2": "smollm2 is not on this machine yet; run `octavo pull smollm2`",
        "smolm2": "did you mean smollm2",
        "mina": "did you mean mine",
        "zzz": "known names: all-minilm, gemma3-270m, mine, smollm2",
        "org/none": "run `octavo pull org/none`",
        "./none.gguf": "no such file or folder",
        "none.gguf": "no such file or folder",
        "a\0b": "no such file or folder",
        "": "name is empty",
    }
    for name, message in cases.items():
        with pytest.raises(ModelNotFoundError) as info:
            store.resolve(name)
        assert message in str(info.value), name
    gguf_file.unlink()
    with pytest.raises(ModelNotFoundError, match=r"is gone; run `octavo pull mine` again"):
        store.resolve("mine")


def test_names_for_paths(tmp_path: Path) -> None:
    assert store.name_for_path(tmp_path / "Qwen3-0.6B.Q4_K_M.gguf") == "Qwen3-0.6B.Q4_K_M"
    assert store.name_for_path(tmp_path / "my -- folder") == "my-folder"
    with pytest.raises(ConfigError, match="no name can be made"):
        store.name_for_path(tmp_path / "日本.gguf")
