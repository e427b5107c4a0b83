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
for (`threshold.py`). The kernels, which pass a state on (`truncated_state.py`), are the first three
in `truncated_bounds.py` and the last in `truncated_draw.py`:

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

import torch

from octavo.kernels import pdl
from octavo.kernels.bracket import PIVOTS, STATS
from octavo.kernels.logit_splits import count_splits
from octavo.kernels.threshold import shift_of
from octavo.kernels.truncated_bounds import bracket_kernel, narrow_kernel, survey_kernel
from octavo.kernels.truncated_draw import draw_kernel
from octavo.kernels.truncated_state import STATE

SPLIT = 4096
"""Tokens of a split, a power of two."""

GROUP = 128
"""Tokens of a group, a power of two below `SPLIT`."""

FEW_GROUPS = 128
"""So many groups are left to the last kernel alone."""

NUM_WARPS = 4
NUM_WARPS_DRAW = 16


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
    num_splits, padded = count_splits(vocab_size, split)
    device = logits.device
    num_groups = num_splits * (split // group)
    stats = torch.empty((num_rows, STATS.value, num_splits), dtype=torch.float32, device=device)
    maxima = torch.empty((num_rows, num_groups), dtype=torch.float32, device=device)
    state = torch.empty((num_rows, STATE.value), dtype=torch.int32, device=device)
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
