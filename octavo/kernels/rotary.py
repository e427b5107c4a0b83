"""Between the qkv matmul and attention, in one launch: QK-norm, rotation, write into the cache.

Arithmetic and rounding are those of `layers/norm.py` and `rotate` in `layers/rotary.py` (float32
inside each, rounded to the queries' dtype after each). Knows tensors alone: neither what made the
rotation's table nor who owns the blocks.

The heads of a token (queries, keys, values) are rows of tiles; a program takes one tile, whatever
kinds of heads lie in it, so the grid is the same for every mix of heads. Keys and values lie in a
block as they lie in qkv, [2, k, p, d], so one formula places both.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from octavo.kernels import pdl
from octavo.kernels.norm import normalize
from octavo.kernels.pdl import wait_then_release

TILE_HEADS = 16
"""Heads of a program, a power of two."""

# With fewer warps, Triton's reduction over a head goes through shared memory.
_MIN_WARPS, _MAX_WARPS = 4, 8
_PAIRS_PER_WARP = 256  # 16 bytes of bfloat16 of each half for each thread


@triton.jit(do_not_specialize=["positions_ptr", "rows_ptr", "block_tables_ptr", "stride_tables"])
def rotate_kernel(
    qkv_ptr,
    q_ptr,
    cache_ptr,
    table_ptr,
    positions_ptr,
    rows_ptr,
    block_tables_ptr,
    q_norm_ptr,
    k_norm_ptr,
    stride_qkv,
    stride_tables,
    stride_block,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    HALF_PAD: tl.constexpr,
    PAGE: tl.constexpr,
    TILE: tl.constexpr,
    Q_NORM: tl.constexpr,
    K_NORM: tl.constexpr,
    EPS: tl.constexpr,
    OFFSET: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (tokens * tiles of a token,). `q` is contiguous [t, h, d]."""
    NUM_HEADS: tl.constexpr = HEADS + 2 * KV_HEADS
    NUM_TILES: tl.constexpr = (NUM_HEADS + TILE - 1) // TILE
    HALF: tl.constexpr = D // 2
    dtype: tl.constexpr = q_ptr.dtype.element_ty
    pid = tl.program_id(0)
    token = (pid // NUM_TILES).to(tl.int64)
    heads = pid % NUM_TILES * TILE + tl.arange(0, TILE)[:, None]
    dims = tl.arange(0, HALF_PAD)[None, :]
    real_dim = dims < HALF
    real = (heads < NUM_HEADS) & real_dim
    # All that no kernel of a step writes, while the one before is still making qkv.
    row = tl.load(rows_ptr + token)
    is_token = row >= 0
    position = tl.load(positions_ptr + token, mask=is_token, other=0)
    angle = table_ptr + position.to(tl.int64) * D + dims
    cos = tl.load(angle, mask=real_dim, other=0.0)
    sin = tl.load(angle + HALF, mask=real_dim, other=0.0)
    entry = block_tables_ptr + row.to(tl.int64) * stride_tables + position // PAGE
    block = tl.load(entry, mask=is_token, other=0)
    if Q_NORM:
        q_weight_1 = tl.load(q_norm_ptr + dims, mask=real_dim, other=0.0)
        q_weight_2 = tl.load(q_norm_ptr + HALF + dims, mask=real_dim, other=0.0)
    if K_NORM:
        k_weight_1 = tl.load(k_norm_ptr + dims, mask=real_dim, other=0.0)
        k_weight_2 = tl.load(k_norm_ptr + HALF + dims, mask=real_dim, other=0.0)
    if PDL:
        wait_then_release()
    if row < 0:
        return

    at = qkv_ptr + token * stride_qkv + heads * D + dims
    first = tl.load(at, mask=real, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=real, other=0.0).to(tl.float32)

    is_q = heads < HEADS
    is_v = heads >= HEADS + KV_HEADS
    if Q_NORM or K_NORM:
        mean = tl.sum(first * first + second * second, 1) / D
        rstd = tl.rsqrt(mean + EPS)[:, None]
    if Q_NORM:
        normed_1 = normalize(first, rstd, q_weight_1.to(tl.float32), dtype, OFFSET)
        normed_2 = normalize(second, rstd, q_weight_2.to(tl.float32), dtype, OFFSET)
        first = tl.where(is_q, normed_1, first)
        second = tl.where(is_q, normed_2, second)
    if K_NORM:
        is_k = (heads >= HEADS) & (heads < HEADS + KV_HEADS)
        normed_1 = normalize(first, rstd, k_weight_1.to(tl.float32), dtype, OFFSET)
        normed_2 = normalize(second, rstd, k_weight_2.to(tl.float32), dtype, OFFSET)
        first = tl.where(is_k, normed_1, first)
        second = tl.where(is_k, normed_2, second)

    out_1 = tl.where(is_v, first, first * cos - second * sin).to(dtype)
    out_2 = tl.where(is_v, second, second * cos + first * sin).to(dtype)

    to_q = q_ptr + token * (HEADS * D) + heads * D + dims
    tl.store(to_q, out_1, mask=real & is_q)
    tl.store(to_q + HALF, out_2, mask=real & is_q)
    # Key head j is row j of the block and value head j row KV_HEADS + j, as in qkv.
    slot = block.to(tl.int64) * stride_block + (position % PAGE) * D
    to_cache = cache_ptr + slot + (heads - HEADS) * (PAGE * D) + dims
    stored: tl.constexpr = cache_ptr.dtype.element_ty
    tl.store(to_cache, out_1.to(stored), mask=real & (heads >= HEADS))
    tl.store(to_cache + HALF, out_2.to(stored), mask=real & (heads >= HEADS))


def rotate_and_write(
    qkv: torch.Tensor,
    table: torch.Tensor,
    positions: torch.Tensor,
    rows: torch.Tensor,
    block_tables: torch.Tensor,
    cache: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    q_norm: torch.Tensor | None = None,
    k_norm: torch.Tensor | None = None,
    eps: float = 0.0,
    offset: float = 0.0,
    *,
    tile_heads: int = TILE_HEADS,
    num_warps: int | None = None,
) -> torch.Tensor:
    """Rotated queries; rotated keys, and values, go into the cache.

    Rotation: halves as in GPT-NeoX (arXiv:2104.09864). Keys and values of a token go to slot
    `position % p` of block `block_tables[row, position // p]`, cast to the cache's dtype after
    rounding to qkv's.

    Where kernels overlap (`pdl.py`), `positions`, `rows`, `block_tables`, `table` and the norms'
    weights are read before the kernel before has ended: between what writes them and this call must
    lie a kernel that is launched as usual.

    Args:
        qkv: [t, (h + 2k) * d], the heads of queries, then keys, then values; rows may lie apart,
            the values of a row lie side by side. Unchanged.
        table: [max_len, d] float32, contiguous: cosines in the first half of a row, sines in the
            second.
        positions: [t] int32, below max_len.
        rows: [t] int32, the token's row in `block_tables`; below zero: padding, whose queries are
            left undefined and whose keys and values go nowhere.
        block_tables: [r, w] int32; rows may lie apart.
        cache: [b, 2, k, p, d], each block contiguous. Written to.
        num_heads: h.
        num_kv_heads: k.
        q_norm: [d] weight of an RMSNorm of each query head before rotation, in qkv's dtype.
        k_norm: [d], the same for keys.
        eps: of these norms.
        offset: of these norms.
        tile_heads: heads of a program, a power of two.
        num_warps: of a program; None: chosen by the size of a tile.

    Returns:
        [t, h, d], contiguous, qkv's dtype.
    """
    num_tokens = qkv.shape[0]
    page, dim = cache.shape[3], cache.shape[4]
    half, tiles, warps = _tile(num_heads + 2 * num_kv_heads, dim, tile_heads)
    q = torch.empty((num_tokens, num_heads, dim), dtype=qkv.dtype, device=qkv.device)
    rotate_kernel[(num_tokens * tiles,)](
        qkv, q, cache, table, positions, rows, block_tables,
        qkv if q_norm is None else q_norm, qkv if k_norm is None else k_norm,
        qkv.stride(0), block_tables.stride(0), cache.stride(0),
        HEADS=num_heads, KV_HEADS=num_kv_heads, D=dim, HALF_PAD=half, PAGE=page, TILE=tile_heads,
        Q_NORM=q_norm is not None, K_NORM=k_norm is not None, EPS=eps, OFFSET=offset,
        num_warps=num_warps or warps, **pdl.options(qkv.device),
    )  # fmt: skip
    return q


@cache
def _tile(num_heads: int, dim: int, tile_heads: int) -> tuple[int, int, int]:
    """Half a head as a power of two, tiles of a token, warps of a program."""
    half = triton.next_power_of_2(dim // 2)
    warps = min(max(tile_heads * half // _PAIRS_PER_WARP, _MIN_WARPS), _MAX_WARPS)
    return half, -(-num_heads // tile_heads), warps
