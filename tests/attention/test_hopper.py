"""When the kernels for Hopper are taken, and what the log says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from octavo.attention import hopper, hopper_decodes, hopper_prompts
from octavo.attention.interface import AttentionSpec
from octavo.attention.triton_paged import TritonAttention

if TYPE_CHECKING:
    from collections.abc import Iterator

CUDA = torch.device("cuda:0")
LLAMA = AttentionSpec(32, 8, 128, torch.bfloat16, CUDA, 16, frozenset({None}))


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    hopper.why_not_on.cache_clear()
    yield
    hopper.why_not_on.cache_clear()


def pretend(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], version: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr("importlib.metadata.version", lambda _: version)


@pytest.mark.parametrize(
    ("capability", "version", "served"),
    [
        ((9, 0), "3.6.0", True),
        ((9, 0), "3.8.1", True),
        ((9, 0), "3.5.1", False),
        ((9, 0), "3.9.0", False),
        ((8, 0), "3.6.0", False),
        ((10, 0), "3.6.0", False),
    ],
)
def test_which_devices_and_versions_are_served(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], version: str, served: bool
) -> None:
    pretend(monkeypatch, capability, version)
    assert (hopper_prompts.tunings_for(LLAMA) is not None) == served
    assert (hopper_decodes.tuning_for(LLAMA) is not None) == served


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"dtype": torch.float32}, "16 bits"),
        ({"cache_dtype": torch.float8_e4m3fn}, "16 bits"),
        ({"head_dim": 96}, "heads of 96"),
        ({"head_dim": 256}, "heads of 256"),
        ({"block_size": 24}, "blocks of 24"),
        ({"block_size": 4}, "blocks of 4"),
        ({"num_heads": 128, "num_kv_heads": 1}, "more than"),
        ({"device": torch.device("cpu")}, "Hopper"),
    ],
)
def test_who_is_not_served(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], reason: str
) -> None:
    pretend(monkeypatch, (9, 0), "3.6.0")
    spec = replace(LLAMA, **changed)
    for kernel in (hopper_prompts, hopper_decodes):
        assert reason in (kernel.why_not(spec) or "")
    assert hopper_prompts.tunings_for(spec) is None
    assert hopper_decodes.tuning_for(spec) is None


@pytest.mark.parametrize(
    ("changed", "prompts", "decodes"),
    [
        ({"block_size": 8}, True, False),
        ({"num_heads": 128, "num_kv_heads": 8}, True, True),
        ({"num_heads": 64, "num_kv_heads": 2}, True, False),
    ],
)
def test_who_is_served(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], prompts: bool, decodes: bool
) -> None:
    pretend(monkeypatch, (9, 0), "3.6.0")
    spec = replace(LLAMA, **changed)
    assert (hopper_prompts.tunings_for(spec) is not None) == prompts
    assert (hopper_decodes.tuning_for(spec) is not None) == decodes


def test_the_log_says_which_kernels_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, (9, 0), "3.6.0")
    describe = TritonAttention().describe
    assert describe(LLAMA) == (
        ", prompts by the kernel for Hopper, decodes by the kernel for Hopper"
    )
    assert describe(replace(LLAMA, block_size=8)) == (
        ", prompts by the kernel for Hopper, "
        "decodes by the kernel for all GPUs (blocks of 8 tokens, not a power of two from 16 on)"
    )
    assert describe(replace(LLAMA, head_dim=96)).startswith(
        ", prompts by the kernel for all GPUs (heads of 96, not 64 or 128), decodes"
    )
