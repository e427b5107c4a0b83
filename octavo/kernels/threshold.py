"""Search for a threshold among logits, by the count or the mass of those that reach it.

Parts of kernels: knows rows of logits and groups of tokens, not what is done with what is found. A
logit is searched for as an integer of the same order, its key: 65536 of them for bfloat16. Counts
are exact (a row has fewer than 2**24 tokens), sums of weights are in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from octavo.kernels.logit_splits import load_logits, weight

if TYPE_CHECKING:
    import torch

# By name: where kernels are only compiled there is no torch.
_SHIFTS = {"torch.bfloat16": 16, "torch.float16": 13, "torch.float32": 0}

_PIVOTS = tl.constexpr(8)  # of a round of a search


def shift_of(dtype: torch.dtype) -> int:
    """SHIFT of keys: how many bits a logits' type lacks of float32's."""
    return _SHIFTS[str(dtype)]


@triton.jit
def to_key(value, SHIFT: tl.constexpr):
    """The key of a float32 value; the two zeros have one.

    Of a value between two of the logits' type it is that of the lower one. SHIFT: `shift_of`.
    """
    bits = value.to(tl.int32, bitcast=True)
    return tl.where(bits < 0, -(bits & 0x7FFFFFFF), bits) >> SHIFT


@triton.jit
def to_value(key, SHIFT: tl.constexpr):
    """The float32 value of an int32 key; past infinity no number, which nothing reaches."""
    value = (tl.abs(key) << SHIFT).to(tl.float32, bitcast=True)
    return tl.where(key < 0, -value, value)


@triton.jit
def weigh(logits, real, top, sharpness):
    """Weights relative to `top`, zero for what is not real (and has a logit of -inf).

    Like `weight`, which is slower by half a dozen instructions and kept for infinite tops.
    """
    if (tl.maximum(top, -top) < float("inf")) & (sharpness > 1e-30):
        weights = tl.exp2((logits - top) * sharpness)
    else:
        weights = tl.where(real, weight(logits, top, sharpness), 0.0)
    return weights


@triton.jit
def scaled(amounts, scales):
    """Amounts times scales (>= 0), to be summed.

    The choice keeps the compiler from fusing the product with the first addition of a sum: each
    thread would then round its own product away and its neighbour's not, and threads would come to
    sums that differ in the last bit, though the program takes them for one number.
    """
    return tl.where(scales > 0, amounts * scales, 0.0)


@triton.jit
def sums_above(values, logits, amounts):
    """[m] the sums of those amounts [n] whose logits [n] reach the values [m]."""
    # A comparison that gives 0 or 1, and a product that is added: two instructions for each pair,
    # where a choice takes three.
    reached = (logits[None, :] >= values[:, None]).to(tl.float32)
    return tl.sum(reached * amounts[None, :], 1)


@triton.jit
def divide(lo, hi):
    """Keys that divide [lo, hi), both int64; at least one lies between if any does."""
    return lo + (hi - lo) * (tl.arange(0, _PIVOTS) + 1) // (_PIVOTS + 1)


@triton.jit
def search_values(values, real, lo, hi, least, SHIFT: tl.constexpr):
    """The largest key in [lo, hi) that at least so many of the values [n] reach; else lo."""
    ones = tl.where(real, 1.0, 0.0)
    while hi - lo > 1:
        pivots = divide(lo, hi)
        reached = sums_above(to_value(pivots.to(tl.int32), SHIFT), values, ones) >= least
        hi = tl.min(tl.where(reached, hi, pivots), 0)
        lo = tl.max(tl.where(reached, pivots, lo), 0)
    return lo


@triton.jit
def load_chunk(
    row_ptr,
    list_ptr,
    chunk,
    num_groups,
    is_listed,
    V: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Tokens [GROUPS * GROUP] of a chunk of groups, and their logits; V where there is none.

    The groups are those of the list, or the first ones of the row.
    """
    place = chunk * GROUPS + tl.arange(0, GROUPS)
    num_listed = tl.where(is_listed, num_groups, 0)
    group = tl.load(list_ptr + place, mask=place < num_listed, other=0)
    group = tl.where(is_listed, group, place)
    tokens = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    real = (place < num_groups)[:, None] & (tokens < V)
    logits = load_logits(row_ptr, tokens, real)
    tokens = tl.where(real, tokens, V)
    return tl.reshape(tokens, [GROUPS * GROUP]), tl.reshape(logits, [GROUPS * GROUP])


@triton.jit
def search(
    row_ptr,
    list_ptr,
    num_groups,
    is_listed,
    lo,
    hi,
    target,
    top,
    sharpness,
    BY_MASS: tl.constexpr,
    SHIFT: tl.constexpr,
    V: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """The largest key in [lo, hi) at which the target is reached; lo where it is at none.

    Reached by the tokens of the groups that reach the key: by their number, or by the sum of their
    weights relative to `top`.
    """
    while hi - lo > 1:
        pivots = divide(lo, hi)
        values = to_value(pivots.to(tl.int32), SHIFT)
        sums = tl.zeros([_PIVOTS], tl.float32)
        for chunk in range(tl.cdiv(num_groups, GROUPS)):
            tokens, logits = load_chunk(
                row_ptr, list_ptr, chunk, num_groups, is_listed, V, GROUP, GROUPS
            )
            if BY_MASS:
                amounts = weigh(logits, tokens < V, top, sharpness)
            else:
                amounts = tl.where(tokens < V, 1.0, 0.0)
            sums += sums_above(values, logits, amounts)
        reached = sums >= target
        hi = tl.min(tl.where(reached, hi, pivots), 0)
        lo = tl.max(tl.where(reached, pivots, lo), 0)
    return lo


@triton.jit
def measure(
    row_ptr,
    list_ptr,
    num_groups,
    is_listed,
    threshold,
    top,
    sharpness,
    V: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    CHUNKS_PAD: tl.constexpr,
):
    """Of each chunk the mass above a threshold and the number of ties with it; number above."""
    chunks = tl.arange(0, CHUNKS_PAD)
    masses = tl.zeros([CHUNKS_PAD], tl.float32)
    ties = tl.zeros([CHUNKS_PAD], tl.int32)
    num_above = 0
    for chunk in range(tl.cdiv(num_groups, GROUPS)):
        tokens, logits = load_chunk(
            row_ptr, list_ptr, chunk, num_groups, is_listed, V, GROUP, GROUPS
        )
        is_above = logits > threshold
        mass = tl.sum(tl.where(is_above, weigh(logits, tokens < V, top, sharpness), 0.0), 0)
        num_ties = tl.sum(((logits == threshold) & (tokens < V)).to(tl.int32), 0)
        masses = tl.where(chunks == chunk, mass, masses)
        ties = tl.where(chunks == chunk, num_ties, ties)
        num_above += tl.sum(is_above.to(tl.int32), 0)
    return masses, ties, num_above
