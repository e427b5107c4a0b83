"""The kernel for prompts: that it compiles, and on a Hopper GPU what it computes.

Gluon has no interpreter: without such a GPU it is compiled for one, by a driver that launches
nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.attention.triton_paged import TritonAttention
from tests.attention.hopper_gpu import CUDA, OFFLINE, TOLERANCE, needs_hopper
from tests.attention.reference import Case, relative_error
from tests.kernels.offline import run_offline

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.attention.interface import AttentionSpec

SCRIPT = (
    OFFLINE
    + """
layout = BatchLayout(np.array([0, 200, 201, 900]), np.array([0, 7, 100]), np.zeros((3, 120), int))
q = torch.zeros(900, heads, dim, dtype=dtype)
for least in (0, 10**9):
    prompts = replace(hopper_prompts.TUNINGS, min_mean_keys=least)
    backend = TritonAttention(replace(default_tunings(dim, dtype), prompts=prompts), num_sms=132)
    meta = backend.plan(spec, layout)
    backend.attend(LayerAttention(1.0, window), q, backend.allocate(spec, 2), meta)
loaded = [name for _, name in driver.loaded_in].count("attend_prompts_kernel")
print(loaded, driver.launches.count("attend_prompts_kernel"))
"""
)


@pytest.mark.parametrize(
    "model",
    [(32, 8, 128, 16, 0, 0), (7, 1, 64, 128, 300, 0), (4, 4, 64, 8, 0, 30), (64, 1, 128, 64, 9, 9)],
    ids=str,
)
def test_it_compiles_for_hopper(model: tuple[int, ...], tmp_path: Path) -> None:
    done = run_offline(SCRIPT, tmp_path, *map(str, model))
    # Both shapes of tiles come into being; each backend also launches one of them for nothing.
    assert done.stdout.split() == ["2", "4"]


FIXED = {
    "a prompt": Case(seqs=((300, 0),)),
    "prompts of few tokens": Case(seqs=((5, 0), (6, 0), (31, 0), (32, 0), (33, 0), (1, 9))),
    "chunks whose keys begin and end within a block": Case(
        seqs=((37, 5), (211, 0), (130, 777), (999, 3)), windows=(None, 100, 7)
    ),
    "more work than programs, long and short": Case(
        seqs=tuple((90 + 131 * i % 700, 0) for i in range(24)), num_heads=16, num_kv_heads=8
    ),
    "divided among programs": Case(seqs=((64, 6000), (9, 3000))),
    "seven heads to a KV head": Case(seqs=((300, 50), (64, 0)), num_heads=14),
    "three heads to a KV head, divided": Case(seqs=((40, 5000),), num_heads=6),
    "64 heads to one KV head": Case(seqs=((100, 20),), num_heads=64, num_kv_heads=1),
    "soft cap and windows": Case(seqs=((500, 700), (80, 0)), windows=(64, None), soft_cap=3.0),
    "decodes beside prompts": Case(seqs=((1, 900), (400, 0), (1, 3), (4, 70), (260, 1100))),
    "decodes that share a prefix beside prompts": Case(
        seqs=((1, 700), (1, 650), (300, 0), (1, 800), (1, 640)), shared=(((0, 1, 3, 4), 640),)
    ),
}


# Query heads to a KV head, KV heads, dimensions, tokens of a block, whether there is a window and a
# soft cap: each of these is compiled for itself.
MODELS = [
    (4, 2, 128, 16, False, False),
    (7, 1, 64, 8, True, False),
    (1, 3, 128, 32, True, True),
    (16, 1, 64, 128, False, False),
    (5, 2, 128, 64, True, False),
]


@st.composite
def prompts(draw: st.DrawFn) -> Case:
    group, kv_heads, head_dim, block_size, has_window, has_cap = draw(st.sampled_from(MODELS))
    lens = st.integers(1, 60) | st.integers(1, 700)
    seqs = draw(st.lists(st.tuples(lens, st.just(0) | lens), min_size=1, max_size=6))
    return Case(
        seqs=tuple(seqs),
        num_heads=group * kv_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        block_size=block_size,
        windows=(draw(st.integers(1, 900)),) if has_window else (None,),
        soft_cap=1.5 if has_cap else None,
        seed=draw(st.integers(0, 2**31)),
    )


class Always(TritonAttention):
    """Without a rule that chooses: few keys a tile, or many."""

    def __init__(self, min_mean_keys: int) -> None:
        super().__init__()
        self._least = min_mean_keys

    def _tunings_of(self, spec: AttentionSpec) -> Any:
        tunings = super()._tunings_of(spec)
        assert tunings.prompts is not None
        return replace(tunings, prompts=replace(tunings.prompts, min_mean_keys=self._least))


@pytest.mark.gpu
@needs_hopper
@pytest.mark.parametrize("min_mean_keys", [0, 10**9], ids=["many keys", "few keys"])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_fixed_steps(name: str, dtype: torch.dtype, head_dim: int, min_mean_keys: int) -> None:
    case = replace(FIXED[name], head_dim=head_dim)
    assert relative_error(Always(min_mean_keys), case, dtype, CUDA) < TOLERANCE[dtype]


@pytest.mark.gpu
@needs_hopper
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(prompts(), st.sampled_from([0, 10**9]))
def test_random_steps(case: Case, min_mean_keys: int) -> None:
    error = relative_error(Always(min_mean_keys), case, torch.bfloat16, CUDA)
    assert error < TOLERANCE[torch.bfloat16]


@pytest.mark.gpu
@needs_hopper
def test_the_same_result_every_time() -> None:
    """A race would show as different bits."""
    case = FIXED["more work than programs, long and short"]

    class Thrice(TritonAttention):
        def attend(self, *args: Any) -> torch.Tensor:
            first = super().attend(*args)
            for _ in range(20):
                assert torch.equal(super().attend(*args), first)
            return first

    assert relative_error(Thrice(), replace(case, head_dim=128), torch.bfloat16, CUDA) < 1e-2
