"""Integer tables that the host writes and the kernels read. No torch, no triton."""

from __future__ import annotations

ITEM_FIELDS = 8
"""Integers of a row of `items`: a tile of query tokens of one sequence, and a range of its keys.

sequence (-1: nothing to do), first token of the tile in the batch, number of its tokens, position
of the first one in the sequence, first key, end of the keys (exclusive), first row in the parts
(-1: this program has all keys, and writes the output itself), and one unused, which keeps rows at
multiples of 16 bytes.
"""

MERGE_FIELDS = 4
"""Integers of a row of `merges`: first token of a tile in the batch (-1: nothing to do), number of
its tokens, first row of its first part, number of parts. Parts lie one behind the other, each as
many rows as the tile has tokens times heads of a group."""
