"""Steps that are queued on a device: the host prepares the next one while the device runs this one.

Sampled tokens go from step to step on the device (`last_token`), and to the host beside it. Decodes
replay a CUDA graph of the nearest size above; what changes from step to step lies in one buffer of
integers, filled by one copy. Every other step is launched kernel by kernel. Nothing here waits for
the device but `DeviceStep.result`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from octavo.attention.interface import BatchLayout, StepTensors
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
    from octavo.attention.triton_paged import PlannedWork, TritonAttention
    from octavo.models.base import CausalModel
    from octavo.runner.rows import RowTable
    from octavo.runner.sampler import SamplerRows
    from octavo.runner.staging import Section
    from octavo.types import PositionLogprobs, StepPlan

GRAPH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448,
               512)  # fmt: skip
"""Batch sizes that decodes are padded to; larger batches are launched kernel by kernel."""

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
class _Decode:
    """A captured decode of `size` rows; `batch` holds the tensors that it reads."""

    size: int
    graph: Graph
    batch: ForwardBatch


class QueuedSteps:
    """See the module.

    Args:
        model, backend, spec, kv_caches, table, sampler: whose steps run; `backend` must write
            keys and values by the device's own block tables (`fuses_rotary`).
        graph_sizes: batch sizes that `capture` may be called with, rising.
    """

    def __init__(
        self,
        model: CausalModel,
        backend: TritonAttention,
        spec: AttentionSpec,
        kv_caches: Sequence[torch.Tensor],
        table: RowTable,
        sampler: SamplerRows,
        graph_sizes: Sequence[int] = (),
    ) -> None:
        self._model, self._backend, self._spec = model, backend, spec
        self._kv_caches, self._table, self._sampler = kv_caches, table, sampler
        device = spec.device
        self._staging = Staging(device)
        self._block_tables = torch.zeros(table.block_tables.shape, dtype=torch.int32, device=device)
        self._last_token = torch.zeros(len(table.num_tokens), dtype=torch.int32, device=device)
        self._decodes: dict[int, _Decode] = {}
        self._decode_of: list[_Decode | None] = [None]
        self._graphs = GraphMaker(device)
        if graph_sizes:
            most = max(graph_sizes)
            _, room = offsets(self._decode_sections(_idle(most), most)[0])
            room += 3 * (most + 4) + 2 * UPDATES_ROOM
            self._inputs = torch.zeros(room, dtype=torch.int32, device=device)
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
        decode = self._find_decode(host)
        if decode is None:
            logits, sampling = self._run(host, updates)
        else:
            logits, sampling = self._replay(decode, host, updates)
        token_ids = special = sampled = None
        if len(host.sampled_rows):
            on_device, special, sampled = self._choose(logits, host.sampled_rows, sampling)
            self._table.append(host.sampled_rows)
            token_ids = on_device.to("cpu", non_blocking=True)
        return DeviceStep(plan.step_id, begin, self._mark(), token_ids, special, sampled)

    @torch.inference_mode()
    def capture(self, sizes: Sequence[int], on_done: Callable[[int], None] | None = None) -> None:
        """Make graphs. The largest goes first: the others then fit into its memory.

        Args:
            sizes: among `graph_sizes`.
            on_done: called with each size.
        """
        for size in sorted(sizes, reverse=True):
            self._decodes[size] = self._capture(size)
            if on_done is not None:
                on_done(size)
        rising = sorted(self._decodes)
        nearest = (next(s for s in rising if s >= n) for n in range(1, rising[-1] + 1))
        self._decode_of = [None, *(self._decodes[size] for size in nearest)]

    def _capture(self, size: int) -> _Decode:
        sections, work = self._decode_sections(_idle(size), size)
        _, rows, positions, *rest = self._staging.send(sections, self._inputs)
        step = StepTensors(positions, rows, self._block_tables)
        batch = ForwardBatch(
            token_ids=self._token_ids[:size],
            positions=positions,
            logit_indices=None,
            backend=self._backend,
            meta=work.bind(rest, step),
            kv_caches=self._kv_caches,
        )
        return _Decode(size, self._graphs.capture(lambda: self._model(batch)), batch)

    def _find_decode(self, host: HostBatch) -> _Decode | None:
        num_rows = len(host.rows)
        if num_rows >= len(self._decode_of) or not host.is_decode:
            return None
        return self._decode_of[num_rows]

    def _mark(self) -> Mark:
        """Where the queue ends now."""
        if self._spec.device.type != "cuda":
            return HostMark()
        event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _replay(
        self, decode: _Decode, host: HostBatch, updates: Section
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        sections, _ = self._decode_sections(host, decode.size)
        extra = self._sampling_sections(host)
        in_one = updates.size <= 2 * UPDATES_ROOM
        if in_one:
            extra.append(updates)
        on_device = self._staging.send([*sections, *extra], self._inputs)
        if not in_one:
            on_device += self._staging.send([updates])
        token_ids, rows = on_device[:2]
        self._prepare(token_ids, rows, self._token_ids[: decode.size], on_device[-1])
        decode.graph.replay()
        first = len(sections)
        return decode.graph.output, on_device[first : first + 3]

    def _run(self, host: HostBatch, updates: Section) -> tuple[torch.Tensor, list[torch.Tensor]]:
        work = self._backend.plan_work(self._spec, host.layout, host.rows)
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

    def _decode_sections(self, host: HostBatch, size: int) -> tuple[list[Section], PlannedWork]:
        """What a graph of `size` rows reads; the tables have the same shapes for every step."""
        num_rows = len(host.rows)
        token_ids, rows, positions = np.zeros((3, size), np.int32)
        rows[num_rows:] = -1
        token_ids[:num_rows] = host.token_ids
        rows[:num_rows] = host.rows
        positions[:num_rows] = host.positions
        work = self._backend.plan_work(self._spec, host.layout, host.rows, pad_to=size)
        return [token_ids, rows, positions, *work.sections], work

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


def graph_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """The sizes worth capturing for batches of up to `max_num_seqs`."""
    most = min(max_num_seqs, GRAPH_SIZES[-1])
    return (*(size for size in GRAPH_SIZES if size < most), most)


def _idle(num_rows: int) -> HostBatch:
    """Decodes of no row: a layout of the right shape, whose kernels have nothing to do."""
    ids = np.arange(num_rows + 1)
    none, zero = np.full(num_rows, -1), np.zeros(num_rows, np.int64)
    layout = BatchLayout(ids, zero, np.empty((num_rows, 0), np.int64))
    return HostBatch(none, zero.astype(np.int32), none, zero, ids[:-1], none, layout)
