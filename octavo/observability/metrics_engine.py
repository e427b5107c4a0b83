"""What the engine's newest snapshot tells a scrape: its state, its tokens, its device's time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from octavo.observability.histogram import Histogram
from octavo.observability.metrics_text import Family
from octavo.types import ITERATION_BUCKETS, DeviceTime, EngineStats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from octavo.types import EngineInfo

_NOT_BUCKETS = {"wall_ns", "in_flight_ns"}
_BUCKETS = tuple(
    (field.name, field.name.removesuffix("_ns"))
    for field in msgspec.structs.fields(DeviceTime)
    if field.name.endswith("_ns") and field.name not in _NOT_BUCKETS
)
"""Fields of `DeviceTime` that only rise, and their names as labels."""

_NO_STEPS = [0.0] * (len(ITERATION_BUCKETS) + 2)


def engine_families(stats: EngineStats) -> Iterator[Family]:
    """Families under vLLM's names, old ones too, and Octavo's own."""
    usage, cached = "Share of KV cache blocks in use, 0 to 1.", stats.num_cached_prompt_tokens
    capacity = stats.num_waiting - stats.num_deferred
    yield _gauge("vllm:num_requests_running", "Requests that are in a batch.", stats.num_running)
    yield _gauge("vllm:num_requests_waiting", "Requests in the queue.", stats.num_waiting)
    yield Family(
        "vllm:num_requests_waiting_by_reason",
        "gauge",
        "Requests in the queue: for want of room, or for their grammars.",
        [((("reason", "capacity"),), capacity), ((("reason", "deferred"),), stats.num_deferred)],
    )
    yield _gauge("vllm:kv_cache_usage_perc", usage, stats.kv_cache_usage)
    yield _gauge("vllm:gpu_cache_usage_perc", f"Old name: {usage}", stats.kv_cache_usage)
    yield _counter(
        "vllm:num_preemptions", "Requests put back into the queue.", stats.num_preemptions
    )
    for prefix, old in (("", ""), ("gpu_", "Old name: ")):
        yield _counter(
            f"vllm:{prefix}prefix_cache_queries",
            f"{old}Prompt tokens looked up.",
            stats.prefix_cache_queries,
        )
        yield _counter(
            f"vllm:{prefix}prefix_cache_hits",
            f"{old}Prompt tokens found in the prefix cache.",
            stats.prefix_cache_hits,
        )
    yield _counter("vllm:prompt_tokens", "Tokens of prompts.", stats.num_prompt_tokens)
    yield Family(
        "vllm:prompt_tokens_by_source",
        "counter",
        "Tokens of prompts that were computed, and that the prefix cache had.",
        [
            ((("source", "local_compute"),), stats.num_prompt_tokens - cached),
            ((("source", "local_cache_hit"),), cached),
        ],
    )
    yield _counter(
        "vllm:prompt_tokens_cached", "Tokens of prompts that the prefix cache had.", cached
    )
    yield Family(
        "vllm:prompt_tokens_cached_by_source",
        "counter",
        "Tokens of prompts that the prefix cache had, by where it is.",
        [((("source", "device"),), cached)],
    )
    yield _counter("vllm:generation_tokens", "Tokens generated.", stats.num_generation_tokens)
    yield Family(
        "vllm:iteration_tokens_total",
        "histogram",
        "Tokens computed in a step.",
        [
            (
                (),
                Histogram(
                    ITERATION_BUCKETS, [list(map(float, stats.iteration_tokens)) or _NO_STEPS]
                ),
            )
        ],
    )
    yield _counter("octavo:steps", "Steps of the engine.", stats.num_steps)
    yield _counter(
        "octavo:scheduler_seconds",
        "The host's time for planning and updating.",
        stats.scheduler_ns / 1e9,
    )
    yield _counter("octavo:device_seconds", "Time in steps.", stats.device_ns / 1e9)
    yield _counter("octavo:engine_restarts", "Engines started anew.", stats.num_restarts)
    yield _gauge("octavo:engine_up", "1 while the engine takes requests.", int(stats.is_up))
    yield from _device_families(stats.device_time)


def _device_families(spent: DeviceTime) -> Iterator[Family]:
    yield _gauge("octavo:num_devices", "Devices of the engine.", spent.num_devices)
    yield _counter(
        "octavo:device_wall_seconds",
        "Devices times the time since the engine began; the sum of octavo:gpu_seconds, and of what "
        "runs now.",
        spent.num_devices * spent.wall_ns / 1e9,
    )
    yield Family(
        "octavo:gpu_seconds",
        "counter",
        "Time of devices by what it went to: requests, or why not.",
        [((("bucket", label),), getattr(spent, name) / 1e9) for name, label in _BUCKETS],
    )


def cache_config(info: EngineInfo) -> Family:
    """The family `cache_config_info` of vLLM: those of its labels that say something here."""
    cache = info.kv_cache
    labels = {
        "block_size": cache.block_size,
        "num_gpu_blocks": cache.num_blocks,
        "cache_dtype": info.dtype,
        "kv_cache_size_tokens": cache.num_tokens,
        "kv_cache_memory_bytes": cache.num_blocks * cache.bytes_per_block,
        "kv_cache_max_concurrency": f"{cache.num_tokens / max(info.max_model_len, 1):.2f}",
        "max_model_len": info.max_model_len,
    }
    return Family(
        "vllm:cache_config_info",
        "gauge",
        "The KV cache, in labels.",
        [(tuple((name, str(value)) for name, value in labels.items()), 1)],
    )


def _gauge(name: str, text: str, value: float) -> Family:
    return Family(name, "gauge", text, [((), value)])


def _counter(name: str, text: str, value: float) -> Family:
    return Family(name, "counter", text, [((), value)])
