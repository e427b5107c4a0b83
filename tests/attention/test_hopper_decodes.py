"""The kernel for decodes: that it compiles, and on a Hopper GPU what it computes.

Gluon has no interpreter: without such a GPU it is compiled for one, by a driver that launches
nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.attention.triton_paged import TritonAttention
from octavo.attention.work import StepShape
from tests.attention.hopper_gpu import CUDA, OFFLINE, TOLERANCE, needs_hopper
from tests.attention.reference import Case, relative_error
from tests.kernels.offline import run_offline

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.attention.interface import AttentionSpec, BatchLayout, LayerAttention
    from octavo.attention.triton_work import TritonMetadata

SCRIPT = (
    OFFLINE
    + """
layout = BatchLayout(np.arange(4), np.array([0, 7, 900]), np.zeros((3, 120), int))
q = torch.zeros(3, heads, dim, dtype=dtype)
tunings = replace(default_tunings(dim, dtype), decodes=hopper_decodes.TUNING)
backend = TritonAttention(tunings, num_sms=132)
for size in (3, 40):
    meta = backend.plan(spec, layout, StepShape(size, size))
    backend.attend(LayerAttention(1.0, window), q, backend.allocate(spec, 2), meta)
loaded = [name for _, name in driver.loaded_in].count("attend_decodes_kernel")
print(loaded, driver.launches.count("attend_decodes_kernel"))
"""
)


@pytest.mark.parametrize(
    "model",
    [
        (32, 8, 128, 16, 0, 0),
        (7, 1, 64, 128, 300, 0),
        (4, 4, 64, 32, 0, 30),
        (16, 1, 128, 16, 9, 9),
    ],
    ids=str,
)
def test_it_compiles_for_hopper(model: tuple[int, ...], tmp_path: Path) -> None:
    done = run_offline(SCRIPT, tmp_path, *map(str, model))
    # Compiled once, whatever the step; the first step also launches it for nothing.
    assert done.stdout.split() == ["1", "3"]


class Graph(TritonAttention):
    """Plans as for a graph of more decodes than there are, and answers everything several times.

    What is in the cache before them came there as prompts.
    """

    def plan(
        self, spec: AttentionSpec, layout: BatchLayout, pad_to: StepShape | None = None
    ) -> TritonMetadata:
        if layout.query_lens.max() > 1:
            return super().plan(spec, layout, pad_to)
        num_seqs = len(layout.context_lens) + 20
        meta = super().plan(spec, layout, StepShape(num_seqs, num_seqs))
        assert all(x.kind.is_decodes for launches in meta.launches.values() for x in launches)
        return meta

    def attend(
        self, layer: LayerAttention, q_thd: torch.Tensor, cache: torch.Tensor, meta: TritonMetadata
    ) -> torch.Tensor:
        first = super().attend(layer, q_thd, cache, meta)
        for _ in range(10):  # a race, or a count that is not begun anew, would show as other bits
            assert torch.equal(super().attend(layer, q_thd, cache, meta), first)
        assert not meta.arrivals.any()
        assert not meta.tickets.any()
        return first


def decodes(*contexts: int) -> tuple[tuple[int, int], ...]:
    return tuple((1, context) for context in contexts)


FIXED = {
    "one token": Case(seqs=decodes(0)),
    "ends of blocks and tiles": Case(seqs=decodes(14, 15, 16, 30, 31, 32, 47, 95, 96)),
    "one long": Case(seqs=decodes(9000)),
    "a long one among short ones": Case(seqs=decodes(*range(3, 60), 7000, *range(60, 90))),
    "more work than programs": Case(
        seqs=decodes(*(37 * i % 1900 for i in range(200))), num_heads=32, num_kv_heads=8
    ),
    "seven heads to a KV head": Case(seqs=decodes(300, 50, 640), num_heads=14),
    "16 heads to a KV head, divided": Case(seqs=decodes(5000, 3), num_heads=16, num_kv_heads=1),
    "soft cap and windows": Case(
        seqs=decodes(700, 80, 3, 1500), windows=(64, None, 1, 1000), soft_cap=3.0
    ),
}
# Query heads to a KV head, KV heads, dimensions, tokens of a block, whether there is a soft cap:
# each of these is compiled for itself.
MODELS = [
    (4, 2, 128, 16, False),
    (7, 1, 64, 32, False),
    (1, 3, 128, 64, True),
    (16, 1, 64, 128, False),
    (5, 2, 128, 16, True),
]


@st.composite
def steps(draw: st.DrawFn) -> Case:
    group, kv_heads, head_dim, block_size, has_cap = draw(st.sampled_from(MODELS))
    contexts = draw(st.lists(st.integers(0, 40) | st.integers(0, 300), max_size=24))
    contexts += draw(st.lists(st.integers(0, 4000), min_size=not contexts, max_size=2))
    return Case(
        seqs=decodes(*draw(st.permutations(contexts))),
        num_heads=group * kv_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        windows=(draw(st.none() | st.integers(1, 3000)),),
        soft_cap=1.5 if has_cap else None,
        seed=draw(st.integers(0, 2**31)),
    )


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_fixed_steps(name: str, dtype: torch.dtype, head_dim: int) -> None:
    case = replace(FIXED[name], head_dim=head_dim)
    assert relative_error(Graph(), case, dtype, CUDA) < TOLERANCE[dtype]


@pytest.mark.gpu
@needs_hopper
@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.too_slow])
@given(steps())
def test_random_steps(case: Case) -> None:
    assert relative_error(Graph(), case, torch.bfloat16, CUDA) < TOLERANCE[torch.bfloat16]
