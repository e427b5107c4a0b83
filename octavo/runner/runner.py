"""Owns the model, the KV cache and the table of rows, and runs steps.

Knows nothing of waiting requests, finish reasons or text: a plan comes in, tokens go out.
"""

from __future__ import annotations

import itertools
import os
import time
from typing import TYPE_CHECKING

import torch

from octavo.attention.interface import AttentionSpec
from octavo.attention.select import select_backend
from octavo.errors import ConfigError
from octavo.layers.linear import Linear
from octavo.models.base import BuildContext
from octavo.models.registry import find_model_class
from octavo.quant.unquantized import Unquantized, has_fast_16_bit
from octavo.runner.loader import load_weights, model_bytes, read_config
from octavo.runner.memory import check_weights_fit, fit_kv_cache, kv_cache_budget
from octavo.runner.rows import RowTable
from octavo.runner.sampler import SamplerRows
from octavo.runner.steps import EagerSteps
from octavo.types import (
    EngineInfo,
    KVCacheLayout,
    RowInit,
    SamplingParams,
    StepPlan,
    StepResult,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.attention.work import StepShape
    from octavo.config import EngineConfig
    from octavo.runner.queued_steps import QueuedSteps
    from octavo.runner.steps import LaunchedStep
    from octavo.weights.checkpoint import Checkpoint

CPU_TOKEN_BUDGET, GPU_TOKEN_BUDGET = 512, 8192
CPU_NUM_SEQS, GPU_NUM_SEQS = 256, 1024


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

        fast = has_fast_16_bit(self.device, dtype)
        context = BuildContext(dtype, Unquantized(dtype, has_fast_16_bit=fast), model_len)
        check_weights_fit(model_bytes(model_class, model_config, context), dtype, self.device)
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
            cache_dtype=torch.float8_e4m3fn if config.kv_cache_dtype == "fp8" else None,
        )
        self.backend = select_backend(config.attention_backend, self.spec)
        on_cpu = self.device.type == "cpu"
        self.token_budget = config.max_num_batched_tokens or (
            CPU_TOKEN_BUDGET if on_cpu else GPU_TOKEN_BUDGET
        )
        self.max_num_seqs = config.max_num_seqs or (CPU_NUM_SEQS if on_cpu else GPU_NUM_SEQS)
        self._shapes: tuple[StepShape, ...] = ()
        if self.backend.fuses_rotary and not config.enforce_eager:
            from octavo.runner.queued_steps import graph_shapes

            self._shapes = graph_shapes(self.max_num_seqs, self.token_budget)
        bytes_per_block = self.backend.bytes_per_block(self.spec) * shape.num_layers
        peak = self._measure_peak(shape.num_layers, shape.vocab_size, model_len)
        marks.append(("profile", time.perf_counter()))
        budget = kv_cache_budget(config, self.device, peak)
        num_blocks, model_len = fit_kv_cache(
            budget, bytes_per_block, config.block_size, model_len, self.max_num_seqs, config
        )
        self._allocate(shape.num_layers, num_blocks, self.max_num_seqs, model_len)
        marks.append(("kv_cache", time.perf_counter()))
        self._warm_up()
        marks.append(("warm_up", time.perf_counter()))
        if self._shapes:
            self._capture(self._shapes)
            marks.append(("graphs", time.perf_counter()))

        self.info = EngineInfo(
            architecture=checkpoint.architecture,
            dtype=str(dtype).removeprefix("torch."),
            device=_describe(self.device),
            vocab_size=shape.vocab_size,
            max_model_len=model_len,
            kv_cache=KVCacheLayout(num_blocks, config.block_size, bytes_per_block),
            startup_s={name: end - begin for (_, begin), (name, end) in itertools.pairwise(marks)},
        )

    @property
    def runs_ahead(self) -> bool:
        """Whether a launched step is still running when `launch` returns."""
        return not isinstance(self._steps, EagerSteps)

    def launch(self, plan: StepPlan) -> LaunchedStep:
        """Begin a step. An exception leaves the plan's rows to be initialised anew."""
        return self._steps.launch(plan)

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step to its end."""
        return self._steps.launch(plan).result()

    def _allocate(self, num_layers: int, num_blocks: int, num_rows: int, model_len: int) -> None:
        """KV caches and tables of rows, and what runs steps with them."""
        self.kv_caches = [self.backend.allocate(self.spec, num_blocks) for _ in range(num_layers)]
        self.table = RowTable(num_rows, model_len, self.spec.block_size)
        sampler = SamplerRows(num_rows)
        parts = (self.model, self.backend, self.spec, self.kv_caches, self.table, sampler)
        self._steps: EagerSteps | QueuedSteps
        if not self.backend.fuses_rotary:
            self._steps = EagerSteps(*parts)
            return
        from octavo.attention.triton_paged import TritonAttention
        from octavo.runner.queued_steps import QueuedSteps

        assert isinstance(self.backend, TritonAttention)
        self._steps = QueuedSteps(
            self.model, self.backend, self.spec, self.kv_caches, self.table, sampler,
            self._shapes,
        )  # fmt: skip

    def _capture(self, shapes: Sequence[StepShape]) -> None:
        from octavo.runner.queued_steps import QueuedSteps

        assert isinstance(self._steps, QueuedSteps)
        self._steps.capture(shapes)

    def _measure_peak(self, num_layers: int, vocab_size: int, model_len: int) -> int:
        """Bytes that steps of the whole token budget take beside weights and cache.

        On a GPU such a step is run, with a small cache, and graphs are captured; a CPU's allocator
        keeps no record, so the largest tensors are counted: logits of every row twice (sampling
        sorts a copy), and a layer's widest activations.
        """
        num_rows = min(self.max_num_seqs, self.token_budget)
        if self.device.type == "cpu":
            layers = (m for m in self.model.modules() if isinstance(m, Linear))
            widest = max(sum(layer.out_parts) for layer in layers)
            return 4 * (2 * num_rows * vocab_size + 4 * self.token_budget * widest)
        length = max(1, min(self.token_budget // num_rows, model_len - 1))
        blocks_each = -(-length // self.spec.block_size)
        self._allocate(num_layers, num_rows * blocks_each, num_rows, length + 1)
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_reserved(self.device)
        self.execute(_dummy_plan(num_rows, length, blocks_each))
        peak = torch.cuda.max_memory_reserved(self.device) - before
        torch.cuda.empty_cache()
        if self._shapes:
            # The largest graph's memory serves all; what the smallest adds is each one's own.
            free = [torch.cuda.mem_get_info(self.device)[0]]
            for shape in (self._shapes[-1], self._shapes[0]):
                self._capture([shape])
                free.append(torch.cuda.mem_get_info(self.device)[0])
            each = max(free[1] - free[2], 0)
            peak += max(free[0] - free[1], 0) + each * (len(self._shapes) - 1)
        del self._steps
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
