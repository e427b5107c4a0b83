"""One token for each row of logits, greedy or random over the whole vocabulary, in two launches.

Semantics are those of `runner/sampler.py` for rows without truncation: temperature 0 is greedy, the
lowest id among ties; otherwise the inverse of the cumulative distribution, in token order, of
softmax(logits / temperature) at one uniform number. A logit of -inf forbids its token; logits of
+inf share all the mass; if all are -inf, all tokens are alike. A NaN counts as -inf, so that it
does not decide for the rest. Sums are in float32.

The vocabulary is divided into splits whose size does not depend on the number of rows, so what a
row gets does not either. `split_kernel` leaves the largest logit of each split and the sum of its
weights relative to that; `choose_kernel` finds the split that holds the token, and the token in it.
The sums of a scan need not rise, nor reach what a tree of sums did: only tokens with mass are ever
candidates, and where none crosses the target the last of them is taken.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from octavo.kernels import pdl

SPLIT = 4096
"""Tokens of a split, a power of two."""

NUM_WARPS = 8

_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load_split(row_ptr, split, V: tl.constexpr, SPLIT: tl.constexpr):
    """Token ids of a split, and their logits in float32 without NaNs; -inf past the last token."""
    tokens = split * SPLIT + tl.arange(0, SPLIT)
    logits = tl.load(row_ptr + tokens, mask=tokens < V, other=float("-inf")).to(tl.float32)
    return tokens, tl.where(logits != logits, float("-inf"), logits)


@triton.jit
def _weight(logits, top, sharpness):
    """exp((logits - top) / temperature), where `sharpness` is log2(e) / temperature.

    `top` may be infinite: 1 for logits that equal it, and 0 for those infinitely far below.
    """
    distance = tl.where(logits == top, 0.0, top - logits)
    # Not left to exp2: infinity times a sharpness that was flushed to zero is no number.
    return tl.where(distance == float("inf"), 0.0, tl.exp2(-distance * sharpness))


@triton.jit(do_not_specialize=["temperature_ptr"])
def split_kernel(
    logits_ptr,
    temperature_ptr,
    stats_ptr,
    stride_logits,
    V: tl.constexpr,
    SPLIT: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (rows * splits,). Statistics [n, 2, splits]: largest logits, then sums of weights."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    pid = tl.program_id(0)
    row = (pid // NUM_SPLITS).to(tl.int64)
    split = pid % NUM_SPLITS
    temperature = tl.load(temperature_ptr + row)
    tokens, logits = _load_split(logits_ptr + row * stride_logits, split, V, SPLIT)
    top = tl.max(logits, 0)
    stats = stats_ptr + row * (2 * NUM_SPLITS) + split
    tl.store(stats, top)
    if temperature > 0:
        weights = _weight(logits, top, _LOG2_E / temperature)
        # A split of -inf alone equals its top; what lies past the last token must not count.
        tl.store(stats + NUM_SPLITS, tl.sum(tl.where(tokens < V, weights, 0.0), 0))


@triton.jit(do_not_specialize=["temperature_ptr", "u_ptr", "rows_ptr", "last_token_ptr", "out_ptr"])
def choose_kernel(
    logits_ptr,
    temperature_ptr,
    u_ptr,
    rows_ptr,
    last_token_ptr,
    out_ptr,
    stats_ptr,
    stride_logits,
    V: tl.constexpr,
    SPLIT: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    SPLITS_PAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (rows,)."""
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperature_ptr + row)
    u = tl.load(u_ptr + row)
    request = tl.load(rows_ptr + row)
    splits = tl.arange(0, SPLITS_PAD)
    real = splits < NUM_SPLITS
    if PDL:
        tl.extra.cuda.gdc_wait()
    stats = stats_ptr + row * (2 * NUM_SPLITS)
    tops = tl.load(stats + splits, mask=real, other=float("-inf"))
    top = tl.max(tops, 0)
    row_ptr = logits_ptr + row * stride_logits

    if temperature > 0:
        sharpness = _LOG2_E / temperature
        sums = tl.load(stats + NUM_SPLITS + splits, mask=real, other=0.0)
        mass = sums * _weight(tops, top, sharpness)
        target = u * tl.sum(mass, 0)
        crosses = (tl.cumsum(mass, 0) > target) & (mass > 0.0)
        first = tl.min(tl.where(crosses, splits, SPLITS_PAD), 0)
        # The split of the largest logit has mass, so there is a last one.
        split = tl.minimum(first, tl.max(tl.where(mass > 0.0, splits, 0), 0))

        # In the split, weights are relative to its own top, where none that matters underflows.
        split_top = tl.load(stats + split)
        split_sum = tl.load(stats + NUM_SPLITS + split)
        below = tl.sum(tl.where(splits < split, mass, 0.0), 0)
        share = (target - below) / (split_sum * _weight(split_top, top, sharpness))
        share = tl.where(first == SPLITS_PAD, float("inf"), share)  # none crosses: the last token
        tokens, logits = _load_split(row_ptr, split, V, SPLIT)
        weights = tl.where(tokens < V, _weight(logits, split_top, sharpness), 0.0)
        crosses = (tl.cumsum(weights, 0) > share * split_sum) & (weights > 0.0)
        first = tl.min(tl.where(crosses, tokens, V), 0)
        token = tl.minimum(first, tl.max(tl.where(weights > 0.0, tokens, 0), 0))
    else:
        split = tl.min(tl.where((tops == top) & real, splits, SPLITS_PAD), 0)
        tokens, logits = _load_split(row_ptr, split, V, SPLIT)
        token = tl.min(tl.where((logits == top) & (tokens < V), tokens, V), 0)

    tl.store(out_ptr + row, token)
    if request >= 0:
        tl.store(last_token_ptr + request, token)


def sample_plain(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    u: torch.Tensor,
    rows: torch.Tensor,
    last_token: torch.Tensor,
    out: torch.Tensor,
    *,
    split: int = SPLIT,
    num_warps: int = NUM_WARPS,
) -> None:
    """Choose a token for each row; what a row gets depends on its own arguments alone.

    Args:
        logits: [n, v] bfloat16, float16 or float32; rows may lie apart, the values of a row lie
            side by side. Unchanged.
        temperature: [n] float32, 0 (greedy) or a normal number above.
        u: [n] float32 in [0, 1); 1 gives the last token that has mass.
        rows: [n] int32, rows of the request table, or below zero.
        last_token: [R] int32, written where rows are not below zero.
        out: [n] int32, written.
        split: tokens of a split, a power of two. Near the bounds between tokens, another size may
            give another token.
        num_warps: of a program.
    """
    num_rows, vocab_size = logits.shape
    num_splits, padded = _splits(vocab_size, split)
    stats = torch.empty((num_rows, 2, num_splits), dtype=torch.float32, device=logits.device)
    stride = logits.stride(0)
    # The first kernel follows a graph, or a copy: it is launched as usual, and waits by itself.
    options = pdl.options(logits.device)
    split_kernel[(num_rows * num_splits,)](
        logits, temperature, stats, stride,
        V=vocab_size, SPLIT=split, NUM_SPLITS=num_splits, PDL=options["PDL"], num_warps=num_warps,
    )  # fmt: skip
    choose_kernel[(num_rows,)](
        logits, temperature, u, rows, last_token, out, stats, stride,
        V=vocab_size, SPLIT=split, NUM_SPLITS=num_splits, SPLITS_PAD=padded, num_warps=num_warps,
        **options,
    )  # fmt: skip


@cache
def _splits(vocab_size: int, split: int) -> tuple[int, int]:
    """How many splits, and a power of two that holds them."""
    num_splits = -(-vocab_size // split)
    return num_splits, max(triton.next_power_of_2(num_splits), 2)
