"""How many examples properties try: `LEDGER_EXAMPLES=10000 pytest tests/ledger -k ...`."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

SETTINGS = settings(
    max_examples=int(os.environ.get("LEDGER_EXAMPLES", "25")),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
