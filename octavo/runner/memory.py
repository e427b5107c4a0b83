"""How much memory there is, and how much of it the KV cache gets. Measured, never guessed.

A refusal says who holds what, and which flag to turn to what.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch

from octavo.config import GIB, EngineConfig, format_bytes
from octavo.errors import InsufficientMemoryError

if TYPE_CHECKING:
    from collections.abc import Iterator

DEFAULT_CPU_KV_CACHE = 4 * GIB

MIB = 1024**2

_MOST_UTILIZATION = 0.98
"""The highest share of a GPU's memory that a refusal proposes."""


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What a GPU's memory is needed for beside the KV cache, in bytes.

    Attributes:
        total: of the device.
        other: in use before the model came: by other processes, and by CUDA itself.
        weights: of the model.
        libraries: kernels, and what CUDA's libraries keep for themselves.
        step: most that a step takes, and gives back.
        graphs: captured steps.
    """

    total: int
    other: int
    weights: int
    libraries: int
    step: int
    graphs: int

    @property
    def needed(self) -> int:
        """All of it together."""
        return self.other + self.weights + self.libraries + self.step + self.graphs

    def with_cache(self, kv_cache: int) -> dict[str, int]:
        """All parts by name, the cache and what is `left` among them; they sum up to `total`."""
        return asdict(self) | {"kv_cache": kv_cache, "left": self.total - self.needed - kv_cache}


def describe(memory: dict[str, int]) -> str:
    """What `MemoryUse.with_cache` gives, for the log."""
    return (
        "memory: {total} = KV cache {kv_cache}, weights {weights}, a step at most {step}, "
        "graphs {graphs}, libraries {libraries}, CUDA and other processes {other}, left {left}"
    ).format_map({name: format_bytes(size) for name, size in memory.items()})


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on the device.

    On a CPU this is what the kernel can give without swapping, within the control group's limit.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + reserved
    free = int(psutil.virtual_memory().available)
    limit = _cgroup_free()
    return free if limit is None else min(free, limit)


def total_memory(device: torch.device) -> int:
    """Bytes of a GPU."""
    return torch.cuda.mem_get_info(device)[1]


@contextmanager
def refuse_if_full(what: str, advice: str) -> Iterator[None]:
    """Turns a GPU's refusal into one that says what did not fit, and what to do.

    Raises:
        InsufficientMemoryError: where torch ran out of memory.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(". GPU")[0]
        raise InsufficientMemoryError(f"{what} did not fit: {advice} ({reason})") from error


def check_weights_fit(num_bytes: int, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse to load what cannot fit.

    Raises:
        InsufficientMemoryError: with both figures and what to try.
    """
    free = free_memory(device)
    if num_bytes <= free:
        return
    advice = "take a smaller model"
    if num_bytes * 2 // dtype.itemsize <= free:
        advice = "try --dtype bfloat16"
    elif device.type == "cuda" and num_bytes <= total_memory(device):
        in_use = total_memory(device) - free
        advice = f"end what holds {format_bytes(in_use)} of {device}, or take another --device"
    raise InsufficientMemoryError(
        f"the weights need {format_bytes(num_bytes)} in {str(dtype).removeprefix('torch.')}, "
        f"{format_bytes(free)} are free: {advice}"
    )


def kv_cache_budget(config: EngineConfig, step: int, use: MemoryUse | None) -> int:
    """Bytes for the KV cache, with the weights loaded; below 0 if other things need too much.

    Args:
        config: `kv_cache_memory` wins; else `gpu_memory_utilization` of a GPU's whole memory less
            what is needed for other things, or of a CPU's free memory, there at most 4 GiB.
        step: what a full step takes on a CPU beside weights and cache.
        use: of a GPU; None on a CPU.

    Raises:
        InsufficientMemoryError: a GPU does not have the `kv_cache_memory`.
    """
    if use is None:
        if config.kv_cache_memory is not None:
            return config.kv_cache_memory
        free = free_memory(torch.device("cpu"))
        return min(int((free - step) * config.gpu_memory_utilization), DEFAULT_CPU_KV_CACHE)
    if config.kv_cache_memory is None:
        return int(use.total * config.gpu_memory_utilization) - use.needed
    left = max(use.total - use.needed, 0)
    if config.kv_cache_memory > left:
        raise InsufficientMemoryError(
            f"--kv-cache-memory is {format_bytes(config.kv_cache_memory)}, and "
            f"{format_bytes(left)} are left of {_holders(use)}: "
            + (f"try --kv-cache-memory {left // MIB}MiB" if left >= MIB else _free_some(use))
        )
    return config.kv_cache_memory


def fit_kv_cache(
    budget: int,
    bytes_per_block: int,
    block_size: int,
    model_len: int,
    max_num_seqs: int,
    config: EngineConfig,
    use: MemoryUse | None,
) -> tuple[int, int]:
    """Blocks of the cache, and the context length in force.

    Args:
        budget: bytes.
        bytes_per_block: over all layers.
        block_size: tokens per block.
        model_len: the context asked for, or what the model allows.
        max_num_seqs: most requests in a batch.
        config: for the flags; a context that was not asked for is cut to what fits.
        use: of a GPU; None on a CPU.

    Raises:
        InsufficientMemoryError: the context that was asked for does not fit, or not one block does.
    """
    num_blocks = max(budget, 0) // bytes_per_block
    fits = num_blocks * block_size
    if fits < model_len and (config.max_model_len is not None or fits < 1):
        need = -(-model_len // block_size) * bytes_per_block
        given = format_bytes(max(budget, 0))
        if config.kv_cache_memory is not None:
            there = f"--kv-cache-memory is {given}"
        elif use is None:
            there = f"the memory left for it is {given}"
        else:
            flag = f"--gpu-memory-utilization {config.gpu_memory_utilization:g}"
            there = f"{flag} leaves it {given} of {_holders(use)}"
        shorter = [f"--max-model-len {fits}"] if fits else []
        options = shorter + _larger_budget(need, config, use)
        advice = f"try {' or '.join(options)}" if options else _free_some(use)
        raise InsufficientMemoryError(
            f"a KV cache for one sequence of {model_len} tokens needs {format_bytes(need)}, "
            f"{there}: {advice}"
        )
    model_len = min(model_len, fits)
    # More blocks than all rows can ever hold would lie idle.
    most = max_num_seqs * -(-model_len // block_size)
    return min(num_blocks, most), model_len


def _larger_budget(need: int, config: EngineConfig, use: MemoryUse | None) -> list[str]:
    """The flag that gives a KV cache `need` bytes, if the device has them."""
    if use is None:
        left = free_memory(torch.device("cpu"))
    else:
        share = math.ceil((use.needed + need) / use.total * 100) / 100
        if config.kv_cache_memory is None:
            fits = share <= _MOST_UTILIZATION
            return [f"--gpu-memory-utilization {share:.2f}"] if fits else []
        left = use.total - use.needed
    return [f"--kv-cache-memory {-(-need // MIB)}MiB"] if need <= left else []


def _holders(use: MemoryUse) -> str:
    """The device's memory and who has it, the largest part first."""
    names = {
        "CUDA and other processes": use.other,
        "weights": use.weights,
        "a step at most": use.step,
        "graphs": use.graphs,
        "libraries": use.libraries,
    }
    parts = sorted(names.items(), key=lambda part: -part[1])
    listed = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts)
    return f"the device's {format_bytes(use.total)} ({listed})"


def _free_some(use: MemoryUse | None) -> str:
    """What helps where no share of the memory is enough."""
    if use is None:
        return "take a smaller model"
    if use.other > max(use.weights, GIB):
        return f"end the processes that hold {format_bytes(use.other)}, or take another --device"
    return (
        f"try --max-num-batched-tokens 2048 --max-num-seqs 128 for smaller steps than "
        f"{format_bytes(use.step)}, or take a smaller model"
    )


def _cgroup_free() -> int | None:
    """Bytes left under a control group's memory limit (version 2), or None without one."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(int(limit) - used, 0)
