from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def new_ledger(empty_ledger: Path, tmp_path: Path) -> Callable[[str], str]:
    """Makes new ledgers by name; gives their URLs."""

    def make(name: str) -> str:
        return f"sqlite:///{shutil.copy(empty_ledger, tmp_path / name)}"

    return make


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest) -> str:
    """A new ledger on each database."""
    if request.param == "sqlite":
        make: Callable[[str], str] = request.getfixturevalue("new_ledger")
        return make("ledger.db")
    url: str = request.getfixturevalue("postgres").new_ledger()
    return url
