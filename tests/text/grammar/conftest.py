"""Compilers, made once."""

from __future__ import annotations

import pytest

from tests.text.grammar.helper import Grammars


@pytest.fixture(scope="session")
def grammars() -> Grammars:
    """Without markers among its tokens."""
    return Grammars()
