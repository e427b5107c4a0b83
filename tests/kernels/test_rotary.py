from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.layers.norm import RMSNorm
from octavo.layers.rotary import rotate
from tests.kernels.helper import (
    DEVICE,
    DTYPES,
    assert_rounded_alike,
    random,
    require_triton,
    strided,
)

require_triton()

from octavo.kernels.rotary import rotate_and_write  # noqa: E402

EPS = 1e-6
UNWRITTEN = 77.0


@dataclass(frozen=True)
class Case:
    """Tokens of a step, each of a row of its own or of a shared one, and heads."""

    num_tokens: int = 5
    num_heads: int = 4
    num_kv_heads: int = 2
    dim: int = 16
    page: int = 4
    q_norm: bool = False
    k_norm: bool = False
    offset: float = 0.0
    seed: int = 0

    def tensors(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Every token at a place of its own in the cache; about every fourth one is padding."""
        generator = torch.Generator().manual_seed(self.seed)
        num_rows, width = 3, 6
        table_ids = torch.randperm(num_rows * width, generator=generator).int()
        places = torch.randperm(num_rows * width * self.page, generator=generator)
        places = places[: self.num_tokens]
        rows = (places // (width * self.page)).int()
        rows[torch.rand(self.num_tokens, generator=generator) < 0.25] = -1
        angles = torch.rand(width * self.page, self.dim // 2, generator=generator) * 6.3
        total = self.num_heads + 2 * self.num_kv_heads
        cache = (num_rows * width, 2, self.num_kv_heads, self.page, self.dim)
        on_host = {
            "table": torch.cat((angles.cos(), angles.sin()), dim=-1),
            "positions": (places % (width * self.page)).int(),
            "rows": rows,
            "block_tables": table_ids.view(num_rows, width),
            "cache": torch.full(cache, UNWRITTEN, dtype=dtype),
        }
        return {name: x.to(DEVICE) for name, x in on_host.items()} | {
            "qkv": random((self.num_tokens, total * self.dim), dtype, self.seed + 1, 2.0),
            "q_weight": random((self.dim,), dtype, self.seed + 2),
            "k_weight": random((self.dim,), dtype, self.seed + 3),
        }

    def run(self, t: dict[str, torch.Tensor], tile_heads: int = 8) -> torch.Tensor:
        return rotate_and_write(
            t["qkv"], t["table"], t["positions"], t["rows"], t["block_tables"], t["cache"],
            self.num_heads, self.num_kv_heads,
            t["q_weight"] if self.q_norm else None, t["k_weight"] if self.k_norm else None,
            EPS, self.offset, tile_heads=tile_heads,
        )  # fmt: skip

    def split(self, t: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
        heads = t["qkv"].view(self.num_tokens, -1, self.dim)
        return heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=1)

    def plain(self, t: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries and the cache, by the plain layers."""
        q, k, v = self.split(t)
        for name, on in (("q_weight", self.q_norm), ("k_weight", self.k_norm)):
            if on:
                norm = RMSNorm(self.dim, EPS, q.dtype, offset=self.offset)
                norm.weight = t[name]
                q, k = (norm(q), k) if name == "q_weight" else (q, norm(k))
        cos, sin = t["table"][t["positions"].long()].unsqueeze(1).chunk(2, dim=-1)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        return q, self.written(t, k, v)

    def written(self, t: dict[str, torch.Tensor], k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        cache = torch.full_like(t["cache"], UNWRITTEN)
        for i, row in enumerate(t["rows"].tolist()):
            if row >= 0:
                position = int(t["positions"][i])
                block = int(t["block_tables"][row, position // self.page])
                cache[block, 0, :, position % self.page] = k[i]
                cache[block, 1, :, position % self.page] = v[i]
        return cache


def check(case: Case, dtype: torch.dtype, tile_heads: int = 8) -> None:
    t = case.tensors(dtype)
    real = t["rows"] >= 0
    q = case.run(t, tile_heads)
    expected, cache = case.plain(t)
    assert q.shape == (case.num_tokens, case.num_heads, case.dim)
    assert q.is_contiguous()
    assert_rounded_alike(q[real], expected[real])
    assert_rounded_alike(t["cache"], cache)
    assert torch.equal(t["cache"] == UNWRITTEN, cache == UNWRITTEN)
    assert torch.equal(t["cache"][:, 1], cache[:, 1])  # values are as they were, bit for bit


FIXED = {
    "one token": Case(num_tokens=1, seed=5),
    "one head": Case(num_heads=1, num_kv_heads=1),
    "heads of 80, 9 to 3": Case(num_heads=9, num_kv_heads=3, dim=80),
    "heads of 128": Case(num_heads=8, num_kv_heads=2, dim=128, page=16),
    "norms": Case(q_norm=True, k_norm=True, dim=64),
    "norms with an offset": Case(q_norm=True, k_norm=True, offset=1.0, dim=40),
    "a norm of queries": Case(q_norm=True),
    "a norm of keys": Case(k_norm=True),
    "pages of one token": Case(page=1, num_tokens=9),
    "many tokens": Case(num_tokens=70, num_heads=2, num_kv_heads=1),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FIXED)
def test_as_the_plain_layers(name: str, dtype: torch.dtype) -> None:
    check(FIXED[name], dtype)


@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.builds(
        Case,
        num_tokens=st.integers(1, 12),
        num_heads=st.integers(1, 12),
        num_kv_heads=st.integers(1, 5),
        dim=st.sampled_from([2, 6, 16, 40]),
        page=st.sampled_from([1, 3, 4, 16]),
        q_norm=st.booleans(),
        k_norm=st.booleans(),
        offset=st.sampled_from([0.0, 1.0]),
        seed=st.integers(0, 2**20),
    ),
    st.sampled_from([1, 4, 16]),
)
def test_random_steps(case: Case, tile_heads: int) -> None:
    check(case, torch.float32, tile_heads)


def test_rotation_against_complex_numbers() -> None:
    """Rotating the plane of first and second halves is a product with exp(i * angle)."""
    case = Case(num_tokens=6, dim=32, seed=11)
    t = case.tensors(torch.float32)
    q = case.run(t)
    heads, *_ = case.split(t)
    cos, sin = t["table"][t["positions"].long()].double().unsqueeze(1).chunk(2, dim=-1)
    first, second = heads.double().chunk(2, dim=-1)
    turned = torch.complex(first, second) * torch.complex(cos, sin)
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    real = t["rows"] >= 0
    torch.testing.assert_close(q[real].double(), expected[real], rtol=1e-6, atol=1e-6)


def test_padding_alone_writes_nothing() -> None:
    case = Case()
    t = case.tensors(torch.float32)
    t["rows"].fill_(-1)
    t["positions"].fill_(2**30)  # must not be followed
    case.run(t)
    assert (t["cache"] == UNWRITTEN).all()


def test_rows_apart() -> None:
    case = Case(q_norm=True)
    t = case.tensors(torch.float32)
    apart = t | {
        "qkv": strided(t["qkv"], 5),
        "block_tables": torch.nn.functional.pad(t["block_tables"], (0, 3))[:, :6],
        "cache": t["cache"].clone(),
    }
    real = t["rows"] >= 0
    assert torch.equal(case.run(t)[real], case.run(apart)[real])
    assert torch.equal(t["cache"], apart["cache"])


def test_a_cache_of_float8() -> None:
    """Of values that it holds, turned by quarters: the interpreter rounds others wrongly."""
    case = Case()
    t = case.tensors(torch.float32)
    t["qkv"] = t["qkv"].round().clamp(-8, 8)
    quarters = torch.arange(t["table"].numel() // 2, device=DEVICE).view(len(t["table"]), -1) % 4
    angle = quarters * (torch.pi / 2)
    t["table"] = torch.cat((angle.cos(), angle.sin()), dim=-1).round()
    narrow = t | {"cache": torch.full_like(t["cache"], 72.0).to(torch.float8_e4m3fn)}
    case.run(t)
    case.run(narrow)
    expected = torch.where(t["cache"] == UNWRITTEN, 72.0, t["cache"])
    assert len(expected.unique()) > 10
    assert torch.equal(narrow["cache"].float(), expected)
