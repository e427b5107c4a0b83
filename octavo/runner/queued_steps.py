"""Steps that are queued on a device: the host prepares the next one while the device runs this one.

Sampled tokens go from step to step on the device (`last_token`), and to the host beside it. Small
steps replay a CUDA graph of the nearest shape above; what changes from step to step lies in one
buffer of integers, filled by one copy. Every other step is launched kernel by kernel. Nothing here
waits for the device but `DeviceStep.result`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from octavo.attention.interface import BatchLayout, StepTensors
from octavo.attention.work import StepShape
from octavo.layers.batch import ForwardBatch
from octavo.runner.batch import HostBatch, lay_out, with_more_logits
from octavo.runner.changed_logits import ChangedLogits, StepInputs
from octavo.runner.device_step import DeferredStep, DeviceStep, HostMark
from octavo.runner.graphs import Graph, GraphMaker
from octavo.runner.masks import read_masks
from octavo.runner.places import (
    NUM_UPDATES,
    Slot,
    make_slot,
    num_integers,
    place_on_device,
)
from octavo.runner.prompt_logprobs import find_prompt_tokens, report_prompt
from octavo.runner.rehearsal import distinct_layers
from octavo.runner.special import choose_special
from octavo.runner.staging import Staging
from octavo.runner.steps import FinishedStep
from octavo.types import StepResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from octavo.attention.interface import AttentionSpec
    from octavo.attention.sections import Section
    from octavo.attention.shared_prefix import SharedPrefix
    from octavo.attention.triton_paged import TritonAttention
    from octavo.attention.triton_work import PlannedWork
    from octavo.models.base import CausalModel
    from octavo.runner.device_step import Mark
    from octavo.runner.prompt_logprobs import PromptReports, PromptTokens
    from octavo.runner.rows import RowTable
    from octavo.runner.sampler import SamplerRows
    from octavo.types import StepMasks, StepPlan

DECODE_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 208, 224, 256, 288,
                320, 384, 416, 512)  # fmt: skip
"""Batch sizes that decodes are padded to; larger batches are launched kernel by kernel.

Not 448: cuBLAS takes 13.8 ms for that many rows of Llama-3.1-8B's products on an H200, and 10.4 for
512."""

MIXED_TOKENS = (64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024)
"""Tokens that steps with prompts are padded to. Larger ones take the device longer than the host
needs to launch them kernel by kernel."""

MIXED_SEQS = 256
"""Most sequences of such a step, and at most half its tokens."""

NUM_SLOTS = 4
"""Steps in flight that the host's pinned memory has room for; two are, when it runs ahead."""


@dataclass(frozen=True, slots=True)
class _Captured:
    """A step of the largest shape that is replayed for all that fit into it.

    Attributes:
        tables: shapes of the attention's tables.
        logits: [n, v], what `graph` computes beside the tokens.
        token_ids: [n] int32, the tokens it samples.
        keeps: whatever else the graph refers to.
    """

    shape: StepShape
    tables: list[tuple[int, ...]]
    graph: Graph
    token_ids: torch.Tensor
    keeps: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Launched:
    """A step whose plain sampling is in the queue.

    Attributes:
        logits: [n or more, v].
        input_ids: [t] int32 on the device.
        token_ids: [n or more] int32 on the device.
        slot: of a replayed step.
        prompt: log-probabilities of prompts' tokens; such a step is not replayed.
    """

    step_id: int
    begin: Mark
    host: HostBatch
    logits: torch.Tensor
    input_ids: torch.Tensor
    token_ids: torch.Tensor
    slot: Slot | None = None
    prompt: PromptReports | None = None


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
        self._model, self._backend, self._spec = model, backend, spec
        self._kv_caches, self._table, self._sampler = kv_caches, table, sampler
        device = spec.device
        self._staging = Staging(device)
        self._block_tables = torch.zeros(table.block_tables.shape, dtype=torch.int32, device=device)
        self._last_token = torch.zeros(len(table.num_tokens), dtype=torch.int32, device=device)
        num_blocks = kv_caches[0].nbytes // backend.bytes_per_block(spec)
        self._changer = ChangedLogits(
            table, self._block_tables, num_blocks * spec.block_size, spec.block_size, self._staging
        )
        self._graphs = GraphMaker(device)
        self._captured: dict[StepShape, _Captured] = {}
        # By the number of rows; the others rise.
        self._decodes: list[_Captured | None] = [None]
        self._mixed: list[_Captured] = []
        self._slots: deque[Slot] = deque()
        self._deferred: DeferredStep | None = None
        if shapes:
            most_tokens = max(shape.num_tokens for shape in shapes)
            most_rows = max(shape.num_seqs for shape in shapes)
            sizes = (self._size_of(shape) for shape in shapes)
            room = max(sizes)
            self._inputs = torch.zeros(room, dtype=torch.int32, device=device)
            self._slots.extend(make_slot(room, most_rows, device) for _ in range(NUM_SLOTS))
            self._input_ids = torch.zeros(most_tokens, dtype=torch.int32, device=device)
            self._uniform = torch.zeros(most_rows, device=device)
            self._token_ids = torch.zeros(most_rows, dtype=torch.int32, device=device)

    @torch.inference_mode()
    def launch(
        self, plan: StepPlan, masks: Future[StepMasks] | None = None
    ) -> DeviceStep | DeferredStep | FinishedStep:
        """See `Steps`. Where masks are not set yet, whoever sets them has the step go on."""
        assert self._deferred is None or self._deferred.is_queued
        updates = self._table.apply(plan)
        for init in plan.new_rows:
            self._sampler.set(init.row, init)
        if plan.is_empty:
            return FinishedStep(StepResult(plan.step_id, [], [], 0))
        begin = self._mark()
        host = lay_out(plan, self._table, self._spec.block_size, with_tables=False)
        shared = self._backend.find_shared(
            self._spec, host.layout, host.rows, self._table.block_tables
        )
        prompt = find_prompt_tokens(host, self._table, self._sampler)
        captured = None if prompt is not None else self._find(host, shares=bool(shared))
        if captured is not None:
            launched = self._replay(plan.step_id, captured, host, updates, shared, begin)
        else:
            launched = self._run(plan.step_id, host, updates, shared, begin, prompt)
        if masks is None:
            return self._finish(launched, None)
        if masks.done():
            return self._finish(launched, masks.result())
        paused = self._mark()
        if launched.slot is not None:
            launched.slot.end = paused  # if it does not go on
        self._deferred = DeferredStep(masks, partial(self._finish, launched, paused=paused))
        return self._deferred

    @torch.inference_mode()
    def _finish(
        self, launched: _Launched, masks: StepMasks | None, paused: Mark | None = None
    ) -> DeviceStep:
        """Sample rows that ask for more than a temperature anew, and send tokens to the host.

        `paused` is where the device began to wait for the masks, if it did.
        """
        waited = None if paused is None else (paused, self._mark())
        host, slot = launched.host, launched.slot
        rows = host.sampled_rows
        token_ids = reports = None
        if len(rows):
            reports = choose_special(
                launched.logits, launched.token_ids, self._last_token, rows,
                self._table.num_tokens[rows], self._sampler, self._staging, self._changer,
                StepInputs(launched.input_ids, host.logit_indices),
                read_masks(masks, rows, launched.logits.shape[1]),
            )  # fmt: skip
            self._table.append(rows)
            if slot is None:
                token_ids = launched.token_ids.to("cpu", non_blocking=True).numpy()
            else:
                slot.outputs[: len(launched.token_ids)].copy_(launched.token_ids, non_blocking=True)
                token_ids = slot.outputs.numpy()[: len(rows)]
        end = self._mark()
        if slot is not None:
            slot.end = end
        return DeviceStep(
            launched.step_id, launched.begin, end, token_ids, reports, launched.prompt,
            len(host.rows), waited,
        )  # fmt: skip

    @torch.inference_mode()
    def capture(
        self, shapes: Sequence[StepShape], on_done: Callable[[StepShape], None] | None = None
    ) -> None:
        """Make graphs. The largest goes first: the others then fit into its memory.

        Args:
            shapes: among those that this was made with.
            on_done: called with each shape.
        """
        for shape in sorted(shapes, key=lambda s: s.num_tokens, reverse=True):
            self._captured[shape] = self._capture(shape)
            if on_done is not None:
                on_done(shape)
        plain = (captured for captured in self._captured.values() if not captured.shape.shares)
        rising = sorted(plain, key=lambda c: c.shape.num_tokens)
        decodes = [captured for captured in rising if captured.shape.is_decode]
        self._mixed = [captured for captured in rising if not captured.shape.is_decode]
        self._decodes = [None]
        for captured in decodes:
            num_more = captured.shape.num_seqs + 1 - len(self._decodes)
            self._decodes.extend([captured] * num_more)

    def _size_of(self, shape: StepShape) -> int:
        """Integers that a step of the shape reads, also if it shares prefixes."""
        widest = _sharing(shape) if shape.is_decode else shape
        tables = self._plan(_idle(widest), widest).sections
        return num_integers(widest, [table.shape for table in tables])

    def _plan(
        self, host: HostBatch, shape: StepShape | None, shared: Sequence[SharedPrefix] = ()
    ) -> PlannedWork:
        return self._backend.plan_work(self._spec, host.layout, host.rows, shape, shared)

    def _capture(self, shape: StepShape) -> _Captured:
        from octavo.kernels.prepare import prepare
        from octavo.kernels.sampling import sample_plain
        from octavo.kernels.uniform import draw_uniform

        host = _idle(shape)
        work = self._plan(host, shape)
        tables = [table.shape for table in work.sections]
        self._send(self._slots[0], shape, tables, host, np.zeros((2, 0), np.int32), work)
        places = place_on_device(self._inputs, shape, tables)
        step = StepTensors(places.positions, places.rows, self._block_tables)
        input_ids = self._input_ids[: shape.num_tokens]
        token_ids = self._token_ids[: shape.num_seqs]
        uniform = self._uniform[: shape.num_seqs]
        batch = ForwardBatch(
            token_ids=input_ids,
            positions=places.positions,
            logit_indices=None if shape.is_decode else places.logit_indices,
            backend=self._backend,
            meta=work.bind(places.tables, step),
            kv_caches=self._kv_caches,
        )

        def compute() -> torch.Tensor:
            prepare(
                places.token_ids, places.rows, self._last_token, input_ids, places.updates,
                self._block_tables,
            )  # fmt: skip
            logits: torch.Tensor = self._model(batch)
            draw_uniform(places.seeds, places.lengths, uniform)
            sample_plain(
                logits, places.temperature, uniform, places.sampled_rows, self._last_token,
                token_ids,
            )  # fmt: skip
            return logits

        def set_up() -> None:
            with distinct_layers(self._model):
                compute()

        graph = self._graphs.capture(compute, set_up)
        return _Captured(shape, tables, graph, token_ids, (batch, places))

    def _find(self, host: HostBatch, *, shares: bool) -> _Captured | None:
        """The smallest graph that the step fits into; those that share are made when first used."""
        num_tokens, num_seqs = len(host.token_ids), len(host.rows)
        if host.is_decode:
            plain = self._decodes[num_seqs] if num_seqs < len(self._decodes) else None
            if plain is None or not shares:
                return plain
            shape = _sharing(plain.shape)
            if shape not in self._captured:
                self._captured[shape] = self._capture(shape)
            return self._captured[shape]
        for captured in self._mixed:
            if captured.shape.num_tokens >= num_tokens and captured.shape.num_seqs >= num_seqs:
                return captured
        return None

    def _mark(self) -> Mark:
        """Where the queue ends now."""
        if self._spec.device.type != "cuda":
            return HostMark()
        event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _replay(
        self,
        step_id: int,
        captured: _Captured,
        host: HostBatch,
        updates: Section,
        shared: Sequence[SharedPrefix],
        begin: Mark,
    ) -> _Launched:
        shape = captured.shape
        if updates.shape[1] > NUM_UPDATES:
            self._update_tables(updates[:, NUM_UPDATES:])
            updates = updates[:, :NUM_UPDATES]
        slot = self._slots[0]
        self._slots.rotate(-1)
        if slot.end is not None:
            slot.end.synchronize()
        work = self._plan(host, shape, shared if shape.shares else ())
        self._send(slot, shape, captured.tables, host, updates, work)
        captured.graph.replay()
        return _Launched(
            step_id, begin, host, captured.graph.output, self._input_ids, captured.token_ids, slot
        )

    def _send(
        self,
        slot: Slot,
        shape: StepShape,
        tables: list[tuple[int, ...]],
        host: HostBatch,
        updates: Section,
        work: PlannedWork,
    ) -> None:
        """Fill in a step's places on the host, and copy them to the device.

        The slot's memory holds what other shapes left there, so padding is written too.
        """
        to, filled = slot.places_of(shape, tables)
        num_tokens, rows = len(host.token_ids), host.sampled_rows
        to.token_ids[:num_tokens] = host.token_ids
        to.rows[:num_tokens] = host.rows_of_token
        to.rows[num_tokens:] = -1
        to.positions[:num_tokens] = host.positions
        to.positions[num_tokens:] = 0
        num_rows, num_updates = len(rows), updates.shape[1]
        if not shape.is_decode:
            to.logit_indices[:num_rows] = host.logit_indices
            to.logit_indices[num_rows:] = 0
        to.temperature[:num_rows] = self._sampler.temperature[rows]
        to.temperature[num_rows:] = 0.0
        to.seeds[:, :num_rows] = self._sampler.seed_words[:, rows]
        to.lengths[:num_rows] = self._table.num_tokens[rows]
        to.sampled_rows[:num_rows] = rows
        to.sampled_rows[num_rows:] = -1
        to.updates[:, :num_updates] = updates
        to.updates[0, num_updates:] = -1
        for place, table in zip(to.tables, work.sections, strict=True):
            place[...] = table
        self._inputs[: len(filled)].copy_(filled, non_blocking=True)

    def _update_tables(self, updates: Section) -> None:
        """More new blocks than a captured step has room for."""
        from octavo.kernels.prepare import prepare

        (on_device,) = self._staging.send([np.ascontiguousarray(updates)])
        nothing = self._input_ids[:0]
        prepare(nothing, nothing, self._last_token, nothing, on_device, self._block_tables)

    def _run(
        self,
        step_id: int,
        host: HostBatch,
        updates: Section,
        shared: Sequence[SharedPrefix],
        begin: Mark,
        prompt: PromptTokens | None,
    ) -> _Launched:
        from octavo.kernels.prepare import prepare
        from octavo.kernels.sampling import sample_plain
        from octavo.kernels.uniform import draw_uniform

        work = self._plan(host, None, shared)
        asked = host if prompt is None else with_more_logits(host, prompt.indices)
        sections = [
            host.token_ids,
            host.rows_of_token.astype(np.int32),
            host.positions.astype(np.int32),
            asked.logit_indices.astype(np.int32),
            *self._sampling_sections(host),
            updates,
            *work.sections,
        ]
        on_device = self._staging.send(sections)
        token_ids, rows, positions, logit_indices, *sampling = on_device[:8]
        out_ids = torch.empty_like(token_ids)
        changed = on_device[8] if updates.shape[1] else None
        prepare(token_ids, rows, self._last_token, out_ids, changed, self._block_tables)
        step = StepTensors(positions, rows, self._block_tables)
        batch = ForwardBatch(
            token_ids=out_ids,
            positions=positions,
            logit_indices=logit_indices,
            backend=self._backend,
            meta=work.bind(on_device[9:], step),
            kv_caches=self._kv_caches,
        )
        temperature, seeds, lengths, device_rows = sampling
        reports: PromptReports | None = None
        logits: torch.Tensor
        if prompt is None:
            logits = self._model(batch)
        else:
            hidden = self._model.model(batch)
            logits = self._model.compute_logits(hidden[: len(lengths)])
            reports = report_prompt(self._model, hidden[len(lengths) :], prompt, self._staging)
        sampled = torch.empty_like(lengths)
        if len(sampled):
            uniform = torch.empty_like(lengths, dtype=torch.float32)
            draw_uniform(seeds, lengths, uniform)
            sample_plain(
                logits, temperature.view(torch.float32), uniform, device_rows, self._last_token,
                sampled,
            )  # fmt: skip
        return _Launched(step_id, begin, host, logits, out_ids, sampled, prompt=reports)

    def _sampling_sections(self, host: HostBatch) -> list[Section]:
        """Temperatures as bits, seeds, lengths, and rows."""
        rows = host.sampled_rows
        return [
            self._sampler.temperature[rows].view(np.int32),
            self._sampler.seed_words[:, rows],
            self._table.num_tokens[rows].astype(np.int32),
            rows.astype(np.int32),
        ]


def graph_shapes(max_num_seqs: int, token_budget: int) -> tuple[StepShape, ...]:
    """The steps worth capturing: decodes from the smallest on, then steps with prompts."""
    most = min(max_num_seqs, DECODE_SIZES[-1])
    decodes = [StepShape(n, n) for n in (*(n for n in DECODE_SIZES if n < most), most)]
    mixed = [
        StepShape(n, min(n // 2, MIXED_SEQS, max_num_seqs))
        for n in MIXED_TOKENS
        if n <= max(token_budget, MIXED_TOKENS[0])
    ]
    return (*decodes, *mixed)


def _sharing(shape: StepShape) -> StepShape:
    return replace(shape, shares=True)


def _idle(shape: StepShape) -> HostBatch:
    """Decodes of no row, whose kernels have nothing to do."""
    num_rows = shape.num_seqs
    ids = np.arange(num_rows + 1)
    none, zero = np.full(num_rows, -1), np.zeros(num_rows, np.int64)
    layout = BatchLayout(ids, zero, np.empty((num_rows, 0), np.int64))
    return HostBatch(none, zero.astype(np.int32), none, zero, ids[:-1], none, layout)
