"""Changes of rows of logits by the tokens that these rows have: bad words, and penalties.

Semantics are those of `runner/changes.py`; the rows are in the copy that `logit_changes.py` makes.
`ban_kernel` compares the row's last tokens with bad words; `count_kernel` and `penalise_kernel`
find the row's distinct tokens and change their logits once each.

The tokens of a row are on the device alone, in the places of the KV cache's blocks: the history, an
int32 for each slot of the cache, is read by the row's block table. It is written by
`remember_kernel`, where the newest token is one that the host does not know.

Counts begin and end as zeros: whoever takes a count leaves a zero there, so none is taken twice.
Each count lets at most 2**30 - 1 tokens of a kind be in the output.

Knows arrays alone, not what asks for the changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import triton
import triton.language as tl

if TYPE_CHECKING:
    import torch

TILE = 1024
"""Tokens of a history, or to be written to it, that a program takes."""

_NUM_WARPS = 4
_IN_PROMPT = tl.constexpr(1 << 30)
_WORD_TILE = tl.constexpr(16)


@triton.jit(do_not_specialize=["tokens_ptr", "places_ptr", "sources_ptr", "input_ids_ptr", "num"])
def remember_kernel(
    tokens_ptr, places_ptr, sources_ptr, input_ids_ptr, history_ptr, num, TILE: tl.constexpr
):
    """Grid (tiles,). A token below zero is the one of the step's input at its source."""
    i = tl.program_id(0) * TILE + tl.arange(0, TILE)
    real = i < num
    token = tl.load(tokens_ptr + i, mask=real, other=0)
    source = tl.load(sources_ptr + i, mask=real & (token < 0), other=0)
    newest = tl.load(input_ids_ptr + source, mask=real & (token < 0), other=0)
    place = tl.load(places_ptr + i, mask=real, other=0)
    tl.store(history_ptr + place, tl.where(token < 0, newest, token), mask=real)


@triton.jit
def _recall(history_ptr, table_ptr, positions, real, BLOCK: tl.constexpr):
    """Tokens at these positions of a row, -1 where they are not real."""
    block = tl.load(table_ptr + positions // BLOCK, mask=real, other=0).to(tl.int64)
    return tl.load(history_ptr + block * BLOCK + positions % BLOCK, mask=real, other=-1)


_ROWS = ["rows_ptr", "lengths_ptr", "prompts_ptr", "stride_tables"]


@triton.jit(do_not_specialize=["words_ptr", "tokens_ptr", "first", "num_words", *_ROWS])
def ban_kernel(
    words_ptr,
    tokens_ptr,
    rows_ptr,
    lengths_ptr,
    prompts_ptr,
    history_ptr,
    tables_ptr,
    out_ptr,
    first,
    num_words,
    stride_tables,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid (words,). Words [3, w]: which change, where its tokens begin, how many they are."""
    word = tl.program_id(0)
    change = tl.load(words_ptr + word)
    word_ptr = tokens_ptr + tl.load(words_ptr + num_words + word)
    num_before = tl.load(words_ptr + 2 * num_words + word) - 1
    row = tl.load(rows_ptr + change).to(tl.int64)
    begin = tl.load(lengths_ptr + change) - num_before
    if begin >= tl.load(prompts_ptr + change):
        num_different = 0
        for start in range(0, num_before, _WORD_TILE):
            nth = start + tl.arange(0, _WORD_TILE)
            real = nth < num_before
            expected = tl.load(word_ptr + nth, mask=real, other=-1)
            actual = _recall(
                history_ptr, tables_ptr + row * stride_tables, begin + nth, real, BLOCK
            )
            num_different += tl.sum((expected != actual).to(tl.int32), 0)
        last = tl.load(word_ptr + num_before)
        if (num_different == 0) & (last < V):
            tl.store(out_ptr + (change - first).to(tl.int64) * V + last, float("-inf"))


@triton.jit(do_not_specialize=["changes_ptr", "first", *_ROWS])
def count_kernel(
    changes_ptr,
    rows_ptr,
    lengths_ptr,
    prompts_ptr,
    history_ptr,
    tables_ptr,
    counts_ptr,
    first,
    stride_tables,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Grid (penalised rows, tiles of the longest). Counts [c, v], zeros before."""
    change = tl.load(changes_ptr + tl.program_id(0))
    length = tl.load(lengths_ptr + change)
    begin = tl.program_id(1) * TILE
    if begin < length:
        row = tl.load(rows_ptr + change).to(tl.int64)
        positions = begin + tl.arange(0, TILE)
        table_ptr = tables_ptr + row * stride_tables
        tokens = _recall(history_ptr, table_ptr, positions, positions < length, BLOCK)
        real = (tokens >= 0) & (tokens < V)
        is_output = positions >= tl.load(prompts_ptr + change)
        counts = counts_ptr + (change - first).to(tl.int64) * V + tokens
        tl.atomic_add(counts, 1, mask=real & is_output, sem="relaxed")
        tl.atomic_or(counts, _IN_PROMPT, mask=real & (is_output == 0), sem="relaxed")


@triton.jit(
    do_not_specialize=[
        "changes_ptr", "penalties_ptr", "first", "num_changes", "rows_ptr", "lengths_ptr",
        "stride_tables",
    ]
)  # fmt: skip
def penalise_kernel(
    changes_ptr,
    penalties_ptr,
    rows_ptr,
    lengths_ptr,
    history_ptr,
    tables_ptr,
    counts_ptr,
    out_ptr,
    first,
    num_changes,
    stride_tables,
    V: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Grid as `count_kernel`. Penalties [3, p]: repetition, frequency, presence."""
    nth = tl.program_id(0)
    change = tl.load(changes_ptr + nth)
    length = tl.load(lengths_ptr + change)
    begin = tl.program_id(1) * TILE
    if begin < length:
        repetition = tl.load(penalties_ptr + nth)
        frequency = tl.load(penalties_ptr + num_changes + nth)
        presence = tl.load(penalties_ptr + 2 * num_changes + nth)
        row = tl.load(rows_ptr + change).to(tl.int64)
        positions = begin + tl.arange(0, TILE)
        table_ptr = tables_ptr + row * stride_tables
        tokens = _recall(history_ptr, table_ptr, positions, positions < length, BLOCK)
        real = (tokens >= 0) & (tokens < V)
        place = (change - first).to(tl.int64) * V + tokens
        count = tl.atomic_xchg(counts_ptr + place, 0, mask=real, sem="relaxed")
        taken = real & (count != 0)  # by nobody else
        count &= _IN_PROMPT - 1
        logit = tl.load(out_ptr + place, mask=taken, other=0.0)
        logit = tl.where(logit > 0, logit / repetition, logit * repetition)
        logit -= frequency * count.to(tl.float32)
        logit -= tl.where(count > 0, presence, 0.0)
        tl.store(out_ptr + place, logit, mask=taken)


@dataclass(frozen=True, slots=True)
class History:
    """Tokens of the request table's rows.

    Attributes:
        tokens: [blocks * block_size] int32.
        block_tables: [R, w] int32, contiguous.
        block_size: tokens of a block.
    """

    tokens: torch.Tensor
    block_tables: torch.Tensor
    block_size: int


@dataclass(frozen=True, slots=True)
class Changed:
    """Rows that are changed, c of them in a step.

    Attributes:
        places: [c] int32, rows of the logits.
        masks: [c] int32, which mask is the row's, -1 for none.
        rows: [c] int32, rows of the request table.
        lengths: [c] int32, tokens that the row has.
        prompts: [c] int32, how many of these are the prompt's.
    """

    places: torch.Tensor
    masks: torch.Tensor
    rows: torch.Tensor
    lengths: torch.Tensor
    prompts: torch.Tensor


def remember(
    tokens: torch.Tensor, places: torch.Tensor, sources: torch.Tensor, input_ids: torch.Tensor,
    history: torch.Tensor,
) -> None:  # fmt: skip
    """Write tokens to the history.

    Args:
        tokens: [w] int32; below zero: `input_ids` at the source.
        places: [w] int32, in `history`, all different.
        sources: [w] int32, in `input_ids`; only read where the token is below zero.
        input_ids: [t] int32, of the step.
        history: [s] int32, written.
    """
    num = len(tokens)
    remember_kernel[(-(-num // TILE),)](
        tokens, places, sources, input_ids, history, num, TILE=TILE, num_warps=_NUM_WARPS
    )


def ban_words(
    words: torch.Tensor, tokens: torch.Tensor, changed: Changed, history: History,
    out: torch.Tensor, first: int,
) -> None:  # fmt: skip
    """Forbid what would complete a bad word.

    Args:
        words: [3, w] int32, rows may lie apart: which change, where the word begins in `tokens`,
            its length, at least 1.
        tokens: int32.
        changed: the changes; prompts do not count as beginnings of words.
        history: of all of them.
        out: [c, v] float32, changed.
        first: the change that is row 0 of `out`.
    """
    ban_kernel[(words.shape[1],)](
        words, tokens, changed.rows, changed.lengths, changed.prompts,
        history.tokens, history.block_tables, out,
        first, words.stride(0), history.block_tables.stride(0),
        V=out.shape[1], BLOCK=history.block_size, num_warps=1,
    )  # fmt: skip


def penalise(
    changes: torch.Tensor, penalties: torch.Tensor, most_tokens: int, changed: Changed,
    history: History, counts: torch.Tensor, out: torch.Tensor, first: int,
) -> None:  # fmt: skip
    """Penalise the tokens that rows have: all of them for repetition, the output's for the others.

    Args:
        changes: [p] int32, which changes penalise.
        penalties: [3, p] float32, rows may lie apart: repetition, frequency, presence.
        most_tokens: of the longest of these rows.
        changed: the changes.
        history: of those that penalise.
        counts: [c or more, v] int32, zeros, and zeros again in the end.
        out: [c, v] float32, changed.
        first: the change that is row 0 of `out` and of `counts`.
    """
    grid = (len(changes), -(-most_tokens // TILE))
    tables = history.block_tables
    sizes = {"V": out.shape[1], "BLOCK": history.block_size, "TILE": TILE}
    count_kernel[grid](
        changes, changed.rows, changed.lengths, changed.prompts, history.tokens, tables, counts,
        first, tables.stride(0), **sizes, num_warps=_NUM_WARPS,
    )  # fmt: skip
    penalise_kernel[grid](
        changes, penalties, changed.rows, changed.lengths, history.tokens, tables, counts, out,
        first, penalties.stride(0), tables.stride(0), **sizes, num_warps=_NUM_WARPS,
    )  # fmt: skip
