"""The engine's side of a simulation: its flags and its scheduling policies by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from octavo.engine.policy import FairPolicy, FCFSPolicy, PriorityPolicy
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from octavo.engine.policy import Policy

POLICIES: dict[str, Callable[[], Policy]] = {
    "fcfs": FCFSPolicy,
    "priority": PriorityPolicy,
    "fair": FairPolicy,
}


class EngineSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's flags that scheduling depends on, under their names.

    Attributes:
        num_kv_blocks: None: as many as the device's memory has room for.
        max_model_len: None: the model's.
        async_scheduling: plan a step while the one before it runs, as on a GPU.
    """

    max_num_seqs: int = 1024
    max_num_batched_tokens: int = 8192
    max_model_len: int | None = None
    block_size: int = 16
    gpu_memory_utilization: float = 0.92
    num_kv_blocks: int | None = None
    enable_prefix_caching: bool = True
    async_scheduling: bool = True

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1")
        for name in ("max_model_len", "num_kv_blocks"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError("--gpu-memory-utilization must be in (0, 1]")
