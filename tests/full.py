"""What only a full run does: `OCTAVO_TEST_FULL=1 make test`."""

from __future__ import annotations

import os

import pytest

IS_FULL = bool(os.environ.get("OCTAVO_TEST_FULL"))

FULL = pytest.mark.skipif(not IS_FULL, reason="OCTAVO_TEST_FULL=1 runs it")
