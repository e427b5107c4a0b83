"""How much memory there is, and how much of it the KV cache gets. Measured, never guessed."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from octavo.config import GIB, EngineConfig, format_bytes
from octavo.errors import InsufficientMemoryError

DEFAULT_CPU_KV_CACHE = 4 * GIB


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


def check_weights_fit(num_bytes: int, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse to load what cannot fit.

    Raises:
        InsufficientMemoryError: with both figures and what to try.
    """
    free = free_memory(device)
    if num_bytes > free:
        narrower = "" if dtype.itemsize <= 2 else ": try --dtype bfloat16"
        raise InsufficientMemoryError(
            f"the weights need {format_bytes(num_bytes)} in {str(dtype).removeprefix('torch.')}, "
            f"{format_bytes(free)} are free{narrower or ': take a smaller model'}"
        )


def kv_cache_budget(config: EngineConfig, device: torch.device, peak_activations: int) -> int:
    """Bytes for the KV cache, with the weights loaded.

    Args:
        config: `kv_cache_memory` wins; else `gpu_memory_utilization` of a GPU's whole memory less
            what is in use, or of a CPU's free memory, there at most 4 GiB.
        device: where the cache will be.
        peak_activations: what a full step takes beside weights and cache, measured.
    """
    if config.kv_cache_memory is not None:
        return config.kv_cache_memory
    free = free_memory(device)
    if device.type == "cuda":
        _, total = torch.cuda.mem_get_info(device)
        in_use = total - free
        return int(total * config.gpu_memory_utilization) - in_use - peak_activations
    share = int((free - peak_activations) * config.gpu_memory_utilization)
    return min(share, DEFAULT_CPU_KV_CACHE)


def fit_kv_cache(
    budget: int,
    bytes_per_block: int,
    block_size: int,
    model_len: int,
    max_num_seqs: int,
    config: EngineConfig,
) -> tuple[int, int]:
    """Blocks of the cache, and the context length in force.

    Args:
        budget: bytes.
        bytes_per_block: over all layers.
        block_size: tokens per block.
        model_len: the context asked for, or what the model allows.
        max_num_seqs: most requests in a batch.
        config: for the flags; a context that was not asked for is cut to what fits.

    Raises:
        InsufficientMemoryError: the context that was asked for does not fit, or not one block does.
    """
    num_blocks = max(budget, 0) // bytes_per_block
    fits = num_blocks * block_size
    if fits < model_len and (config.max_model_len is not None or fits < 1):
        need = -(-model_len // block_size) * bytes_per_block
        where = "--kv-cache-memory" if config.kv_cache_memory else "the memory left for it"
        shorter = f"--max-model-len {fits} or " if fits >= block_size else ""
        raise InsufficientMemoryError(
            f"a KV cache for one sequence of {model_len} tokens needs {format_bytes(need)}, "
            f"{where} is {format_bytes(max(budget, 0))}: try {shorter}"
            f"--kv-cache-memory {-(-need // 1024**2)}MiB"
        )
    model_len = min(model_len, fits)
    # More blocks than all rows can ever hold would lie idle.
    most = max_num_seqs * -(-model_len // block_size)
    return min(num_blocks, most), model_len


def _cgroup_free() -> int | None:
    """Bytes left under a control group's memory limit (version 2), or None without one."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(int(limit) - used, 0)
