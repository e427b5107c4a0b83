"""Which devices and Tritons the kernels for Hopper are taken on, and what the log says."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

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
