"""The smallest engine that does everything, for dry runs of the benchmarks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

SMALL = {"device": "cpu", "num_threads": 1, "kv_cache_memory": 2**20, "max_num_seqs": 16}


@pytest.fixture
def small() -> list[str]:
    """Flags of a script: a tiny Llama with dummy weights on the CPU, 256 blocks, 16 rows."""
    return ["--model", "tiny-llama", "--max-model-len", "512", "--kw", json.dumps(SMALL)]


@pytest.fixture
def lengths_file(tmp_path: Path) -> Path:
    """Of a mixed workload of 15 requests."""
    path = tmp_path / "lengths.json"
    path.write_text(
        json.dumps(
            {
                "input": [5, 9, 3, 12, 7, 4, 4, 4, 30, 2, 8, 1, 6, 90, 2],
                "output": [3, 4, 9, 2, 8, 1, 5, 5, 12, 3, 2, 2, 7, 2, 20],
            }
        )
    )
    return path
