"""What a step computes is the same in every instruction set, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.attention.interface import AttentionSpec, BatchLayout, LayerAttention
from octavo.attention.native_cpu import NativeAttention
from octavo.kernels import cpu
from octavo.kernels.cpu.plan import ACTIVATIONS, Kind, Op, Plan, Step
from octavo.runner.native_plan import NativePlan
from tests.attention.reference import Case, layout_of
from tests.attention.test_backends import cases
from tests.runner.cpu_steps import batch_of, load_real_runner

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from octavo.attention.interface import AttentionBackend

pytestmark = pytest.mark.usefixtures("native")

often = settings(max_examples=40, deadline=None)


def in_each_set(compute: Callable[[], torch.Tensor]) -> dict[str, torch.Tensor]:
    usual, results = cpu.isa(), {}
    for name in cpu.available_isas():
        cpu.set_isa(name)
        results[name] = compute()
    cpu.set_isa(usual)
    return results


def same(compute: Callable[[], torch.Tensor]) -> None:
    first, *others = in_each_set(compute).items()
    for name, result in others:
        assert torch.equal(result, first[1]), (first[0], name)


def random(*shape: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator) * 3


def run(op: Op, num_tokens: int, **step: Any) -> None:
    cpu.set_num_threads(2)
    Plan([op]).run(Step(num_tokens=num_tokens, num_seqs=num_tokens, **step))


@often
@given(width=st.integers(1, 700), tokens=st.integers(1, 5), seed=st.integers(0, 2**31))
def test_norms(width: int, tokens: int, seed: int) -> None:
    x, weight = random(tokens, width, seed=seed), random(width, seed=seed + 1)

    def compute() -> torch.Tensor:
        out = torch.empty_like(x)
        op = Op(kind=Kind.NORM, input=x.data_ptr(), out=out.data_ptr(), weight=weight.data_ptr())
        op.width, op.eps = width, 1e-5
        run(op, tokens)
        return out

    same(compute)


@often
@given(
    width=st.integers(1, 300), name=st.sampled_from(sorted(ACTIVATIONS)),
    scale=st.floats(0.01, 40), seed=st.integers(0, 2**31),
)  # fmt: skip
def test_gates(width: int, name: str, scale: float, seed: int) -> None:
    x = random(3, 2 * width, seed=seed) * scale

    def compute() -> torch.Tensor:
        out = torch.empty(3, width)
        op = Op(kind=Kind.GATE, option=ACTIVATIONS[name], input=x.data_ptr(), out=out.data_ptr())
        op.width, op.in_width = width, 2 * width
        run(op, 3)
        return out

    same(compute)


def attend(case: Case, dtype: torch.dtype, backend: AttentionBackend | None = None) -> torch.Tensor:
    """The step's attention; all tokens are written into the cache before."""
    layout, num_blocks = layout_of(case, np.random.default_rng(case.seed))
    starts = np.concatenate([[0], np.cumsum(layout.seq_lens)])
    all_new = replace(layout, query_starts=starts, context_lens=np.zeros_like(layout.context_lens))
    window = case.windows[0]
    spec = AttentionSpec(
        case.num_heads, case.num_kv_heads, case.head_dim, torch.float32, torch.device("cpu"),
        case.block_size, frozenset({window}), case.soft_cap, dtype,
    )  # fmt: skip
    kv = random(2, int(starts[-1]), case.num_kv_heads, case.head_dim, seed=1)
    queries = random(int(layout.query_starts[-1]), case.num_heads, case.head_dim, seed=2)
    backend = backend or NativeAttention()
    cache = backend.allocate(spec, num_blocks)
    backend.write(kv[0], kv[1], cache, backend.plan(spec, all_new))
    return backend.attend(LayerAttention(0.2, window), queries, cache, backend.plan(spec, layout))


DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.int8])


@settings(max_examples=60, deadline=None)
@given(case=cases(longest=300, most_seqs=4), dtype=DTYPES)
def test_attention(case: Case, dtype: torch.dtype) -> None:
    same(lambda: attend(case, dtype))


@settings(max_examples=30, deadline=None)
@given(case=cases(longest=300, most_seqs=4), dtype=DTYPES)
def test_attention_with_any_block_size(case: Case, dtype: torch.dtype) -> None:
    want = attend(replace(case, block_size=16), dtype)
    for size in {1, 12, case.block_size}:
        assert torch.equal(attend(replace(case, block_size=size), dtype), want)


@pytest.mark.model
@pytest.mark.parametrize("model", ["smollm2_path", "gemma_path"])
def test_logits_of_a_model(model: str, request: pytest.FixtureRequest) -> None:
    """Of a prompt in two pieces, and of two streams behind it."""
    path: Path = request.getfixturevalue(model)
    runner = load_real_runner(path)
    plan = NativePlan(runner.model, runner.spec, runner.kv_caches)
    token_ids = torch.randint(100, 5000, (60,), generator=torch.Generator().manual_seed(0))
    tables = np.stack([np.arange(12), np.arange(12, 24)])

    def step(query_starts: list[int], context_lens: list[int], ids: torch.Tensor) -> torch.Tensor:
        num_seqs = len(context_lens)
        layout = BatchLayout(np.array(query_starts), np.array(context_lens), tables[:num_seqs])
        return plan.logits(batch_of(runner, layout, ids)).clone()

    def compute() -> torch.Tensor:
        with torch.inference_mode():
            found = [step([0, 17], [0], token_ids[:17]), step([0, 43], [17], token_ids[17:])]
            found.append(step([0, 1, 6], [60, 0], token_ids[:6]))
        return torch.cat(found)

    same(compute)
