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

import torch
import triton
import triton.language as tl

from octavo.kernels import pdl
from octavo.kernels.logit_splits import (
    LOG2_E,
    count_splits,
    load_split,
    split_of_program,
    weight,
)

SPLIT = 4096
"""Tokens of a split, a power of two."""

NUM_WARPS = 8


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
    row, split = split_of_program(NUM_SPLITS)
    temperature = tl.load(temperature_ptr + row)
    tokens, logits = load_split(logits_ptr + row * stride_logits, split, V, SPLIT)
    top = tl.max(logits, 0)
    stats = stats_ptr + row * (2 * NUM_SPLITS) + split
    tl.store(stats, top)
    if temperature > 0:
        weights = weight(logits, top, LOG2_E / temperature)
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
        sharpness = LOG2_E / temperature
        sums = tl.load(stats + NUM_SPLITS + splits, mask=real, other=0.0)
        mass = sums * weight(tops, top, sharpness)
        target = u * tl.sum(mass, 0)
        crosses = (tl.cumsum(mass, 0) > target) & (mass > 0.0)
        first = tl.min(tl.where(crosses, splits, SPLITS_PAD), 0)
        # The split of the largest logit has mass, so there is a last one.
        split = tl.minimum(first, tl.max(tl.where(mass > 0.0, splits, 0), 0))

        # In the split, weights are relative to its own top, where none that matters underflows.
        split_top = tl.load(stats + split)
        split_sum = tl.load(stats + NUM_SPLITS + split)
        below = tl.sum(tl.where(splits < split, mass, 0.0), 0)
        share = (target - below) / (split_sum * weight(split_top, top, sharpness))
        share = tl.where(first == SPLITS_PAD, float("inf"), share)  # none crosses: the last token
        tokens, logits = load_split(row_ptr, split, V, SPLIT)
        weights = tl.where(tokens < V, weight(logits, split_top, sharpness), 0.0)
        crosses = (tl.cumsum(weights, 0) > share * split_sum) & (weights > 0.0)
        first = tl.min(tl.where(crosses, tokens, V), 0)
        token = tl.minimum(first, tl.max(tl.where(weights > 0.0, tokens, 0), 0))
    else:
        split = tl.min(tl.where((tops == top) & real, splits, SPLITS_PAD), 0)
        tokens, logits = load_split(row_ptr, split, V, SPLIT)
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
    num_splits, padded = count_splits(vocab_size, split)
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
