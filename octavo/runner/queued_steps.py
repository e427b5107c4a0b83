"""Steps that are queued on a device: the host prepares the next one while the device runs this one.

Sampled tokens go from step to step on the device (`last_token`), and to the host beside it. Small
steps replay a CUDA graph of the nearest shape above (`queued_graphs.py`); what changes from step to
step lies in one buffer of integers, filled by one copy (`queued_inputs.py`). Every other step is
launched kernel by kernel (`queued_launch.py`). Nothing here waits for the device but
`DeviceStep.result`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from octavo.runner.batch import lay_out
from octavo.runner.changed_logits import ChangedLogits, StepInputs
from octavo.runner.device_step import DeferredStep, DeviceStep, HostMark
from octavo.runner.masks import read_masks
from octavo.runner.prompt_logprobs import find_prompt_tokens
from octavo.runner.queued_graphs import CapturedSteps
from octavo.runner.queued_launch import launch_kernels
from octavo.runner.queued_shapes import DECODE_SIZES, MIXED_TOKENS, graph_shapes
from octavo.runner.queued_state import QueueState
from octavo.runner.special import choose_special
from octavo.runner.staging import Staging
from octavo.runner.steps import FinishedStep
from octavo.types import StepResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from octavo.attention.interface import AttentionSpec
    from octavo.attention.triton_paged import TritonAttention
    from octavo.attention.work import StepShape
    from octavo.models.base import CausalModel
    from octavo.runner.device_step import Mark
    from octavo.runner.queued_state import PlainStep
    from octavo.runner.rows import RowTable
    from octavo.runner.sampler import SamplerRows
    from octavo.types import StepMasks, StepPlan

__all__ = ["DECODE_SIZES", "MIXED_TOKENS", "QueuedSteps", "graph_shapes"]


class QueuedSteps:
    """See the module.

    Args:
        model, backend, spec, kv_caches, table, sampler: whose steps run; `backend` must write
            keys and values by the device's own block tables (`fuses_rotary`).
        shapes: what `capture` may be called with.
    """

    def __init__(
        self,
        model: CausalModel,
        backend: TritonAttention,
        spec: AttentionSpec,
        kv_caches: Sequence[torch.Tensor],
        table: RowTable,
        sampler: SamplerRows,
        shapes: Sequence[StepShape] = (),
    ) -> None:
        device = spec.device
        staging = Staging(device)
        block_tables = torch.zeros(table.block_tables.shape, dtype=torch.int32, device=device)
        last_token = torch.zeros(len(table.num_tokens), dtype=torch.int32, device=device)
        num_slots = kv_caches[0].nbytes // backend.bytes_per_block(spec) * spec.block_size
        self._changer = ChangedLogits(table, block_tables, num_slots, spec.block_size, staging)
        self._state = QueueState(
            model, backend, spec, kv_caches, table, sampler, block_tables, last_token, staging
        )
        self._captured = CapturedSteps(self._state, shapes)
        self._deferred: DeferredStep | None = None

    @torch.inference_mode()
    def capture(
        self, shapes: Sequence[StepShape], on_done: Callable[[StepShape], None] | None = None
    ) -> None:
        """Make graphs.

        Args:
            shapes: among those that this was made with.
            on_done: called with each shape.
        """
        self._captured.capture(shapes, on_done)

    @torch.inference_mode()
    def launch(
        self, plan: StepPlan, masks: Future[StepMasks] | None = None
    ) -> DeviceStep | DeferredStep | FinishedStep:
        """See `Steps`. Where masks are not set yet, whoever sets them has the step go on."""
        assert self._deferred is None or self._deferred.is_queued
        state = self._state
        spec, table, sampler = state.spec, state.table, state.sampler
        updates = table.apply(plan)
        for init in plan.new_rows:
            sampler.set(init.row, init)
        if plan.is_empty:
            return FinishedStep(StepResult(plan.step_id, [], [], 0))
        begin = self._mark()
        host = lay_out(plan, table, spec.block_size, with_tables=False)
        shared = state.backend.find_shared(spec, host.layout, host.rows, table.block_tables)
        prompt = find_prompt_tokens(host, table, sampler)
        captured = None if prompt is not None else self._captured.find(host, shares=bool(shared))
        if captured is not None:
            plain = self._captured.replay(captured, host, updates, shared)
        else:
            plain = launch_kernels(state, host, updates, shared, prompt)
        if masks is None:
            return self._finish(plan.step_id, begin, plain, None)
        if masks.done():
            return self._finish(plan.step_id, begin, plain, masks.result())
        paused = self._mark()
        if plain.slot is not None:
            plain.slot.end = paused  # if it does not go on
        finish = partial(self._finish, plan.step_id, begin, plain, paused=paused)
        self._deferred = DeferredStep(masks, finish)
        return self._deferred

    @torch.inference_mode()
    def _finish(
        self,
        step_id: int,
        begin: Mark,
        plain: PlainStep,
        masks: StepMasks | None,
        paused: Mark | None = None,
    ) -> DeviceStep:
        """Sample rows that ask for more than a temperature anew, and send tokens to the host.

        `paused` is where the device began to wait for the masks, if it did.
        """
        waited = None if paused is None else (paused, self._mark())
        state, host, slot = self._state, plain.host, plain.slot
        rows = host.sampled_rows
        token_ids = reports = None
        if len(rows):
            reports = choose_special(
                plain.logits, plain.token_ids, state.last_token, rows,
                state.table.num_tokens[rows], state.sampler, state.staging, self._changer,
                StepInputs(plain.input_ids, host.logit_indices),
                read_masks(masks, rows, plain.logits.shape[1]),
            )  # fmt: skip
            state.table.append(rows)
            if slot is None:
                token_ids = plain.token_ids.to("cpu", non_blocking=True).numpy()
            else:
                slot.outputs[: len(plain.token_ids)].copy_(plain.token_ids, non_blocking=True)
                token_ids = slot.outputs.numpy()[: len(rows)]
        end = self._mark()
        if slot is not None:
            slot.end = end
        return DeviceStep(
            step_id, begin, end, token_ids, reports, plain.prompt, len(host.rows), waited
        )

    def _mark(self) -> Mark:
        """Where the queue ends now."""
        if self._state.spec.device.type != "cuda":
            return HostMark()
        event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
