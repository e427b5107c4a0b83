"""Products of few rows with a large weight, as decode steps have them: y = x W^T + b.

Knows raw tensors alone; which layer the weight belongs to, and that a graph may be captured around
the call, is the caller's. At up to 64 rows the time is that of reading the weight, so everything
here is about bytes in flight: tiles of W stream through shared memory (or, for one row, through
registers) once, with `evict_first`, and x is read again by every program, out of L2.

W is [n, k], row-major. A program has BLOCK_N rows of W and a share of k. The product is computed
transposed, W x^T, because then the long side of the tile is the one that tensor cores want long.
With `split_k` > 1 (compiled apart) the shares leave float32 parts, and the program that arrives
last at a tile adds them up in the order of k: which one that is changes nothing in the result. A
row of the result depends on its own row of x and on the configuration, never on the other rows.

With `pdl` (programmatic dependent launch, see `pdl.py`) a program asks for its first tiles of W to
be brought to L2 before it waits for the kernel that computes x, as in CUTLASS' example 63. The
kernel after it may come onto the card as soon as all programs here have started.

All shapes share the compiled kernels: m, n, k, split_k and prefetch are no compile-time constants,
and a few numbers of rows stand for all.
"""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from octavo.kernels.pdl import options as launch_options
from octavo.kernels.skinny_kernels import dot_kernel, gemv_kernel

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_ROWS = 64
"""Rows of x above which no configuration is offered."""

_ROOM = (16, 32, 64, 128)  # rows that kernels are compiled for
_MAX_SPLIT_TILES = 8192


@dataclass(frozen=True, slots=True)
class Config:
    """Shape of one launch.

    Attributes:
        kind: `gemv`, one row on the plain cores; `dot`, tensor cores, W loaded by pointers;
            `tma`, tensor cores, W loaded by the bulk copy engine (compute capability 9.0).
        block_n, block_k: the tile of W, powers of two.
        num_warps, num_stages: of Triton's compiler.
        split_k: programs that share a tile's k.
        pdl: overlap the start with the end of the kernel before (compute capability 9.0).
        prefetch: with `pdl`, KB of each row of W brought to L2 before waiting.
    """

    kind: str
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    split_k: int = 1
    pdl: bool = False
    prefetch: int = 0


# Measured on an H100 (docs/decisions/0010-skinny-products.md). Five compiled kernels.
_ONE = Config("gemv", 8, 512, 4, 1, pdl=True, prefetch=1)
_FEW = Config("tma", 64, 128, 4, 6, pdl=True, prefetch=1)

TABLE: dict[tuple[int, int], tuple[tuple[int, Config | None], ...]] = {
    # Few tiles and many steps: only what keeps more of each in flight.
    (4096, 14336): ((1, Config("gemv", 16, 512, 4, 3, pdl=True, prefetch=1)), (64, _FEW)),
    # So few rows of W that several KB of each are no more than others ask for.
    (1024, 2048): ((1, replace(_ONE, prefetch=4)), (64, _FEW)),
    (1024, 3072): ((1, replace(_ONE, prefetch=4)), (64, _FEW)),
}
"""(n, k): (most rows, configuration or None for the library's product), by rows, ascending; with
more rows than the last, the library's."""

GENERAL: tuple[tuple[int, int, Config | None], ...] = (
    (1, 4096, _ONE),
    (1, 1024, replace(_ONE, prefetch=2)),
    (64, 4096, _FEW),
)
"""(most rows, least n, configuration), for shapes not in `TABLE`; the first that fits counts. Each
won on all measured shapes that it covers; narrower weights have too few tiles for the card."""


def choose(m: int, n: int, k: int) -> Config | None:
    """The configuration for m rows and a weight [n, k]; None: the library's product is better."""
    return _choose(m, n, k) if 0 < m <= MAX_ROWS else None


@functools.cache
def _choose(m: int, n: int, k: int) -> Config | None:
    if k % 8:
        return None
    if (n, k) in TABLE:
        return next((config for most, config in TABLE[n, k] if m <= most), None)
    fits = (config for most, least, config in GENERAL if m <= most and n >= least)
    return next(fits, None)


@functools.cache
def _counters(device: torch.device) -> torch.Tensor:
    """Arrivals at each tile, zero between launches. One stream at a time may use them."""
    # In a capture the zeros would be written only when the graph runs.
    assert device.type != "cuda" or not torch.cuda.is_current_stream_capturing(), (
        "the first divided product on a device must come before a graph is captured"
    )
    return torch.zeros(_MAX_SPLIT_TILES, dtype=torch.int32, device=device)


def _block_m(m: int, config: Config) -> int:
    """Rows of x that the compiled kernel has room for."""
    return 1 if config.kind == "gemv" else next(room for room in _ROOM if m <= room)


def skinny_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, config: Config
) -> torch.Tensor:
    """X [m, k] times weight [n, k] transposed, plus bias [n]: [m, n], in x's dtype.

    Args:
        x: contiguous, float16 or bfloat16; k a multiple of 8, m at most 128, 1 for `gemv`.
        weight: contiguous, of that dtype, on the same device.
        bias: likewise, or None.
        config: as `choose` gives it.

    Deterministic. May be captured in a CUDA graph once its kernel is compiled. With split_k > 1 any
    such call on that device must come before the capture, and calls must not run on several streams
    at a time.
    """
    out = x.new_empty((x.shape[0], weight.shape[0]))
    kernel, grid, args, options = _launch(x, weight, bias, out, weight.shape[0], config)
    kernel[grid](*args, **options)
    return out


def _launch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    n: int,
    config: Config,
) -> tuple[Any, tuple[int, int], tuple[Any, ...], dict[str, Any]]:
    """The kernel, its grid, its arguments, and its constants with the compiler's options."""
    m, k = x.shape
    block_m = _block_m(m, config)
    tiles, split_k = triton.cdiv(n, config.block_n), config.split_k
    counters = parts = None
    if split_k > 1:
        counters = _counters(x.device)
        assert tiles <= _MAX_SPLIT_TILES, f"{tiles} tiles"
        size = tiles * split_k * block_m * config.block_n
        parts = torch.empty(size, dtype=torch.float32, device=x.device)
    x_desc = w_desc = None
    if config.kind == "tma":
        x_desc = TensorDescriptor.from_tensor(x, [block_m, config.block_k])
        w_desc = TensorDescriptor.from_tensor(weight, [config.block_n, config.block_k])
    args = (x, weight, x_desc, w_desc, bias, out, parts, counters, m, n, k // 8, split_k,
            config.prefetch)  # fmt: skip
    options: dict[str, Any] = {
        "BLOCK_M": block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "EVEN_K": k % config.block_k == 0,
        "STAGES": config.num_stages,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
        **(launch_options(x.device) if config.pdl else {"PDL": False}),
    }
    return gemv_kernel if config.kind == "gemv" else dot_kernel, (tiles, split_k), args, options


def compile_all(
    calls: Iterable[tuple[int, int, Config]],
    dtype: torch.dtype,
    device: torch.device,
    *,
    has_bias: bool = False,
    num_threads: int = 8,
) -> dict[Config, str]:
    """Compile what calls (m, k, configuration) need, side by side; nothing is launched.

    Without it, the first call of each compiles it. Returns what the compiler refused, and why.
    """
    distinct = {}
    for m, k, config in calls:
        kernel = replace(config, split_k=min(config.split_k, 2), prefetch=0)
        distinct[kernel, _block_m(m, config), k % config.block_k == 0] = (m, k)
    failures: dict[Config, str] = {}
    pending = []
    bias = torch.empty(1, dtype=dtype, device=device) if has_bias else None
    with ThreadPoolExecutor(num_threads) as pool:
        with triton.AsyncCompileMode(pool, ignore_errors=True):
            for (config, _, _), (m, k) in distinct.items():
                x = torch.empty((m, k), dtype=dtype, device=device)
                kernel, grid, args, options = _launch(x, x[:1], bias, x, 1, config)
                pending.append((config, kernel.warmup(*args, grid=grid, **options)))
        for config, compiled in pending:
            error = compiled.future.exception() if hasattr(compiled, "future") else None
            if error is not None:
                reason = str(error).splitlines() or [""]
                failures[config] = f"{type(error).__name__}: {reason[-1]}"
    return failures
