"""Rows of logits, which are divided into splits: how kernels read and weigh them.

Parts of kernels that choose and report tokens; which, and what they make of it, is not known here.
The size of a split does not depend on the number of rows, so what a row gets does not either.
"""

from __future__ import annotations

from functools import cache

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def split_of_program(NUM_SPLITS: tl.constexpr):
    """With a grid (rows * splits,): which row, 64 bits wide, and which split of it."""
    pid = tl.program_id(0)
    return (pid // NUM_SPLITS).to(tl.int64), pid % NUM_SPLITS


@triton.jit
def load_logits(row_ptr, tokens, real):
    """In float32; -inf for what is not real, or no number."""
    logits = tl.load(row_ptr + tokens, mask=real, other=float("-inf")).to(tl.float32)
    return tl.where(logits != logits, float("-inf"), logits)


@triton.jit
def load_split(row_ptr, split, V: tl.constexpr, SPLIT: tl.constexpr):
    """Token ids of a split, and their logits in float32 without NaNs; -inf past the last token."""
    tokens = split * SPLIT + tl.arange(0, SPLIT)
    return tokens, load_logits(row_ptr, tokens, tokens < V)


@triton.jit
def weight(logits, top, sharpness):
    """exp((logits - top) / temperature), where `sharpness` is log2(e) / temperature.

    `top` may be infinite: 1 for logits that equal it, and 0 for those infinitely far below.
    """
    distance = tl.where(logits == top, 0.0, top - logits)
    # Not left to exp2: infinity times a sharpness that was flushed to zero is no number.
    return tl.where(distance == float("inf"), 0.0, tl.exp2(-distance * sharpness))


@cache
def count_splits(vocab_size: int, split: int) -> tuple[int, int]:
    """How many splits, and a power of two that holds them."""
    num_splits = -(-vocab_size // split)
    return num_splits, max(triton.next_power_of_2(num_splits), 2)
