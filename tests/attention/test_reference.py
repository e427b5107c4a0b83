"""Attention by torch with the native kernels' bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.attention.interface import AttentionSpec
from octavo.attention.native_cpu import NativeAttention
from octavo.attention.reference import ReferenceAttention
from octavo.attention.select import select_backend
from octavo.kernels import cpu
from tests.attention.reference import Case, relative_error
from tests.attention.test_backends import FIXED, cases
from tests.kernels.cpu.test_same_bits import attend

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", FIXED)
def test_fixed_steps(name: str) -> None:
    assert relative_error(ReferenceAttention(), FIXED[name], torch.float32, CPU) < 2e-6


@settings(max_examples=60, deadline=None)
@given(case=cases(longest=300, most_seqs=4), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_kernels_bits(case: Case, dtype: torch.dtype) -> None:
    if cpu.why_not() is not None:
        pytest.skip(str(cpu.why_not()))
    got, want = (attend(case, dtype, kind()) for kind in (ReferenceAttention, NativeAttention))
    assert torch.equal(got, want)


def test_few_tokens_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(seqs=((70, 100), (1, 3)), windows=(60,), soft_cap=5.0)
    want = attend(case, torch.bfloat16, ReferenceAttention())
    monkeypatch.setattr("octavo.attention.reference.CHUNK", 1)
    assert torch.equal(attend(case, torch.bfloat16, ReferenceAttention()), want)


def test_what_it_serves() -> None:
    spec = AttentionSpec(4, 2, 16, torch.float32, CPU, 16, frozenset({None}))
    assert select_backend("auto", spec, prefers="reference").name == "reference"
    assert select_backend("reference", replace(spec, soft_cap=2.0)).name == "reference"
    for other in (
        replace(spec, dtype=torch.bfloat16),
        replace(spec, cache_dtype=torch.int8),
        replace(spec, device=torch.device("cuda:0")),
    ):
        assert ReferenceAttention().why_not(other) is not None
