"""Steps that are queued on a device: the host prepares the next one while the device runs this one.

Sampled tokens go from step to step on the device (`last_token`), and to the host beside it. Small
steps replay a CUDA graph of the nearest shape above; what changes from step to step lies in one
buffer of integers, filled by one copy. Every other step is launched kernel by kernel. Nothing here
waits for the device but `DeviceStep.result`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from octavo.attention.interface import BatchLayout, StepTensors
from octavo.attention.work import StepShape
from octavo.layers.batch import ForwardBatch
from octavo.runner.batch import HostBatch, lay_out
from octavo.runner.graphs import Graph, GraphMaker
from octavo.runner.philox import uniform
from octavo.runner.sampler import Sampled, sample
from octavo.runner.staging import Staging, offsets
from octavo.runner.steps import FinishedStep
from octavo.types import StepResult

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from octavo.attention.interface import AttentionSpec
    from octavo.attention.shared_prefix import SharedPrefix
    from octavo.attention.triton_paged import PlannedWork, TritonAttention
    from octavo.models.base import CausalModel
    from octavo.runner.rows import RowTable
    from octavo.runner.sampler import SamplerRows
    from octavo.runner.staging import Section
    from octavo.types import PositionLogprobs, StepPlan

DECODE_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384,
                448, 512)  # fmt: skip
"""Batch sizes that decodes are padded to; larger batches are launched kernel by kernel."""

MIXED_TOKENS = (64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024)
"""Tokens that steps with prompts are padded to. Larger ones take the device longer than the host
needs to launch them kernel by kernel."""

MIXED_SEQS = 256
"""Most sequences of such a step, and at most half its tokens."""

UPDATES_ROOM = 4096
"""Changes of block tables that the graphs' buffer has room for; more are sent apart."""


class Mark(Protocol):
    """A place in a device's queue, such as a CUDA event."""

    def synchronize(self) -> None:
        """Wait until the device has come here."""
        ...

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds until `end`."""
        ...


class HostMark:
    """A place in the queue of a device that computes at once."""

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def synchronize(self) -> None:
        """See `Mark`."""

    def elapsed_time(self, end: HostMark) -> float:
        """See `Mark`."""
        return (end._at - self._at) * 1e3


@dataclass(frozen=True, slots=True)
class DeviceStep:
    """A step in the device's queue.

    Attributes:
        token_ids: [n] int32 in pinned memory, valid after `end`.
        special: rows of the batch whose sampling reports log-probabilities in `sampled`.
    """

    step_id: int
    begin: Mark
    end: Mark
    token_ids: torch.Tensor | None
    special: np.ndarray | None = None
    sampled: Sampled | None = None

    def result(self) -> StepResult:
        """See `LaunchedStep`."""
        self.end.synchronize()
        device_ns = round(self.begin.elapsed_time(self.end) * 1e6)
        if self.token_ids is None:
            return StepResult(self.step_id, [], [], device_ns)
        return StepResult(self.step_id, self.token_ids.tolist(), self._logprobs(), device_ns)

    def _logprobs(self) -> list[PositionLogprobs | None]:
        if self.sampled is None or self.sampled.reports is None:
            return []
        assert self.special is not None
        assert self.token_ids is not None
        entries: list[PositionLogprobs | None] = [None] * len(self.token_ids)
        for place, entry in zip(self.special.tolist(), self.sampled.logprobs, strict=True):
            entries[place] = entry
        return entries


@dataclass(frozen=True, slots=True)
class _Captured:
    """A step of the largest shape that is replayed for all that fit into it.

    Attributes:
        batch: kept, because it holds the tensors that the graph reads.
    """

    shape: StepShape
    graph: Graph
    batch: ForwardBatch


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
        self._graphs = GraphMaker(device)
        self._captured: dict[StepShape, _Captured] = {}
        # By the number of rows; the others rise.
        self._decodes: list[_Captured | None] = [None]
        self._mixed: list[_Captured] = []
        if shapes:
            widest = [_sharing(shape) if shape.is_decode else shape for shape in shapes]
            room = max(offsets(self._sections(_idle(shape), shape)[0])[1] for shape in widest)
            room += 3 * (max(shape.num_seqs for shape in shapes) + 4) + 2 * UPDATES_ROOM
            self._inputs = torch.zeros(room, dtype=torch.int32, device=device)
            most = max(shape.num_tokens for shape in shapes)
            self._token_ids = torch.zeros(most, dtype=torch.int32, device=device)

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> DeviceStep | FinishedStep:
        """See `Steps`."""
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
        captured = self._find(host, shares=bool(shared))
        if captured is None:
            logits, sampling = self._run(host, updates, shared)
        else:
            logits, sampling = self._replay(captured, host, updates, shared)
        token_ids = special = sampled = None
        if len(host.sampled_rows):
            on_device, special, sampled = self._choose(logits, host.sampled_rows, sampling)
            self._table.append(host.sampled_rows)
            token_ids = on_device.to("cpu", non_blocking=True)
        return DeviceStep(plan.step_id, begin, self._mark(), token_ids, special, sampled)

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

    def _capture(self, shape: StepShape) -> _Captured:
        sections, work = self._sections(_idle(shape), shape)
        _, rows, positions, logit_indices, *rest = self._staging.send(sections, self._inputs)
        step = StepTensors(positions, rows, self._block_tables)
        batch = ForwardBatch(
            token_ids=self._token_ids[: shape.num_tokens],
            positions=positions,
            logit_indices=None if shape.is_decode else logit_indices,
            backend=self._backend,
            meta=work.bind(rest, step),
            kv_caches=self._kv_caches,
        )
        return _Captured(shape, self._graphs.capture(lambda: self._model(batch)), batch)

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
        captured: _Captured,
        host: HostBatch,
        updates: Section,
        shared: Sequence[SharedPrefix],
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        sections, _ = self._sections(host, captured.shape, shared)
        extra = self._sampling_sections(host)
        in_one = updates.size <= 2 * UPDATES_ROOM
        if in_one:
            extra.append(updates)
        on_device = self._staging.send([*sections, *extra], self._inputs)
        if not in_one:
            on_device += self._staging.send([updates])
        token_ids, rows = on_device[:2]
        out_ids = self._token_ids[: captured.shape.num_tokens]
        self._prepare(token_ids, rows, out_ids, on_device[-1])
        captured.graph.replay()
        first = len(sections)
        return captured.graph.output, on_device[first : first + 3]

    def _run(
        self, host: HostBatch, updates: Section, shared: Sequence[SharedPrefix]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        work = self._backend.plan_work(self._spec, host.layout, host.rows, None, shared)
        sections = [
            host.token_ids,
            host.rows_of_token.astype(np.int32),
            host.positions.astype(np.int32),
            host.logit_indices.astype(np.int32),
            *self._sampling_sections(host),
            updates,
            *work.sections,
        ]
        on_device = self._staging.send(sections)
        token_ids, rows, positions, logit_indices, *sampling = on_device[:7]
        out_ids = torch.empty_like(token_ids)
        self._prepare(token_ids, rows, out_ids, on_device[7])
        step = StepTensors(positions, rows, self._block_tables)
        batch = ForwardBatch(
            token_ids=out_ids,
            positions=positions,
            logit_indices=logit_indices,
            backend=self._backend,
            meta=work.bind(on_device[8:], step),
            kv_caches=self._kv_caches,
        )
        return self._model(batch), sampling

    def _prepare(
        self,
        token_ids: torch.Tensor,
        rows: torch.Tensor,
        out_ids: torch.Tensor,
        updates: torch.Tensor,
    ) -> None:
        from octavo.kernels.prepare import prepare

        changed = updates if updates.shape[1] else None
        prepare(token_ids, rows, self._last_token, out_ids, changed, self._block_tables)

    def _sections(
        self, host: HostBatch, shape: StepShape, shared: Sequence[SharedPrefix] = ()
    ) -> tuple[list[Section], PlannedWork]:
        """What a graph of `shape` reads, in sizes that are the same for every step."""
        num_tokens = len(host.token_ids)
        token_ids, rows, positions = np.zeros((3, shape.num_tokens), np.int32)
        rows[num_tokens:] = -1
        token_ids[:num_tokens] = host.token_ids
        rows[:num_tokens] = host.rows_of_token
        positions[:num_tokens] = host.positions
        logit_indices = np.zeros(0 if shape.is_decode else shape.num_seqs, np.int32)
        if not shape.is_decode:
            logit_indices[: len(host.logit_indices)] = host.logit_indices
        if not shape.shares:
            shared = ()
        work = self._backend.plan_work(self._spec, host.layout, host.rows, shape, shared)
        return [token_ids, rows, positions, logit_indices, *work.sections], work

    def _sampling_sections(self, host: HostBatch) -> list[Section]:
        """Temperatures and uniform numbers as bits, and rows."""
        rows = host.sampled_rows
        temperature = self._sampler.temperature[rows]
        if temperature.any():
            u = uniform(self._sampler.seed[rows], self._table.num_tokens[rows])
            # Below 1 also after rounding.
            u32 = np.minimum(u.astype(np.float32), np.float32(1 - 2**-24))
        else:
            u32 = np.zeros(len(rows), np.float32)
        return [temperature.view(np.int32), u32.view(np.int32), rows.astype(np.int32)]

    def _choose(
        self, logits: torch.Tensor, rows: np.ndarray, sampling: list[torch.Tensor]
    ) -> tuple[torch.Tensor, np.ndarray | None, Sampled | None]:
        """[n] int32 tokens, and which rows were sampled by `sample` because they ask for more."""
        from octavo.kernels.sampling import sample_plain

        temperature, u, device_rows = sampling
        num_rows = len(rows)
        logits = logits[:num_rows]
        token_ids = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
        sample_plain(
            logits, temperature.view(torch.float32), u.view(torch.float32), device_rows,
            self._last_token, token_ids,
        )  # fmt: skip
        special = np.flatnonzero(~self._sampler.is_plain[rows])
        if not len(special):
            return token_ids, None, None
        places = torch.from_numpy(special).to(logits.device, non_blocking=True)
        positions = self._table.num_tokens[rows[special]]
        sampled = sample(logits[places], rows[special], positions, self._sampler)
        chosen = sampled.token_ids.to(torch.int32)
        token_ids.index_copy_(0, places, chosen)
        self._last_token.index_copy_(0, device_rows[places].long(), chosen)
        return token_ids, special, sampled


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
