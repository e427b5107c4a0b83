"""A tiny Llama from a GGUF file of mixed formats: kept in blocks, against decoded weights."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.errors import ConfigError
from octavo.kernels import cpu
from octavo.models.base import BuildContext
from octavo.models.registry import find_model_class
from octavo.quant.gguf_native import BLOCKS, GGUFNative
from octavo.quant.unquantized import Unquantized
from octavo.runner import loader
from octavo.runner.blocks import settle_layers
from octavo.weights.open import open_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.models.base import CausalModel
    from tests.conftest import TinyLlama

# Of the first layer; the second one's gate stays float16, so its pair with up is decoded.
FORMATS = {
    "token_embd": "Q8_0",
    "attn_q": "Q4_1",
    "attn_k": "Q5_0",
    "attn_v": "Q8_0",
    "attn_output": "Q4_0",
    "ffn_gate": "Q5_1",
    "ffn_up": "Q4_1",
    "ffn_down": "Q4_0",
}


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    if cpu.why_not() is not None:
        pytest.skip(str(cpu.why_not()))


@pytest.fixture(scope="module")
def path(tiny_llama: TinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written with the gguf package, q and k in the order of its Llama files."""
    import gguf
    from safetensors.numpy import load_file

    folder = tiny_llama(hidden_size=64, intermediate_size=96, initializer_range=0.2)
    config = json.loads((folder / "config.json").read_text())
    target = tmp_path_factory.mktemp("native") / "tiny.gguf"
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_token_list([f"token{i}" for i in range(config["vocab_size"])])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for key, tensor in load_file(folder / "model.safetensors").items():
        name = names.get_name(key, try_suffixes=(".weight",))
        kind = name.removesuffix(".weight").split(".")[-1]
        if kind in heads:
            halves = tensor.reshape(heads[kind], 2, -1, tensor.shape[1])
            tensor = halves.swapaxes(1, 2).reshape(tensor.shape)
        if name == "blk.1.ffn_gate.weight":
            writer.add_tensor(name, tensor.astype("float16"))
        elif kind in FORMATS:
            quantized = gguf.GGMLQuantizationType[FORMATS[kind]]
            blocks = gguf.quants.quantize(tensor, quantized)
            writer.add_tensor(name, blocks, raw_dtype=quantized)
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def build(path: Path, method: Any) -> CausalModel:
    checkpoint = open_checkpoint(path)
    model_class = find_model_class(checkpoint.architecture)
    config = loader.read_config(checkpoint, model_class)
    context = BuildContext(torch.float32, method, max_len=64)
    expected = loader.model_bytes(model_class, config, context, checkpoint)
    model = model_class(config, context)
    loader.load_weights(model, checkpoint, torch.float32)
    held = [tensor for module in model.modules() for tensor in loader._tensors(module).values()]
    assert sum(tensor.nbytes for tensor in held) == expected
    checkpoint.close()
    return model


def test_every_layer_computes_what_the_decoded_one_does(path: Path) -> None:
    dense = Unquantized(torch.float32)
    plain, native = build(path, dense), build(path, GGUFNative(dense))
    kept = []
    for (name, ours), other in zip(native.named_modules(), plain.modules(), strict=True):
        if not hasattr(ours, "keep_blocks"):
            continue
        if BLOCKS in ours.tensors():
            kept.append(name)
        if name == "model.embed_tokens":
            ids = torch.tensor([0, 383, 17])
            torch.testing.assert_close(ours(ids), other(ids), rtol=0, atol=0)
            continue
        x = torch.randn(5, ours.in_features, generator=torch.Generator().manual_seed(1))
        want = other(x)
        error = (ours(x) - want).pow(2).mean().sqrt() / want.pow(2).mean().sqrt()
        assert error < 0.01, name
    assert len(kept) == 1 + 2 * 4 - 1
    assert "model.layers.1.mlp.gate_up_proj" not in kept
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    want, got = plain.compute_logits(hidden), native.compute_logits(hidden)
    assert (got - want).pow(2).mean().sqrt() < 0.01 * want.pow(2).mean().sqrt()


def test_nothing_is_decoded_that_is_kept(path: Path) -> None:
    """Weights take the file's bytes, but for the padding of panels and the decoded layer."""
    checkpoint = open_checkpoint(path)
    model_class = find_model_class(checkpoint.architecture)
    config = loader.read_config(checkpoint, model_class)
    context = BuildContext(torch.float32, GGUFNative(Unquantized(torch.float32)), max_len=64)
    with torch.device("meta"):
        model = model_class(config, context)
    kept = settle_layers(model, checkpoint)
    stored = sum(tensor.num_bytes for layer in kept for tensor in layer.tensors)
    assert stored <= sum(layer.num_bytes for layer in kept) < 1.1 * stored
    checkpoint.close()


def answer(path: Path, **options: Any) -> list[list[int]]:
    llm = LLM(
        str(path), dtype="float32", num_threads=2, kv_cache_memory=4 * 1024**2,
        skip_tokenizer_init=True, **options,
    )  # fmt: skip
    prompts = [{"prompt_token_ids": list(range(3, 3 + n))} for n in (1, 5, 30)]
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    outputs = llm.generate(prompts, params)
    llm.close()
    return [output.outputs[0].token_ids for output in outputs]


def test_off_and_auto_are_the_same_and_the_log_says_which(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="octavo")
    native = answer(path)
    assert answer(path, load_format="blocks") == native
    assert f"native kernels compute ({cpu.isa()}, activations of" in caplog.text
    caplog.clear()
    decoded = answer(path, load_format="decoded")
    assert "native kernels" not in caplog.text
    monkeypatch.setenv("OCTAVO_CPU_ISA", "off")
    cpu.forget()
    try:
        assert answer(path) == native
        assert answer(path, load_format="decoded") == decoded
    finally:
        monkeypatch.delenv("OCTAVO_CPU_ISA")
        cpu.forget()
    assert (
        "torch computes what kernels would: no native kernels (OCTAVO_CPU_ISA=off)" in caplog.text
    )


def test_blocks_are_asked_for_where_there_are_none(tiny_llama: TinyLlama) -> None:
    with pytest.raises(ConfigError, match="--load-format blocks is for GGUF files and int4 or"):
        answer(tiny_llama(), load_format="blocks")
