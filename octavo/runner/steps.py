"""How a step runs: at once, for any device (here), or ahead of the host (`queued_steps.py`)."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from octavo.runner.batch import build_batch, lay_out, with_more_logits
from octavo.runner.masks import read_masks
from octavo.runner.prompt_logprobs import find_prompt_tokens, report_prompt
from octavo.runner.sampler import Sampled, sample
from octavo.types import StepResult

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    import numpy as np

    from octavo.attention.interface import AttentionBackend, AttentionSpec
    from octavo.layers.batch import ForwardBatch
    from octavo.models.base import CausalModel
    from octavo.runner.batch import HostBatch
    from octavo.runner.forward import Forward
    from octavo.runner.rows import RowTable
    from octavo.runner.sampler import SamplerRows
    from octavo.types import PositionLogprobs, StepMasks, StepPlan


class LaunchedStep(Protocol):
    """A step that the device has, and may not have come to the end of."""

    def result(self) -> StepResult:
        """Wait for it."""
        ...


class Steps(Protocol):
    """Runs plans, one after the other."""

    def launch(self, plan: StepPlan, masks: Future[StepMasks] | None = None) -> LaunchedStep:
        """Begin a step. An exception leaves the plan's rows to be initialised anew.

        `masks` is not needed before the model's logits are there. Whoever sets it later sets it
        before the next step is launched.
        """
        ...


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """A step that ran already."""

    step: StepResult

    def result(self) -> StepResult:
        """See `LaunchedStep`."""
        return self.step


class EagerSteps:
    """A step is done when `launch` returns. Works with every backend on every device.

    `launch` waits for masks that are not set yet.
    """

    def __init__(
        self,
        model: CausalModel,
        forward: Forward,
        backend: AttentionBackend,
        spec: AttentionSpec,
        kv_caches: Sequence[torch.Tensor],
        table: RowTable,
        sampler: SamplerRows,
    ) -> None:
        self._model, self._forward = model, forward
        self._backend, self._spec = backend, spec
        self._kv_caches, self._table, self._sampler = kv_caches, table, sampler

    @torch.inference_mode()
    def launch(self, plan: StepPlan, masks: Future[StepMasks] | None = None) -> FinishedStep:
        """See `Steps`."""
        begin = time.perf_counter_ns()
        waited = 0
        token_ids: list[int] = []
        logprobs = []
        prompt_logprobs: list[list[PositionLogprobs] | None] = []
        self._table.apply(plan)
        for init in plan.new_rows:
            self._sampler.set(init.row, init)
        if not plan.is_empty:
            host = lay_out(plan, self._table, self._spec.block_size, with_tables=True)
            rows = host.sampled_rows
            prompt = find_prompt_tokens(host, self._table, self._sampler)
            sampled: Sampled | None = None
            logits: torch.Tensor | None = None
            if prompt is not None:
                more = with_more_logits(host, prompt.indices)
                hidden = self._forward.hidden(self._batch(more))
                logits = self._model.compute_logits(hidden[: len(rows)])
                reports = report_prompt(self._model, hidden[len(rows) :], prompt)
                prompt_logprobs = reports.entries(len(plan.rows))
            elif masks is None and self._sampler.are_greedy(rows):
                sampled = Sampled(self._forward.largest(self._batch(host)), None)
            else:
                logits = self._forward.logits(self._batch(host))
            if len(rows) and logits is not None:
                told = None
                if masks is not None:
                    wait_begin = time.perf_counter_ns()
                    told = masks.result()
                    waited = time.perf_counter_ns() - wait_begin
                found = read_masks(told, rows, logits.shape[1])
                sampled = sample(
                    logits, rows, self._table.num_tokens[rows], self._sampler,
                    self._table.token_ids, found,
                )  # fmt: skip
            if sampled is not None:
                values: np.ndarray = sampled.token_ids.cpu().numpy()
                self._table.append(rows, values)
                token_ids, logprobs = values.tolist(), sampled.logprobs
        took = time.perf_counter_ns() - begin
        return FinishedStep(
            StepResult(plan.step_id, token_ids, logprobs, took, prompt_logprobs, waited)
        )

    def _batch(self, host: HostBatch) -> ForwardBatch:
        return build_batch(host, self._backend, self._spec, self._kv_caches)
