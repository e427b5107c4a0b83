"""A step's launches: which kinds there are, over which tables, for each of the model's windows.

Host arithmetic on layouts; knows no tensors. Short query chunks (decodes, above all), long ones,
and decodes that share a prefix are launched apart, because they want tiles of different shapes.
A plan may be padded to tables whose sizes depend on a `StepShape` alone, for CUDA graphs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from octavo.attention.bounds import bound_long, bound_prefixes, bound_short, pad
from octavo.attention.shared_prefix import PrefixFinder
from octavo.attention.tunings import Kind, padded_group, tile_rows
from octavo.attention.work import (
    Heads,
    TileShape,
    divide,
    merge_tiles,
    merge_tokens,
    share,
    tile_sequences,
)
from octavo.kernels.layout import MERGE_FIELDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from octavo.attention.bounds import Bound
    from octavo.attention.interface import AttentionSpec, BatchLayout, IntArray
    from octavo.attention.shared_prefix import SharedPrefix
    from octavo.attention.tunings import Sharing, Tuning, Tunings
    from octavo.attention.work import Prefixes, StepShape, Table

_NONE = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class Plan:
    """All launches of a step.

    Attributes:
        kinds: those of one window in the order in which they are to run.
        tables: for each of them its items, and its merges or members.
        num_part_rows: rows of parts, per KV head.
    """

    kinds: list[Kind]
    tables: list[Table]
    num_part_rows: int


class Planner:
    """Plans of one model's steps on one device.

    Args:
        spec: the model's attention.
        tunings: of its launches.
        num_sms: multiprocessors of the device.
        sharing: when prefixes are shared.
    """

    def __init__(
        self, spec: AttentionSpec, tunings: Tunings, num_sms: int, sharing: Sharing
    ) -> None:
        self._windows, self._block_size = spec.windows, spec.block_size
        self._heads = Heads(spec.num_kv_heads, spec.num_heads // spec.num_kv_heads)
        self._tunings = tunings
        self._short = self._shape_of(tunings.short, num_sms)
        self._long = self._shape_of(tunings.long, num_sms)
        self._prompts = self._long
        if tunings.prompts is not None:
            # Tiles and chunks are the same for both, so that the one may be chosen after dividing.
            shape = self._shape_of(tunings.prompts.many_keys, num_sms)
            group = padded_group(self._heads.group)
            self._prompts = replace(shape, tokens=tunings.prompts.many_keys.rows // group)
        self._apart = self._shape_of(tunings.apart or tunings.short, num_sms)
        self._sharing = sharing
        self._finder = PrefixFinder(spec.block_size, sharing.min_seqs, sharing.min_tokens)
        self._last_shared: Sequence[SharedPrefix] = ()
        self._last_rows = _NONE
        self._last_prefixes: Prefixes | None = None
        key_bytes = 2 * spec.num_kv_heads * spec.head_dim * spec.stored_dtype.itemsize
        self._block_bytes = spec.block_size * key_bytes
        self._bounds: dict[StepShape, tuple[Bound, Bound, Bound]] = {}

    def find_shared(
        self, layout: BatchLayout, rows: IntArray, tables: npt.NDArray[np.integer[Any]]
    ) -> list[SharedPrefix]:
        """Prefixes that it pays to read once, or none. See `TritonAttention.find_shared`."""
        if None not in self._windows or len(rows) < self._sharing.min_seqs:
            return []
        shared = self._finder.find(layout, rows, tables)
        num_blocks = sum((len(prefix.seqs) - 1) * len(prefix.block_ids) for prefix in shared)
        pays = num_blocks * self._block_bytes >= self._sharing.min_saved_bytes
        return shared if pays else []

    def plan(
        self,
        layout: BatchLayout,
        rows: IntArray,
        pad_to: StepShape | None,
        shared: Sequence[SharedPrefix],
    ) -> Plan:
        """See `TritonAttention.plan_work`."""
        query_lens = layout.query_lens
        is_real, is_short = rows >= 0, query_lens <= self._short.tokens
        short, long = _select(is_real & is_short), _select(is_real & ~is_short)
        bounds: tuple[Bound | None, ...] = (None, None, None)
        has_short, has_long, has_shared = short is not None, long is not None, bool(shared)
        if pad_to is not None:
            assert np.count_nonzero(is_real) <= pad_to.num_seqs
            assert query_lens[is_real].sum() <= pad_to.num_tokens
            assert not pad_to.is_decode or query_lens.max() == 1
            assert pad_to.shares or not shared
            # A graph has every launch that any step of its shape needs.
            has_short, has_long, has_shared = True, not pad_to.is_decode, pad_to.shares
            bounds = self._bounds_of(pad_to)

        prefixes = None
        if has_shared:
            prefixes = self._share(shared, rows)
        plan = _Tables()
        for window in self._windows:
            whole = prefixes if window is None else None
            if whole is not None:
                members = layout.query_starts[whole.seqs].astype(np.int32)
                kind = Kind(window, self._tunings.long, 0)
                plan.add(kind, whole.items, members, whole.num_part_rows, bounds[2])
            if has_short:
                self._add_short(plan, layout, rows, short, window, whole, bounds[0], pad_to)
            if has_long:
                self._add_long(plan, layout, rows, long, window, bounds[1])
        return Plan(plan.kinds, plan.tables, plan.num_part_rows)

    def _share(self, shared: Sequence[SharedPrefix], rows: IntArray) -> Prefixes:
        """Made anew only if the list or the rows are not the last step's."""
        last = self._last_prefixes
        is_last = shared is self._last_shared and np.array_equal(rows, self._last_rows)
        if last is None or not is_last:
            last = share(shared, rows, self._block_size, self._long, self._heads)
            self._last_shared, self._last_rows, self._last_prefixes = shared, rows.copy(), last
        return last

    def _add_short(
        self,
        plan: _Tables,
        layout: BatchLayout,
        rows: IntArray,
        seqs: IntArray | slice | None,
        window: int | None,
        prefixes: Prefixes | None,
        bound: Bound | None,
        pad_to: StepShape | None,
    ) -> None:
        """Each sequence is a tile, and with a shared prefix has its own keys left."""
        seqs = _NONE if seqs is None else seqs
        tiles = tile_sequences(layout, rows, seqs, window, None)
        must_part, more, first_row = None, None, 0
        if prefixes is not None:
            tiles.key_begin[:] = prefixes.shared_len[seqs]
            must_part, more = tiles.key_begin > 0, prefixes.runs[seqs]
            first_row = prefixes.num_part_rows
        kind = self._tunings.kind_apart(window) if self._tunings.serve_apart(pad_to) else None
        shape = self._short if kind is None else self._apart
        division = divide(tiles, shape, self._heads, must_part, first_row)
        if kind is None:
            merges = merge_tokens(tiles, division, self._heads, more)
            kind = Kind(window, self._tunings.short, 1)
        else:
            merges = np.zeros((0, MERGE_FIELDS), np.int32)
        plan.add(kind, division.items, merges, first_row + division.num_part_rows, bound)

    def _add_long(
        self,
        plan: _Tables,
        layout: BatchLayout,
        rows: IntArray,
        seqs: IntArray | slice | None,
        window: int | None,
        bound: Bound | None,
    ) -> None:
        """By now the parts of short ones and of prefixes have been merged: rows begin at 0."""
        shape = self._prompts
        seqs = _NONE if seqs is None else seqs
        tiles = tile_sequences(layout, rows, seqs, window, shape.tokens)
        division = divide(tiles, shape, self._heads)
        merges = merge_tiles(tiles, division, self._heads)
        tuning, prompts = self._tunings.long, self._tunings.prompts
        if prompts is not None:
            tuning = prompts.few_keys
            if bound is None:
                num_keys = int((tiles.key_end - tiles.key_begin).sum())
                if num_keys >= prompts.min_mean_keys * len(tiles.first):
                    tuning = prompts.many_keys
        kind = Kind(window, tuning, shape.tokens, is_prompts=prompts is not None)
        plan.add(kind, division.items, merges, division.num_part_rows, bound)

    def _bounds_of(self, step: StepShape) -> tuple[Bound, Bound, Bound]:
        """Of short launches, long ones, and those of shared prefixes."""
        if step not in self._bounds:
            short, long = self._short, self._long
            prefixes = bound_prefixes(step, long, self._heads, self._sharing.min_seqs)
            first_row = prefixes.part_rows if step.shares else 0
            if self._tunings.serve_apart(step):
                tiles = replace(bound_short(step, self._apart, self._heads, 0), others=0)
            else:
                tiles = bound_short(step, short, self._heads, first_row)
            self._bounds[step] = (
                tiles,
                bound_long(step, self._prompts, self._heads, shortest=short.tokens + 1),
                prefixes,
            )
        return self._bounds[step]

    def _shape_of(self, tuning: Tuning, num_sms: int) -> TileShape:
        return TileShape(
            tokens=tile_rows(tuning, self._heads.group) // self._heads.group,
            key_tile=tuning.key_tile,
            num_programs=max(tuning.programs_per_sm * num_sms // self._heads.num_kv_heads, 1),
            min_chunk=tuning.min_chunk,
            max_chunk=tuning.max_chunk,
            most_programs=max(tuning.most_per_sm * num_sms // self._heads.num_kv_heads, 1),
        )


class _Tables:
    """A plan that grows."""

    def __init__(self) -> None:
        self.kinds: list[Kind] = []
        self.tables: list[Table] = []
        self.num_part_rows = 0

    def add(
        self, kind: Kind, items: Table, others: Table, num_part_rows: int, bound: Bound | None
    ) -> None:
        if bound is not None:
            assert num_part_rows <= bound.part_rows
            items, others = pad(items, bound.items), pad(others, bound.others)
            num_part_rows = bound.part_rows
        self.kinds.append(kind)
        self.tables.extend((items, others))
        self.num_part_rows = max(self.num_part_rows, num_part_rows)


def _select(mask: npt.NDArray[np.bool_]) -> IntArray | slice | None:
    """Where `mask` is true; None: nowhere. Everywhere is a slice, which costs no copies."""
    count = np.count_nonzero(mask)
    if count == 0:
        return None
    return slice(None) if count == len(mask) else np.flatnonzero(mask)
