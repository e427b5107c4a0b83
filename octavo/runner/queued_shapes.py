"""Which steps get a graph of their own. Numbers from measurements; knows nothing of devices."""

from __future__ import annotations

from octavo.attention.work import StepShape

DECODE_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 208, 224, 256, 288,
                320, 384, 416, 512)  # fmt: skip
"""Batch sizes that decodes are padded to; larger batches are launched kernel by kernel.

Not 448: cuBLAS takes 13.8 ms for that many rows of Llama-3.1-8B's products on an H200, and 10.4 for
512."""

MIXED_TOKENS = (64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024)
"""Tokens that steps with prompts are padded to. Larger ones take the device longer than the host
needs to launch them kernel by kernel."""

MIXED_SEQS = 256
"""Most sequences of such a step, and at most half its tokens."""


def graph_shapes(max_num_seqs: int, token_budget: int) -> tuple[StepShape, ...]:
    """The steps worth capturing: decodes from the smallest on, then steps with prompts."""
    most = min(max_num_seqs, DECODE_SIZES[-1])
    decodes = [StepShape(n, n) for n in (*(n for n in DECODE_SIZES if n < most), most)]
    mixed = [
        StepShape(n, min(n // 2, MIXED_SEQS, max_num_seqs))
        for n in MIXED_TOKENS
        if n <= max(token_budget, MIXED_TOKENS[0])
    ]
    return (*decodes, *mixed)
