"""Tiny models with int4 and int8 weights: against transformers, and in memory."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from safetensors.torch import load_file, save_file

from octavo import LLM, SamplingParams
from octavo.errors import CheckpointError
from octavo.kernels import cpu
from octavo.kernels.cpu import matmul
from octavo.models.base import BuildContext
from octavo.models.registry import find_model_class
from octavo.quant.gguf_native import BLOCKS, GGUFNative
from octavo.quant.unquantized import Unquantized
from octavo.runner import loader
from octavo.weights.open import open_checkpoint
from tests import quantized
from tests.models.reference import compare, load_reference
from tests.quantized import PACKED, PLAIN, compressed, write_folder

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.models.base import CausalModel
    from tests.conftest import TinyLlama


def args(bits: int, **options: Any) -> QuantizationArgs:
    return QuantizationArgs(num_bits=bits, **options)


INT8 = args(8, strategy="token", dynamic=True)
# Name to quantization, block format, bits per weight.
CASES: dict[str, tuple[Any, str, float]] = {
    "ct int4, groups": (compressed(PACKED, args(4, group_size=32)), "Q4_0", 4.5),
    "ct int4, zero points": (
        compressed(PACKED, args(4, group_size=32, symmetric=False)), "Q4_1", 5,
    ),
    "ct int4, rows": (compressed(PACKED, args(4, strategy="channel")), "Q4_0", 4.5),
    "ct int8, groups": (compressed(PACKED, args(8, group_size=32)), "Q8_0", 8.5),
    "ct W8A8": (
        compressed(PLAIN, args(8, strategy="channel"), input_activations=INT8), "Q8_0", 8.5,
    ),
    "ct int8, one scale": (
        compressed(PLAIN, args(8, strategy="tensor"), input_activations=INT8), "Q8_0", 8.5,
    ),
    "gptq int4": (quantized.gptq(4, 32, sym=True), "Q4_0", 4.5),
    "gptq int4, zero points": (quantized.gptq(4, 32, sym=False), "Q4_1", 5),
    "gptq v2, rows": (quantized.gptq(4, -1, sym=False, is_v2=True), "Q4_1", 5),
    "gptq int8": (quantized.gptq(8, 64, sym=True), "Q8_0", 8.5),
    "awq": (quantized.awq(64), "Q4_1", 5),
}  # fmt: skip
# Name to quantization and why it is decoded.
DECODED = {
    "groups of 16": (compressed(PACKED, args(4, group_size=16)), "groups of 16 columns"),
    "int8, zero points": (
        compressed(PACKED, args(8, group_size=32, symmetric=False)), "8 bits with zero points",
    ),
    "W8A8, zero points": (
        compressed(
            PLAIN, args(8, strategy="channel", symmetric=False), input_activations=INT8
        ), "8 bits with zero points",
    ),
    "gptq, act-order": (
        quantized.gptq(4, 32, sym=True, order=True),
        "columns in the order of activations (desc_act)",
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    if cpu.why_not() is not None:
        pytest.skip(str(cpu.why_not()))


@pytest.fixture(scope="module")
def source(tiny_llama: TinyLlama) -> Path:
    return tiny_llama(hidden_size=128, intermediate_size=256, initializer_range=0.15, tied=False)


def build(path: Path, method: Any) -> CausalModel:
    checkpoint = open_checkpoint(path)
    model_class = find_model_class(checkpoint.architecture)
    context = BuildContext(torch.float32, method, max_len=64)
    expected = loader.model_bytes(model_class, checkpoint.config, context, checkpoint)
    model = model_class(checkpoint.config, context)
    loader.load_weights(model, checkpoint, torch.float32)
    held = [tensor for module in model.modules() for tensor in loader._tensors(module).values()]
    assert sum(tensor.nbytes for tensor in held) == expected
    checkpoint.close()
    return model


def generate(path: Path, **options: Any) -> Any:
    llm = LLM(
        str(path), num_threads=1, kv_cache_memory=4 * 1024**2, skip_tokenizer_init=True, **options
    )
    prompts = [{"prompt_token_ids": list(range(3, 3 + n))} for n in (1, 5, 30)]
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0)
    outputs = llm.generate(prompts, params)
    llm.close()
    return outputs


@pytest.mark.parametrize("name", [*CASES, *DECODED])
def test_every_weight_is_decoded_as_the_reference_does(
    name: str, source: Path, tmp_path: Path
) -> None:
    quantization = CASES[name][0] if name in CASES else DECODED[name][0]
    path = write_folder(source, tmp_path / "model", *quantization)
    ours = build(path, Unquantized(torch.float32))
    for key, want in load_file(path / "decoded" / "model.safetensors").items():
        got = loader._target(ours, key, key)
        torch.testing.assert_close(got, want, rtol=3e-7, atol=1e-9, msg=key)


@pytest.mark.parametrize("name", ["ct int4, zero points", "gptq int4"])
def test_the_engine_answers_as_transformers_with_decoded_weights(
    name: str, source: Path, tmp_path: Path
) -> None:
    path = write_folder(source, tmp_path / "model", *CASES[name][0])
    outputs = generate(path, dtype="float32", load_format="decoded")
    verdict = compare(load_reference(path / "decoded"), outputs)
    assert verdict.num_tokens == 3 * 8
    assert verdict.max_logprob_error < 1e-4, verdict


@pytest.mark.parametrize("name", CASES)
def test_blocks_compute_what_decoded_weights_do(name: str, source: Path, tmp_path: Path) -> None:
    """And take the bytes of their format: q, k and v in one layer, gate and up in one."""
    quantization, block_format, bits = CASES[name]
    path = write_folder(source, tmp_path / "model", *quantization)
    dense = Unquantized(torch.float32)
    plain, native = build(path / "decoded", dense), build(path, GGUFNative(dense))
    num_kept = 0
    for (module, ours), other in zip(native.named_modules(), plain.modules(), strict=True):
        if not hasattr(ours, "out_parts") or module == "lm_head":
            continue
        packed = ours.tensors()[BLOCKS]
        num_kept += 1
        headers = 64 * len(ours.out_parts)
        assert 8 * (packed.nbytes - headers) == bits * ours.in_features * sum(ours.out_parts)
        sizes = [matmul.packed_bytes(block_format, n, ours.in_features) for n in ours.out_parts]
        assert packed.nbytes == sum(sizes)
        x = torch.randn(5, ours.in_features, generator=torch.Generator().manual_seed(1))
        want = other(x)
        error = (ours(x) - want).pow(2).mean().sqrt() / want.pow(2).mean().sqrt()
        assert error < 0.01, module
    assert num_kept == 2 * 4
    assert native.lm_head is not None
    assert BLOCKS not in native.lm_head.tensors()


def test_qwen2_with_biases_and_a_tied_output_layer(tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=384, hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        initializer_range=0.15, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = Qwen2ForCausalLM(config).float()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data.normal_()
    model.save_pretrained(tmp_path / "source")
    quantization = CASES["ct int4, zero points"][0]
    path = write_folder(tmp_path / "source", tmp_path / "model", *quantization)
    outputs = generate(path, dtype="float32", load_format="decoded")
    verdict = compare(load_reference(path / "decoded"), outputs)
    assert verdict.max_logprob_error < 1e-4, verdict
    kept, plain = build(path, native()), build(path / "decoded", Unquantized(torch.float32))
    name = "model.layers.1.self_attn.qkv_proj"
    ours, other = kept.get_submodule(name), plain.get_submodule(name)
    assert set(ours.tensors()) == {BLOCKS, "bias"}
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(1))
    assert (ours(x) - other(x)).norm() < 0.01 * other(x).norm()


def test_the_engine_keeps_blocks_by_itself(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a flag; and where there is no library torch computes the same."""
    caplog.set_level(logging.INFO, logger="octavo")
    path = write_folder(source, tmp_path / "model", *CASES["awq"][0])
    native = generate(path)
    assert f"native kernels compute ({cpu.isa()}, activations of" in caplog.text
    assert "are decoded" not in caplog.text
    monkeypatch.setenv("OCTAVO_CPU_ISA", "off")
    cpu.forget()
    try:
        other = generate(path)
    finally:
        monkeypatch.delenv("OCTAVO_CPU_ISA")
        cpu.forget()
    tokens = [[output.outputs[0].token_ids for output in run] for run in (native, other)]
    assert tokens[0] == tokens[1]
    reference = load_reference(path / "decoded")
    for output in native:
        (completion,) = output.outputs
        logits = reference(torch.tensor([output.prompt_token_ids])).logits[0, -1].float()
        sampled = completion.logprobs[0].sampled
        error = sampled.logprob - logits.log_softmax(-1)[completion.token_ids[0]].item()
        assert abs(error) < 0.05


@pytest.mark.parametrize("name", DECODED)
def test_what_fits_no_block_is_decoded_and_the_log_says_why(
    name: str, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quantization, reason = DECODED[name]
    model = build(write_folder(source, tmp_path / "model", *quantization), native())
    assert not any(BLOCKS in loader._tensors(module) for module in model.modules())
    assert f"14 of 14 quantized weights are decoded: {reason} (14)" in caplog.text


def native() -> GGUFNative:
    return GGUFNative(Unquantized(torch.float32))


def change(path: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(path / "model.safetensors")
    tensors.pop(name)
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, path / "model.safetensors")


def test_scales_beyond_float16_decode_their_layer_alone(
    source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And what is multiplied together with it."""
    path = write_folder(source, tmp_path / "model", *CASES["ct int4, groups"][0])
    name = "model.layers.1.mlp.up_proj.weight_scale"
    scale = load_file(path / "model.safetensors")[name].bfloat16()
    scale[3, 1] = 1e-9
    change(path, name, scale)
    model = build(path, native())
    assert BLOCKS not in model.get_submodule("model.layers.1.mlp.gate_up_proj").params
    assert BLOCKS in model.get_submodule("model.layers.1.mlp.down_proj").params
    assert "2 of 14 quantized weights are decoded: " in caplog.text
    assert "scales that float16 cannot hold (1)" in caplog.text
    assert "multiplied together with such a layer (1)" in caplog.text


def test_layers_that_are_not_quantized_stay_as_they_are(source: Path, tmp_path: Path) -> None:
    config, layer = CASES["gptq int4"][0]
    path = write_folder(source, tmp_path / "gptq", config, layer, skip=("layers.0.mlp",))
    config, layer = CASES["ct int4, groups"][0]
    config = config | {"ignore": ["lm_head", r"re:.*layers\.0\.mlp\..*"]}
    for folder in (
        path, write_folder(source, tmp_path / "ct", config, layer, skip=("layers.0.mlp",))
    ):  # fmt: skip
        model = build(folder, native())
        kept = [n for n, m in model.named_modules() if BLOCKS in loader._tensors(m)]
        assert len(kept) == 6
        plain = load_file(source / "model.safetensors")["model.layers.0.mlp.down_proj.weight"]
        down = model.get_submodule("model.layers.0.mlp.down_proj")
        assert torch.equal(down.params["weight"], plain)


def test_a_bias_that_the_model_does_not_have_must_be_zero(source: Path, tmp_path: Path) -> None:
    path = write_folder(source, tmp_path / "model", *CASES["gptq int4"][0])
    change(path, "model.layers.0.mlp.up_proj.bias", torch.full((128,), 0.5))
    with pytest.raises(CheckpointError, match=r"up_proj\.bias: the model has no such tensor"):
        build(path, native())


def test_a_missing_layer_is_named(source: Path, tmp_path: Path) -> None:
    config, layer = CASES["awq"][0]
    path = write_folder(source, tmp_path / "model", config, layer)
    tensors = load_file(path / "model.safetensors")
    kept = {k: v for k, v in tensors.items() if "layers.1.self_attn.v_proj" not in k}
    save_file(kept, path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing, such as .*1\.self_attn\.v_proj\.weight"):
        build(path, native())
    assert json.loads((path / "config.json").read_text())["quantization_config"] == config
