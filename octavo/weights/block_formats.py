"""GGUF's tensor formats as a table: number, name, elements and bytes per block.

Knows sizes only, not how a block is decoded (`gguf_blocks`), and imports nothing. Numbers and sizes
follow `ggml_type` and the block structures of ggml (`ggml.h`, `ggml-common.h`).
"""

from __future__ import annotations

from typing import NamedTuple


class BlockFormat(NamedTuple):
    """How a tensor's rows are cut into blocks.

    Attributes:
        name: ggml's name, such as `Q4_1`.
        block_size: elements per block; a row holds a whole number of blocks.
        block_bytes: bytes per block.
    """

    name: str
    block_size: int
    block_bytes: int

    def row_bytes(self, row_len: int) -> int:
        """Bytes of a row of `row_len` elements, which must be a multiple of `block_size`."""
        assert row_len % self.block_size == 0
        return row_len // self.block_size * self.block_bytes


FORMATS: dict[int, BlockFormat] = {
    0: BlockFormat("F32", 1, 4),
    1: BlockFormat("F16", 1, 2),
    2: BlockFormat("Q4_0", 32, 18),
    3: BlockFormat("Q4_1", 32, 20),
    6: BlockFormat("Q5_0", 32, 22),
    7: BlockFormat("Q5_1", 32, 24),
    8: BlockFormat("Q8_0", 32, 34),
    9: BlockFormat("Q8_1", 32, 40),
    10: BlockFormat("Q2_K", 256, 84),
    11: BlockFormat("Q3_K", 256, 110),
    12: BlockFormat("Q4_K", 256, 144),
    13: BlockFormat("Q5_K", 256, 176),
    14: BlockFormat("Q6_K", 256, 210),
    15: BlockFormat("Q8_K", 256, 292),
    16: BlockFormat("IQ2_XXS", 256, 66),
    17: BlockFormat("IQ2_XS", 256, 74),
    18: BlockFormat("IQ3_XXS", 256, 98),
    19: BlockFormat("IQ1_S", 256, 50),
    20: BlockFormat("IQ4_NL", 32, 18),
    21: BlockFormat("IQ3_S", 256, 110),
    22: BlockFormat("IQ2_S", 256, 82),
    23: BlockFormat("IQ4_XS", 256, 136),
    24: BlockFormat("I8", 1, 1),
    25: BlockFormat("I16", 1, 2),
    26: BlockFormat("I32", 1, 4),
    27: BlockFormat("I64", 1, 8),
    28: BlockFormat("F64", 1, 8),
    29: BlockFormat("IQ1_M", 256, 56),
    30: BlockFormat("BF16", 1, 2),
    34: BlockFormat("TQ1_0", 256, 54),
    35: BlockFormat("TQ2_0", 256, 66),
    39: BlockFormat("MXFP4", 32, 17),
}
"""By the number that a GGUF file stores."""

FORMATS_BY_NAME: dict[str, BlockFormat] = {fmt.name: fmt for fmt in FORMATS.values()}
"""By name, as in `StoredTensor.dtype`."""
