"""Steps of few shapes, captured as graphs and replayed for all steps that fit into them.

Knows how such a step is made, found and replayed; what it reads is filled in by `CapturedInputs`.
Knows nothing of what rows ask for beyond a temperature.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from octavo.attention.interface import BatchLayout, StepTensors
from octavo.layers.batch import ForwardBatch
from octavo.runner.batch import HostBatch
from octavo.runner.graphs import Graph, GraphMaker
from octavo.runner.places import NUM_UPDATES, num_integers
from octavo.runner.queued_inputs import CapturedInputs
from octavo.runner.queued_state import PlainStep
from octavo.runner.rehearsal import distinct_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from octavo.attention.sections import Section
    from octavo.attention.shared_prefix import SharedPrefix
    from octavo.attention.work import StepShape
    from octavo.runner.queued_state import QueueState


@dataclass(frozen=True, slots=True)
class CapturedStep:
    """A step of the largest shape that is replayed for all that fit into it.

    Attributes:
        tables: shapes of the attention's tables.
        graph: its output is the logits, [n, v], computed beside the tokens.
        token_ids: [n] int32, the tokens it samples.
        keeps: whatever else the graph refers to.
    """

    shape: StepShape
    tables: list[tuple[int, ...]]
    graph: Graph
    token_ids: torch.Tensor
    keeps: tuple[Any, ...]


class CapturedSteps:
    """See the module.

    Args:
        state: whose steps run.
        shapes: what `capture` may be called with; none: every step is launched kernel by kernel.
    """

    def __init__(self, state: QueueState, shapes: Sequence[StepShape]) -> None:
        self._state = state
        device = state.spec.device
        self._graphs = GraphMaker(device)
        self._captured: dict[StepShape, CapturedStep] = {}
        # By the number of rows; the others rise.
        self._decodes: list[CapturedStep | None] = [None]
        self._mixed: list[CapturedStep] = []
        if shapes:
            most_tokens = max(shape.num_tokens for shape in shapes)
            most_rows = max(shape.num_seqs for shape in shapes)
            room = max(self._size_of(shape) for shape in shapes)
            self._inputs = CapturedInputs(state.table, state.sampler, room, most_rows, device)
            self._input_ids = torch.zeros(most_tokens, dtype=torch.int32, device=device)
            self._uniform = torch.zeros(most_rows, device=device)
            self._token_ids = torch.zeros(most_rows, dtype=torch.int32, device=device)

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

    def find(self, host: HostBatch, *, shares: bool) -> CapturedStep | None:
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

    def replay(
        self,
        captured: CapturedStep,
        host: HostBatch,
        updates: Section,
        shared: Sequence[SharedPrefix],
    ) -> PlainStep:
        """Put a step into the queue. Its results are overwritten by the next one.

        Args:
            captured: that `find` found for the step.
            host: the step.
            updates: [2, u] changes of block tables.
            shared: prefixes of its decodes.
        """
        state, shape = self._state, captured.shape
        if updates.shape[1] > NUM_UPDATES:
            self._update_tables(updates[:, NUM_UPDATES:])
            updates = updates[:, :NUM_UPDATES]
        slot = self._inputs.next_slot()
        work = state.backend.plan_work(
            state.spec, host.layout, host.rows, shape, shared if shape.shares else ()
        )
        self._inputs.send(slot, shape, captured.tables, host, updates, work.sections)
        captured.graph.replay()
        return PlainStep(host, captured.graph.output, self._input_ids, captured.token_ids, slot)

    def _update_tables(self, updates: Section) -> None:
        """More new blocks than a captured step has room for."""
        from octavo.kernels.prepare import prepare

        state = self._state
        (on_device,) = state.staging.send([np.ascontiguousarray(updates)])
        nothing = self._input_ids[:0]
        prepare(nothing, nothing, state.last_token, nothing, on_device, state.block_tables)

    def _size_of(self, shape: StepShape) -> int:
        """Integers that a step of the shape reads, also if it shares prefixes."""
        widest = _sharing(shape) if shape.is_decode else shape
        host = _idle(widest)
        work = self._state.backend.plan_work(self._state.spec, host.layout, host.rows, widest)
        return num_integers(widest, [table.shape for table in work.sections])

    def _capture(self, shape: StepShape) -> CapturedStep:
        from octavo.kernels.prepare import prepare
        from octavo.kernels.sampling import sample_plain
        from octavo.kernels.uniform import draw_uniform

        state, inputs = self._state, self._inputs
        host = _idle(shape)
        work = state.backend.plan_work(state.spec, host.layout, host.rows, shape)
        tables = [table.shape for table in work.sections]
        no_updates = np.zeros((2, 0), np.int32)
        inputs.send(inputs.slots[0], shape, tables, host, no_updates, work.sections)
        places = inputs.places_of(shape, tables)
        step = StepTensors(places.positions, places.rows, state.block_tables)
        input_ids = self._input_ids[: shape.num_tokens]
        token_ids = self._token_ids[: shape.num_seqs]
        uniform = self._uniform[: shape.num_seqs]
        batch = ForwardBatch(
            token_ids=input_ids,
            positions=places.positions,
            logit_indices=None if shape.is_decode else places.logit_indices,
            backend=state.backend,
            meta=work.bind(places.tables, step),
            kv_caches=state.kv_caches,
        )

        def compute() -> torch.Tensor:
            prepare(
                places.token_ids, places.rows, state.last_token, input_ids, places.updates,
                state.block_tables,
            )  # fmt: skip
            logits: torch.Tensor = state.model(batch)
            draw_uniform(places.seeds, places.lengths, uniform)
            sample_plain(
                logits, places.temperature, uniform, places.sampled_rows, state.last_token,
                token_ids,
            )  # fmt: skip
            return logits

        def set_up() -> None:
            with distinct_layers(state.model):
                compute()

        graph = self._graphs.capture(compute, set_up)
        return CapturedStep(shape, tables, graph, token_ids, (batch, places))


def _sharing(shape: StepShape) -> StepShape:
    return replace(shape, shares=True)


def _idle(shape: StepShape) -> HostBatch:
    """Decodes of no row, whose kernels have nothing to do."""
    num_rows = shape.num_seqs
    ids = np.arange(num_rows + 1)
    none, zero = np.full(num_rows, -1), np.zeros(num_rows, np.int64)
    layout = BatchLayout(ids, zero, np.empty((num_rows, 0), np.int64))
    return HostBatch(none, zero.astype(np.int32), none, zero, ids[:-1], none, layout)
