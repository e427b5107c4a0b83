"""Names, types and labels are vLLM's; what is absent is in the documentation, with its reason."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as read_open_metrics,
)
from prometheus_client.parser import text_string_to_metric_families

from octavo.observability.label_slots import OTHER
from octavo.observability.metrics import Metrics
from octavo.observability.metrics_buckets import E2E_BUCKETS, token_buckets
from octavo.observability.metrics_requests import Siblings
from octavo.observability.metrics_usage import NUM_FEATURES
from octavo.types import (
    ITERATION_BUCKETS,
    Delta,
    DeviceTime,
    EngineInfo,
    EngineStats,
    KVCacheLayout,
)
from tests.observability.vllm_names import ABSENT, DASHBOARD, FAMILIES, OLD_NAMES

if TYPE_CHECKING:
    from prometheus_client import Metric

DOCS = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
ROUTES = [(f"/v1/{number}", method) for number in range(40) for method in ("GET", "POST")]
INFO = EngineInfo(
    architecture="a",
    dtype="bfloat16",
    device="cpu",
    vocab_size=8,
    max_model_len=131_072,
    kv_cache=KVCacheLayout(num_blocks=10, block_size=16, bytes_per_block=100),
    startup_s={},
)
STATS = EngineStats(
    num_waiting=5,
    num_deferred=2,
    num_prompt_tokens=100,
    num_cached_prompt_tokens=30,
    iteration_tokens=[*range(len(ITERATION_BUCKETS) + 1), 999],
    device_time=DeviceTime(num_devices=2, wall_ns=3 * 10**9, requests_ns=10**9, idle_ns=5 * 10**9),
)


def usage(feature: str, ns: int = 10**9) -> Any:
    return SimpleNamespace(
        feature=feature,
        prefill_ns=ns,
        decode_ns=2 * ns,
        waste_ns=ns // 2,
        cost_nano=3 * ns,
        num_input_tokens=7,
        num_cached_tokens=4,
        num_output_tokens=2,
    )


def full() -> Metrics:
    """Metrics with everything in use: all routes, more features than have a name, a request."""
    metrics = Metrics("m", lambda: STATS, info=INFO)
    http = metrics.track_http(ROUTES)
    for path, method in ROUTES:
        for status in (200, 404, 503):
            http.observe(path, method, status, 0.2, (5, 7))
    for number in range(2 * NUM_FEATURES):
        metrics.observe_usage(usage(f"feature {number}"))
    timer = metrics.start_request(max_tokens=20)
    first = Delta(
        token_ids=[1],
        num_prompt_tokens=9,
        num_output_tokens=1,
        num_cached_tokens=4,
        queue_ns=10**9,
        prefill_ns=2 * 10**9,
    )
    timer.on_delta(first)
    timer.finish("abort")
    return metrics


def families(metrics: Metrics) -> dict[str, Metric]:
    text = metrics.exposition()[0].decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(metrics: Metrics, name: str, **labels: str) -> float:
    found = [
        sample.value
        for family in families(metrics).values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert len(found) == 1, f"{name}: {found}"
    return found[0]


def test_families_are_those_of_vllm() -> None:
    found = families(full())
    assert {name for name in FAMILIES if name not in found} == ABSENT
    for name, (kind, labels) in FAMILIES.items():
        if name in ABSENT:
            continue
        assert found[name].type == kind, name
        own = {"engine", "model_name"} if name.startswith("vllm:") else set()
        for sample in found[name].samples:
            assert set(sample.labels) - {"le"} >= own | labels, name
            if name != "vllm:cache_config_info":
                assert set(sample.labels) - {"le"} == own | labels, name
    for old, new in OLD_NAMES.items():
        assert [(s.labels, s.value) for s in found[old].samples] == [
            (s.labels, s.value) for s in found[new].samples
        ]


def test_a_dashboard_for_vllm_finds_what_it_asks_for() -> None:
    names = {s.name for family in families(full()).values() for s in family.samples}
    assert names.issuperset(DASHBOARD)


def test_the_documentation_lists_every_family() -> None:
    rows = dict(re.findall(r"^\| `([a-z0-9_:]+)` \| \w+ \| (.+?) \|", DOCS, re.MULTILINE))
    for name, (kind, _) in FAMILIES.items():
        exposed = f"{name}_total" if kind == "counter" else name
        told = rows[exposed]
        assert told.startswith("absent") == (name in ABSENT), name
        assert told != "absent", "and why?"
    for old in OLD_NAMES:
        assert old in DOCS
    for name, family in families(full()).items():
        if name.startswith("octavo:"):
            exposed = f"{name}_total" if family.type == "counter" else name
            assert f"`{exposed}`" in DOCS, name


def test_both_formats_say_the_same() -> None:
    metrics = full()
    plain, plain_type = metrics.exposition("text/plain")
    rich, rich_type = metrics.exposition("application/openmetrics-text; version=1.0.0")
    assert plain_type.startswith("text/plain")
    assert rich_type.startswith("application/openmetrics-text")

    def samples(found: Any) -> dict[str, float]:
        return {
            f"{s.name} {sorted(s.labels.items())}": s.value
            for family in found
            for s in family.samples
            if not s.name.startswith(("process_", "python_"))
        }

    one = samples(text_string_to_metric_families(plain.decode()))
    two = samples(read_open_metrics(rich.decode()))
    assert one == two
    assert len(one) > 500


def test_the_number_of_samples_is_bounded() -> None:
    """What a scrape costs is what it writes; `benchmarks/cpu/scrape.py` has the milliseconds."""
    metrics = full()
    before = metrics.exposition()[0].count(b"\n")
    for number in range(500):
        metrics.observe_usage(usage(f"one more {number}"))
        assert metrics.http is not None
        metrics.http.observe(None, "BREW", 418, 0.1)
        metrics.http.observe("/v1/0", f"METHOD{number}", 200, 0.1)
    after = metrics.exposition()[0].count(b"\n")
    assert before <= after < before + 20
    assert after < 2000


def test_buckets() -> None:
    found = families(full())

    def bounds(name: str) -> list[float]:
        samples = found[name].samples
        return [float(s.labels["le"]) for s in samples if s.name.endswith("_bucket")][:-1]

    for name in ("queue_time", "prefill_time", "decode_time", "inference_time"):
        assert bounds(f"vllm:request_{name}_seconds") == list(E2E_BUCKETS)
    assert bounds("vllm:request_prompt_tokens") == list(token_buckets(131_072))
    assert token_buckets(131_072)[:4] == (1, 2, 5, 10)
    assert token_buckets(131_072)[-1] == 100_000
    assert token_buckets(10)[-1] == 10
    assert bounds("vllm:iteration_tokens_total") == list(ITERATION_BUCKETS)
    assert bounds("vllm:request_params_n") == [1, 2, 5, 10, 20]


def test_the_engine_s_numbers() -> None:
    metrics = full()
    assert value(metrics, "vllm:num_requests_waiting_by_reason", reason="capacity") == 3
    assert value(metrics, "vllm:num_requests_waiting_by_reason", reason="deferred") == 2
    assert value(metrics, "vllm:prompt_tokens_by_source_total", source="local_compute") == 70
    assert value(metrics, "vllm:prompt_tokens_by_source_total", source="local_cache_hit") == 30
    assert value(metrics, "vllm:prompt_tokens_cached_by_source_total", source="device") == 30
    assert value(metrics, "vllm:iteration_tokens_total_sum") == 999
    assert value(metrics, "vllm:iteration_tokens_total_count") == sum(range(14))
    assert value(metrics, "vllm:iteration_tokens_total_bucket", le="8.0") == 1
    assert value(metrics, "octavo:gpu_seconds_total", bucket="idle") == 5
    assert value(metrics, "octavo:device_wall_seconds_total") == 6
    labels = families(metrics)["vllm:cache_config_info"].samples[0].labels
    assert (labels["num_gpu_blocks"], labels["block_size"]) == ("10", "16")


def test_what_is_known_of_a_request() -> None:
    metrics = full()
    assert value(metrics, "vllm:request_queue_time_seconds_sum") == 1
    assert value(metrics, "vllm:request_prefill_time_seconds_sum") == 2
    assert value(metrics, "vllm:request_inference_time_seconds_count") == 1
    assert value(metrics, "vllm:request_prefill_kv_computed_tokens_sum") == 5
    assert value(metrics, "vllm:request_params_max_tokens_sum") == 20
    assert value(metrics, "vllm:request_time_per_output_token_seconds_count") == 0  # of one token


def test_siblings_are_one_request_for_its_parameter() -> None:
    metrics = Metrics("m", EngineStats)
    siblings = Siblings(2, 3)  # the best two of three
    for num_tokens in (4, 9, 2):
        timer = metrics.start_request(max_tokens=20, siblings=siblings)
        timer.on_delta(Delta(num_output_tokens=num_tokens, finish_reason="stop"))
    assert value(metrics, "vllm:request_params_n_sum") == 2
    assert value(metrics, "vllm:request_params_n_count") == 1
    assert value(metrics, "vllm:request_max_num_generation_tokens_sum") == 9
    assert value(metrics, "vllm:request_generation_tokens_count") == 3


def test_costs_by_feature() -> None:
    metrics = Metrics("m", EngineStats)
    for feature in ("chat", "chat", "", 'sea"rch\n'):
        metrics.observe_usage(usage(feature))
    assert value(metrics, "octavo:cost_total", currency="USD") == 12
    assert value(metrics, "octavo:waste_seconds_total") == 2
    assert value(metrics, "octavo:feature_cost_total", feature="chat") == 6
    assert value(metrics, "octavo:feature_cost_total", feature="untagged") == 3
    assert value(metrics, "octavo:feature_cost_total", feature='sea"rch_') == 3
    assert value(metrics, "octavo:feature_cost_total", feature=OTHER) == 0
    assert value(metrics, "octavo:feature_gpu_seconds_total", feature="chat", phase="decode") == 4
    assert value(metrics, "octavo:feature_tokens_total", feature="chat", kind="cached") == 8
    assert value(metrics, "octavo:feature_requests_total", feature="chat") == 2


def test_records_of_the_ledger_go_on_after_a_restart() -> None:
    metrics = Metrics("m", EngineStats)
    metrics.follow_ledger(SimpleNamespace(num_written=3, num_spilled=2, num_lost=1))
    metrics.observe_usage(usage("a"))
    assert value(metrics, "octavo:ledger_records_written_total") == 3
    metrics.follow_ledger(SimpleNamespace(num_written=4, num_spilled=0, num_lost=0))
    assert value(metrics, "octavo:ledger_records_written_total") == 7
    assert value(metrics, "octavo:ledger_records_spilled_total") == 2
    assert value(metrics, "octavo:ledger_records_lost_total") == 1


@pytest.mark.parametrize("status", [200, 404, 503])
def test_http(status: int) -> None:
    metrics = Metrics("m", EngineStats)
    http = metrics.track_http([("/v1/models", "GET")])
    http.observe("/v1/models", "HEAD", status, 0.3, (0, 50))
    http.observe(None, "GET", status, 0.3)
    http.observe("/v1/models", "DELETE", status, 0.3)
    one = {"handler": "/v1/models", "method": "GET", "status": f"{status // 100}xx"}
    assert value(metrics, "http_requests_total", **one) == 1
    assert value(metrics, "http_requests_total", handler="none") == 2
    assert value(metrics, "http_response_size_bytes_sum", handler="/v1/models") == 50
    assert value(metrics, "http_request_duration_seconds_bucket", handler="none", le="0.5") == 2
    assert value(metrics, "http_request_duration_highr_seconds_count") == 3
