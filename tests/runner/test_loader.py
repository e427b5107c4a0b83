"""Weights in the model against the same file read by the safetensors package, and random ones."""

from __future__ import annotations

import json
import logging
import math
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from octavo import LLM, SamplingParams
from octavo.errors import CheckpointError
from octavo.models.base import BuildContext, CausalModel
from octavo.models.registry import find_model_class
from octavo.quant.unquantized import Unquantized
from octavo.runner import loader
from octavo.weights.open import open_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.config import LoadFormat
    from tests.conftest import TinyLlama


def build(path: Path, dtype: torch.dtype, load_format: LoadFormat = "auto") -> CausalModel:
    checkpoint = open_checkpoint(path, load_format=load_format)
    context = BuildContext(dtype, Unquantized(dtype), max_len=64)
    model = find_model_class(checkpoint.architecture)(checkpoint.config, context)
    loader.load_weights(model, checkpoint, dtype)
    checkpoint.close()
    return model


def weights(model: CausalModel, names: list[str]) -> dict[str, torch.Tensor]:
    """By the checkpoint's names."""
    return {name: loader._target(model, name, name) for name in names}


@pytest.mark.parametrize("chunk", [1000, loader.CHUNK_BYTES], ids=["small chunks", "one chunk"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_every_tensor_arrives(
    chunk: int,
    stored: torch.dtype,
    dtype: torch.dtype,
    tiny_llama: TinyLlama,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loader, "CHUNK_BYTES", chunk)
    source = tiny_llama(tied=False, attention_bias=True, mlp_bias=True)
    tensors = {
        name: tensor.to(stored) for name, tensor in load_file(source / "model.safetensors").items()
    }
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(source / "config.json", tmp_path)
    model = build(tmp_path, dtype)
    loaded = weights(model, list(tensors))
    for name, tensor in tensors.items():
        torch.testing.assert_close(loaded[name], tensor.to(dtype), rtol=0, atol=0, msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("drop", "1 tensors are missing, such as model.layers.1.self_attn.k_proj.weight"),
        ("reshape", "k_proj.weight has shape .*, the configuration asks for"),
        ("add", "model.layers.1.self_attn.r_proj.weight: the model has no such tensor"),
        ("add bias", "model.norm.bias: the model has no such tensor"),
    ],
)
def test_a_checkpoint_that_does_not_match_is_refused_before_anything_is_read(
    change: str,
    message: str,
    tiny_llama: TinyLlama,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = tiny_llama()
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.1.self_attn.k_proj.weight"
    if change == "drop":
        del tensors[name]
    elif change == "reshape":
        tensors[name] = tensors[name].T.contiguous()
    elif change == "add":
        tensors[name.replace("k_proj", "r_proj")] = torch.zeros(3)
    else:
        tensors["model.norm.bias"] = torch.zeros(32)
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(source / "config.json", tmp_path)

    def read(*_: Any) -> None:
        pytest.fail("a tensor was read")

    monkeypatch.setattr(loader._Copier, "copy", read)
    with pytest.raises(CheckpointError, match=message):
        build(tmp_path, torch.float32)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(
    tiny_llama: TinyLlama, tmp_path: Path
) -> None:
    shutil.copytree(tiny_llama(), tmp_path, dirs_exist_ok=True)
    checkpoint = open_checkpoint(tmp_path)
    context = BuildContext(torch.float32, Unquantized(torch.float32), max_len=64)
    model = find_model_class(checkpoint.architecture)(checkpoint.config, context)
    file = tmp_path / "model.safetensors"
    with file.open("rb+") as opened:
        opened.truncate(file.stat().st_size - 100)
    with pytest.raises(CheckpointError, match="truncated"):
        loader.load_weights(model, checkpoint, torch.float32)
    checkpoint.close()


@pytest.mark.parametrize("tied", [True, False])
def test_bytes_are_known_before_anything_is_allocated(tied: bool, tiny_llama: TinyLlama) -> None:
    path = tiny_llama(tied=tied, attention_bias=True)
    checkpoint = open_checkpoint(path)
    context = BuildContext(torch.float32, Unquantized(torch.float32), max_len=64)
    model_class = find_model_class(checkpoint.architecture)
    assert (
        loader.model_bytes(model_class, checkpoint.config, context, checkpoint)
        == checkpoint.num_bytes
    )
    checkpoint.close()


@pytest.fixture
def bare(tiny_llama: TinyLlama, tmp_path: Path) -> Path:
    """A folder with a config.json and nothing else."""
    shutil.copy(tiny_llama(tied=False) / "config.json", tmp_path)
    return tmp_path


def test_a_folder_without_weights_names_the_flag(bare: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model\.safetensors .* --load-format dummy"):
        LLM(str(bare), skip_tokenizer_init=True)


def test_dummy_weights_need_a_configuration_only(
    bare: Path, tiny_llama: TinyLlama, caplog: pytest.LogCaptureFixture
) -> None:
    """The same each time, also where there are weights, and the log says what they are."""
    answers = []
    for path in (bare, bare, tiny_llama(tied=False)):
        caplog.clear()
        llm = LLM(
            str(path),
            load_format="dummy",
            dtype="float32",
            num_threads=1,
            kv_cache_memory=1024**2,
            skip_tokenizer_init=True,
        )
        (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert "noise" in warning
        params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
        (output,) = llm.generate({"prompt_token_ids": [5, 6, 7]}, params)
        answers.append(output.outputs[0].token_ids)
        llm.close()
    assert answers[0] == answers[1] == answers[2]
    assert len(answers[0]) == 20


def test_dummy_projections_keep_the_size_of_what_they_project(bare: Path) -> None:
    """So that hidden states neither vanish nor overflow, whatever the shape."""
    config = json.loads((bare / "config.json").read_text())
    config |= {"hidden_size": 256, "intermediate_size": 1024, "head_dim": 64}
    (bare / "config.json").write_text(json.dumps(config))
    model = build(bare, torch.float32, "dummy")
    names = ["model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.q_proj.weight"]
    for name, weight in weights(model, [*names, "lm_head.weight"]).items():
        x = torch.randn(50, weight.shape[1], generator=torch.Generator().manual_seed(1))
        ratio = ((x @ weight.T).norm() / x.norm()).item() * math.sqrt(
            weight.shape[1] / weight.shape[0]
        )
        assert 0.9 < ratio < 1.1, (name, ratio)
    norm = weights(model, ["model.norm.weight"])["model.norm.weight"]
    assert torch.equal(norm, torch.ones(256))
