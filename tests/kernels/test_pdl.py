"""Kernels that overlap must compute what they compute one after the other."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from tests.kernels.helper import DEVICE, HAS_GPU, random, require_triton

require_triton()

from octavo.kernels import pdl  # noqa: E402
from octavo.kernels.activation import gated  # noqa: E402
from octavo.kernels.norm import add_rms_norm, rms_norm  # noqa: E402
from octavo.kernels.rotary import rotate_and_write  # noqa: E402
from octavo.kernels.sampling import sample_plain  # noqa: E402
from octavo.kernels.skinny_linear import Config, skinny_linear  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

OVERLAPS = {"PDL": True, "launch_pdl": True}
ALONE = {"PDL": False}


@pytest.fixture
def switch() -> Iterator[None]:
    pdl.options.cache_clear()
    yield
    pdl.set_enabled(True)


@pytest.mark.usefixtures("switch")
def test_devices_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: (7 + 2 * device.index, 0)
    )
    monkeypatch.setattr(torch.version, "hip", None)
    old, new = (torch.device("cuda", index) for index in range(2))
    assert pdl.options(torch.device("cpu")) == ALONE
    assert pdl.options(old) == ALONE
    assert pdl.options(new) == OVERLAPS
    pdl.set_enabled(False)
    assert pdl.options(new) == ALONE
    pdl.set_enabled(True)
    assert pdl.options(new) == OVERLAPS
    monkeypatch.setattr(torch.version, "hip", "6.0")
    pdl.options.cache_clear()
    assert pdl.options(new) == ALONE


D, INNER, HEADS, KV_HEADS, DIM, PAGE, VOCAB, LAYERS = 512, 1536, 8, 2, 64, 16, 5003, 6


class Model:
    """What a decode step launches but for attention: a chain in which each result is used next."""

    def __init__(self, t: int, config: Config) -> None:
        def weight(n: int, k: int, seed: int) -> torch.Tensor:
            return random((n, k), torch.bfloat16, seed, k**-0.5)

        self.config, self.t = config, t
        heads = HEADS + 2 * KV_HEADS
        self.layers = [
            [weight(heads * DIM, D, i), weight(D, HEADS * DIM, i + 100),
             weight(2 * INNER, D, i + 200), weight(D, INNER, i + 300)]
            for i in range(LAYERS)
        ]  # fmt: skip
        self.head = weight(VOCAB, D, 400)
        self.norms = [random((D,), torch.bfloat16, 500 + i) for i in range(2 * LAYERS + 1)]
        self.q_norm, self.k_norm = (random((DIM,), torch.bfloat16, 600 + i) for i in range(2))
        angles = torch.rand(64, DIM // 2, generator=torch.Generator().manual_seed(0)) * 6
        self.table = torch.cat((angles.cos(), angles.sin()), dim=-1).to(DEVICE)
        self.positions = torch.arange(t, dtype=torch.int32, device=DEVICE)
        self.rows = torch.zeros(t, dtype=torch.int32, device=DEVICE)
        self.block_tables = torch.arange(4, dtype=torch.int32, device=DEVICE).view(1, 4)
        self.cache = torch.zeros(
            LAYERS, 4, 2, KV_HEADS, PAGE, DIM, dtype=torch.bfloat16, device=DEVICE
        )
        self.u = torch.linspace(0, 0.99, t, device=DEVICE)
        self.temperature = torch.ones(t, device=DEVICE)
        self.last_token = torch.zeros(1, dtype=torch.int32, device=DEVICE)
        self.x = random((t, D), torch.bfloat16, 700)
        torch.cuda.synchronize()

    def step(self) -> list[torch.Tensor]:
        residual = self.x.clone()
        norms = iter(self.norms)
        y = rms_norm(residual, next(norms), 1e-5)
        for cache, (qkv, o, gate_up, down) in zip(self.cache, self.layers, strict=True):
            q = rotate_and_write(
                skinny_linear(y, qkv, None, self.config), self.table, self.positions, self.rows,
                self.block_tables, cache, HEADS, KV_HEADS, self.q_norm, self.k_norm, 1e-5,
            )  # fmt: skip
            y = skinny_linear(q.view(self.t, -1), o, None, self.config)
            y = add_rms_norm(y, residual, next(norms), 1e-5)
            y = gated(skinny_linear(y, gate_up, None, self.config), "silu")
            y = skinny_linear(y, down, None, self.config)
            y = add_rms_norm(y, residual, next(norms), 1e-5)
        logits = skinny_linear(y, self.head, None, self.config)
        tokens = torch.empty(self.t, dtype=torch.int32, device=DEVICE)
        sample_plain(logits, self.temperature, self.u, self.rows - 1, self.last_token, tokens)
        return [residual, logits, tokens]


CONFIGS = {
    "one row": (1, Config("gemv", 8, 512, 4, 1, pdl=True, prefetch=2)),
    "few rows": (16, Config("tma", 64, 128, 4, 6, pdl=True, prefetch=1)),
    "many rows": (64, Config("dot", 64, 128, 4, 3, pdl=True)),
}


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")
@pytest.mark.usefixtures("switch")
@pytest.mark.parametrize("split_k", [1, 2])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_on_the_device(name: str, split_k: int) -> None:
    if not pdl.options(DEVICE)["PDL"]:
        pytest.skip("needs compute capability 9.0")
    t, config = CONFIGS[name]
    model = Model(t, replace(config, split_k=split_k))
    inputs = [random((t, D), torch.bfloat16, 800 + i) for i in range(3)]
    pdl.set_enabled(False)
    expected, caches = [], []
    for x in inputs:
        model.x.copy_(x)
        expected.append([out.clone() for out in model.step()])
        caches.append(model.cache.clone())
    assert not torch.equal(expected[0][0], expected[1][0])

    pdl.set_enabled(True)
    model.step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = model.step()
    for i in range(30):
        model.x.copy_(inputs[i % 3])
        graph.replay()
        replayed = [out.clone() for out in outputs]
        cache = model.cache.clone()
        launched = model.step()
        for actual in (replayed, launched):
            for a, b in zip(actual, expected[i % 3], strict=True):
                assert torch.equal(a, b)
        assert torch.equal(cache, caches[i % 3])
