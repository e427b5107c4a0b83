"""Which reader opens a path, and what is said of paths that none opens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from octavo.errors import CheckpointError, ModelNotFoundError, StartupError, UnsupportedModelError
from octavo.weights.open import open_checkpoint


def make_folder(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    save_file({"w": torch.zeros(2, 3)}, path / "model.safetensors")
    return path


def test_a_file_with_the_magic_whatever_its_name(tmp_path: Path, gguf_bytes: bytes) -> None:
    for name in ("model.gguf", "sha256-abc", "model.bin"):
        (tmp_path / name).write_bytes(gguf_bytes)
        checkpoint = open_checkpoint(tmp_path / name)
        assert (checkpoint.format, checkpoint.architecture) == ("gguf", "llama")
        checkpoint.close()


def test_a_folder(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_folder(tmp_path / "m"))
    assert (checkpoint.format, checkpoint.architecture) == ("safetensors", "LlamaForCausalLM")
    assert checkpoint.num_bytes == 24


def test_a_folder_with_one_gguf_counts_as_the_file(tmp_path: Path, gguf_bytes: bytes) -> None:
    (tmp_path / "model.gguf").write_bytes(gguf_bytes)
    (tmp_path / "tokenizer.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.path == tmp_path / "model.gguf"
    (tmp_path / "other.gguf").write_bytes(gguf_bytes)
    with pytest.raises(CheckpointError, match=r"holds 2 GGUF files.*model\.gguf, other\.gguf"):
        open_checkpoint(tmp_path)


def test_a_folder_with_config_and_gguf_is_the_folder(tmp_path: Path, gguf_bytes: bytes) -> None:
    folder = make_folder(tmp_path / "m")
    (folder / "model.gguf").write_bytes(gguf_bytes)
    assert open_checkpoint(folder).format == "safetensors"


def test_the_folder_reader_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from octavo.weights.open import open_checkpoint\n"
        f"assert len(list(open_checkpoint(Path({str(make_folder(tmp_path / 'm'))!r})).tensors()))\n"
        "print(sorted({'torch', 'numpy', 'safetensors'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "data", "error", "message"),
    [
        ("absent", None, ModelNotFoundError, "no such file or folder"),
        ("m.gguf", b"junk", CheckpointError, "not a GGUF file"),
        ("m.gguf", b"", CheckpointError, "not a GGUF file"),
        ("m.safetensors", b"\0" * 8, CheckpointError, "give the folder that holds it"),
        ("m.bin", b"PK\x03\x04", UnsupportedModelError, "never reads pickles"),
        ("m.pth", b"\x80\x02", UnsupportedModelError, "never reads pickles"),
        ("m.txt", b"hello", CheckpointError, "neither a GGUF file nor a Hugging Face folder"),
        ("m.txt", b"", CheckpointError, "neither a GGUF file nor a Hugging Face folder"),
    ],
)
def test_what_is_no_checkpoint(
    name: str, data: bytes | None, error: type[StartupError], message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(error, match=message) as info:
        open_checkpoint(path)
    assert str(path) in str(info.value)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a Hugging Face folder"):
        open_checkpoint(tmp_path)


def test_a_device_is_not_read_without_end() -> None:
    with pytest.raises(CheckpointError, match="neither a GGUF file"):
        open_checkpoint(Path("/dev/zero"))


def test_recommended_sampling_beside_a_gguf_file(tmp_path: Path, gguf_bytes: bytes) -> None:
    (tmp_path / "model.gguf").write_bytes(gguf_bytes)
    assert open_checkpoint(tmp_path).generation_config == {}
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.2}')
    assert open_checkpoint(tmp_path).generation_config == {"temperature": 0.2}
    (tmp_path / "generation_config.json").write_text('{"temperature": ')
    with pytest.raises(CheckpointError, match="not valid JSON"):
        open_checkpoint(tmp_path)


@pytest.mark.model
def test_a_pull_leaves_what_the_authors_recommend(smollm2_path: Path) -> None:
    from octavo.weights.fetch import pull

    assert pull("smollm2") == smollm2_path
    recommended = open_checkpoint(smollm2_path).generation_config
    assert recommended == {"temperature": 0.2, "top_p": 0.9}
