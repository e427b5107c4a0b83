"""Integer tables that the host writes and the kernels read. No torch, no triton."""

from __future__ import annotations

ITEM_FIELDS = 12
"""Integers of a row of `items`: a tile of query tokens, and a range of keys of one sequence.

row in the table of blocks (-1: nothing to do), first token of the tile in the batch, number of its
tokens, position of the first one in the sequence, first key, end of the keys (exclusive), first row
in the parts (-1: this program has all keys, and writes the output itself), and whether the tile's
tokens are of different sequences: the second field is then the place of the first one in a list of
tokens. Of a tile that leaves parts, also the first row of the first of them, and their number. Then
the number of all items of the launch. One integer is left.
"""

MERGE_FIELDS = 8
"""Integers of a row of `merges`: tokens whose parts are added up.

first token in the batch (-1: nothing to do), number of tokens; first row, number, and distance in
rows of their parts; and the same of a second run of parts. Rows are those of the first token's
first head in the group; the other heads' and tokens' follow.
"""

PROMPT_ROWS = 128
"""Of a tile of the kernel for prompts: query tokens times heads of a group, padded."""
PROMPT_HALF = 64
"""Rows that one of its groups of warps multiplies, and that are fetched at a time."""
PROMPT_PANEL = 64
"""Dimensions that it fetches at a time."""
PROMPT_SLAB = 64
"""Most tokens of a block that it fetches at a time."""

DECODE_SLAB = 16
"""Tokens that the kernel for decodes fetches at a time, and rows of its products."""
DECODE_PANEL = 64
"""Dimensions that lie side by side in what it fetches."""
