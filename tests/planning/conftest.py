from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

from octavo.ledger.record import UsageRecord

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

RATE = 2_500_000_000
"""2.50 an hour, in nano-units."""


def record(request_id: str, **fields: Any) -> UsageRecord:
    """A record with what tests do not care for filled in."""
    given: dict[str, Any] = {
        "time_ns": 0,
        "route": "/v1/chat/completions",
        "backend": "octavo",
        "model": "m",
        "prefill_ns": 0,
        "decode_ns": 0,
        "waste_ns": 0,
        "num_input_tokens": 0,
        "num_cached_tokens": 0,
        "num_output_tokens": 0,
        "e2e_ns": 0,
        "finish_reason": "stop",
        "hourly_rate_nano": RATE,
        **fields,
    }
    return UsageRecord(request_id=request_id, **given)


@pytest.fixture(scope="session")
def new_ledger(empty_ledger: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Makes a ledger of one's own."""
    folder = tmp_path_factory.mktemp("ledgers")
    names = iter(range(10**6))

    def make() -> Path:
        return shutil.copy(empty_ledger, folder / f"{next(names)}.db")

    return make
