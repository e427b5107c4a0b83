"""Texts to ids by a SentencePiece vocabulary that comes without merges (src/pieces.cpp).

Knows bytes and ids, no special tokens and no formats. Calls release the interpreter's lock.
"""

from __future__ import annotations

import ctypes
import weakref
from enum import IntEnum
from typing import TYPE_CHECKING

from octavo.kernels.cpu import library

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


class Prefix(IntEnum):
    """What gets a space put before it: nothing, the text unless it begins with one, or each
    stretch between pieces that stay whole.
    """

    NONE = 0
    FIRST = 1
    EACH = 2


class PieceTable:
    """A vocabulary; may be used by several threads at once. Only where `cpu.why_not()` is None.

    Args:
        pieces: by id; none holds a NUL.
        ranks: int32 [len(pieces)], how early a merge makes each, the lowest first; of equal ones
            the longest left part first, then the longest right part. None: by id.
        whole: one byte for each piece, 1 where it stays one token wherever a text has it.

    Raises:
        ValueError: two pieces are equal, one is empty, or there is none for some byte (`<0x0A>`)
            or for the space (`▁`).
    """

    def __init__(
        self, pieces: Sequence[str], ranks: NDArray[np.int32] | None, whole: bytes
    ) -> None:
        assert len(whole) == len(pieces)
        if ranks is not None:
            assert ranks.shape == (len(pieces),)
            assert ranks.dtype == "int32"
            assert ranks.flags.c_contiguous
        self._library = library()
        self._num_pieces = len(pieces)
        text = "\0".join(pieces).encode()
        given = None if ranks is None else ranks.ctypes.data
        self._handle = self._library.octavo_pieces_new(text, len(text), len(pieces), given, whole)
        if self._handle is None:
            raise ValueError("the pieces are no SentencePiece vocabulary with bytes")
        weakref.finalize(self, self._library.octavo_pieces_free, self._handle)

    def find(self, piece: str) -> int | None:
        """The id of a piece."""
        data = piece.encode()
        found: int = self._library.octavo_pieces_find(self._handle, data, len(data))
        return found if found >= 0 else None

    def encode(self, text: str, prefix: Prefix) -> list[int]:
        """Ids of a text.

        Raises:
            UnicodeEncodeError: it holds half of a surrogate pair.
            MemoryError: there is not enough for a text as long as this.
        """
        data = text.encode()
        ids = (ctypes.c_int32 * (2 * len(data) + 1))()
        count = self._library.octavo_pieces_encode(
            self._handle, data, len(data), int(prefix), ctypes.addressof(ids)
        )
        if count < 0:
            raise MemoryError
        return ids[:count]

    def merges(self) -> NDArray[np.int32]:
        """[n, 2], every two pieces that make a third, the first to be merged first.

        Raises:
            MemoryError: there is not enough for the list.
        """
        import numpy as np

        pairs = np.empty((4 * self._num_pieces, 2), np.int32)  # most have two ways or three
        count = self._library.octavo_pieces_merges(self._handle, pairs.ctypes.data, len(pairs))
        if count > len(pairs):
            pairs = np.empty((count, 2), np.int32)
            self._library.octavo_pieces_merges(self._handle, pairs.ctypes.data, count)
        if count < 0:
            raise MemoryError
        return pairs[:count]
