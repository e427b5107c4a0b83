from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import prometheus_client
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from octavo.observability import metrics, metrics_requests
from octavo.observability.histogram import Histogram
from octavo.observability.metrics import Metrics
from octavo.observability.metrics_buckets import E2E_BUCKETS, ITL_BUCKETS, TTFT_BUCKETS
from octavo.types import Delta, EngineStats

if TYPE_CHECKING:
    from prometheus_client import Metric

FAMILIES = {
    "vllm:num_requests_running": "gauge",
    "vllm:num_requests_waiting": "gauge",
    "vllm:kv_cache_usage_perc": "gauge",
    "vllm:gpu_cache_usage_perc": "gauge",
    "vllm:num_preemptions": "counter",
    "vllm:prompt_tokens": "counter",
    "vllm:generation_tokens": "counter",
    "vllm:request_success": "counter",
    "vllm:time_to_first_token_seconds": "histogram",
    "vllm:inter_token_latency_seconds": "histogram",
    "vllm:time_per_output_token_seconds": "histogram",
    "vllm:e2e_request_latency_seconds": "histogram",
}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for used in (metrics, metrics_requests):
        monkeypatch.setattr(used, "perf_counter", clock)
    return clock


def families(counted: Metrics) -> dict[str, Metric]:
    text = counted.exposition()[0].decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(ITL_BUCKETS) | st.floats(0, 200), st.integers(min_value=1, max_value=4)
        ),
        max_size=30,
    )
)
def test_histogram_equals_the_library(observations: list[tuple[float, int]]) -> None:
    ours = Histogram(ITL_BUCKETS)
    registry = prometheus_client.CollectorRegistry()
    theirs = prometheus_client.Histogram("h", "h", buckets=ITL_BUCKETS, registry=registry)
    for value, times in observations:
        ours.observe(value, times)
        for _ in range(times):
            theirs.observe(value)
    for bound, count in ours.buckets():
        assert registry.get_sample_value("h_bucket", {"le": bound}) == count
    assert registry.get_sample_value("h_count") == ours.count
    assert registry.get_sample_value("h_sum") == pytest.approx(ours.sum)


def test_exposition() -> None:
    stats = EngineStats(num_running=1)
    counted = Metrics('na"me\n\\x', lambda: stats)
    counted.start_request().finish("stop")
    found = families(counted)
    assert {name: found[name].type for name in FAMILIES} == FAMILIES
    for name in FAMILIES:
        for sample in found[name].samples:
            assert sample.labels["model_name"] == 'na"me\n\\x'
            extra = set(sample.labels) - {"engine", "model_name"}
            assert extra <= ({"le"} if FAMILIES[name] == "histogram" else {"finished_reason"})
    for name, bounds in (
        ("time_to_first_token", TTFT_BUCKETS),
        ("inter_token_latency", ITL_BUCKETS),
        ("time_per_output_token", ITL_BUCKETS),
        ("e2e_request_latency", E2E_BUCKETS),
    ):
        samples = found[f"vllm:{name}_seconds"].samples
        bucket = [s.labels["le"] for s in samples if s.name.endswith("_bucket")]
        assert bucket == [*(str(float(bound)) for bound in bounds), "+Inf"]
    for name in ("process_resident_memory_bytes", "python_info", "python_gc_collections"):
        assert name in found


def test_gauges_are_read_at_each_scrape() -> None:
    stats = EngineStats()
    counted = Metrics("m", lambda: stats)
    assert families(counted)["vllm:num_requests_running"].samples[0].value == 0
    stats = EngineStats(num_running=2, num_prompt_tokens=9)
    found = families(counted)
    assert found["vllm:num_requests_running"].samples[0].value == 2
    assert found["vllm:prompt_tokens"].samples[0].name == "vllm:prompt_tokens_total"
    assert found["vllm:prompt_tokens"].samples[0].value == 9


def test_two_servers_in_one_process_do_not_share() -> None:
    first, second = (Metrics("m", EngineStats) for _ in range(2))
    first.start_request().finish("stop")
    assert first.finished["stop"] == 1
    assert second.finished["stop"] == 0


def test_timer(clock: Clock) -> None:
    counted = Metrics("m", EngineStats)
    timer = counted.start_request(arrived=99.0)
    clock.now = 101.0
    timer.on_delta(Delta(text=""))
    clock.now = 102.0
    timer.on_delta(Delta(token_ids=[1, 2]))
    assert (
        counted.requests.time_to_first_token.count,
        counted.requests.time_to_first_token.sum,
    ) == (1, 3.0)
    assert counted.requests.inter_token_latency.count == 0
    clock.now = 103.5
    timer.on_delta(Delta(token_ids=[1, 2, 3]))
    clock.now = 104.0
    timer.on_delta(Delta(token_ids=[4], finish_reason="length"))
    assert counted.requests.inter_token_latency.count == 4
    assert counted.requests.inter_token_latency.sum == pytest.approx(2.0)
    clock.now = 110.0
    timer.finish("abort")
    assert counted.finished == {"stop": 0, "length": 1, "abort": 0, "error": 0, "timeout": 0}
    assert (
        counted.requests.e2e_request_latency.count,
        counted.requests.e2e_request_latency.sum,
    ) == (1, 5.0)


def test_request_without_tokens(clock: Clock) -> None:
    counted = Metrics("m", EngineStats)
    timer = counted.start_request()
    clock.now += 1
    timer.finish("abort")
    assert counted.finished["abort"] == 1
    assert counted.requests.time_to_first_token.count == 0
    assert counted.requests.e2e_request_latency.sum == 1


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_no_errors() -> None:
    run = subprocess.run(
        ["promtool", "check", "metrics"],
        input=Metrics("m", EngineStats).exposition()[0],
        capture_output=True,
        check=False,
    )
    assert b"error" not in run.stderr.lower()
