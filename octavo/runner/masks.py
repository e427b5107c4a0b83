"""Masks of constrained rows, as the engine sends them: one bit for each token of the vocabulary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from octavo.types import StepMasks

    Words = NDArray[np.int32]
    """[w] 32 tokens each; see `StepMasks.bits`."""


def read_masks(
    masks: StepMasks | None, rows: NDArray[np.int64], vocab_size: int
) -> dict[int, Words]:
    """The masks by place in the batch; those of rows that do not sample are left out.

    Args:
        masks: of the step.
        rows: [n], the rows that sample.
        vocab_size: tokens that a mask speaks of.

    Raises:
        ValueError: the masks are not of this vocabulary.
    """
    if masks is None or not masks.rows:
        return {}
    num_words = num_mask_words(vocab_size)
    if len(masks.bits) != 4 * num_words * len(masks.rows):
        message = (
            f"masks of {len(masks.rows)} rows for a vocabulary of {vocab_size} have "
            f"{4 * num_words * len(masks.rows)} bytes, not {len(masks.bits)}"
        )
        raise ValueError(message)
    words = np.frombuffer(masks.bits, np.int32).reshape(-1, num_words)
    places = {row: place for place, row in enumerate(rows.tolist())}
    found = zip(masks.rows, words, strict=True)
    return {places[row]: bits for row, bits in found if row in places}


def num_mask_words(vocab_size: int) -> int:
    """Words of one mask."""
    return -(-vocab_size // 32)


def mask_of(token_ids: NDArray[np.int64], vocab_size: int) -> Words:
    """The mask that allows these tokens alone; ids outside the vocabulary are ignored."""
    bits = np.zeros(32 * num_mask_words(vocab_size), np.uint8)
    bits[token_ids[token_ids < vocab_size]] = 1
    return np.packbits(bits, bitorder="little").view(np.int32)  # little-endian


def is_forbidden(words: Words, vocab_size: int) -> NDArray[np.bool_]:
    """[v] whether the mask lets a token out."""
    bits = np.unpackbits(words.view(np.uint8), count=vocab_size, bitorder="little")
    return np.logical_not(bits)
