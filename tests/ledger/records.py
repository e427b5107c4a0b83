"""Records for tests."""

from __future__ import annotations

from typing import Any

from octavo.ledger.record import HOUR_NS, AttemptRecord, EscalationRecord, UsageRecord


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


def attempt(request_id: str, number: int = 0, **fields: Any) -> AttemptRecord:
    """A judged attempt."""
    values: dict[str, Any] = {
        "upstream_id": f"{request_id}.{number}",
        "time_ns": 10 * HOUR_NS,
        "route": "/v1/chat/completions",
        "rule": "default",
        "tier": "small",
        "backend": "near",
        "model": "smollm2",
        "status": "ok",
        "http_status": 200,
        "device_ns": 5,
        "cost_nano": 100,
        "next_cost_nano": 1000,
        "e2e_ns": 7,
        "judge": "confident",
        "score": -0.25,
    }
    return AttemptRecord(request_id=request_id, number=number, **(values | fields))


def escalation(request_id: str, number: int = 0, **fields: Any) -> EscalationRecord:
    """A cheap answer that was dropped for a dear one."""
    values: dict[str, Any] = {
        "time_ns": 10 * HOUR_NS,
        "rule": "default",
        "judge": "confident",
        "reason": "größte Zweifel",
        "score": -3.5,
        "answer_sha256": "ab" * 32,
        "cheap_tier": "small",
        "cheap_backend": "near",
        "cheap_model": "smollm2",
        "cheap_cost_nano": 100,
        "dear_tier": "large",
        "dear_backend": "cloud",
        "dear_model": "big",
        "dear_status": "ok",
        "dear_cost_nano": 1200,
        "difference_nano": 1100,
    }
    return EscalationRecord(request_id=request_id, number=number, **(values | fields))
