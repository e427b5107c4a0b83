"""Log-probabilities and ranks of sampled tokens and of the most probable ones, without sorting.

Under the raw logits, as `runner/sampler.py` reports them: log-softmax in float32, the rank of a
token one more than the number of larger logits, ties by lower token id. Infinite logits and NaNs
are as in `sampling.py`. Knows nothing of how the tokens were sampled.

`tally_kernel`, rows * splits: the largest logit of each group of tokens; of each split the sum of
weights and how many logits are larger than the sampled token's. `report_kernel`, rows: the
logarithm of the sum, and the `NUM_TOP` most probable tokens, found by search (`threshold.py`) in
those few groups whose largest logit is among the largest, then put in order by comparing all pairs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from octavo.kernels import pdl
from octavo.kernels.logit_splits import (
    LOG2_E,
    count_splits,
    load_logits,
    load_split,
    split_of_program,
    weight,
)
from octavo.kernels.threshold import (
    load_chunk,
    measure,
    scaled,
    search,
    search_values,
    shift_of,
    to_key,
    to_value,
    weigh,
)

NUM_TOP = 20
"""Most probable tokens that are reported, or all of a smaller vocabulary."""

SPLIT = 4096
"""Tokens of a split, a power of two."""

GROUP = 128
"""Tokens of a group, a power of two below `SPLIT`."""

NUM_WARPS = 4
NUM_WARPS_REPORT = 8

_TOP = tl.constexpr(NUM_TOP)
_TOP_PAD = tl.constexpr(32)
_FIELDS = tl.constexpr(3 + 3 * NUM_TOP)

_CHANGING = ["places_ptr", "token_ids_ptr"]


@triton.jit(do_not_specialize=_CHANGING)
def tally_kernel(
    logits_ptr,
    places_ptr,
    token_ids_ptr,
    stats_ptr,
    maxima_ptr,
    stride_logits,
    V: tl.constexpr,
    SPLIT: tl.constexpr,
    GROUP: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (m * splits,).

    Statistics [m, 3, splits]: largest logits, sums of weights, numbers of logits larger than the
    sampled token's. Maxima [m, groups].
    """
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
    report, split = split_of_program(NUM_SPLITS)
    row = tl.load(places_ptr + report).to(tl.int64)
    row_ptr = logits_ptr + row * stride_logits
    sampled = load_logits(row_ptr, tl.load(token_ids_ptr + row), True)
    tokens, logits = load_split(row_ptr, split, V, SPLIT)
    GROUPS: tl.constexpr = SPLIT // GROUP
    maxima = tl.max(tl.reshape(logits, [GROUPS, GROUP]), 1)
    groups = (report * NUM_SPLITS + split) * GROUPS + tl.arange(0, GROUPS)
    tl.store(maxima_ptr + groups, maxima)
    top = tl.max(maxima, 0)
    stats = stats_ptr + report * (3 * NUM_SPLITS) + split
    tl.store(stats, top)
    tl.store(stats + NUM_SPLITS, tl.sum(weigh(logits, tokens < V, top, LOG2_E), 0))
    tl.store(stats + 2 * NUM_SPLITS, tl.sum((logits > sampled).to(tl.float32), 0))


@triton.jit
def _logprob(logits, top, log_total):
    """0 distance to an infinite top, if equal."""
    return tl.where(logits == top, 0.0, logits - top) - log_total


@triton.jit(do_not_specialize=_CHANGING)
def report_kernel(
    logits_ptr,
    places_ptr,
    token_ids_ptr,
    stats_ptr,
    maxima_ptr,
    list_ptr,
    out_ptr,
    stride_logits,
    SHIFT: tl.constexpr,
    V: tl.constexpr,
    SPLIT: tl.constexpr,
    GROUP: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    SPLITS_PAD: tl.constexpr,
    PDL: tl.constexpr,
):
    """Grid (m,). The list [m, groups] is room for the groups that are searched."""
    if PDL:
        tl.extra.cuda.gdc_wait()
    report = tl.program_id(0).to(tl.int64)
    row = tl.load(places_ptr + report).to(tl.int64)
    row_ptr = logits_ptr + row * stride_logits
    splits = tl.arange(0, SPLITS_PAD)
    real = splits < NUM_SPLITS
    stats = stats_ptr + report * (3 * NUM_SPLITS) + splits
    tops = tl.load(stats, mask=real, other=float("-inf"))
    sums = tl.load(stats + NUM_SPLITS, mask=real, other=0.0)
    numbers = tl.load(stats + 2 * NUM_SPLITS, mask=real, other=0.0)
    top = tl.max(tops, 0)
    log_total = tl.log(tl.sum(scaled(sums, weight(tops, top, LOG2_E)), 0))

    token = tl.load(token_ids_ptr + row)
    out = out_ptr + report * _FIELDS
    logprob = _logprob(load_logits(row_ptr, token, True), top, log_total)
    tl.store(out, token)
    tl.store(out + 1, tl.sum(numbers, 0).to(tl.int32) + 1)
    tl.store(out + 2, logprob.to(tl.int32, bitcast=True))

    # As many groups have a token that reaches the least of their largest logits, if not more.
    NUM: tl.constexpr = min(_TOP, V)
    GROUPS: tl.constexpr = SPLIT // GROUP
    groups = tl.arange(0, SPLITS_PAD * GROUPS)
    real = groups * GROUP < V
    list_ptr += report * (NUM_SPLITS * GROUPS)
    maxima = tl.load(
        maxima_ptr + report * (NUM_SPLITS * GROUPS) + groups, mask=real, other=float("-inf")
    )
    lo = tl.full([], -(0x7F800000 >> SHIFT), tl.int64)
    hi = to_key(top, SHIFT).to(tl.int64) + 1
    lo = search_values(maxima, real, lo, hi, NUM, SHIFT)
    reaching = (maxima >= to_value(lo.to(tl.int32), SHIFT)) & real
    tl.store(list_ptr + tl.cumsum(reaching.to(tl.int32), 0) - 1, groups, mask=reaching)
    num_groups = tl.sum(reaching.to(tl.int32), 0)
    tl.debug_barrier()  # the list is read by other threads
    lo = search(
        row_ptr, list_ptr, num_groups, True, lo, hi, NUM, top, LOG2_E,
        False, SHIFT, V, GROUP, GROUPS,
    )  # fmt: skip
    threshold = to_value(lo.to(tl.int32), SHIFT)
    _masses, _ties, num_above = measure(
        row_ptr, list_ptr, num_groups, True, threshold, top, LOG2_E,
        V, GROUP, GROUPS, SPLITS_PAD,
    )  # fmt: skip

    # Found ones lie where their ids will be until they are in order.
    ids_ptr = out + 3
    above_before = 0
    ties_before = num_above
    for chunk in range(tl.cdiv(num_groups, GROUPS)):
        tokens, logits = load_chunk(row_ptr, list_ptr, chunk, num_groups, True, V, GROUP, GROUPS)
        is_above = logits > threshold
        is_tie = (logits == threshold) & (tokens < V)
        nth_above = above_before + tl.cumsum(is_above.to(tl.int32), 0) - 1
        nth_tie = ties_before + tl.cumsum(is_tie.to(tl.int32), 0) - 1
        tl.store(ids_ptr + nth_above, tokens, mask=is_above)
        tl.store(ids_ptr + nth_tie, tokens, mask=is_tie & (nth_tie < NUM))
        above_before += tl.sum(is_above.to(tl.int32), 0)
        ties_before += tl.sum(is_tie.to(tl.int32), 0)
    tl.debug_barrier()
    place = tl.arange(0, _TOP_PAD)
    found = tl.load(ids_ptr + place, mask=place < NUM, other=V)
    logits = load_logits(row_ptr, found, place < NUM)
    is_larger = logits[None, :] > logits[:, None]
    is_lower = (logits[None, :] == logits[:, None]) & (found[None, :] < found[:, None])
    num_larger = tl.sum(is_larger.to(tl.int32), 1)
    order = num_larger + tl.sum(is_lower.to(tl.int32), 1)
    tl.debug_barrier()
    logprobs = _logprob(logits, top, log_total)
    tl.store(ids_ptr + order, found, mask=place < NUM)
    tl.store(ids_ptr + _TOP + order, num_larger + 1, mask=place < NUM)
    tl.store(ids_ptr + 2 * _TOP + order, logprobs.to(tl.int32, bitcast=True), mask=place < NUM)


def report_logprobs(
    logits: torch.Tensor,
    places: torch.Tensor,
    token_ids: torch.Tensor,
    *,
    split: int = SPLIT,
    group: int = GROUP,
) -> torch.Tensor:
    """Report m of the n rows.

    Args:
        logits: [n, v] bfloat16, float16 or float32; rows may lie apart. Unchanged.
        places: [m] int32, which rows.
        token_ids: [n] int32, sampled.
        split: tokens of a split, a power of two.
        group: tokens of a group, a power of two below `split`.

    Returns:
        [m, 3 + 3 * `NUM_TOP`] int32: token, rank and, as bits of a float32, log-probability of the
        sampled token; then ids, ranks and log-probabilities of the most probable ones, in order.
        With a smaller vocabulary the last ones of each are undefined.
    """
    num_reports, vocab_size = len(places), logits.shape[1]
    num_splits, padded = count_splits(vocab_size, split)
    device, stride = logits.device, logits.stride(0)
    num_groups = num_splits * (split // group)
    stats = torch.empty((num_reports, 3, num_splits), dtype=torch.float32, device=device)
    maxima = torch.empty((num_reports, num_groups), dtype=torch.float32, device=device)
    groups = torch.empty((num_reports, num_groups), dtype=torch.int32, device=device)
    out = torch.empty((num_reports, _FIELDS.value), dtype=torch.int32, device=device)
    options = pdl.options(device)
    # The first kernel follows others that are launched as usual, and so is it.
    tally_kernel[(num_reports * num_splits,)](
        logits, places, token_ids, stats, maxima, stride,
        V=vocab_size, SPLIT=split, GROUP=group, NUM_SPLITS=num_splits, PDL=options["PDL"],
        num_warps=NUM_WARPS,
    )  # fmt: skip
    report_kernel[(num_reports,)](
        logits, places, token_ids, stats, maxima, groups, out, stride,
        SHIFT=shift_of(logits.dtype), V=vocab_size, SPLIT=split, GROUP=group,
        NUM_SPLITS=num_splits, SPLITS_PAD=padded, num_warps=NUM_WARPS_REPORT, **options,
    )  # fmt: skip
    return out
