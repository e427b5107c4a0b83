"""Every architecture against `transformers`: tiny random checkpoints, every way of batching."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest

from octavo import LLM, SamplingParams
from tests.full import IS_FULL
from tests.models.reference import compare, load_reference

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.llm import RequestOutput
    from tests.conftest import TinyLlama

NUM_PROMPTS, OUTPUT_LEN = 32, 64
NUM_SLOW = NUM_PROMPTS if IS_FULL else 10
"""Prompts in ways of many small steps: the seven lengths about a block's, and three others."""
GREEDY = SamplingParams(temperature=0, max_tokens=OUTPUT_LEN, ignore_eos=True, logprobs=0)


def prompts(vocab_size: int, longest: int = 90) -> list[Any]:
    rng = random.Random(5)
    lengths = [1, 2, 15, 16, 17, 32, 33] + [rng.randint(3, longest) for _ in range(NUM_PROMPTS - 7)]
    return [{"prompt_token_ids": [rng.randrange(vocab_size) for _ in range(n)]} for n in lengths]


def run(path: Path, num_prompts: int = NUM_PROMPTS, **options: Any) -> list[RequestOutput]:
    llm = LLM(str(path), dtype="float32", num_threads=1, kv_cache_memory=16 * 1024**2, **options)
    try:
        return llm.generate(prompts(llm.info.vocab_size)[:num_prompts], GREEDY)
    finally:
        llm.close()


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


@pytest.fixture(scope="module")
def tiny_gemma(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Path:
    """Seven layers, one of them full, a window of 20 tokens, two queries to a KV head."""
    import shutil

    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    folder = tmp_path_factory.mktemp("tiny-gemma")
    config = Gemma3TextConfig(
        vocab_size=384,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=7,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=24,
        sliding_window=20,
        max_position_embeddings=256,
        initializer_range=0.3,
    )
    torch.manual_seed(3)
    model = Gemma3ForCausalLM(config)
    model.save_pretrained(folder)
    for file in tiny_tokenizer.iterdir():
        shutil.copy(file, folder)
    return folder


LLAMAS: dict[str, dict[str, Any]] = {
    "grouped queries, tied": {},
    "untied": {"tied": False},
    "llama3 rope": {"rope": "llama3"},
    "linear rope, biases": {
        "rope": {"rope_type": "linear", "factor": 2.0},
        "attention_bias": True,
        "mlp_bias": True,
    },
    "one KV head per query head, odd head size": {"num_key_value_heads": 4, "head_dim": 10},
    "one KV head for all": {"num_key_value_heads": 1},
}


@pytest.mark.parametrize("name", LLAMAS)
def test_llama_equals_the_reference(
    name: str, tiny_llama: TinyLlama, llama3_rope: dict[str, Any]
) -> None:
    options = dict(LLAMAS[name])
    if options.get("rope") == "llama3":
        options["rope"] = llama3_rope
    path = tiny_llama(**options)
    verdict = compare(load_reference(path), run(path))
    assert verdict.num_tokens == NUM_PROMPTS * OUTPUT_LEN
    assert verdict.num_ties <= 5, verdict
    assert verdict.max_logprob_error < 1e-4, verdict


def test_gemma3_equals_the_reference(tiny_gemma: Path) -> None:
    verdict = compare(load_reference(tiny_gemma), run(tiny_gemma))
    assert verdict.num_tokens == NUM_PROMPTS * OUTPUT_LEN
    assert verdict.num_ties <= 5, verdict
    assert verdict.max_logprob_error < 1e-3, verdict


SMALL: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
# Name to family in transformers, and fields of its configuration beside SMALL's.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "Qwen2, a window from layer 1 on": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
    ),
    "Qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "Qwen3, untied, biases, another base": (
        "Qwen3",
        {
            "head_dim": 10,
            "attention_bias": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        },
    ),
    "Mistral, no window": ("Mistral", {"sliding_window": None}),
    "Mistral, a window": ("Mistral", {"sliding_window": 20, "head_dim": 12}),
}


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> Any:
    """Makes a folder with a random model of OTHERS, norms and biases random too."""
    import shutil

    import torch
    import transformers

    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name in made:
            return made[name]
        family, fields = OTHERS[name]
        config = getattr(transformers, f"{family}Config")(**SMALL, **fields)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            model = getattr(transformers, f"{family}ForCausalLM")(config).float()
            for key, tensor in model.named_parameters():
                # transformers begins with ones and zeros, which would hide a swapped norm
                if key.endswith("norm.weight"):
                    torch.nn.init.uniform_(tensor, 0.5, 1.5)
                elif key.endswith("bias"):
                    torch.nn.init.normal_(tensor, std=0.3)
        made[name] = tmp_path_factory.mktemp("tiny-other")
        model.save_pretrained(made[name])
        for file in tiny_tokenizer.iterdir():
            shutil.copy(file, made[name])
        return made[name]

    return make


@pytest.mark.parametrize("name", OTHERS)
def test_families_like_llama_equal_the_reference(name: str, other: Any) -> None:
    path = other(name)
    verdict = compare(load_reference(path), run(path))
    assert verdict.num_tokens == NUM_PROMPTS * OUTPUT_LEN
    assert verdict.num_ties <= 5, verdict
    assert verdict.max_logprob_error < 1e-4, verdict


# Names of tensors in a checkpoint, and what GGUF's own tables call them.
GGUF_ARCHITECTURES = {"Qwen2": "qwen2", "Qwen3": "qwen3"}


@pytest.mark.parametrize("name", GGUF_ARCHITECTURES)
def test_qwen_from_gguf_equals_the_folder(name: str, other: Any, tmp_path: Path) -> None:
    """Written with the gguf package's tables of names, as its converter for these families does."""
    import gguf
    from safetensors.numpy import load_file

    folder = other(name)
    architecture = gguf.MODEL_ARCH[name.upper()]
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", GGUF_ARCHITECTURES[name])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    writer.add_token_list([f"token{i}" for i in range(config["vocab_size"])])
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    for key, tensor in load_file(folder / "model.safetensors").items():
        writer.add_tensor(names.get_name(key, try_suffixes=(".weight", ".bias")), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    prompts_of_ids = prompts(config["vocab_size"])[:6]
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=0)
    answers = []
    for path in (folder, tmp_path / "tiny.gguf"):
        llm = LLM(
            str(path),
            dtype="float32",
            num_threads=1,
            kv_cache_memory=4 * 1024**2,
            load_format="decoded",
            skip_tokenizer_init=True,
        )
        answers.append(
            [output.outputs[0].logprobs for output in llm.generate(prompts_of_ids, params)]
        )
        llm.close()
    assert answers[0] == answers[1]


WAYS: dict[str, dict[str, Any]] = {
    "chunks of 16": {"max_num_batched_tokens": 16},
    "chunks of 7, four at a time": {"max_num_batched_tokens": 7, "max_num_seqs": 4},
    "one at a time": {"max_num_seqs": 1},
    "blocks of 4": {"block_size": 4},
    "blocks of one token": {"block_size": 1},
    "no prefix caching": {"enable_prefix_caching": False},
}


@pytest.mark.parametrize("family", ["llama", "gemma"])
@pytest.mark.parametrize("way", WAYS)
def test_batching_does_not_change_the_output(
    way: str, family: str, tiny_llama: TinyLlama, tiny_gemma: Path, llama3_rope: dict[str, Any]
) -> None:
    path = tiny_gemma if family == "gemma" else tiny_llama(rope=llama3_rope, tied=False)
    num_prompts = NUM_SLOW if "max_num_seqs" in WAYS[way] else NUM_PROMPTS
    verdict = compare(load_reference(path), run(path, num_prompts, **WAYS[way]))
    assert verdict.num_tokens == num_prompts * OUTPUT_LEN
    assert verdict.num_ties <= 5, verdict


def test_a_cache_that_is_too_small_for_all_does_not_change_the_output(
    tiny_llama: TinyLlama,
) -> None:
    path = tiny_llama()
    llm = LLM(str(path), dtype="float32", num_threads=1, kv_cache_memory=80_000, max_model_len=160)
    outputs = llm.generate(prompts(llm.info.vocab_size), GREEDY)
    stats = llm.stats
    llm.close()
    assert stats.num_preemptions > 0
    assert stats.kv_cache_usage == 0
    assert compare(load_reference(path), outputs).num_ties <= 5


def test_streamed_equals_batched(tiny_llama: TinyLlama) -> None:
    path = tiny_llama()
    batched = tokens(run(path))
    llm = LLM(str(path), dtype="float32", num_threads=1, kv_cache_memory=16 * 1024**2)
    for prompt, expected in list(zip(prompts(llm.info.vocab_size), batched, strict=True))[:8]:
        deltas = list(llm.stream(prompt, GREEDY))
        assert [token for delta in deltas for token in delta.token_ids] == expected
        assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
        assert deltas[-1].finish_reason == "length"
    llm.close()


def test_bfloat16_stays_near_float32(tiny_llama: TinyLlama) -> None:
    path = tiny_llama()
    llm = LLM(str(path), dtype="bfloat16", num_threads=1, kv_cache_memory=16 * 1024**2)
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=0)
    outputs = llm.generate(prompts(llm.info.vocab_size), params)
    llm.close()
    import torch

    reference = load_reference(path)
    for output in outputs:
        with torch.inference_mode():
            logits = reference(torch.tensor([output.prompt_token_ids])).logits[0, -1]
        entry = output.outputs[0].logprobs
        assert entry is not None
        expected = logits.log_softmax(-1)[entry[0].sampled.token_id].item()
        assert abs(expected - entry[0].sampled.logprob) < 0.3
