"""The draw of a token among those that are kept: `truncated_sampling.py`, 4."""

from __future__ import annotations

import triton
import triton.language as tl

from octavo.kernels.bracket import PIVOTS, num_pivots, refine
from octavo.kernels.logit_splits import LOG2_E, weight
from octavo.kernels.threshold import load_chunk, measure, search, to_value
from octavo.kernels.truncated_state import (
    CHANGING,
    FIRST_PIVOT,
    NEXT_BOUNDS,
    NEXT_PIVOT,
    PIVOTS_AGAIN,
    STATE,
    load_float,
    load_look,
    load_parameters,
)


@triton.jit
def _ties_to_reach(target, mass, tie_weight):
    """How many ties, at least one, reach the target together with the mass above them."""
    num = tl.where(tie_weight > 0, tl.ceil((target - mass) / tie_weight), 1.0)
    return tl.minimum(tl.maximum(num, 1.0), 2.0**30).to(tl.int32)


@triton.jit
def _first_beyond(amounts, goal, NUM: tl.constexpr):
    """The first place whose cumulated amount exceeds the goal; else the last with any.

    Sums of a scan need not rise, nor reach what a tree of sums did. Also whether one exceeds it.
    """
    place = tl.arange(0, NUM)
    first = tl.min(tl.where((tl.cumsum(amounts, 0) > goal) & (amounts > 0), place, NUM), 0)
    return tl.minimum(first, tl.max(tl.where(amounts > 0, place, 0), 0)), first < NUM


@triton.jit
def _row_of(measured, pivots, key, NUM: tl.constexpr):
    """The masses [splits] above a pivot; pivots may occur several times."""
    count = tl.arange(0, NUM)
    first = tl.min(tl.where(pivots == key, count, NUM), 0)
    return tl.sum(tl.where((count == first)[:, None], measured, 0.0), 0)


@triton.jit(do_not_specialize=CHANGING)
def draw_kernel(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    u_ptr,
    rows_ptr,
    last_token_ptr,
    out_ptr,
    state_ptr,
    masses_ptr,
    list_ptr,
    stride_logits,
    SHIFT: tl.constexpr,
    V: tl.constexpr,
    SPLIT: tl.constexpr,
    GROUP: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    SPLITS_PAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (rows,)."""
    if PDL:
        tl.extra.cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    temperature, top_k, top_p, min_p, truncates = load_parameters(
        row, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, V
    )
    if truncates:
        GROUPS: tl.constexpr = SPLIT // GROUP
        sharpness = LOG2_E / temperature
        row_ptr = logits_ptr + row * stride_logits
        list_ptr += row * (NUM_SPLITS * GROUPS)

        # The threshold is in [lo, hi); of 64 bits, since a range of 32-bit keys may be longer.
        state = state_ptr + row * STATE
        lo, hi = tl.load(state).to(tl.int64), tl.load(state + 1).to(tl.int64)
        top, total = load_float(state + 5), load_float(state + 7)
        is_listed = tl.load(state + 3) == 0
        num_groups = tl.where(is_listed, tl.load(state + 2), NUM_SPLITS * GROUPS)
        chunks = tl.arange(0, SPLITS_PAD)
        masses = tl.zeros([SPLITS_PAD], tl.float32)
        ties = tl.zeros([SPLITS_PAD], tl.int32)
        num_kept = tl.full([], 0x7FFFFFFF, tl.int32)  # ties that are kept, at most
        is_found = top_k < 0  # never
        if is_listed == 0:
            masses_ptr += row * (2 * PIVOTS * NUM_SPLITS)
            pivots, measured = load_look(
                state + FIRST_PIVOT, masses_ptr, num_pivots(lo, hi),
                PIVOTS, NUM_SPLITS, SPLITS_PAD,
            )  # fmt: skip
            lo = tl.load(state + NEXT_BOUNDS).to(tl.int64)
            hi = tl.load(state + NEXT_BOUNDS + 1).to(tl.int64)
            masses = _row_of(measured, pivots, hi, PIVOTS)
            if hi - lo > 1:
                next_pivots, measured_next = load_look(
                    state + NEXT_PIVOT, masses_ptr + PIVOTS * NUM_SPLITS, PIVOTS_AGAIN,
                    PIVOTS_AGAIN, NUM_SPLITS, SPLITS_PAD,
                )  # fmt: skip
                lo, hi, _lo_mass, _hi_mass = refine(
                    lo, hi, 0.0, next_pivots, tl.sum(measured_next, 1), top_p * total
                )
                masses = _row_of(measured_next, next_pivots, hi, PIVOTS_AGAIN)
            is_found = hi - lo == 1
        if top_k > 0:
            lo = search(
                row_ptr, list_ptr, num_groups, is_listed, lo, hi, top_k, top, sharpness,
                False, SHIFT, V, GROUP, GROUPS,
            )  # fmt: skip
        if (top_k > 0) | (min_p > 0):
            threshold = to_value(lo.to(tl.int32), SHIFT)
            masses, ties, num_above = measure(
                row_ptr, list_ptr, num_groups, is_listed, threshold, top, sharpness,
                V, GROUP, GROUPS, SPLITS_PAD,
            )  # fmt: skip
            num_kept = tl.where(lo == tl.load(state + 4), 0, tl.sum(ties, 0))
            num_kept = tl.where(top_k > 0, tl.minimum(num_kept, top_k - num_above), num_kept)
            total = tl.sum(masses, 0) + num_kept * weight(threshold, top, sharpness)
        if top_p < 1:
            target = top_p * total
            if is_found == 0:
                least = lo
                lo = search(
                    row_ptr, list_ptr, num_groups, is_listed, lo, hi, target, top, sharpness,
                    True, SHIFT, V, GROUP, GROUPS,
                )  # fmt: skip
                num_kept = tl.where(lo == least, num_kept, 0x7FFFFFFF)
                masses, ties, _num = measure(
                    row_ptr, list_ptr, num_groups, is_listed, to_value(lo.to(tl.int32), SHIFT),
                    top, sharpness, V, GROUP, GROUPS, SPLITS_PAD,
                )  # fmt: skip
                num_kept = tl.minimum(num_kept, tl.sum(ties, 0))
            tie_weight = weight(to_value(lo.to(tl.int32), SHIFT), top, sharpness)
            enough = _ties_to_reach(target, tl.sum(masses, 0), tie_weight)
            num_kept = tl.minimum(num_kept, enough)

        threshold = to_value(lo.to(tl.int32), SHIFT)
        tie_weight = weight(threshold, top, sharpness)
        mass = tl.sum(masses, 0)
        goal = tl.load(u_ptr + row) * (mass + num_kept * tie_weight)
        is_tie = (goal >= mass) & (num_kept * tie_weight > 0)
        if is_tie & is_found:
            _masses, ties, _num = measure(
                row_ptr, list_ptr, num_groups, is_listed, threshold, top, sharpness,
                V, GROUP, GROUPS, SPLITS_PAD,
            )  # fmt: skip
            is_tie = tl.sum(ties, 0) > 0
        amounts = masses
        if is_tie:
            # Ties are counted from zero, and the kept ones are the first.
            nth = tl.minimum(((goal - mass) / tie_weight).to(tl.int32), num_kept - 1)
            goal = nth.to(tl.float32)
            amounts = ties.to(tl.float32)
        chunk, is_beyond = _first_beyond(amounts, goal, SPLITS_PAD)
        goal -= tl.sum(tl.where(chunks < chunk, amounts, 0.0), 0)
        goal = tl.where(is_beyond, goal, float("inf"))
        tokens, logits = load_chunk(
            row_ptr, list_ptr, chunk, num_groups, is_listed, V, GROUP, GROUPS
        )
        amounts = tl.where(logits > threshold, weight(logits, top, sharpness), 0.0)
        if is_tie:
            amounts = tl.where((logits == threshold) & (tokens < V), 1.0, 0.0)
        place, is_beyond = _first_beyond(amounts, goal, SPLIT)
        token = tl.min(tl.where(tl.arange(0, SPLIT) == place, tokens, V), 0)
        tl.store(out_ptr + row, token)
        request = tl.load(rows_ptr + row)
        if request >= 0:
            tl.store(last_token_ptr + request, token)
