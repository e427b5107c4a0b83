"""The native kernels against float64 over random ragged steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.attention.interface import AttentionSpec, LayerAttention
from octavo.attention.native_cpu import NativeAttention
from octavo.attention.select import select_backend
from octavo.errors import ConfigError
from octavo.kernels import cpu
from tests.attention.reference import Case, layout_of, relative_error
from tests.attention.test_backends import FIXED, cases
from tests.kernels.cpu.helper import ISAS

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    if cpu.why_not() is not None:
        pytest.skip(str(cpu.why_not()))


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> object:
    usual, name = cpu.isa(), request.param
    if name not in cpu.available_isas():
        pytest.skip(f"this processor has no {name}")
    cpu.set_isa(name)
    cpu.set_num_threads(2)
    yield name
    cpu.set_isa(usual)


@pytest.mark.parametrize("name", FIXED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fixed_steps(name: str, dtype: torch.dtype, isa: str) -> None:
    assert relative_error(NativeAttention(), FIXED[name], dtype, CPU) < TOLERANCE[dtype]


@settings(max_examples=60, deadline=None)
@given(case=cases(longest=300, most_seqs=5), threads=st.integers(1, 3))
def test_random_steps(case: Case, threads: int) -> None:
    cpu.set_num_threads(threads)
    assert relative_error(NativeAttention(), case, torch.float32, CPU) < TOLERANCE[torch.float32]
    error = relative_error(NativeAttention(), case, torch.float32, CPU, cache_dtype=torch.bfloat16)
    assert error < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize("seqs", [[(1, 300)], [(40, 100), (1, 7), (1, 0)]], ids=["one", "mixed"])
@pytest.mark.parametrize("window", [None, 50])
def test_a_cache_of_8_bits_is_near_one_of_32(
    seqs: list[tuple[int, int]], window: int | None, isa: str
) -> None:
    """Codes are off by half of 1/127 of a vector's largest number, which averages out."""
    outs = []
    for cache_dtype in (None, torch.int8):
        generator = torch.Generator().manual_seed(0)
        spec = AttentionSpec(
            6, 2, 20, torch.float32, CPU, 16, frozenset({window}), cache_dtype=cache_dtype
        )
        layout, num_blocks = layout_of(Case(tuple(seqs)), np.random.default_rng(0))
        backend = NativeAttention()
        cache = backend.allocate(spec, num_blocks)
        full = replace(
            layout,
            query_starts=np.concatenate([[0], np.cumsum(layout.seq_lens)]),
            context_lens=np.zeros_like(layout.context_lens),
        )
        kv = torch.randn(2, int(full.query_starts[-1]), 2, 20, generator=generator)
        backend.write(kv[0], kv[1], cache, backend.plan(spec, full))
        q = torch.randn(int(layout.query_starts[-1]), 6, 20, generator=generator)
        meta = backend.plan(spec, layout)
        outs.append(backend.attend(LayerAttention(0.3, window), q, cache, meta))
    error = (outs[1] - outs[0]).norm() / outs[0].norm()
    assert 0 < error < 0.01


def test_it_is_taken_where_torch_cannot_or_the_rest_is_native() -> None:
    spec = AttentionSpec(4, 2, 16, torch.float32, CPU, 16, frozenset({None}))
    assert select_backend("auto", spec).name == "torch"
    assert select_backend("auto", spec, prefers="native").name == "native"
    for other in (replace(spec, soft_cap=2.0), replace(spec, cache_dtype=torch.int8)):
        assert select_backend("auto", other).name == "native"
    with pytest.raises(ConfigError, match=r"native: it keeps no keys and values in torch.float8"):
        select_backend("auto", replace(spec, cache_dtype=torch.float8_e4m3fn))
    with pytest.raises(ConfigError, match=r"native: it computes float32 and bfloat16"):
        select_backend("native", replace(spec, dtype=torch.float16))


def test_without_the_library_torch_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = AttentionSpec(4, 2, 16, torch.float32, CPU, 16, frozenset({None}))
    monkeypatch.setenv("OCTAVO_CPU_ISA", "off")
    cpu.forget()
    try:
        assert select_backend("auto", spec, prefers="native").name == "torch"
        with pytest.raises(ConfigError, match="native: OCTAVO_CPU_ISA=off"):
            select_backend("native", spec)
    finally:
        monkeypatch.delenv("OCTAVO_CPU_ISA")
        cpu.forget()
