"""A tokenizer straight from a SentencePiece vocabulary, for files that have no merges.

`tokenizers` needs every merge listed and entered into a table before the first text: a second or
two for 262,144 pieces, most of it under the interpreter's lock. The native table
(`kernels/cpu/pieces.py`) holds the pieces alone and gives the same ids. Whatever else the library
does is left to it: it is built when it is first asked for.

Knows nothing of files.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.kernels import cpu
from octavo.kernels.cpu.pieces import PieceTable, Prefix

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    import numpy as np
    import tokenizers
    from numpy.typing import NDArray
    from tokenizers import decoders


@dataclass(frozen=True, slots=True)
class PieceSpec:
    """A vocabulary and what is done around it.

    Attributes:
        pieces: by id, as the vocabulary spells them.
        ranks: as `PieceTable` takes them.
        whole_ids: pieces that stay one token wherever a text has them.
        special_ids: those of them that are special.
        prefix: where a space is put before a text.
        decoder: the library's, which says how pieces become text.
    """

    pieces: Sequence[str]
    ranks: NDArray[np.int32] | None
    whole_ids: Collection[int]
    special_ids: Collection[int]
    prefix: Prefix
    decoder: decoders.Decoder


@dataclass(frozen=True, slots=True)
class EncodedText:
    """The part of the library's `Encoding` that one text needs."""

    ids: list[int]


class PieceTokenizer:
    """The part of `tokenizers.Tokenizer` that prompts and answers need.

    Args:
        spec: the vocabulary.
        bos, eos: ids that are put before and behind each text.
        make_full: makes the library's tokenizer of the same vocabulary and these merges.

    Raises:
        ValueError: the native table does not serve this vocabulary (see `PieceTable`).
    """

    def __init__(
        self,
        spec: PieceSpec,
        bos: int | None,
        eos: int | None,
        make_full: Callable[[list[tuple[str, str]]], tokenizers.Tokenizer],
    ) -> None:
        whole = bytearray(len(spec.pieces))
        for token_id in spec.whole_ids:
            whole[token_id] = 1
        self._table = PieceTable(spec.pieces, spec.ranks, bytes(whole))
        self._spec = spec
        self._before = [] if bos is None else [bos]
        self._behind = [] if eos is None else [eos]
        self._make_full = make_full
        self._full: tokenizers.Tokenizer | None = None
        self._lock = threading.Lock()
        self.decoder = spec.decoder
        self.special_ids = spec.special_ids

    @property
    def full(self) -> tokenizers.Tokenizer:
        """The library's tokenizer; building it takes seconds for a large vocabulary."""
        with self._lock:
            if self._full is None:
                pieces, pairs = self._spec.pieces, self._table.merges().tolist()
                self._full = self._make_full([(pieces[a], pieces[b]) for a, b in pairs])
            return self._full

    def encode(self, text: str, *, add_special_tokens: bool = True) -> EncodedText:
        """Ids of one text.

        Raises:
            TypeError: it is no text, or one with half of a surrogate pair.
        """
        if not isinstance(text, str):
            raise TypeError(f"a text is wanted, not {type(text).__name__}")
        try:
            ids = self._table.encode(text, self._spec.prefix)
        except UnicodeEncodeError as error:
            raise TypeError(str(error)) from None
        return EncodedText([*self._before, *ids, *self._behind] if add_special_tokens else ids)

    def token_to_id(self, token: str) -> int | None:
        """The id of a piece, or None."""
        return self._table.find(token)

    def id_to_token(self, token_id: int) -> str | None:
        """The piece of an id, or None."""
        pieces = self._spec.pieces
        return pieces[token_id] if 0 <= token_id < len(pieces) else None


def can_use_pieces() -> bool:
    """Whether there is a native table to use."""
    return cpu.why_not() is None
