"""One token for each row that truncates, by top-k, top-p or min-p, without sorting the vocabulary.

Semantics are those of `runner/sampler.py`: temperature, then min-p, top-k and top-p; the first
token that reaches top-p's share is the last one kept, and of tied tokens those of lower id are kept
first. From what is kept, the token is the inverse of the cumulative distribution at one uniform
number: first the tokens above the least logit kept, in token order, then those that tie with it
(all in token order where min-p sets the bound, and not top-k or top-p). The sampler's order for the
CPU is that of falling probability, so there the same number gives another token of the same
distribution. Infinite logits and NaNs are as in `sampling.py`. Sums are in float32, so top-p's
share is met to about 1e-6; counts are exact. Rows that truncate nothing are left alone.

What is kept is known from the least logit kept, the threshold, and how many of its ties stay. Both
the count and the mass of tokens that reach a value fall as it rises, so the threshold is searched
for (`threshold.py`).

1. `survey_kernel`, rows * splits: the largest logit of each group of tokens and, for top-p alone, a
   first look at how the mass is spread (`bracket.py`).
2. `bracket_kernel`, rows: bounds of the threshold, and a list of the groups that reach the lower
   one. With top-k, that is the k-th of the groups' largest logits, and few groups do.
3. `narrow_kernel`, rows * splits, twice, where top-p alone leaves many groups: the mass above
   pivots. With 16-bit logits two of them are nearly always neighbours in the end, and the threshold
   is found; for most rows the first time.
4. `draw_kernel`, rows: searches on in the groups of the list where need be; draws.

Others search so too: by rejection FlashInfer ("Sorting-Free GPU Kernels for LLM Sampling", 2025),
by pivots Qrita (arXiv 2602.01518). Here launches are few and of fixed number, and what is kept is
what sorting would keep. The sizes of all parts are independent of the number of rows, so what a row
gets is too.
"""

from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

from octavo.kernels import pdl
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
from octavo.kernels.threshold import (
    load_chunk,
    load_logits,
    measure,
    search,
    search_values,
    shift_of,
    sums_above,
    to_key,
    to_value,
    weigh,
    weight,
)

SPLIT = 4096
"""Tokens of a split, a power of two."""

GROUP = 128
"""Tokens of a group, a power of two below `SPLIT`."""

FEW_GROUPS = 128
"""So many groups are left to the last kernel alone."""

NUM_WARPS = 4
NUM_WARPS_DRAW = 16

_STATE = tl.constexpr(8 + 2 * 16)  # integers of a row: see `bracket_kernel`
_FIRST_PIVOT = tl.constexpr(8)
_NEXT_BOUNDS = tl.constexpr(8 + 16)
_NEXT_PIVOT = tl.constexpr(8 + 16 + 8)
_PIVOTS_AGAIN = tl.constexpr(8)

_LOG2_E = tl.constexpr(1.4426950408889634)

_CHANGING = [
    "temperature_ptr", "top_k_ptr", "top_p_ptr", "min_p_ptr", "u_ptr", "rows_ptr", "last_token_ptr",
    "out_ptr", "few_groups",
]  # fmt: skip


@triton.jit
def _load_parameters(row, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, V: tl.constexpr):
    """Temperature, k (0: all), p and min-p of a row, and whether it truncates."""
    temperature = tl.load(temperature_ptr + row)
    top_k = tl.load(top_k_ptr + row)
    top_k = tl.where((top_k > 0) & (top_k < V), top_k, 0)
    top_p = tl.load(top_p_ptr + row)
    min_p = tl.load(min_p_ptr + row)
    truncates = (temperature > 0) & ((top_k > 0) | (top_p < 1) | (min_p > 0))
    return temperature, top_k, top_p, min_p, truncates


@triton.jit
def _is_top_p_alone(top_k, top_p, min_p):
    return (top_k == 0) & (top_p < 1) & (min_p <= 0)


@triton.jit(do_not_specialize=_CHANGING)
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
    pid = tl.program_id(0)
    row = (pid // NUM_SPLITS).to(tl.int64)
    split = pid % NUM_SPLITS
    temperature, top_k, top_p, min_p, truncates = _load_parameters(
        row, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, V
    )
    if truncates:
        tokens = split * SPLIT + tl.arange(0, SPLIT)
        logits = load_logits(logits_ptr + row * stride_logits, tokens, tokens < V)
        GROUPS: tl.constexpr = SPLIT // GROUP
        maxima = tl.max(tl.reshape(logits, [GROUPS, GROUP]), 1)
        groups = (row * NUM_SPLITS + split) * GROUPS + tl.arange(0, GROUPS)
        tl.store(maxima_ptr + groups, maxima)

        top = tl.max(maxima, 0)
        stats = stats_ptr + row * (STATS * NUM_SPLITS) + split
        tl.store(stats, top)
        if _is_top_p_alone(top_k, top_p, min_p):
            weights = weigh(logits, tokens < V, top, _LOG2_E / temperature)
            survey(stats, logits, weights, top, temperature, NUM_SPLITS)


@triton.jit(do_not_specialize=_CHANGING)
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
    """Grid (rows,).

    List [n, groups] of those that reach lo. State [n, `_STATE`]: keys lo and hi, the threshold is
    in [lo, hi); number of groups that reach lo; whether they are many, and top-p alone; the largest
    key that min-p forbids; as bits of floats the largest logit and, for top-p alone, the masses at
    lo and of all; pivots; room for new bounds and pivots. What is decided by sums is decided once,
    and passed on: another kernel may round them otherwise.
    """
    if PDL:
        pdl.wait_then_release()
    row = tl.program_id(0).to(tl.int64)
    temperature, top_k, top_p, min_p, truncates = _load_parameters(
        row, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, V
    )
    state = state_ptr + row * _STATE
    is_wide = top_k < 0  # never
    if truncates:
        stats = stats_ptr + row * (STATS * NUM_SPLITS)
        groups = tl.arange(0, SPLITS_PAD * GROUPS)
        real = groups * GROUP < V
        maxima = tl.load(
            maxima_ptr + row * (NUM_SPLITS * GROUPS) + groups, mask=real, other=float("-inf")
        )
        top = tl.max(maxima, 0)
        is_alone = _is_top_p_alone(top_k, top_p, min_p)
        below = tl.full([], -(0x7F800000 >> SHIFT) - 1, tl.int32)
        if is_alone:
            lo, hi, lo_mass, total, guess, gap = bracket(
                stats, temperature, top_p, SHIFT, V, NUM_SPLITS, SPLITS_PAD
            )
            pivots = pivots_around(lo, hi, guess, gap, SHIFT, PIVOTS)
            tl.store(state + _FIRST_PIVOT + tl.arange(0, PIVOTS), pivots)
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


@triton.jit
def _load_float(bits_ptr):
    return tl.load(bits_ptr).to(tl.float32, bitcast=True)


@triton.jit
def _load_look(
    pivots_ptr,
    masses_ptr,
    num,
    NUM: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    SPLITS_PAD: tl.constexpr,
):
    """Pivots [NUM] of a row, and the masses [NUM, splits] above the first `num` of them."""
    count = tl.arange(0, NUM)
    splits = tl.arange(0, SPLITS_PAD)
    measured = tl.load(
        masses_ptr + count[:, None] * NUM_SPLITS + splits[None, :],
        mask=(count < num)[:, None] & (splits < NUM_SPLITS)[None, :],
        other=0.0,
    )
    return tl.load(pivots_ptr + count).to(tl.int64), measured


@triton.jit(do_not_specialize=_CHANGING)
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
        pdl.wait_then_release()
    pid = tl.program_id(0)
    row = (pid // NUM_SPLITS).to(tl.int64)
    split = pid % NUM_SPLITS
    state = state_ptr + row * _STATE
    if tl.load(state + 3) != 0:
        masses_ptr += row * (2 * PIVOTS * NUM_SPLITS)
        lo, hi = tl.load(state).to(tl.int64), tl.load(state + 1).to(tl.int64)
        num = num_pivots(lo, hi)
        if AGAIN:
            total = _load_float(state + 7)
            target = tl.load(top_p_ptr + row) * total
            pivots, measured = _load_look(
                state + _FIRST_PIVOT, masses_ptr, num, PIVOTS, NUM_SPLITS, SPLITS_PAD
            )
            lo, hi, lo_mass, hi_mass = refine(
                lo, hi, _load_float(state + 6), pivots, tl.sum(measured, 1), target
            )
            num = tl.where(hi - lo > 1, _PIVOTS_AGAIN, 0)
            if split == 0:
                tl.store(state + _NEXT_BOUNDS, lo.to(tl.int32))
                tl.store(state + _NEXT_BOUNDS + 1, hi.to(tl.int32))
        if num > 0:
            tokens = split * SPLIT + tl.arange(0, SPLIT)
            logits = load_logits(logits_ptr + row * stride_logits, tokens, tokens < V)
            sharpness = _LOG2_E / tl.load(temperature_ptr + row)
            weights = weigh(logits, tokens < V, _load_float(state + 5), sharpness)
            if AGAIN:
                guess, gap = guess_again(lo, hi, lo_mass, hi_mass, target, total, SHIFT)
                next_pivots = pivots_around(lo, hi, guess, gap, SHIFT, _PIVOTS_AGAIN)
                count = tl.arange(0, _PIVOTS_AGAIN)
                if split == 0:
                    tl.store(state + _NEXT_PIVOT + count, next_pivots)
                masses = sums_above(to_value(next_pivots, SHIFT), logits, weights)
                tl.store(masses_ptr + (PIVOTS + count) * NUM_SPLITS + split, masses)
            else:
                # In rounds: all at once want more registers than there are.
                for begin in range(0, num, PIVOTS // 2):
                    count = begin + tl.arange(0, PIVOTS // 2)
                    values = to_value(tl.load(state + _FIRST_PIVOT + count), SHIFT)
                    masses = sums_above(values, logits, weights)
                    tl.store(masses_ptr + count * NUM_SPLITS + split, masses)


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


@triton.jit(do_not_specialize=_CHANGING)
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
    temperature, top_k, top_p, min_p, truncates = _load_parameters(
        row, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, V
    )
    if truncates:
        GROUPS: tl.constexpr = SPLIT // GROUP
        sharpness = _LOG2_E / temperature
        row_ptr = logits_ptr + row * stride_logits
        list_ptr += row * (NUM_SPLITS * GROUPS)

        # The threshold is in [lo, hi); of 64 bits, since a range of 32-bit keys may be longer.
        state = state_ptr + row * _STATE
        lo, hi = tl.load(state).to(tl.int64), tl.load(state + 1).to(tl.int64)
        top, total = _load_float(state + 5), _load_float(state + 7)
        is_listed = tl.load(state + 3) == 0
        num_groups = tl.where(is_listed, tl.load(state + 2), NUM_SPLITS * GROUPS)
        chunks = tl.arange(0, SPLITS_PAD)
        masses = tl.zeros([SPLITS_PAD], tl.float32)
        ties = tl.zeros([SPLITS_PAD], tl.int32)
        num_kept = tl.full([], 0x7FFFFFFF, tl.int32)  # ties that are kept, at most
        is_found = top_k < 0  # never
        if is_listed == 0:
            masses_ptr += row * (2 * PIVOTS * NUM_SPLITS)
            pivots, measured = _load_look(
                state + _FIRST_PIVOT, masses_ptr, num_pivots(lo, hi),
                PIVOTS, NUM_SPLITS, SPLITS_PAD,
            )  # fmt: skip
            lo = tl.load(state + _NEXT_BOUNDS).to(tl.int64)
            hi = tl.load(state + _NEXT_BOUNDS + 1).to(tl.int64)
            masses = _row_of(measured, pivots, hi, PIVOTS)
            if hi - lo > 1:
                next_pivots, measured_next = _load_look(
                    state + _NEXT_PIVOT, masses_ptr + PIVOTS * NUM_SPLITS, _PIVOTS_AGAIN,
                    _PIVOTS_AGAIN, NUM_SPLITS, SPLITS_PAD,
                )  # fmt: skip
                lo, hi, _lo_mass, _hi_mass = refine(
                    lo, hi, 0.0, next_pivots, tl.sum(measured_next, 1), top_p * total
                )
                masses = _row_of(measured_next, next_pivots, hi, _PIVOTS_AGAIN)
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


def sample_truncated(
    logits: torch.Tensor,
    temperature: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
    min_p: torch.Tensor,
    u: torch.Tensor,
    rows: torch.Tensor,
    last_token: torch.Tensor,
    out: torch.Tensor,
    *,
    split: int = SPLIT,
    group: int = GROUP,
    few_groups: int = FEW_GROUPS,
    num_warps: int = NUM_WARPS,
    num_warps_draw: int = NUM_WARPS_DRAW,
) -> None:
    """Choose a token for each row that truncates; what it gets depends on its own arguments alone.

    A row truncates if it is not greedy and has a `top_k` in 1..v-1, a `top_p` below 1 or a `min_p`
    above 0. For the others nothing is read but their parameters, and nothing written.

    Args:
        logits: [n, v] bfloat16, float16 or float32; rows may lie apart, the values of a row lie
            side by side. Unchanged.
        temperature: [n] float32, 0 (greedy) or a normal number above.
        top_k: [n] int32, below 1 for all.
        top_p: [n] float32, above 0.
        min_p: [n] float32, 0 to 1.
        u: [n] float32 in [0, 1); 1 gives the last token.
        rows: [n] int32, rows of the request table, or below zero.
        last_token: [R] int32, written where rows are not below zero.
        out: [n] int32, written.
        split: tokens of a split, a power of two.
        group: tokens of a group, a power of two below `split`.
        few_groups: with top-p alone, so many groups are left to the last kernel. Where sums are
            rounded, other sizes than those in use may give another token.
        num_warps: of the programs of splits.
        num_warps_draw: of the last kernel's.
    """
    num_rows, vocab_size = logits.shape
    num_splits, padded = _splits(vocab_size, split)
    device = logits.device
    num_groups = num_splits * (split // group)
    stats = torch.empty((num_rows, STATS.value, num_splits), dtype=torch.float32, device=device)
    maxima = torch.empty((num_rows, num_groups), dtype=torch.float32, device=device)
    state = torch.empty((num_rows, _STATE.value), dtype=torch.int32, device=device)
    shape = (num_rows, 2 * PIVOTS.value, num_splits)
    masses = torch.empty(shape, dtype=torch.float32, device=device)
    groups = torch.empty((num_rows, num_groups), dtype=torch.int32, device=device)
    stride, shift = logits.stride(0), shift_of(logits.dtype)
    # The first kernel follows a graph, or a copy: it is launched as usual, and waits by itself.
    options = pdl.options(device)
    survey_kernel[(num_rows * num_splits,)](
        logits, temperature, top_k, top_p, min_p, stats, maxima, stride,
        V=vocab_size, SPLIT=split, GROUP=group, NUM_SPLITS=num_splits, PDL=options["PDL"],
        num_warps=num_warps,
    )  # fmt: skip
    bracket_kernel[(num_rows,)](
        temperature, top_k, top_p, min_p, stats, maxima, state, groups, few_groups,
        SHIFT=shift, V=vocab_size, GROUP=group, GROUPS=split // group, NUM_SPLITS=num_splits,
        SPLITS_PAD=padded, num_warps=4, **options,
    )  # fmt: skip
    for again in (False, True):
        narrow_kernel[(num_rows * num_splits,)](
            logits, temperature, top_p, state, masses, stride,
            AGAIN=again, SHIFT=shift, V=vocab_size, SPLIT=split, NUM_SPLITS=num_splits,
            SPLITS_PAD=padded, num_warps=num_warps, **options,
        )  # fmt: skip
    draw_kernel[(num_rows,)](
        logits, temperature, top_k, top_p, min_p, u, rows, last_token, out,
        state, masses, groups, stride,
        SHIFT=shift, V=vocab_size, SPLIT=split, GROUP=group, NUM_SPLITS=num_splits,
        SPLITS_PAD=padded, num_warps=num_warps_draw, **options,
    )  # fmt: skip


@cache
def _splits(vocab_size: int, split: int) -> tuple[int, int]:
    """How many splits, and a power of two that holds them."""
    num_splits = -(-vocab_size // split)
    return num_splits, max(triton.next_power_of_2(num_splits), 2)
