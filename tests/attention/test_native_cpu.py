"""The native kernels against float64 over random ragged steps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.attention.native_cpu import NativeAttention
from octavo.kernels import cpu
from tests.attention.reference import Case, relative_error
from tests.attention.test_backends import FIXED, cases

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 1e-2}


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    if cpu.why_not() is not None:
        pytest.skip(str(cpu.why_not()))


@pytest.fixture(params=["avx512vnni", "avx2", "portable"])
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
