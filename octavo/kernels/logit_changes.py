"""Changes of a few rows of logits before a token is chosen, in a float32 copy of these rows.

Semantics are those of `runner/changes.py`. `copy_kernel` takes the rows over and forbids what a
mask leaves out; `add_kernel` adds single values. What they cost is proportional to what is changed,
the copy apart. Changes that depend on the tokens a row has are in `history_changes.py`.

Knows arrays alone, not what asks for the changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

if TYPE_CHECKING:
    import torch

SPLIT = 4096
"""Tokens of the vocabulary that a program copies."""

TILE = 1024
"""Entries of a list that a program takes."""

_NUM_WARPS = 4


@triton.jit(do_not_specialize=["places_ptr", "masks_ptr", "bits_ptr"])
def copy_kernel(
    logits_ptr,
    places_ptr,
    masks_ptr,
    bits_ptr,
    out_ptr,
    stride_logits,
    V: tl.constexpr,
    WORDS: tl.constexpr,
    SPLIT: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
):
    """Grid (c * splits,)."""
    pid = tl.program_id(0)
    change = (pid // NUM_SPLITS).to(tl.int64)
    tokens = pid % NUM_SPLITS * SPLIT + tl.arange(0, SPLIT)
    real = tokens < V
    place = tl.load(places_ptr + change).to(tl.int64)
    mask = tl.load(masks_ptr + change).to(tl.int64)
    logits = tl.load(logits_ptr + place * stride_logits + tokens, mask=real).to(tl.float32)
    if mask >= 0:
        words = tl.load(bits_ptr + mask * WORDS + tokens // 32, mask=real, other=0)
        logits = tl.where((words >> (tokens % 32)) & 1 != 0, logits, float("-inf"))
    tl.store(out_ptr + change * V + tokens, logits, mask=real)


@triton.jit(do_not_specialize=["changes_ptr", "tokens_ptr", "values_ptr", "num", "first"])
def add_kernel(
    changes_ptr, tokens_ptr, values_ptr, out_ptr, num, first, V: tl.constexpr, TILE: tl.constexpr
):
    """Grid (tiles,). No two entries have the same place."""
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    token = tl.load(tokens_ptr + i, mask=i < num, other=V)
    real = token < V
    change = tl.load(changes_ptr + i, mask=real, other=0).to(tl.int64) - first
    value = tl.load(values_ptr + i, mask=real, other=0.0)
    out = out_ptr + change * V + token
    before = tl.load(out, mask=real, other=0.0)
    # Not added: infinity and its opposite are no number.
    tl.store(out, tl.where(value == float("-inf"), value, before + value), mask=real)


def copy_rows(
    logits: torch.Tensor, places: torch.Tensor, masks: torch.Tensor, bits: torch.Tensor,
    out: torch.Tensor,
) -> None:  # fmt: skip
    """Take rows over, -inf where their mask forbids a token.

    Args:
        logits: [n, v] bfloat16, float16 or float32; rows may lie apart. Unchanged.
        places: [c] int32, rows of `logits`.
        masks: [c] int32, rows of `bits`, or below zero.
        bits: [m, ceil(v / 32)] int32, a bit for each token that is allowed.
        out: [c, v] float32, contiguous, written.
    """
    num_rows, vocab_size = out.shape
    num_splits = -(-vocab_size // SPLIT)
    copy_kernel[(num_rows * num_splits,)](
        logits, places, masks, bits, out, logits.stride(0),
        V=vocab_size, WORDS=-(-vocab_size // 32), SPLIT=SPLIT, NUM_SPLITS=num_splits,
        num_warps=_NUM_WARPS,
    )  # fmt: skip


def add_values(
    changes: torch.Tensor, tokens: torch.Tensor, values: torch.Tensor, out: torch.Tensor,
    first: int,
) -> None:  # fmt: skip
    """Add to single logits.

    Args:
        changes: [a] int32, which change.
        tokens: [a] int32, no change has one twice; those beyond the vocabulary are ignored.
        values: [a] float32; -inf forbids the token.
        out: [c, v] float32, changed.
        first: the change that is row 0 of `out`.
    """
    num = len(tokens)
    add_kernel[(-(-num // TILE),)](
        changes, tokens, values, out, num, first,
        V=out.shape[1], TILE=TILE, num_warps=_NUM_WARPS,
    )  # fmt: skip
