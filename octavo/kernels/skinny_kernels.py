"""The kernels of `skinny_linear.py`, which says how a product is divided among their programs.

Know pointers and sizes alone; which configuration a shape gets is the caller's.
"""

from __future__ import annotations

import triton
import triton.language as tl

_LINE = tl.constexpr(64)  # 16-bit elements of a line of L2


@triton.jit
def _share(k, split_k, BLOCK_K: tl.constexpr):
    """Where this program's share of k begins and ends: whole tiles, but for the last one."""
    share = tl.cdiv(tl.cdiv(k, BLOCK_K), split_k) * BLOCK_K
    begin = tl.program_id(1) * share
    return begin, tl.minimum(begin + share, k)


@triton.jit
def _rows_of_w(first_row, n, BLOCK_N: tl.constexpr):
    """This program's rows; past the last one it is that again: loads need no mask, stores do."""
    return tl.minimum(first_row + tl.arange(0, BLOCK_N), n - 1).to(tl.int64)


@triton.jit
def _await_input(w_ptr, first_row, n, k, begin, end, prefetch, BLOCK_N: tl.constexpr):
    """Let the next kernel start, ask for the first KBs of W, then wait for the kernel before."""
    tl.extra.cuda.gdc_launch_dependents()
    row = _rows_of_w(first_row, n, BLOCK_N)
    for i in range(prefetch):
        col = begin + (i * 8 + tl.arange(0, 8)) * _LINE
        # Past the end: the last line once more.
        at = w_ptr + row[:, None] * k + tl.minimum(col, end - 8)[None, :]
        tl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; // $0", "=r,l", [at], dtype=tl.int32, is_pure=False, pack=1
        )
    tl.extra.cuda.gdc_wait()


@triton.jit
def _store(acc, bias_ptr, out_ptr, m, n, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """The epilogue, on this program's finished tile [BLOCK_N, BLOCK_M] in float32."""
    col = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = tl.arange(0, BLOCK_M)
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + col, mask=col < n, other=0.0).to(tl.float32)[:, None]
    tl.store(
        out_ptr + row[None, :] * n + col[:, None],
        acc.to(out_ptr.dtype.element_ty),
        mask=(col < n)[:, None] & (row < m)[None, :],
    )


@triton.jit
def _finish(
    acc,
    bias_ptr,
    out_ptr,
    parts_ptr,
    counters_ptr,
    m,
    n,
    split_k,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Store the tile, or this program's part of it and, if it is the last to come, their sum."""
    tile = tl.program_id(0)
    if parts_ptr is None:
        _store(acc, bias_ptr, out_ptr, m, n, BLOCK_M, BLOCK_N)
    else:
        # A part is one run of memory, whatever m and n: one address and constants.
        place = tl.arange(0, BLOCK_M)[None, :] * BLOCK_N + tl.arange(0, BLOCK_N)[:, None]
        real = (tl.arange(0, BLOCK_M) < m)[None, :]
        SIZE: tl.constexpr = BLOCK_M * BLOCK_N
        first = parts_ptr + tile * split_k * SIZE
        tl.store(first + tl.program_id(1) * SIZE + place, acc, mask=real)
        tl.debug_barrier()  # the whole program's stores come before its arrival
        if tl.atomic_add(counters_ptr + tile, 1, sem="acq_rel") == split_k - 1:
            total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
            for part in range(split_k):
                # Written by other multiprocessors: not from L1.
                total += tl.load(
                    first + part * SIZE + place, mask=real, other=0.0, cache_modifier=".cg"
                )
            _store(total, bias_ptr, out_ptr, m, n, BLOCK_M, BLOCK_N)
            tl.store(counters_ptr + tile, 0)  # for the next launch


@triton.jit(do_not_specialize=["m", "n", "k8", "split_k", "prefetch"])
def gemv_kernel(
    x_ptr,
    w_ptr,
    x_desc,
    w_desc,
    bias_ptr,
    out_ptr,
    parts_ptr,
    counters_ptr,
    m,
    n,
    k8,
    split_k,
    prefetch,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (tiles of n, split_k). One row; sums stay spread over the tile until the end."""
    k = k8 * 8
    begin, end = _share(k, split_k, BLOCK_K)
    first_row = tl.program_id(0) * BLOCK_N
    if PDL:
        _await_input(w_ptr, first_row, n, k, begin, end, prefetch, BLOCK_N)
    row = _rows_of_w(first_row, n, BLOCK_N)
    col = tl.arange(0, BLOCK_K)
    w_at = w_ptr + row[:, None] * k + col[None, :]
    acc = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        if EVEN_K:
            w = tl.load(w_at + start, eviction_policy="evict_first")
            x = tl.load(x_ptr + start + col)
        else:
            real = start + col < end
            w = tl.load(w_at + start, mask=real[None, :], other=0.0, eviction_policy="evict_first")
            x = tl.load(x_ptr + start + col, mask=real, other=0.0)
        acc += w.to(tl.float32) * x.to(tl.float32)[None, :]
    acc_n = tl.sum(acc, 1)
    _finish(
        acc_n[:, None], bias_ptr, out_ptr, parts_ptr, counters_ptr, m, n, split_k, BLOCK_M, BLOCK_N
    )


@triton.jit(do_not_specialize=["m", "n", "k8", "split_k", "prefetch"])
def dot_kernel(
    x_ptr,
    w_ptr,
    x_desc,
    w_desc,
    bias_ptr,
    out_ptr,
    parts_ptr,
    counters_ptr,
    m,
    n,
    k8,
    split_k,
    prefetch,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_K: tl.constexpr,
    STAGES: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (tiles of n, split_k). `x_desc`, `w_desc`: tensor descriptors, or None: by pointers."""
    k = k8 * 8
    begin, end = _share(k, split_k, BLOCK_K)
    first_row = tl.program_id(0) * BLOCK_N
    if PDL:
        _await_input(w_ptr, first_row, n, k, begin, end, prefetch, BLOCK_N)
    row = _rows_of_w(first_row, n, BLOCK_N)
    col = tl.arange(0, BLOCK_K)
    x_row = tl.arange(0, BLOCK_M)
    w_at = w_ptr + row[:, None] * k + col[None, :]
    x_at = x_ptr + x_row[:, None] * k + col[None, :]
    x_real = (x_row < m)[:, None]
    acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for start in tl.range(begin, end, BLOCK_K, num_stages=STAGES):
        if w_desc is not None:  # zero beyond the edges
            x = x_desc.load([0, start])
            w = w_desc.load([first_row, start])
        elif EVEN_K:
            x = tl.load(x_at + start, mask=x_real, other=0.0)
            w = tl.load(w_at + start, eviction_policy="evict_first")
        else:
            real = (start + col < end)[None, :]
            x = tl.load(x_at + start, mask=x_real & real, other=0.0)
            w = tl.load(w_at + start, mask=real, other=0.0, eviction_policy="evict_first")
        acc = tl.dot(w, tl.trans(x), acc)
    _finish(acc, bias_ptr, out_ptr, parts_ptr, counters_ptr, m, n, split_k, BLOCK_M, BLOCK_N)
