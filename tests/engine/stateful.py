"""How long the state machines run: `STATEFUL_EXAMPLES=10000 pytest tests/engine -k machine`."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

SETTINGS = settings(
    max_examples=int(os.environ.get("STATEFUL_EXAMPLES", "60")),
    stateful_step_count=50,
    deadline=None,
    # No explaining: it repeats the whole search.
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.target, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
