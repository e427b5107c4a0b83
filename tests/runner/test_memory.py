"""Who holds a GPU's memory, and what a refusal to start proposes.

Every proposal is followed: the same start with the flag turned must then succeed.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from octavo.config import GIB, EngineConfig, parse_bytes
from octavo.errors import InsufficientMemoryError
from octavo.runner import memory
from octavo.runner.memory import MIB, MemoryUse, describe, fit_kv_cache, kv_cache_budget

USE = MemoryUse(
    total=80 * GIB, other=GIB, weights=15 * GIB, libraries=GIB // 2, step=3 * GIB, graphs=GIB
)
BLOCK = 2 * MIB
"""Bytes of a block of 16 tokens."""

SHRINK_STEPS = {"max_num_batched_tokens", "max_num_seqs"}
"""Flags that change the use itself."""


def fit(use: MemoryUse | None, model_len: int = 8192, **flags: Any) -> tuple[int, int]:
    config = EngineConfig(model="m", **flags)
    budget = kv_cache_budget(config, GIB, use)
    return fit_kv_cache(
        budget, BLOCK, 16, config.max_model_len or model_len, 1024, config, use
    )  # fmt: skip


def refusal_of(use: MemoryUse, **flags: Any) -> str | None:
    try:
        fit(use, **flags)
    except InsufficientMemoryError as refused:
        return str(refused)
    return None


def flags_in(advice: str) -> list[dict[str, Any]]:
    """Flags as fields of `EngineConfig`; each alone is a proposal."""
    found: list[dict[str, Any]] = []
    for flag, value in re.findall(r"--([\w-]+) ([\w.]+)", advice.rpartition(": ")[2]):
        name = flag.replace("-", "_")
        if name == "kv_cache_memory":
            found.append({name: parse_bytes(value)})
        else:
            found.append({name: float(value) if "." in value else int(value)})
    return found


def test_a_cache_takes_what_is_left() -> None:
    num_blocks, model_len = fit(USE)
    assert num_blocks == (72 * GIB - USE.needed) // BLOCK
    assert model_len == 8192
    parts = USE.with_cache(num_blocks * BLOCK)
    total = parts.pop("total")
    assert sum(parts.values()) == total
    assert 8 * GIB <= parts["left"] < 8 * GIB + BLOCK
    line = describe(USE.with_cache(num_blocks * BLOCK))
    for text in (
        "80.0 GiB = KV cache 51.5 GiB",
        "weights 15.0 GiB",
        "left 8.0 GiB",
        "step at most",
    ):
        assert text in line


def test_more_blocks_than_rows_can_hold_are_not_made() -> None:
    config = EngineConfig(model="m")
    assert fit_kv_cache(100 * BLOCK, BLOCK, 16, 40, 2, config, USE) == (6, 40)


def test_a_context_that_was_not_asked_for_is_cut() -> None:
    use = replace(USE, weights=65 * GIB)
    num_blocks, model_len = fit(use, model_len=131072)
    assert model_len == num_blocks * 16 < 131072


@pytest.mark.parametrize(
    ("use", "flags", "says"),
    [
        (replace(USE, weights=60 * GIB), {"max_model_len": 100_000}, "weights 60.0 GiB"),
        (replace(USE, other=55 * GIB), {}, "CUDA and other processes 55.0 GiB"),
        (replace(USE, other=75 * GIB, weights=GIB), {}, "end the processes that hold 75.0 GiB"),
        (replace(USE, weights=76 * GIB), {}, "--max-num-batched-tokens"),
        (USE, {"kv_cache_memory": 100 * MIB, "max_model_len": 2000}, "--kv-cache-memory is 100.0"),
        (USE, {"kv_cache_memory": 75 * GIB}, "59.5 GiB are left"),
        (replace(USE, other=75 * GIB), {"kv_cache_memory": GIB}, "end the processes"),
        (None, {"kv_cache_memory": MIB}, "--kv-cache-memory 1024MiB"),
        (None, {"kv_cache_memory": 10 * BLOCK, "max_model_len": 500}, "--max-model-len 160 or"),
    ],
)
def test_refusals(
    use: MemoryUse | None, flags: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 16 * GIB)
    with pytest.raises(InsufficientMemoryError) as refused:
        fit(use, **flags)
    text = str(refused.value)
    assert says in text
    for turned in flags_in(text):
        if not turned.keys() & SHRINK_STEPS:
            fit(use, **flags | turned)


@given(
    sizes=st.lists(st.integers(0, 30 * GIB), min_size=5, max_size=5),
    share=st.floats(0.05, 1.0),
    asked=st.none() | st.integers(1, 400_000),
    given_bytes=st.none() | st.integers(1, 90 * GIB),
)
def test_any_refusal_proposes_what_works(
    sizes: list[int], share: float, asked: int | None, given_bytes: int | None
) -> None:
    use = MemoryUse(80 * GIB, *sizes)
    flags = {
        "gpu_memory_utilization": share, "max_model_len": asked, "kv_cache_memory": given_bytes,
    }  # fmt: skip
    text = refusal_of(use, **flags)
    if text is None:
        num_blocks, model_len = fit(use, **flags)
        assert num_blocks * 16 >= model_len
        assert num_blocks * BLOCK <= use.total - use.needed
        return
    assert "--" in text or "end the processes" in text
    for turned in flags_in(text):
        again = refusal_of(use, **flags | turned)
        # A cache that the device cannot have is made smaller first; it may then be too small.
        was_too_large = given_bytes is not None and "are left of" in text
        if not turned.keys() & SHRINK_STEPS:
            assert again is None or (was_too_large and "are left of" not in again)


@pytest.mark.parametrize(
    ("num_bytes", "dtype", "free", "says"),
    [
        (30 * GIB, torch.float32, 20 * GIB, "try --dtype bfloat16"),
        (50 * GIB, torch.float32, 20 * GIB, "end what holds 60.0 GiB of cuda:0"),
        (30 * GIB, torch.bfloat16, 20 * GIB, "end what holds 60.0 GiB of cuda:0"),
        (90 * GIB, torch.bfloat16, 79 * GIB, "take a smaller model"),
    ],
)
def test_weights_that_do_not_fit(
    num_bytes: int, dtype: torch.dtype, free: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: free)
    monkeypatch.setattr(memory, "total_memory", lambda device: 80 * GIB)
    with pytest.raises(InsufficientMemoryError, match=re.escape(says)):
        memory.check_weights_fit(num_bytes, dtype, torch.device("cuda:0"))
    memory.check_weights_fit(free, dtype, torch.device("cuda:0"))


def test_running_out_of_memory_is_a_refusal() -> None:
    said = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.1 GiB"
    with (
        pytest.raises(InsufficientMemoryError) as refused,
        memory.refuse_if_full("a step", "try --max-num-batched-tokens 2048"),
    ):
        raise torch.OutOfMemoryError(said)
    assert str(refused.value) == (
        "a step did not fit: try --max-num-batched-tokens 2048 "
        "(CUDA out of memory. Tried to allocate 2.00 GiB)"
    )
