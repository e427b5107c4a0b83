from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from octavo.ledger.store import open_ledger
from tests.ledger.postgres import PostgresServer, find_binaries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed")
    server = PostgresServer(binaries)
    yield server
    server.remove()


@pytest.fixture(scope="session")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new ledger, to copy: migrations take half a second."""
    path = tmp_path_factory.mktemp("ledger") / "empty.db"
    open_ledger(str(path)).close()
    return path


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
