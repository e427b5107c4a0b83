from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.kernels.helper import DEVICE, require_triton

require_triton()

from octavo.kernels.prepare import prepare  # noqa: E402


def to_device(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(x.astype(np.int32)).to(DEVICE)


@pytest.mark.parametrize(
    ("num_tokens", "num_updates"), [(1, None), (1, 0), (3, 1), (2, 300), (256, 5), (700, 257)]
)
def test_against_numpy(num_tokens: int, num_updates: int | None) -> None:
    rng = np.random.default_rng(num_tokens)
    num_rows, width = 17, 40
    rows = rng.integers(-1, num_rows, num_tokens)
    token_ids = np.where(rng.random(num_tokens) < 0.5, -1, rng.integers(0, 1000, num_tokens))
    last_token = rng.integers(1000, 2000, num_rows)
    tables = rng.integers(0, 99, (num_rows, width))
    expected_ids = np.where(token_ids < 0, last_token[rows], token_ids)
    expected_ids[rows < 0] = 0
    expected_tables = tables.copy()
    updates = None
    if num_updates is not None:
        places = rng.permutation(num_rows * width)[:num_updates]
        blocks = rng.integers(100, 999, num_updates)
        expected_tables.reshape(-1)[places] = blocks
        skipped = np.array([[-1], [12345]])
        wide = np.concatenate((np.stack((places, blocks)), skipped, np.zeros((2, 3))), axis=1)
        updates = to_device(wide)[:, : num_updates + 1]  # rows lie apart

    out_ids = torch.full((num_tokens + 1,), -5, dtype=torch.int32, device=DEVICE)
    on_device, last = to_device(tables), to_device(last_token)
    ids = to_device(token_ids)
    prepare(ids, to_device(rows), last, out_ids[:-1], updates, on_device)
    assert out_ids.tolist() == [*expected_ids.tolist(), -5]
    assert np.array_equal(on_device.cpu().numpy(), expected_tables)
    assert np.array_equal(last.cpu().numpy(), last_token)
    prepare(ids, to_device(rows), last, ids, None, on_device)  # in place
    assert ids.tolist() == expected_ids.tolist()
    assert np.array_equal(on_device.cpu().numpy(), expected_tables)
