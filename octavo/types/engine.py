"""What an engine tells of itself: once, when it is ready, and after each step."""

from __future__ import annotations

from typing import Literal

import msgspec

from octavo.types.metering import DeviceTime, WorkModel
from octavo.types.pooling import PoolingInfo, Task

SchedulingPolicy = Literal["fcfs", "priority", "fair"]
"""Order of waiting requests: by arrival; by `priority`; the least served tenant's first."""

ITERATION_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Upper bounds, inclusive, by which steps are counted (`EngineStats.iteration_tokens`); vLLM's."""


class KVCacheLayout(msgspec.Struct, frozen=True):
    """Size of the paged KV cache that the device really allocated.

    Attributes:
        num_blocks: blocks in the pool.
        block_size: tokens per block.
        bytes_per_block: over all layers, keys and values.
    """

    num_blocks: int
    block_size: int
    bytes_per_block: int

    @property
    def num_tokens(self) -> int:
        """Tokens that the whole cache holds."""
        return self.num_blocks * self.block_size


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a ready engine tells its clients.

    Attributes:
        architecture: the checkpoint's word for it, such as `LlamaForCausalLM`.
        dtype: computing precision, such as `bfloat16`.
        device: such as `cpu` or `cuda:0 NVIDIA H100 80GB HBM3`.
        vocab_size: rows of the output layer; every token id is below it.
        max_model_len: most tokens of prompt and output together.
        kv_cache: size of the KV cache.
        startup_s: named parts of start-up and their seconds, in order.
        scheduling_policy: in force.
        compilation: of a GPU's kernels: `num_kernels` that the start waited for, for `waited_s`
            (which is in `startup_s` too), and other fields of `kernels.compile.Compilation`;
            `num_missing` that were still being compiled at its end. Empty where nothing is.
        memory: bytes of a GPU: `total`, and what holds or will hold them, part by part; else empty.
        tasks: what it does.
        pooling: what vectors it makes; None where it generates.
        num_devices: it computes on.
        work: what tokens cost, by which device time is shared out; None: it is not metered.
    """

    architecture: str
    dtype: str
    device: str
    vocab_size: int
    max_model_len: int
    kv_cache: KVCacheLayout
    startup_s: dict[str, float]
    scheduling_policy: SchedulingPolicy = "fcfs"
    compilation: dict[str, float] = {}
    memory: dict[str, int] = {}
    tasks: tuple[Task, ...] = ("generate",)
    pooling: PoolingInfo | None = None
    num_devices: int = 1
    work: WorkModel | None = None


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of the engine after a step, and counters since its start.

    Attributes:
        num_running: requests that hold a row.
        num_waiting: requests admitted to the queue and not running.
        num_deferred: those of them that wait for something other than room: a grammar.
        num_free_rows: how many more could run, as far as rows go.
        num_received: requests that reached the engine, those it refused included, counter.
        kv_cache_usage: share of KV blocks in use, 0..1.
        num_steps, num_preemptions, num_prompt_tokens, num_generation_tokens: counters.
            Prompt tokens count once per request, when its first token was sampled.
        num_cached_prompt_tokens: those of `num_prompt_tokens` that the prefix cache had, counter.
        iteration_tokens: steps by the tokens that they computed, up to each of `ITERATION_BUCKETS`
            and above the last one, then all those tokens, counters; empty: there was no step.
        device_ns: time in steps, nanoseconds, counter.
        scheduler_ns: the host's time for planning and updating, nanoseconds, counter.
        prefix_cache_queries, prefix_cache_hits: prompt tokens looked up in the prefix cache, and
            found there, counters; once per request.
        num_restarts: engine processes started in the place of one that failed, counter; the API
            server's, like `is_up`.
        is_up: whether the engine takes requests.
        device_time: where the device's time went.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_deferred: int = 0
    num_free_rows: int = 0
    num_received: int = 0
    kv_cache_usage: float = 0.0
    num_steps: int = 0
    num_preemptions: int = 0
    num_prompt_tokens: int = 0
    num_generation_tokens: int = 0
    num_cached_prompt_tokens: int = 0
    iteration_tokens: list[int] = []
    device_ns: int = 0
    scheduler_ns: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    num_restarts: int = 0
    is_up: bool = True
    device_time: DeviceTime = DeviceTime()
