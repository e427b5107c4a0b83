"""Between which bounds the threshold of rows that truncate lies: `truncated_sampling.py`, 1 to 3.

Kernels of all splits or of all rows; what they pass on is in `truncated_state.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.bracket import (
    PIVOTS,
    STATS,
    bracket,
    guess_again,
    num_pivots,
    pivots_around,
    refine,
    survey,
)
from octavo.kernels.logit_splits import LOG2_E, load_split, split_of_program
from octavo.kernels.pdl import wait_then_release
from octavo.kernels.threshold import (
    search_values,
    sums_above,
    to_key,
    to_value,
    weigh,
)
from octavo.kernels.truncated_state import (
    CHANGING,
    FIRST_PIVOT,
    NEXT_BOUNDS,
    NEXT_PIVOT,
    PIVOTS_AGAIN,
    STATE,
    is_top_p_alone,
    load_float,
    load_look,
    load_parameters,
)


@triton.jit(do_not_specialize=CHANGING)
def survey_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    stats_ptr,
    maxima_ptr,
    stride_logits,
    V: tl.constexpr,
    SPLIT: tl.constexpr,
    GROUP: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (rows * splits,). Statistics: see `bracket.py`. Maxima [n, groups]."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    row, split = split_of_program(NUM_SPLITS)
    temperature, top_k, top_p, min_p, truncates = load_parameters(
        row, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, V
    )
    if truncates:
        tokens, logits = load_split(logits_ptr + row * stride_logits, split, V, SPLIT)
        GROUPS: tl.constexpr = SPLIT // GROUP
        maxima = tl.max(tl.reshape(logits, [GROUPS, GROUP]), 1)
        groups = (row * NUM_SPLITS + split) * GROUPS + tl.arange(0, GROUPS)
        tl.store(maxima_ptr + groups, maxima)

        top = tl.max(maxima, 0)
        stats = stats_ptr + row * (STATS * NUM_SPLITS) + split
        tl.store(stats, top)
        if is_top_p_alone(top_k, top_p, min_p):
            weights = weigh(logits, tokens < V, top, LOG2_E / temperature)
            survey(stats, logits, weights, top, temperature, NUM_SPLITS)


@triton.jit(do_not_specialize=CHANGING)
def bracket_kernel(
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    stats_ptr,
    maxima_ptr,
    state_ptr,
    list_ptr,
    few_groups,
    SHIFT: tl.constexpr,
    V: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    SPLITS_PAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (rows,). List [n, groups] of those that reach lo; state."""
    if PDL:
        wait_then_release()
    row = tl.program_id(0).to(tl.int64)
    temperature, top_k, top_p, min_p, truncates = load_parameters(
        row, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, V
    )
    state = state_ptr + row * STATE
    is_wide = top_k < 0  # never
    if truncates:
        stats = stats_ptr + row * (STATS * NUM_SPLITS)
        groups = tl.arange(0, SPLITS_PAD * GROUPS)
        real = groups * GROUP < V
        maxima = tl.load(
            maxima_ptr + row * (NUM_SPLITS * GROUPS) + groups, mask=real, other=float("-inf")
        )
        top = tl.max(maxima, 0)
        is_alone = is_top_p_alone(top_k, top_p, min_p)
        below = tl.full([], -(0x7F800000 >> SHIFT) - 1, tl.int32)
        if is_alone:
            lo, hi, lo_mass, total, guess, gap = bracket(
                stats, temperature, top_p, SHIFT, V, NUM_SPLITS, SPLITS_PAD
            )
            pivots = pivots_around(lo, hi, guess, gap, SHIFT, PIVOTS)
            tl.store(state + FIRST_PIVOT + tl.arange(0, PIVOTS), pivots)
            tl.store(state + 6, lo_mass.to(tl.int32, bitcast=True))
            tl.store(state + 7, total.to(tl.int32, bitcast=True))
        else:
            lo = tl.full([], -(0x7F800000 >> SHIFT), tl.int32)
            hi = to_key(top, SHIFT) + 1
            if min_p > 0:
                is_finite = tl.maximum(top, -top) < float("inf")
                least = tl.where(is_finite, top + temperature * tl.log(min_p), top)
                below = to_key(least, SHIFT)
                below -= (to_value(below, SHIFT) == least).to(tl.int32)
                lo = tl.maximum(lo, below)
            if top_k > 0:
                # So many groups have a token that reaches it, if not more.
                lo = search_values(maxima, real, lo.to(tl.int64), hi.to(tl.int64), top_k, SHIFT).to(
                    tl.int32
                )
        reaching = (maxima >= to_value(lo, SHIFT)) & real
        places = tl.cumsum(reaching.to(tl.int32), 0) - 1
        tl.store(list_ptr + row * (NUM_SPLITS * GROUPS) + places, groups, mask=reaching)
        num_groups = tl.sum(reaching.to(tl.int32), 0)
        is_wide = is_alone & (num_groups > few_groups)
        tl.store(state, lo)
        tl.store(state + 1, hi)
        tl.store(state + 2, num_groups)
        tl.store(state + 4, below)
        tl.store(state + 5, top.to(tl.int32, bitcast=True))
    tl.store(state + 3, is_wide.to(tl.int32))


@triton.jit(do_not_specialize=CHANGING)
def narrow_kernel(
    logits_ptr,
    temperature_ptr,
    top_p_ptr,
    state_ptr,
    masses_ptr,
    stride_logits,
    AGAIN: tl.constexpr,
    SHIFT: tl.constexpr,
    V: tl.constexpr,
    SPLIT: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    SPLITS_PAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (rows * splits,). Masses [n, 2 * pivots, splits] of rows with a wide bracket.

    AGAIN: above other pivots, where the first ones have not found the threshold.
    """
    if PDL:
        wait_then_release()
    row, split = split_of_program(NUM_SPLITS)
    state = state_ptr + row * STATE
    if tl.load(state + 3) != 0:
        masses_ptr += row * (2 * PIVOTS * NUM_SPLITS)
        lo, hi = tl.load(state).to(tl.int64), tl.load(state + 1).to(tl.int64)
        num = num_pivots(lo, hi)
        if AGAIN:
            total = load_float(state + 7)
            target = tl.load(top_p_ptr + row) * total
            pivots, measured = load_look(
                state + FIRST_PIVOT, masses_ptr, num, PIVOTS, NUM_SPLITS, SPLITS_PAD
            )
            lo, hi, lo_mass, hi_mass = refine(
                lo, hi, load_float(state + 6), pivots, tl.sum(measured, 1), target
            )
            num = tl.where(hi - lo > 1, PIVOTS_AGAIN, 0)
            if split == 0:
                tl.store(state + NEXT_BOUNDS, lo.to(tl.int32))
                tl.store(state + NEXT_BOUNDS + 1, hi.to(tl.int32))
        if num > 0:
            tokens, logits = load_split(logits_ptr + row * stride_logits, split, V, SPLIT)
            sharpness = LOG2_E / tl.load(temperature_ptr + row)
            weights = weigh(logits, tokens < V, load_float(state + 5), sharpness)
            if AGAIN:
                guess, gap = guess_again(lo, hi, lo_mass, hi_mass, target, total, SHIFT)
                next_pivots = pivots_around(lo, hi, guess, gap, SHIFT, PIVOTS_AGAIN)
                count = tl.arange(0, PIVOTS_AGAIN)
                if split == 0:
                    tl.store(state + NEXT_PIVOT + count, next_pivots)
                masses = sums_above(to_value(next_pivots, SHIFT), logits, weights)
                tl.store(masses_ptr + (PIVOTS + count) * NUM_SPLITS + split, masses)
            else:
                # In rounds: all at once want more registers than there are.
                for begin in range(0, num, PIVOTS // 2):
                    count = begin + tl.arange(0, PIVOTS // 2)
                    values = to_value(tl.load(state + FIRST_PIVOT + count), SHIFT)
                    masses = sums_above(values, logits, weights)
                    tl.store(masses_ptr + count * NUM_SPLITS + split, masses)
