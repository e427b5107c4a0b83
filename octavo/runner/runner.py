"""Owns the model, the KV cache and the table of rows, and runs steps.

Knows nothing of waiting requests, finish reasons or text: a plan comes in, tokens go out.
"""

from __future__ import annotations

import itertools
import logging
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from octavo.attention.interface import AttentionSpec
from octavo.attention.select import select_backend
from octavo.kernels.compile_later import LateKernels
from octavo.models.base import BuildContext
from octavo.models.registry import find_model_class
from octavo.quant.gguf_native import GGUFNative
from octavo.quant.gguf_torch import GGUFTorch
from octavo.quant.method import BlockMethod
from octavo.runner.forwards import choose_forward
from octavo.runner.loader import load_weights, model_bytes, read_config
from octavo.runner.memory import (
    MIB,
    MemoryUse,
    check_weights_fit,
    describe,
    fit_kv_cache,
    free_memory,
    kv_cache_budget,
    refuse_if_full,
    total_memory,
)
from octavo.runner.options import (
    context_length,
    describe_device,
    open_device,
    pick_dtype,
    pick_method,
)
from octavo.runner.profile import count_step_bytes, random_step
from octavo.runner.rehearsal import rehearse_rare, rehearse_steps, start_compiler
from octavo.runner.rows import RowTable
from octavo.runner.sampler import SamplerRows
from octavo.runner.steps import EagerSteps
from octavo.runner.work import work_model
from octavo.types import EngineInfo, KVCacheLayout

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from concurrent.futures import Future

    from octavo.attention.work import StepShape
    from octavo.config import EngineConfig
    from octavo.kernels.compile import Compiler
    from octavo.models.base import CausalModel, ModelShape
    from octavo.runner.queued_steps import QueuedSteps
    from octavo.runner.steps import LaunchedStep
    from octavo.types import StepMasks, StepPlan, StepResult
    from octavo.weights.checkpoint import Checkpoint

logger = logging.getLogger("octavo")

_CACHE_DTYPES = {
    "auto": None,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "fp8": torch.float8_e4m3fn,
}
CPU_TOKEN_BUDGET, GPU_TOKEN_BUDGET = 256, 8192
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
        self._marks = [("", time.perf_counter())]
        model_class = find_model_class(checkpoint.architecture)
        model_config = read_config(checkpoint, model_class)
        shape = model_class.read_shape(model_config)

        self.device = open_device(config)
        dtype = pick_dtype(config, checkpoint, self.device)
        model_len = context_length(config, shape.max_position)
        method = pick_method(config, checkpoint, self.device, dtype)
        context = BuildContext(dtype, method, model_len)
        prefers = None
        if isinstance(method, GGUFNative | GGUFTorch):
            prefers = "native" if isinstance(method, GGUFNative) else "reference"
        keeps_blocks = isinstance(method, BlockMethod)
        self.spec = _attention_spec(shape, dtype, self.device, config, keeps_blocks=keeps_blocks)
        self.backend = select_backend(config.attention_backend, self.spec, prefers=prefers)
        self._set_sizes(config)

        compiler = start_compiler(self.device)
        before = self._in_use()
        weight_bytes = model_bytes(model_class, model_config, context, checkpoint)
        check_weights_fit(weight_bytes, dtype, self.device)
        with compiler or nullcontext():
            self._load(checkpoint, model_class, model_config, context, compiler)
        if compiler is not None:
            self._mark("compile")
        later = LateKernels() if compiler is None else compiler.later

        smaller = (
            f"{max(self.token_budget // 4, 1)} --max-num-seqs {max(self.max_num_seqs // 4, 1)}"
        )
        with (
            refuse_if_full("a step beside the weights", f"try --max-num-batched-tokens {smaller}"),
            later.leaving_out(),
        ):
            step, graphs = self._measure_step(shape, model_len)
        self._mark("profile")
        use: MemoryUse | None = None
        if self.device.type == "cuda":
            libraries = max(self._in_use() - before - weight_bytes, 0)
            total = total_memory(self.device)
            use = MemoryUse(total, before, weight_bytes, libraries, step, graphs)
        bytes_per_block = self.backend.bytes_per_block(self.spec) * shape.num_layers
        num_blocks, model_len = fit_kv_cache(
            kv_cache_budget(config, step, use),
            bytes_per_block, config.block_size, model_len, self.max_num_seqs, config, use,
        )  # fmt: skip
        less = f"{num_blocks * bytes_per_block * 15 // 16 // MIB}MiB"
        with refuse_if_full("the KV cache and graphs", f"try --kv-cache-memory {less}"):
            self._allocate(shape.num_layers, num_blocks, self.max_num_seqs, model_len)
            self._mark("kv_cache")
            with later.leaving_out():
                self._warm_up()
            self._mark("warm_up")
            work = work_model(self.model, shape, self.spec) if config.metering else None
            self._mark("rates")
            if self._shapes:
                self._capture(self._shapes)
                self._mark("graphs")
        compilation: dict[str, float] = {}
        if compiler is not None:
            late = later.load()
            self._mark("late_kernels")
            compilation = compiler.done.as_dict() | {"num_missing": late.num_missing}
            logger.info("%s", compiler.done)
            logger.info("%s", late)

        memory = {} if use is None else use.with_cache(num_blocks * bytes_per_block)
        if memory:
            logger.info("%s", describe(memory))
        self.info = EngineInfo(
            architecture=checkpoint.architecture,
            dtype=str(dtype).removeprefix("torch."),
            device=describe_device(self.device),
            vocab_size=shape.vocab_size,
            max_model_len=model_len,
            kv_cache=KVCacheLayout(num_blocks, config.block_size, bytes_per_block),
            startup_s={
                name: end - begin for (_, begin), (name, end) in itertools.pairwise(self._marks)
            },
            compilation=compilation,
            memory=memory,
            work=work,
        )

    @property
    def runs_ahead(self) -> bool:
        """Whether a launched step is still running when `launch` returns."""
        return not isinstance(self._steps, EagerSteps)

    def launch(self, plan: StepPlan, masks: Future[StepMasks] | None = None) -> LaunchedStep:
        """Begin a step; see `steps.Steps`."""
        return self._steps.launch(plan, masks)

    def execute(self, plan: StepPlan, masks: Future[StepMasks] | None = None) -> StepResult:
        """Run one step to its end."""
        return self._steps.launch(plan, masks).result()

    def _mark(self, part: str) -> None:
        """A part of start-up has ended now."""
        self._marks.append((part, time.perf_counter()))

    def _load(
        self,
        checkpoint: Checkpoint,
        model_class: type[CausalModel],
        model_config: Mapping[str, Any],
        context: BuildContext,
        compiler: Compiler | None,
    ) -> None:
        """Build the model and fill it, and have a GPU's kernels compiled meanwhile."""
        with torch.device(self.device):
            self.model = model_class(model_config, context)
        self._mark("model")
        # Tensors beside the weights may still change what a GGUF model computes.
        loads_first = checkpoint.format == "gguf"
        if loads_first:
            load_weights(self.model, checkpoint, context.dtype)
            self._mark("weights")
        if compiler is not None:
            about = self.model, self.backend, self.spec, context.max_len
            with compiler.rehearse():
                logits = rehearse_steps(*about)
            if self.backend.fuses_rotary:
                with compiler.rehearse(can_wait=True):
                    rehearse_rare(*about, logits)
            del logits
            self._mark("rehearsal")
        if not loads_first:
            load_weights(self.model, checkpoint, context.dtype)
            self._mark("weights")

    def _allocate(self, num_layers: int, num_blocks: int, num_rows: int, model_len: int) -> None:
        """KV caches and tables of rows, and what runs steps with them."""
        self.kv_caches = [self.backend.allocate(self.spec, num_blocks) for _ in range(num_layers)]
        self.table = RowTable(num_rows, model_len, self.spec.block_size)
        sampler = SamplerRows(num_rows)
        self._steps: EagerSteps | QueuedSteps
        if not self.backend.fuses_rotary:
            self._steps = EagerSteps(
                self.model, choose_forward(self.model, self.spec, self.backend, self.kv_caches),
                self.backend, self.spec, self.kv_caches,
                self.table, sampler,
            )  # fmt: skip
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

    def _set_sizes(self, config: EngineConfig) -> None:
        """How large steps get, and for which of them there will be graphs."""
        on_cpu = self.device.type == "cpu"
        self.token_budget = config.max_num_batched_tokens or (
            CPU_TOKEN_BUDGET if on_cpu else GPU_TOKEN_BUDGET
        )
        self.max_num_seqs = config.max_num_seqs or (CPU_NUM_SEQS if on_cpu else GPU_NUM_SEQS)
        self._shapes: tuple[StepShape, ...] = ()
        if self.backend.fuses_rotary and not config.enforce_eager:
            from octavo.runner.queued_steps import graph_shapes

            self._shapes = graph_shapes(self.max_num_seqs, self.token_budget)

    def _in_use(self) -> int:
        """Bytes of a GPU's memory that cannot be allocated now; 0 on a CPU."""
        if self.device.type == "cpu":
            return 0
        return total_memory(self.device) - free_memory(self.device)

    def _measure_step(self, shape: ModelShape, model_len: int) -> tuple[int, int]:
        """Bytes that steps of the whole token budget take beside weights and cache, and graphs'.

        On a GPU such a step is run, with a small cache, and graphs are captured.
        """
        num_rows = min(self.max_num_seqs, self.token_budget)
        if self.device.type == "cpu":
            return count_step_bytes(self.model, num_rows, self.token_budget), 0
        length = max(1, min(self.token_budget // num_rows, model_len - 1))
        blocks_each = -(-length // self.spec.block_size)
        self._allocate(shape.num_layers, num_rows * blocks_each, num_rows, length + 1)
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_reserved(self.device)
        self.execute(random_step(num_rows, length, blocks_each))
        step = torch.cuda.max_memory_reserved(self.device) - before
        torch.cuda.empty_cache()
        graphs = 0
        if self._shapes:
            # The largest graphs' memory serves all; what the smallest adds is each one's own.
            # Decodes are captured once more when prefixes are shared.
            free = [torch.cuda.mem_get_info(self.device)[0]]
            decodes = [step_shape for step_shape in self._shapes if step_shape.is_decode]
            for shapes in ({decodes[-1], self._shapes[-1]}, {self._shapes[0]}):
                self._capture(list(shapes))
                free.append(torch.cuda.mem_get_info(self.device)[0])
            each = max(free[1] - free[2], 0)
            num_graphs = len(self._shapes) + len(decodes)
            graphs = max(free[0] - free[1], 0) + each * (num_graphs - 2)
        del self._steps
        self.kv_caches = []
        torch.cuda.empty_cache()
        return step, graphs

    def _warm_up(self) -> None:
        """Run a prefill and a decode, so that the first request does not pay for lazy set-up."""
        length = min(8, self.spec.block_size - 1, self.table.token_ids.shape[1] - 2)
        if length < 1:
            return
        plan = random_step(1, length, 1)
        self.execute(plan)
        plan.new_rows, plan.new_block_ids = [], [[]]
        plan.num_computed_tokens, plan.num_new_tokens = [length], [1]
        self.execute(plan)


def _attention_spec(
    shape: ModelShape,
    dtype: torch.dtype,
    device: torch.device,
    config: EngineConfig,
    *,
    keeps_blocks: bool,
) -> AttentionSpec:
    cache_dtype = _CACHE_DTYPES[config.kv_cache_dtype]
    if keeps_blocks and config.kv_cache_dtype == "auto":
        cache_dtype = torch.bfloat16
    return AttentionSpec(
        num_heads=shape.num_heads,
        num_kv_heads=shape.num_kv_heads,
        head_dim=shape.head_dim,
        dtype=dtype,
        device=device,
        block_size=config.block_size,
        windows=frozenset(shape.windows),
        soft_cap=shape.soft_cap,
        cache_dtype=cache_dtype,
    )
