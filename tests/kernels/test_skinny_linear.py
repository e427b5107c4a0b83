"""Skinny products against float64, rows against each other, and the choice of a configuration.

Without a GPU the kernels run in Triton's interpreter, one program after the other; there is no
bulk copy engine and no dependent launch then, and the last part of a split always arrives last.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel's module is imported

# Older interpreters fail under numpy 2.4, which no longer makes numbers of arrays.
pytest.importorskip("triton", minversion=None if HAS_GPU else "3.8")

from octavo.kernels import skinny_linear as skinny  # noqa: E402
from octavo.kernels.skinny_linear import Config, skinny_linear  # noqa: E402
from octavo.quant import unquantized  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVICE = torch.device("cuda:0" if HAS_GPU else "cpu")
# Of rounding to nearest; the interpreter cuts bfloat16 off instead.
ROUNDING = {torch.float16: 2**-11, torch.bfloat16: 2**-8 if HAS_GPU else 2**-7}
GEMV = Config("gemv", block_n=4, block_k=64, num_warps=4, num_stages=1)
DOT = Config("dot", block_n=16, block_k=32, num_warps=4, num_stages=3)
TMA = Config("tma", block_n=64, block_k=64, num_warps=4, num_stages=3)


def skip_unless_interpreter_can(config: Config, dtype: torch.dtype) -> None:
    if not HAS_GPU and config.kind != "gemv" and dtype == torch.bfloat16:
        pytest.skip("the interpreter multiplies bfloat16 tiles as integers")


def problem(m: int, n: int, k: int, dtype: torch.dtype, *, bias: bool = True) -> list[Any]:
    generator = torch.Generator().manual_seed(m * 7919 + n * 31 + k)
    shapes = [(m, k), (n, k), (n,)]
    tensors = [torch.randn(s, generator=generator).to(dtype).to(DEVICE) for s in shapes]
    return tensors if bias else [*tensors[:2], None]


def assert_close(x: Any, weight: Any, bias: Any, out: torch.Tensor) -> None:
    """Rounded once, from sums that are right to float32's precision."""
    exact = x.double() @ weight.double().T
    size = x.double().abs() @ weight.double().abs().T  # bounds the error of summing
    if bias is not None:
        exact = exact + bias.double()
        size = size + bias.double().abs()
    bound = exact.abs() * ROUNDING[x.dtype] + size * 2**-18 + 1e-7
    assert out.dtype == x.dtype
    assert out.shape == exact.shape
    assert ((out.double() - exact).abs() <= bound).all()


CASES = {
    "one row": (GEMV, 1, 16, 256),
    "one row, odd n, k not of tiles": (GEMV, 1, 13, 200),
    "one row, k below a tile": (GEMV, 1, 5, 8),
    "one row, divided": (replace(GEMV, split_k=3), 1, 9, 640),
    "one row, more parts than tiles of k": (replace(GEMV, split_k=8), 1, 9, 136),
    "full tiles": (DOT, 16, 32, 64),
    "two rows": (DOT, 2, 32, 64),
    "odd everything": (DOT, 5, 37, 88),
    "one row on tensor cores": (DOT, 1, 17, 40),
    "divided": (replace(DOT, split_k=2), 3, 40, 256),
    "divided unevenly": (replace(DOT, split_k=4), 7, 33, 168),
    "rows beyond sixteen": (DOT, 17, 20, 64),
    "sixty-four rows, divided": (replace(DOT, split_k=2), 64, 48, 64),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_against_float64(name: str, dtype: torch.dtype, bias: bool) -> None:
    config, *shape = CASES[name]
    skip_unless_interpreter_can(config, dtype)
    tensors = problem(*shape, dtype, bias=bias)
    for _ in range(2):  # the second call finds the counters as the first one left them
        assert_close(*tensors, skinny_linear(*tensors, config))
    assert config.split_k == 1 or not skinny._counters(DEVICE).any()


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(
    base=st.sampled_from([GEMV, DOT]),
    m=st.integers(1, 33),
    n=st.integers(1, 70),
    k=st.integers(1, 40).map(lambda k8: 8 * k8),
    split_k=st.integers(1, 5),
)
def test_any_shape(base: Config, m: int, n: int, k: int, split_k: int) -> None:
    m = 1 if base is GEMV else m
    tensors = problem(m, n, k, torch.float16)
    assert_close(*tensors, skinny_linear(*tensors, replace(base, split_k=split_k)))


@pytest.mark.parametrize("config", [DOT, replace(DOT, split_k=3)], ids=["whole", "divided"])
def test_a_row_does_not_depend_on_the_others(config: Config) -> None:
    x, weight, bias = problem(12, 40, 160, torch.float16)
    out = skinny_linear(x, weight, bias, config)
    other = torch.full_like(x, torch.nan)
    other[7] = x[7]
    assert torch.equal(skinny_linear(other, weight, bias, config)[7], out[7])
    assert torch.equal(skinny_linear(x[7:8].contiguous(), weight, bias, config)[0], out[7])


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    table = {(64, 128): ((1, GEMV), (8, DOT), (16, None), (32, DOT))}
    monkeypatch.setattr(skinny, "TABLE", table)
    monkeypatch.setattr(skinny, "GENERAL", ((1, 0, GEMV), (16, 50, DOT)))
    skinny._choose.cache_clear()
    yield
    skinny._choose.cache_clear()


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize(
    ("m", "n", "k", "expected"),
    [
        (1, 64, 128, GEMV),
        (2, 64, 128, DOT),
        (8, 64, 128, DOT),
        (9, 64, 128, None),
        (17, 64, 128, DOT),
        (33, 64, 128, None),
        (1, 10, 16, GEMV),
        (2, 10, 16, None),
        (2, 100, 16, DOT),
        (17, 100, 16, None),
        (1, 100, 12, None),
        (0, 64, 128, None),
        (skinny.MAX_ROWS + 1, 64, 128, None),
    ],
)
def test_choice(m: int, n: int, k: int, expected: Config | None) -> None:
    assert skinny.choose(m, n, k) == expected


def test_what_the_tables_offer_can_run() -> None:
    offered = [(rows, config, n) for (n, _), row in skinny.TABLE.items() for rows, config in row]
    offered += [(rows, config, 1) for rows, _, config in skinny.GENERAL]
    for rows, config, n in offered:
        if config is None:
            continue
        assert config.kind in ("gemv", "dot", "tma")
        assert config.kind != "gemv" or rows == 1
        assert rows <= skinny.MAX_ROWS
        assert config.split_k == 1 or n <= config.block_n * skinny._MAX_SPLIT_TILES
        assert config.pdl or not config.prefetch


@pytest.mark.usefixtures("tables")
def test_a_linear_method_takes_it_where_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Config] = []

    def record(x: Any, weight: Any, bias: Any, config: Config) -> torch.Tensor:
        calls.append(config)
        return skinny_linear(x, weight, bias, config)

    monkeypatch.setattr(skinny, "skinny_linear", record)
    monkeypatch.setattr(unquantized, "_skinny_kernels", lambda device: skinny)
    method = unquantized.Unquantized(torch.float16)
    x, weight, bias = problem(9, 64, 128, torch.float16)
    for rows in (1, 2, 9):
        part = x[:rows]
        assert_close(part, weight, bias, method.apply(part, {"weight": weight}, bias))
    assert calls == [GEMV, DOT]


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="needs a GPU")
@pytest.mark.parametrize("base", [DOT, TMA], ids=["dot", "tma"])
@pytest.mark.parametrize("pdl", [False, True], ids=["", "pdl"])
@pytest.mark.parametrize("split_k", [1, 3])
def test_on_the_device(base: Config, pdl: bool, split_k: int) -> None:
    """In a graph, each product depending on the one before."""
    if torch.cuda.get_device_capability()[0] < 9:
        pytest.skip("needs compute capability 9.0")
    config = replace(base, pdl=pdl, prefetch=int(pdl), split_k=split_k)
    x, weight, _ = problem(21, 512, 512, torch.bfloat16)
    weight = weight / 512**0.5
    expected = [x]
    for _ in range(8):
        expected.append(skinny_linear(expected[-1], weight, None, config))
        torch.cuda.synchronize()
        assert_close(expected[-2], weight, None, expected[-1])
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = x
        for _ in range(8):
            y = skinny_linear(y, weight, None, config)
    for _ in range(5):
        graph.replay()
        assert torch.equal(y, expected[-1])
