"""Owns the model, the KV cache and the table of rows, and runs steps.

Knows nothing of waiting requests, finish reasons or text: a plan comes in, tokens go out.
"""

from __future__ import annotations

import itertools
import os
import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from octavo.attention.interface import AttentionSpec
from octavo.attention.select import select_backend
from octavo.errors import ConfigError
from octavo.layers.linear import Linear
from octavo.models.base import BuildContext
from octavo.models.registry import find_model_class
from octavo.quant.unquantized import Unquantized, has_fast_16_bit
from octavo.runner.batch import build_batch
from octavo.runner.loader import load_weights, read_config, weight_bytes
from octavo.runner.memory import check_weights_fit, fit_kv_cache, kv_cache_budget
from octavo.runner.rows import RowTable
from octavo.runner.sampler import SamplerRows, sample
from octavo.types import (
    EngineInfo,
    KVCacheLayout,
    RowInit,
    SamplingParams,
    StepPlan,
    StepResult,
)

if TYPE_CHECKING:
    from octavo.config import EngineConfig
    from octavo.weights.checkpoint import Checkpoint

CPU_TOKEN_BUDGET = 512
GPU_TOKEN_BUDGET = 8192


class ModelRunner:
    """See the module.

    Args:
        config: flags.
        checkpoint: read in here; may be closed afterwards.

    Raises:
        StartupError: the checkpoint, the flags or the memory do not allow it.
    """

    def __init__(self, config: EngineConfig, checkpoint: Checkpoint) -> None:
        marks = [("", time.perf_counter())]
        model_class = find_model_class(checkpoint.architecture)
        model_config = read_config(checkpoint, model_class)
        shape = model_class.read_shape(model_config)

        self.device = _pick_device(config.device)
        if self.device.type == "cpu":
            torch.set_num_threads(config.num_threads or _num_cores())
        dtype = _pick_dtype(config, checkpoint, self.device)
        model_len = _context_length(config, shape.max_position)
        check_weights_fit(weight_bytes(checkpoint, dtype), dtype, self.device)

        fast = has_fast_16_bit(self.device, dtype)
        context = BuildContext(dtype, Unquantized(dtype, has_fast_16_bit=fast), model_len)
        with torch.device(self.device):
            self.model = model_class(model_config, context)
        load_weights(self.model, checkpoint, dtype)
        marks.append(("weights", time.perf_counter()))

        self.spec = AttentionSpec(
            num_heads=shape.num_heads,
            num_kv_heads=shape.num_kv_heads,
            head_dim=shape.head_dim,
            dtype=dtype,
            device=self.device,
            block_size=config.block_size,
            windows=frozenset(shape.windows),
            soft_cap=shape.soft_cap,
        )
        self.backend = select_backend(config.attention_backend, self.spec)
        self.token_budget = config.max_num_batched_tokens or (
            CPU_TOKEN_BUDGET if self.device.type == "cpu" else GPU_TOKEN_BUDGET
        )
        bytes_per_block = self.backend.bytes_per_block(self.spec) * shape.num_layers
        peak = self._measure_peak(shape.num_layers, shape.vocab_size, config, model_len)
        budget = kv_cache_budget(config, self.device, peak)
        num_blocks, model_len = fit_kv_cache(
            budget, bytes_per_block, config.block_size, model_len, config
        )
        self.kv_caches = [
            self.backend.allocate(self.spec, num_blocks) for _ in range(shape.num_layers)
        ]
        self.table = RowTable(config.max_num_seqs, model_len, config.block_size)
        self.sampler = SamplerRows(config.max_num_seqs)
        marks.append(("kv_cache", time.perf_counter()))
        self._warm_up()
        marks.append(("warm_up", time.perf_counter()))

        self.info = EngineInfo(
            architecture=checkpoint.architecture,
            dtype=str(dtype).removeprefix("torch."),
            device=_describe(self.device),
            vocab_size=shape.vocab_size,
            max_model_len=model_len,
            kv_cache=KVCacheLayout(num_blocks, config.block_size, bytes_per_block),
            startup_s={name: end - begin for (_, begin), (name, end) in itertools.pairwise(marks)},
        )

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step. An exception leaves the plan's rows to be initialised anew."""
        begin = time.perf_counter_ns()
        self.table.apply(plan)
        for init in plan.new_rows:
            self.sampler.set(init.row, init)
        if plan.is_empty:
            return StepResult(plan.step_id, [], [], time.perf_counter_ns() - begin)

        batch = build_batch(plan, self.table, self.backend, self.spec, self.kv_caches)
        logits = self.model(batch)
        rows = np.asarray(plan.rows, dtype=np.int64)[np.asarray(plan.samples, dtype=bool)]
        if not len(rows):
            return StepResult(plan.step_id, [], [], time.perf_counter_ns() - begin)

        sampled = sample(logits, rows, self.table.num_tokens[rows], self.sampler)
        token_ids = sampled.token_ids.cpu().numpy()
        self.table.append(rows, token_ids)
        return StepResult(
            plan.step_id,
            token_ids.tolist(),
            sampled.logprobs,
            time.perf_counter_ns() - begin,
        )

    def _measure_peak(
        self, num_layers: int, vocab_size: int, config: EngineConfig, model_len: int
    ) -> int:
        """Bytes that a step of the whole token budget takes beside weights and cache.

        On a GPU such a step is run, with a small cache; a CPU's allocator keeps no record, so the
        largest tensors are counted: logits of every row twice (sampling sorts a copy), and a
        layer's widest activations.
        """
        num_rows = min(config.max_num_seqs, self.token_budget)
        if self.device.type == "cpu":
            layers = (m for m in self.model.modules() if isinstance(m, Linear))
            widest = max(sum(layer.out_parts) for layer in layers)
            return 4 * (2 * num_rows * vocab_size + 4 * self.token_budget * widest)
        length = max(1, min(self.token_budget // num_rows, model_len - 1))
        blocks_each = -(-length // config.block_size)
        self.kv_caches = [
            self.backend.allocate(self.spec, num_rows * blocks_each) for _ in range(num_layers)
        ]
        self.table = RowTable(num_rows, length + 1, config.block_size)
        self.sampler = SamplerRows(num_rows)
        torch.cuda.synchronize(self.device)
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        self.execute(_dummy_plan(num_rows, length, blocks_each))
        torch.cuda.synchronize(self.device)
        peak = torch.cuda.max_memory_allocated(self.device) - before
        self.kv_caches = []
        torch.cuda.empty_cache()
        return peak

    def _warm_up(self) -> None:
        """Run a prefill and a decode, so that the first request does not pay for lazy set-up."""
        length = min(8, self.spec.block_size - 1, self.table.token_ids.shape[1] - 2)
        if length < 1:
            return
        plan = _dummy_plan(1, length, 1)
        self.execute(plan)
        plan.new_rows, plan.new_block_ids = [], [[]]
        plan.num_computed_tokens, plan.num_new_tokens = [length], [1]
        self.execute(plan)


def _dummy_plan(num_rows: int, length: int, blocks_each: int) -> StepPlan:
    """A prefill of `length` tokens in each row, sampled at random."""
    params = SamplingParams(temperature=1.0, top_p=0.9, max_tokens=None)
    rows = list(range(num_rows))
    return StepPlan(
        step_id=-1,
        new_rows=[RowInit(row, [0] * length, length, params, row, []) for row in rows],
        rows=rows,
        num_computed_tokens=[0] * num_rows,
        num_new_tokens=[length] * num_rows,
        samples=[True] * num_rows,
        new_block_ids=[list(range(row * blocks_each, (row + 1) * blocks_each)) for row in rows],
    )


def _pick_device(name: str) -> torch.device:
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


def _pick_dtype(config: EngineConfig, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """The flag's, or the checkpoint's where the device computes it well (else float32).

    A GGUF file has no precision of its own and counts as bfloat16.
    """
    if config.dtype != "auto":
        chosen: torch.dtype = getattr(torch, config.dtype)
        return chosen
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


def _context_length(config: EngineConfig, max_position: int) -> int:
    if config.max_model_len is None:
        return max_position
    if config.max_model_len > max_position:
        raise ConfigError(
            f"--max-model-len {config.max_model_len} is more than the model's {max_position}"
        )
    return config.max_model_len


def _num_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} {torch.cuda.get_device_name(device)}"
    return f"cpu ({torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()})"
