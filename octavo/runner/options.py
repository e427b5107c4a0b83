"""What flags, checkpoint and machine come to: device, precision, context. Allocates no tensors."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import torch

from octavo.config import cpu_activation_bits
from octavo.errors import ConfigError
from octavo.kernels import cpu as native
from octavo.kernels.cpu import matmul
from octavo.quant.gguf_native import GGUFNative
from octavo.quant.gguf_torch import GGUFTorch
from octavo.quant.unquantized import Unquantized, has_fast_16_bit

if TYPE_CHECKING:
    from octavo.config import EngineConfig
    from octavo.quant.method import LinearMethod
    from octavo.weights.checkpoint import Checkpoint

logger = logging.getLogger("octavo")


def pick_device(name: str) -> torch.device:
    """The device that `--device` names; `auto` is the first GPU where there is one.

    Raises:
        ConfigError: it is not there, or no device at all.
    """
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device {name}: unknown, write cpu, cuda or cuda:1") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"--device {name}: torch {torch.__version__} sees no CUDA device here")
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device {name}: only cpu and cuda are supported")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda:0")
    return device


def open_device(config: EngineConfig) -> torch.device:
    """The device that `--device` names, with this process made ready to compute there.

    Raises:
        ConfigError: see `pick_device`.
    """
    device = pick_device(config.device)
    if device.type == "cpu":
        set_num_threads(config)
    else:
        torch.cuda.set_device(device)  # where Triton launches
    return device


def set_num_threads(config: EngineConfig) -> None:
    """Threads of torch and of the native kernels on a CPU: the flag's, or one for each core."""
    torch.set_num_threads(config.num_threads or num_cores())
    if native.why_not() is None:
        native.set_num_threads(torch.get_num_threads())


def pick_dtype(config: EngineConfig, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """The flag's, or the checkpoint's where the device computes it well (else float32).

    A GGUF file has no precision of its own and counts as bfloat16; but where its weights stay in
    blocks, products are computed in float32 and so is everything else.

    Raises:
        ConfigError: the checkpoint names a type that nothing is computed in.
    """
    if config.dtype != "auto":
        chosen: torch.dtype = getattr(torch, config.dtype)
        return chosen
    if _may_keep_blocks(config, checkpoint, device) and any(
        tensor.dtype in matmul.TYPES for tensor in checkpoint.tensors()
    ):
        return torch.float32
    stored = "bfloat16"
    if checkpoint.format == "safetensors":
        stored = checkpoint.config.get("dtype") or checkpoint.config.get("torch_dtype") or "float32"
    dtype = getattr(torch, str(stored).removeprefix("torch."), None)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ConfigError(f"the checkpoint's dtype {stored!r} is unknown: give --dtype")
    assert isinstance(dtype, torch.dtype)
    if dtype != torch.float32 and not has_fast_16_bit(device, dtype):
        return torch.float32
    return dtype


def pick_method(
    config: EngineConfig, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
) -> LinearMethod:
    """How linear layers keep their weights.

    On a CPU those of a GGUF file stay in the file's blocks, and integers in groups become such
    blocks, unless `--load-format` says otherwise; if the library of kernels is missing, torch
    computes the same, bit for bit (the log says which).

    Raises:
        ConfigError: blocks were asked for, and there are none to keep or no CPU that computes.
    """
    dense = Unquantized(dtype, has_fast_16_bit=has_fast_16_bit(device, dtype))
    if not _may_keep_blocks(config, checkpoint, device):
        if config.load_format != "blocks":
            return dense
        raise ConfigError(
            "--load-format blocks is for GGUF files and int4 or int8 weights on a CPU: leave it "
            "out, or give --device cpu"
        )
    why_not = native.why_not()
    if why_not is not None:
        logger.warning(
            "weights take four bytes, torch computes what kernels would: no native kernels (%s)",
            why_not,
        )
        return GGUFTorch(dense)
    logger.info(
        "weights stay as they are stored, native kernels compute (%s, activations of %d bits)",
        native.isa(),
        cpu_activation_bits(),
    )
    return GGUFNative(dense)


def _may_keep_blocks(config: EngineConfig, checkpoint: Checkpoint, device: torch.device) -> bool:
    return (
        config.load_format in ("auto", "blocks") and device.type == "cpu" and checkpoint.has_blocks
    )


def context_length(config: EngineConfig, max_position: int) -> int:
    """The longest context that was asked for, or the model's `max_position`.

    Raises:
        ConfigError: more was asked for than the model can.
    """
    if config.max_model_len is None:
        return max_position
    if config.max_model_len > max_position:
        raise ConfigError(
            f"--max-model-len {config.max_model_len} is more than the model's {max_position}"
        )
    return config.max_model_len


def num_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_device(device: torch.device) -> str:
    """The device's name, and what it is."""
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    return f"cpu ({torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()})"
