"""A recorded step against the same layers run one by one, and what may not change its results."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from octavo import LLM, SamplingParams
from octavo.attention.interface import BatchLayout
from octavo.kernels import cpu
from octavo.kernels.cpu.plan import Kind
from octavo.layers.mlp import MLP
from octavo.layers.rotary import Rotary
from octavo.runner.forward import LayerByLayer
from octavo.runner.native_plan import LEAST_ROWS, NativePlan
from tests.runner.cpu_steps import batch_of, load_runner

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.layers.batch import ForwardBatch
    from octavo.runner.runner import ModelRunner


SHAPE: dict[str, Any] = {
    "vocab_size": 384,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "Qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "Qwen3": ("Qwen3", {"head_dim": 20}),
    "Mistral, a window": ("Mistral", {"sliding_window": 20}),
    "Gemma 3": (
        "Gemma3",
        {"head_dim": 16, "sliding_window": 20, "query_pre_attn_scalar": 24,
         "num_hidden_layers": 7, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0},
    ),
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    if cpu.why_not() is not None:
        pytest.skip(str(cpu.why_not()))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    import transformers

    made = {}
    for name, (family, fields) in FAMILIES.items():
        text = "Text" if family == "Gemma3" else ""
        config = getattr(transformers, f"{family}{text}Config")(**(SHAPE | fields))
        torch.manual_seed(1)
        made[name] = tmp_path_factory.mktemp("recorded")
        getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(made[name])
    return made


def make_runner(path: Path, **options: Any) -> ModelRunner:
    usual = {"dtype": "float32", "attention_backend": "native"}
    return load_runner(path, max_num_seqs=8, kv_cache_memory=4 * 1024**2, **(usual | options))


def make_batch(runner: ModelRunner, seqs: list[tuple[int, int]]) -> ForwardBatch:
    """Pairs of new tokens and tokens in the cache; each sequence has 8 blocks of its own."""
    new, old = (np.array(part, np.int64) for part in zip(*seqs, strict=True))
    starts = np.concatenate([[0], np.cumsum(new)])
    layout = BatchLayout(starts, old, np.arange(8 * len(seqs)).reshape(-1, 8)[::-1].copy())
    ids = [7 * (position + 3 * seq) % 384 for seq, position in zip(
        layout.seq_of_token.tolist(), layout.positions.tolist(), strict=True)]  # fmt: skip
    return batch_of(runner, layout, torch.tensor(ids))


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_a_recorded_step_computes_what_the_layers_do(name: str, folders: dict[str, Path]) -> None:
    runner = make_runner(folders[name])
    plan = runner._steps._forward
    assert isinstance(plan, NativePlan)
    layers = LayerByLayer(runner.model)
    steps = [
        [(5, 0), (LEAST_ROWS + 9, 0), (1, 0)],  # more tokens than there was room for
        [(1, 5), (1, LEAST_ROWS + 9), (30, 1)],
        [(1, 6), (1, LEAST_ROWS + 10), (1, 31)],
    ]
    for seqs in steps:
        batch = make_batch(runner, seqs)
        got, hidden = plan.logits(batch).clone(), plan.hidden(batch)
        want = layers.logits(batch)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(hidden, layers.hidden(batch), rtol=1e-4, atol=1e-4)
        assert torch.equal(plan.largest(batch), layers.largest(batch))
    plan.times = torch.zeros(len(plan.kinds), dtype=torch.int64)
    assert torch.equal(plan.logits(make_batch(runner, steps[-1])), got)
    assert all(plan.times[place] > 0 for place, kind in enumerate(plan.kinds) if kind == Kind.DENSE)


@pytest.mark.parametrize("name", ["Llama", "Gemma 3"])
@torch.inference_mode()
def test_angles_are_there_when_their_positions_come(
    name: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = make_runner(folders[name])
    for module in complete.model.modules():
        if isinstance(module, Rotary):
            module.table(complete.device)
    monkeypatch.setattr("octavo.layers.rotary.FIRST_ROWS", 4)
    growing = make_runner(folders[name])
    for seqs in ([(3, 0)], [(1, 3), (5, 0)], [(1, 4), (1, 5), (60, 0)], [(1, 60), (1, 125)]):
        got, want = (
            runner._steps._forward.logits(make_batch(runner, seqs)).clone()  # type: ignore[union-attr]
            for runner in (growing, complete)
        )
        assert torch.equal(got, want)


@torch.inference_mode()
def test_a_token_beyond_the_vocabulary_is_an_error(folders: dict[str, Path]) -> None:
    runner = make_runner(folders["Llama"])
    batch = make_batch(runner, [(3, 0)])
    batch.token_ids[1] = 384
    with pytest.raises(IndexError, match="beyond the embedding's rows"):
        runner._steps._forward.logits(batch)  # type: ignore[union-attr]


@pytest.mark.parametrize("what", ["an operator", "an attribute"])
def test_what_cannot_be_recorded_is_left_to_torch(
    what: str,
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="octavo")
    usual = MLP.forward
    if what == "an operator":
        reason = "a layer calls tanh"
        monkeypatch.setattr(MLP, "forward", lambda self, x: usual(self, torch.tanh(x)))
    else:
        reason = "a layer uses `abs` of its input"
        monkeypatch.setattr(MLP, "forward", lambda self, x: usual(self, x.abs()))
    runner = make_runner(folders["Llama"])
    assert isinstance(runner._steps._forward, LayerByLayer)
    lines = [record.message for record in caplog.records if "layer by layer" in record.message]
    assert lines == [f"torch runs the model layer by layer: {reason}"]


def answers(path: Path, prompts: list[list[int]], **options: Any) -> list[Any]:
    llm = LLM(
        str(path), skip_tokenizer_init=True, device="cpu",
        **({"dtype": "float32", "attention_backend": "native", "num_threads": 2,
            "kv_cache_memory": 4 * 1024**2} | options),
    )  # fmt: skip
    params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, prompt_logprobs=None)
    asked = [{"prompt_token_ids": prompt} for prompt in prompts]
    try:
        return [
            [output.outputs[0].token_ids for output in llm.generate(group, params)]
            for group in ([asked] if options.pop("together", True) else [[one] for one in asked])
        ]
    finally:
        llm.close()


@pytest.mark.parametrize("cache", ["auto", "bfloat16", "int8"])
def test_nothing_beside_a_sequence_changes_it(cache: str, folders: dict[str, Path]) -> None:
    """Batches, threads, chunks, hits of the prefix cache and preemption: the same tokens."""
    path = folders["Gemma 3"]
    prompts = [[(7 * i + k) % 380 for i in range(3 + 9 * k)] for k in range(8)]
    prompts.append([*prompts[-1][:40], 5])  # shares two blocks

    def run(**options: Any) -> list[list[int]]:
        return answers(path, prompts, kv_cache_dtype=cache, **options)[0]

    want = run()
    alone = [answers(path, [prompt], kv_cache_dtype=cache, num_threads=1)[0][0]
             for prompt in prompts[::3]]  # fmt: skip
    assert alone == want[::3]
    assert run(max_num_batched_tokens=16) == want
    assert run(enable_prefix_caching=False) == want
    few = 9 * 28672 // {"auto": 1, "bfloat16": 2, "int8": 3}[cache]  # blocks
    assert run(kv_cache_memory=few, max_model_len=96) == want
