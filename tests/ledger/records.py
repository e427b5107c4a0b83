"""Records for tests."""

from __future__ import annotations

from typing import Any

from octavo.ledger.record import HOUR_NS, UsageRecord


def usage(request_id: str, time_ns: int = 10 * HOUR_NS, **fields: Any) -> UsageRecord:
    """A record with something in every field."""
    values: dict[str, Any] = {
        "route": "/v1/chat/completions",
        "backend": "octavo",
        "model": "smollm2",
        "prefill_ns": 3_000_001,
        "decode_ns": 40_000_003,
        "waste_ns": 7,
        "num_input_tokens": 100,
        "num_cached_tokens": 16,
        "num_output_tokens": 20,
        "ttft_ns": 5_000_000,
        "e2e_ns": 90_000_000,
        "finish_reason": "stop",
        "hourly_rate_nano": 2_500_000_000,
    }
    return UsageRecord(request_id=request_id, time_ns=time_ns, **(values | fields))
