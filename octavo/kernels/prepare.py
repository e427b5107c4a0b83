"""What a step does on the device before the model: token ids that only the device knows, and
new entries of the block tables. One launch.

Knows integers alone. Lets the host plan a step before the tokens of the one before are known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

if TYPE_CHECKING:
    import torch

_TILE = 256
_NUM_WARPS = 4


@triton.jit(
    do_not_specialize=[
        "token_ids_ptr", "rows_ptr", "last_token_ptr", "out_ids_ptr", "updates_ptr", "tables_ptr",
        "num_tokens", "num_updates", "stride_updates",
    ]
)  # fmt: skip
def prepare_kernel(
    token_ids_ptr,
    rows_ptr,
    last_token_ptr,
    out_ids_ptr,
    updates_ptr,
    tables_ptr,
    num_tokens,
    num_updates,
    stride_updates,
    TILE: tl.constexpr,
):
    """Grid (tiles,), enough for the tokens and for the updates."""
    place = tl.program_id(0) * TILE + tl.arange(0, TILE)
    is_token = place < num_tokens
    token_id = tl.load(token_ids_ptr + place, mask=is_token, other=0)
    row = tl.load(rows_ptr + place, mask=is_token, other=-1)
    last = tl.load(last_token_ptr + row, mask=row >= 0, other=0)
    token_id = tl.where(row < 0, 0, tl.where(token_id < 0, last, token_id))
    tl.store(out_ids_ptr + place, token_id, mask=is_token)

    is_update = place < num_updates
    target = tl.load(updates_ptr + place, mask=is_update, other=-1)
    block = tl.load(updates_ptr + stride_updates + place, mask=is_update, other=0)
    tl.store(tables_ptr + target, block, mask=target >= 0)


def prepare(
    token_ids: torch.Tensor,
    rows: torch.Tensor,
    last_token: torch.Tensor,
    out_ids: torch.Tensor,
    updates: torch.Tensor | None,
    block_tables: torch.Tensor,
) -> None:
    """Fill in a step's token ids and enter new blocks into the tables.

    Args:
        token_ids: [t] int32; below zero: the last token of the token's row.
        rows: [t] int32, rows of the request table; below zero: padding, whose token id is 0.
        last_token: [R] int32. Unchanged.
        out_ids: [t] int32, written; may be `token_ids`.
        updates: [2, m] int32, places in `block_tables` read as one run, and the block ids that
            go there, or None; a place below zero is skipped, and no place comes twice. Rows may
            lie apart.
        block_tables: [r, w] int32, contiguous. Written to.
    """
    num_tokens = token_ids.shape[0]
    if updates is None:
        updates, num_updates, stride = token_ids, 0, 0  # a pointer that is not followed
    else:
        num_updates, stride = updates.shape[1], updates.stride(0)
    prepare_kernel[(-(-max(num_tokens, num_updates) // _TILE),)](
        token_ids, rows, last_token, out_ids, updates, block_tables,
        num_tokens, num_updates, stride, TILE=_TILE, num_warps=_NUM_WARPS,
    )  # fmt: skip
