from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

from octavo.engine.collector import collector_at_rest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def collector_of_a_new_process() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_the_first_start_is_kept_and_later_ones_are_not() -> None:
    with collector_at_rest():
        assert not gc.isenabled()
        kept: list[list[int]] = [[]]
    assert gc.isenabled()
    assert not any(found is kept for found in gc.get_objects())  # frozen ones are not among them
    with collector_at_rest():
        assert gc.isenabled()
        later: list[list[int]] = [[]]
    assert any(found is later for found in gc.get_objects())


def test_nothing_is_kept_of_a_start_that_fails() -> None:
    with pytest.raises(ValueError, match="no model"), collector_at_rest():
        raise ValueError("no model")
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_a_collector_that_is_off_stays_off() -> None:
    gc.disable()
    try:
        with collector_at_rest():
            pass
        assert not gc.isenabled()
        assert gc.get_freeze_count() == 0
    finally:
        gc.enable()
