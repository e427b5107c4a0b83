from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.bench.fake_server import Fake, serving

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def fake() -> Iterator[Fake]:
    """A fake OpenAI server; tests set its fields before they send anything."""
    with serving(Fake()) as server:
        yield server
