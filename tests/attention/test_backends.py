"""Each backend against float64 over random ragged steps.

Without a GPU the Triton kernels run in Triton's interpreter, if the package is installed: the same
code, a thousand times slower, so steps are small there.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.attention.torch_cpu import TorchAttention
from octavo.attention.triton_paged import TritonAttention
from octavo.attention.tunings import Sharing, Tuning, Tunings
from octavo.attention.work import StepShape
from tests.attention.reference import Case, relative_error

if TYPE_CHECKING:
    from octavo.attention.interface import AttentionSpec, BatchLayout, LayerAttention
    from octavo.attention.triton_work import TritonMetadata

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel's module is imported

TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}
CPU, CUDA = torch.device("cpu"), torch.device("cuda:0")


def triton_interpreted() -> TritonAttention:
    """Small tiles and many chunks, so that small steps reach every path."""
    # Older interpreters fail under numpy 2.4, which no longer makes numbers of arrays.
    pytest.importorskip("triton", minversion="3.8", reason="triton >= 3.8 is not installed")
    if HAS_GPU:
        pytest.skip("the kernels are compiled in this process")
    tuning = Tuning(16, 16, 4, 2, programs_per_sm=1, min_chunk=16)
    long = Tuning(32, 16, 4, 2, 1, 32, merged_rows=4, merged_parts=2)
    many = replace(tuning, merged_parts=2, looks_ahead=True, max_chunk=32, most_per_sm=4)
    tunings = Tunings(tuning, replace(long, looks_ahead=True), many, min_many=1)
    return TritonAttention(tunings, num_sms=8, sharing=Sharing(2, 1, 0))


@st.composite
def sharing_cases(draw: st.DrawFn, longest: int, most_seqs: int) -> Case:
    """Decodes that share prefixes, in any order, and some that do not."""
    case = draw(cases(longest, most_seqs))
    size, seqs, shared = case.block_size, list(case.seqs), []
    for _ in range(draw(st.integers(1, 2))):
        num_blocks = draw(st.integers(1, max(longest // size, 1)))
        tails = draw(st.lists(st.integers(0, longest), min_size=2, max_size=most_seqs))
        shared.append((range(len(seqs), len(seqs) + len(tails)), num_blocks * size))
        seqs += [(1, num_blocks * size + tail) for tail in tails]
    order = draw(st.permutations(range(len(seqs))))
    place = {seq: i for i, seq in enumerate(order)}
    return replace(
        case,
        seqs=tuple(seqs[seq] for seq in order),
        shared=tuple((tuple(place[s] for s in members), n) for members, n in shared),
    )


def cases(longest: int, most_seqs: int) -> st.SearchStrategy[Case]:
    heads = st.sampled_from([(1, 1), (4, 2), (6, 2), (8, 1), (3, 3), (10, 2)])
    seq = st.tuples(
        st.one_of(st.just(1), st.integers(1, longest)),
        st.one_of(st.just(0), st.integers(0, longest)),
    )
    window = st.none() | st.integers(1, longest)
    return st.builds(
        lambda heads, **rest: Case(num_heads=heads[0], num_kv_heads=heads[1], **rest),
        heads=heads,
        seqs=st.lists(seq, min_size=1, max_size=most_seqs).map(tuple),
        head_dim=st.sampled_from([8, 10, 16, 32, 40]),
        block_size=st.sampled_from([1, 4, 12, 16, 32]),
        windows=st.lists(window, min_size=1, max_size=2, unique=True).map(tuple),
        soft_cap=st.none() | st.just(1.5),
        seed=st.integers(0, 2**31),
    )


FIXED = {
    "decodes": Case(seqs=((1, 0), (1, 15), (1, 16), (1, 17), (1, 130))),
    "one long sequence, divided": Case(seqs=((1, 255),)),
    "a prefill": Case(seqs=((70, 0),)),
    "chunk after chunk": Case(seqs=((33, 47), (16, 16))),
    "decodes, chunks and prefills": Case(seqs=((1, 40), (50, 0), (7, 9), (1, 0), (3, 100))),
    "windows": Case(seqs=((1, 90), (40, 30)), windows=(20, None, 1, 1000)),
    "soft cap": Case(seqs=((1, 90), (40, 3)), soft_cap=2.0),
    "odd head size, three heads to a KV head": Case(
        seqs=((1, 40), (20, 9)), head_dim=20, num_heads=9, num_kv_heads=3
    ),
    "more heads to a KV head than rows": Case(
        seqs=((1, 40), (5, 9)), num_heads=40, num_kv_heads=1, head_dim=8
    ),
    "a shared prefix": Case(seqs=((1, 90), (1, 80), (1, 95)), shared=(((0, 1, 2), 80),)),
    "shared prefixes of decodes that are not neighbours, among others": Case(
        seqs=((1, 35), (9, 20), (1, 17), (1, 60), (20, 0), (2, 32), (1, 90), (1, 16)),
        shared=(((0, 3, 6), 32), ((2, 7), 16)),
    ),
    "a shared prefix of more sequences than a tile has tokens": Case(
        seqs=tuple((1, 32 + 3 * i) for i in range(7)),
        shared=((tuple(range(1, 7)), 32),),
        num_heads=8,
        num_kv_heads=1,
    ),
    "a shared prefix and windows": Case(
        seqs=((1, 90), (1, 80), (30, 6)), shared=(((0, 1), 80),), windows=(None, 20, 85)
    ),
    "a shared prefix, soft cap, seven heads to a KV head": Case(
        seqs=((1, 90), (1, 80)), shared=(((0, 1), 80),), soft_cap=2.0, num_heads=14
    ),
}


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_triton_interpreted(name: str, dtype: torch.dtype) -> None:
    assert relative_error(triton_interpreted(), FIXED[name], dtype, CPU) < TOLERANCE[dtype]


@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.too_slow])
@given(cases(longest=40, most_seqs=3))
def test_triton_interpreted_on_random_steps(case: Case) -> None:
    assert relative_error(triton_interpreted(), case, torch.float32, CPU) < 2e-6


class Padded(TritonAttention):
    """Plans as for a graph of some more sequences and tokens than there are."""

    def plan(
        self, spec: AttentionSpec, layout: BatchLayout, pad_to: StepShape | None = None
    ) -> TritonMetadata:
        num_seqs, num_tokens = len(layout.context_lens), int(layout.query_starts[-1])
        more = 3 if num_tokens == num_seqs else 20
        shape = StepShape(num_tokens + more, num_seqs + 3, shares=bool(layout.context_lens.any()))
        return super().plan(spec, layout, shape)


class Alone(TritonAttention):
    """Plans as for a graph of decodes that share nothing, and answers everything three times."""

    def plan(
        self, spec: AttentionSpec, layout: BatchLayout, pad_to: StepShape | None = None
    ) -> TritonMetadata:
        num_seqs = len(layout.context_lens) + 20
        shape = StepShape(num_seqs, num_seqs)
        return super().plan(spec, layout, shape if layout.query_lens.max() == 1 else None)

    def attend(
        self, layer: LayerAttention, q_thd: torch.Tensor, cache: torch.Tensor, meta: TritonMetadata
    ) -> torch.Tensor:
        first = super().attend(layer, q_thd, cache, meta)
        for _ in range(2):  # arrivals are counted anew, and the order of programs changes nothing
            assert torch.equal(super().attend(layer, q_thd, cache, meta), first)
        assert not meta.arrivals.any()
        return first


DECODES = {
    "some divided": Case(seqs=((1, 0), (1, 15), (1, 200), (1, 17), (1, 130))),
    "one": Case(seqs=((1, 255),)),
    "a window, soft cap": Case(seqs=((1, 190), (1, 40)), windows=(100, None), soft_cap=2.0),
    "three heads to a KV head": Case(
        seqs=((1, 140), (1, 9)), head_dim=20, num_heads=9, num_kv_heads=3
    ),
}


@pytest.mark.parametrize("name", DECODES)
def test_triton_interpreted_on_decodes_that_merge_their_parts(name: str) -> None:
    backend = triton_interpreted()
    backend = Alone(backend._tunings, backend._num_sms, backend._sharing)
    assert relative_error(backend, DECODES[name], torch.float32, CPU) < 2e-6


@pytest.mark.parametrize("name", ["decodes", "windows", "a shared prefix and windows"])
def test_triton_interpreted_on_padded_tables(name: str) -> None:
    backend = triton_interpreted()
    backend = Padded(backend._tunings, backend._num_sms, backend._sharing)
    assert relative_error(backend, FIXED[name], torch.float32, CPU) < 2e-6


@settings(deadline=None, max_examples=5, suppress_health_check=[HealthCheck.too_slow])
@given(sharing_cases(longest=24, most_seqs=3))
def test_triton_interpreted_on_random_steps_with_shared_prefixes(case: Case) -> None:
    assert relative_error(triton_interpreted(), case, torch.float32, CPU) < 2e-6


def test_triton_interpreted_with_a_cache_in_fp8() -> None:
    case = FIXED["decodes, chunks and prefills"]
    fp8 = torch.float8_e4m3fn
    error = relative_error(triton_interpreted(), case, torch.float16, CPU, cache_dtype=fp8)
    assert error < TOLERANCE[torch.float16]


@settings(deadline=None, max_examples=60)
@given(cases(longest=80, most_seqs=6))
def test_torch_on_random_steps(case: Case) -> None:
    if case.soft_cap is None:
        assert relative_error(TorchAttention(), case, torch.float32, CPU, unwritten=1234.0) < 2e-6


@pytest.mark.parametrize("name", [name for name, case in FIXED.items() if case.soft_cap is None])
def test_torch_widens_a_cache_in_bfloat16(name: str) -> None:
    """Nothing but the keys and values themselves is rounded."""
    backend, bfloat16 = TorchAttention(), torch.bfloat16
    error = relative_error(backend, FIXED[name], torch.float32, CPU, 1024.0, cache_dtype=bfloat16)
    assert error < TOLERANCE[torch.float32]


def test_torch_widens_a_cache_beyond_its_scratch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.attention.torch_cpu.MAX_SCRATCH_BYTES", 4096)
    for cache_dtype in (None, torch.bfloat16):
        case, backend = FIXED["decodes, chunks and prefills"], TorchAttention()
        error = relative_error(backend, case, torch.float32, CPU, 1024.0, cache_dtype=cache_dtype)
        assert error < TOLERANCE[torch.float32]


LARGE = {
    "head size 64": Case(seqs=((1, 700), (300, 0), (40, 500)), head_dim=64),
    "head size 80": Case(seqs=((1, 700), (300, 0), (40, 500)), head_dim=80),
    "head size 96": Case(seqs=((1, 700), (300, 0), (40, 500)), head_dim=96),
    "head size 128": Case(seqs=((1, 700), (300, 0), (40, 500)), head_dim=128),
    "head size 256": Case(seqs=((1, 700), (300, 0), (40, 500)), head_dim=256),
    "Llama 8B, batch of 64": Case(
        seqs=tuple((1, 31 * i) for i in range(64)), num_heads=32, num_kv_heads=8, head_dim=128
    ),
    "Llama 8B, one long decode": Case(
        seqs=((1, 8191),), num_heads=32, num_kv_heads=8, head_dim=128
    ),
    "Llama 8B, mixed": Case(
        seqs=((1, 3000), (1000, 0), (1, 5), (257, 1000), (16, 4096), (2, 70)),
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
    ),
    "Llama 8B, a shared prefix": Case(
        seqs=((1, 70), *((1, 2048 + 5 * i) for i in range(63)), (100, 2000)),
        shared=((tuple(range(1, 64)), 2048),),
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
    ),
    "windows and cap, head size 256": Case(
        seqs=((1, 3000), (600, 0), (100, 1000)),
        head_dim=256,
        windows=(512, None),
        soft_cap=50.0,
    ),
}  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")
@pytest.mark.parametrize("block_size", [16, 64, 128])
@pytest.mark.parametrize("name", FIXED | LARGE)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_triton_on_the_device(name: str, dtype: torch.dtype, block_size: int) -> None:
    case = replace((FIXED | LARGE)[name], block_size=block_size)
    assert relative_error(TritonAttention(), case, dtype, CUDA) < TOLERANCE[dtype]


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")
@pytest.mark.parametrize("name", FIXED | LARGE)
def test_triton_on_the_device_with_a_cache_in_fp8(name: str) -> None:
    fp8, dtype = torch.float8_e4m3fn, torch.bfloat16
    case = (FIXED | LARGE)[name]
    error = relative_error(TritonAttention(), case, dtype, CUDA, cache_dtype=fp8)
    assert error < TOLERANCE[dtype]


LARGE_DECODES = {
    "one of 8192": Case(seqs=((1, 8191),), num_heads=32, num_kv_heads=8, head_dim=128),
    "uneven": Case(
        seqs=tuple((1, (37 * i * i) % 4000) for i in range(40)), num_heads=32, num_kv_heads=8,
        head_dim=128,
    ),
    "heads of 256, a window": Case(
        seqs=((1, 3000), (1, 700), (1, 5)), head_dim=256, windows=(512, None), soft_cap=50.0
    ),
}  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")
@pytest.mark.parametrize("name", DECODES | LARGE_DECODES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_triton_on_the_device_on_decodes_that_merge_their_parts(
    name: str, dtype: torch.dtype
) -> None:
    case = (DECODES | LARGE_DECODES)[name]
    assert relative_error(Alone(), case, dtype, CUDA) < TOLERANCE[dtype]


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")
@settings(deadline=None, max_examples=25)
@given(cases(longest=600, most_seqs=8))
def test_triton_on_the_device_on_random_steps(case: Case) -> None:
    for dtype, tolerance in TOLERANCE.items():
        assert relative_error(TritonAttention(), case, dtype, CUDA) < tolerance


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")
def test_a_model_compiles_its_kernels_in_its_first_step() -> None:
    from octavo.kernels.paged_attention import attend_kernel, write_kernel
    from octavo.kernels.paged_parts import merge_kernel

    functions = (attend_kernel, merge_kernel, write_kernel)

    def num_compiled() -> int:
        return sum(len(function.device_caches[0][0]) for function in functions)

    backend = TritonAttention()
    model = {"num_heads": 16, "num_kv_heads": 8, "head_dim": 112, "windows": (None, 100)}
    before = num_compiled()
    relative_error(backend, Case(seqs=((1, 0),), **model), torch.bfloat16, CUDA)
    after = num_compiled()
    # Tiles of two shapes, one of them also merging, with a window and without; merges, a write.
    assert after - before == 3 * 2 + 3
    for seqs in (((1, 5000),), ((300, 0), (1, 77)), ((16, 4096), (7, 13)), ((1, 0),) * 33):
        relative_error(backend, Case(seqs=seqs, **model), torch.bfloat16, CUDA)
    assert num_compiled() == after
