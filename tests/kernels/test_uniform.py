from __future__ import annotations

import numpy as np
import pytest
import torch

from octavo.runner.philox import uniform
from tests.kernels.helper import DEVICE, require_triton

require_triton()

from octavo.kernels.uniform import draw_uniform  # noqa: E402


@pytest.mark.parametrize("count", [1, 3, 128, 300])
def test_the_first_bits_of_the_numbers_that_the_host_draws(count: int) -> None:
    rng = np.random.default_rng(count)
    seeds = rng.integers(0, 2**64, count, dtype=np.uint64, endpoint=False)
    seeds[0] = 2**64 - 1
    positions = rng.integers(0, 2**31, count)
    words = seeds.view(np.int32).reshape(-1, 2).T
    out = torch.full((count + 1,), 7.0, device=DEVICE)
    draw_uniform(
        torch.from_numpy(words.copy()).to(DEVICE),
        torch.from_numpy(positions.astype(np.int32)).to(DEVICE),
        out[:-1],
    )
    expected = np.floor(uniform(seeds, positions) * 2**24) / 2**24
    assert np.array_equal(out[:-1].double().cpu().numpy(), expected)
    assert out[-1] == 7.0
