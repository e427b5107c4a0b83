from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.kernels.helper import DEVICE, DTYPES, ints, random, require_triton, strided

require_triton()

from octavo.kernels.logit_changes import add_values, copy_rows  # noqa: E402
from octavo.runner.masks import mask_of  # noqa: E402

# Triton's interpreter computes in numpy, which warns of infinities that are meant.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

VOCAB_SIZE = 70


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", [1, 70, 4096, 5000])
def test_rows_are_copied_under_their_masks(dtype: torch.dtype, vocab_size: int) -> None:
    logits = strided(random((5, vocab_size), dtype, 0), 3)
    before = logits.clone()
    rng = np.random.default_rng(0)
    allowed = [np.flatnonzero(rng.random(vocab_size) < 0.5) for _ in range(2)]
    bits = ints(np.stack([mask_of(ids, vocab_size) for ids in allowed]))
    out = torch.full((3, vocab_size), torch.nan, device=DEVICE)
    copy_rows(logits, ints([4, 0, 4]), ints([1, -1, 0]), bits, out)
    assert torch.equal(logits, before)
    expected = logits[[4, 0, 4]].float()
    for place, ids in ((0, allowed[1]), (2, allowed[0])):
        kept = expected[place, ids].clone()
        expected[place] = -torch.inf
        expected[place, ids] = kept
    assert torch.equal(out, expected)


def test_values_are_added() -> None:
    out = torch.zeros((2, VOCAB_SIZE), device=DEVICE)
    out[1, 5] = torch.inf
    values = torch.tensor([1.5, -torch.inf, -2.0, 9.0], device=DEVICE)
    add_values(ints([7, 8, 8, 8]), ints([3, 5, 69, 70]), values, out, 7)
    expected = torch.zeros((2, VOCAB_SIZE), device=DEVICE)
    expected[0, 3], expected[1, 5], expected[1, 69] = 1.5, -torch.inf, -2.0
    assert torch.equal(out, expected)
