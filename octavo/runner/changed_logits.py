"""Rows of a queued step whose logits are changed before a token is chosen, by kernels.

The rows are copied in float32 and changed and sampled there, a few at a time, so that the others
cost and get what they would without them, and log-probabilities are of what the model computed.
Nothing waits for the device. Semantics are those of `changes.py`.

The host does not know the newest token of a row. What the row's tokens are is therefore kept on the
device too, for rows whose changes depend on it: in as many places as the KV cache has, 4 bytes for
each token. A row's tokens lie where its blocks are, so there is nothing to free, and blocks that
rows share hold the same tokens.

Shapes: n sampled rows, c of them changed, v vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from octavo.runner.masks import num_mask_words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from octavo.attention.sections import Section
    from octavo.kernels.history_changes import Changed, History
    from octavo.runner.changes import RowChanges
    from octavo.runner.masks import Words
    from octavo.runner.rows import RowTable
    from octavo.runner.sampler import Rows, SamplerRows
    from octavo.runner.staging import Staging

MOST_LOGITS = 2**24
"""How many logits are changed at a time: 64 MiB of float32, and as much for counts of tokens."""


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What a step's tokens were, of which the host may not know all.

    Attributes:
        token_ids: [t] int32 on the device.
        logit_indices: [n] the last token of each sampled row among them.
    """

    token_ids: torch.Tensor
    logit_indices: NDArray[np.int64]


def find_changed(
    rows: Rows, positions: Rows, state: SamplerRows, masks: Mapping[int, Words]
) -> Rows:
    """[c] which of the n rows have something to change, rising."""
    if not state.changes:
        return np.array(sorted(masks), np.int64)
    changes = state.changes
    found = [
        place
        for place, (row, length) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True))
        if place in masks or (row in changes and changes[row].is_active(length))
    ]
    return np.array(found, np.int64)


class ChangedLogits:
    """See the module.

    Args:
        table: of the requests, on the host.
        block_tables: the same of their blocks, on the device.
        num_slots: tokens that the KV cache holds.
        block_size: tokens of a block.
        staging: of the device.
    """

    def __init__(
        self,
        table: RowTable,
        block_tables: torch.Tensor,
        num_slots: int,
        block_size: int,
        staging: Staging,
    ) -> None:
        self._table, self._block_tables, self._staging = table, block_tables, staging
        self._num_slots, self._block_size = num_slots, block_size
        self._counts: torch.Tensor | None = None

    @cached_property
    def _history(self) -> History:
        from octavo.kernels.history_changes import History

        device = self._block_tables.device
        tokens = torch.zeros(self._num_slots, dtype=torch.int32, device=device)
        return History(tokens, self._block_tables, self._block_size)

    def _zeros(self, num_rows: int, vocab_size: int) -> torch.Tensor:
        """Counts of tokens, [num_rows or more, v] int32; whoever uses them leaves zeros."""
        if self._counts is None or len(self._counts) < num_rows:
            self._counts = None  # frees it first
            shape = (num_rows, vocab_size)
            device = self._block_tables.device
            self._counts = torch.zeros(shape, dtype=torch.int32, device=device)
        return self._counts

    def sample(
        self,
        logits: torch.Tensor,
        token_ids: torch.Tensor,
        last_token: torch.Tensor,
        rows: Rows,
        changed: Rows,
        state: SamplerRows,
        masks: Mapping[int, Words],
        inputs: StepInputs,
    ) -> None:
        """Sample the changed rows anew, in the place of their tokens.

        Args:
            logits: [n, v] on the device, unchanged.
            token_ids: [n] int32, what the rows got so far; overwritten.
            last_token: [R] int32 by rows of `state`; overwritten likewise.
            rows: [n], places in `state` and in the table, which does not know the new tokens yet.
            changed: [c], which of the n.
            state: parameters.
            masks: by place among the n.
            inputs: of this step.
        """
        from octavo.kernels.history_changes import remember

        vocab_size = logits.shape[1]
        lists = self._lists(rows, changed, state, masks, inputs, vocab_size)
        sent = _Sent.of(self._staging.send(lists.sections))
        if sent.new_tokens.shape[1]:
            tokens, slots, sources = sent.new_tokens
            remember(tokens, slots, sources, inputs.token_ids, self._history.tokens)
        num_each = max(MOST_LOGITS // vocab_size, 1)
        for begin in range(0, len(changed), num_each):
            part = slice(begin, min(begin + num_each, len(changed)))
            copy = self._change(logits, lists, sent, part)
            out = token_ids.new_empty(len(copy))
            to = (sent.uniform[part], sent.changed.rows[part], last_token, out)
            _choose(copy, sent, part, to, truncates=bool(lists.truncates[part].any()))
            token_ids.index_copy_(0, sent.changed.places[part].long(), out)

    def _change(
        self, logits: torch.Tensor, lists: _Lists, sent: _Sent, part: slice
    ) -> torch.Tensor:
        """The changed rows of a part, [c, v] float32."""
        from octavo.kernels.history_changes import ban_words, penalise
        from octavo.kernels.logit_changes import add_values, copy_rows

        changed, first = sent.changed, part.start
        places = changed.places[part]
        copy = torch.empty(
            (len(places), logits.shape[1]), dtype=torch.float32, device=logits.device
        )
        copy_rows(logits, places, changed.masks[part], sent.bits, copy)
        now = _within(lists.added[0], part)
        if now.start < now.stop:
            nths, tokens = sent.added[:, now]
            add_values(nths, tokens, sent.added_values[now], copy, first)
        now = _within(lists.words[0], part)
        if now.start < now.stop:
            words = sent.words[:, now]
            ban_words(words, sent.word_tokens, changed, self._history, copy, first)
        now = _within(lists.penalised, part)
        if now.start < now.stop:
            most = int(lists.lengths[lists.penalised[now]].max())
            counts = self._zeros(*copy.shape)
            penalise(sent.penalised[now], sent.penalties[:, now], most, changed, self._history,
                     counts, copy, first)  # fmt: skip
        return copy

    def _lists(
        self,
        rows: Rows,
        places: Rows,
        state: SamplerRows,
        masks: Mapping[int, Words],
        inputs: StepInputs,
        vocab_size: int,
    ) -> _Lists:
        """What there is to change, in numbers."""
        lists = _Lists(self._table.num_tokens[rows[places]])
        bits: list[Words] = []
        for nth, place in enumerate(places.tolist()):
            row, length = int(rows[place]), int(lists.lengths[nth])
            change = state.changes.get(row)
            mask = masks.get(place)
            allowed = None if change is None else change.allowed_mask(vocab_size)
            if allowed is not None:
                mask = allowed if mask is None else mask & allowed
            if mask is not None:
                lists.masks[nth] = len(bits)
                bits.append(mask)
            if change is not None:
                lists.prompts[nth] = change.num_prompt_tokens
                lists.add(nth, change, length)
                if change.reads_tokens:
                    self._remember(lists, row, length, change, int(inputs.logit_indices[place]))
        lists.finish(rows[places], places, state, bits, num_mask_words(vocab_size))
        return lists

    def _remember(
        self, lists: _Lists, row: int, length: int, change: RowChanges, source: int
    ) -> None:
        """Tokens that the device's history does not have yet."""
        positions = np.arange(change.num_remembered, length)
        blocks = self._table.block_tables[row, positions // self._block_size]
        lists.new_tokens.append(
            np.stack(
                (
                    self._table.token_ids[row, positions],
                    blocks * self._block_size + positions % self._block_size,
                    np.full_like(positions, source),
                )
            ).astype(np.int32)
        )
        change.num_remembered = length


class _Lists:
    """What c rows change, on the host. Entries of all lists are in the order of the rows.

    Attributes:
        lengths: [c] tokens that a row has.
        masks, prompts: [c] as in `Changed`.
        truncates: [c].
        added: [2, a] which row and token.
        words: [3, w], see `ban_words`.
        penalised: [p] which rows.
        new_tokens: [3, r] in parts: tokens, places, sources, see `remember`.
        sections: to be sent to the device.
    """

    def __init__(self, lengths: Rows) -> None:
        self.lengths = lengths
        self.masks = np.full(len(lengths), -1, np.int32)
        self.prompts = np.zeros(len(lengths), np.int32)
        self.new_tokens: list[NDArray[np.int32]] = []
        self.sections: list[Section] = []
        self._added: list[NDArray[np.int64]] = []
        self._values: list[NDArray[np.float32]] = []
        self._words: list[NDArray[np.int32]] = []
        self._word_tokens: list[NDArray[np.int32]] = []
        self._num_word_tokens = 0
        self._penalised: list[int] = []
        self._penalties: list[tuple[float, float, float]] = []

    def add(self, nth: int, change: RowChanges, length: int) -> None:
        """Take the n-th row's changes."""
        ids, values = change.added(length)
        if ids.size:
            self._added.append(np.stack((np.full_like(ids, nth), ids)))
            self._values.append(values)
        if change.bad_words:
            tokens, lengths = change.bad_word_sections
            starts = np.cumsum(lengths) - lengths + self._num_word_tokens
            self._words.append(np.stack((np.full_like(lengths, nth), starts, lengths)))
            self._word_tokens.append(tokens)
            self._num_word_tokens += len(tokens)
        if change.penalises:
            self._penalised.append(nth)
            self._penalties.append(change.penalties)

    def finish(
        self, rows: Rows, places: Rows, state: SamplerRows, bits: list[Words], num_words: int
    ) -> None:
        """All rows have been taken."""
        self.truncates = state.truncates[rows]
        self.added = _joined(self._added, 2)
        self.words = _joined(self._words, 3)
        self.penalised = np.array(self._penalised, np.int32)
        floats = (state.temperature[rows], state.top_p[rows], state.min_p[rows])
        ints = (state.top_k[rows], self.lengths, rows, places, self.masks, self.prompts)
        values = np.concatenate((np.empty(0, np.float32), *self._values))
        penalties = np.array(self._penalties, np.float32).reshape(-1, 3).T
        self.sections = [
            np.stack(floats).view(np.int32),
            np.stack(ints).astype(np.int32),
            state.seed_words[:, rows],
            np.stack(bits) if bits else np.empty((0, num_words), np.int32),
            self.added,
            values.view(np.int32),
            self.words,
            np.concatenate((np.empty(0, np.int32), *self._word_tokens)),
            self.penalised,
            np.ascontiguousarray(penalties).view(np.int32),
            _joined(self.new_tokens, 3),
        ]


@dataclass(frozen=True, slots=True)
class _Sent:
    """The same on the device, see `_Lists`."""

    changed: Changed
    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
    uniform: torch.Tensor
    bits: torch.Tensor
    added: torch.Tensor
    added_values: torch.Tensor
    words: torch.Tensor
    word_tokens: torch.Tensor
    penalised: torch.Tensor
    penalties: torch.Tensor
    new_tokens: torch.Tensor

    @classmethod
    def of(cls, sections: list[torch.Tensor]) -> _Sent:
        """From the sections of `_Lists`; draws the rows' random numbers."""
        from octavo.kernels.history_changes import Changed
        from octavo.kernels.uniform import draw_uniform

        floats, ints, seeds, bits, added, values, words, tokens, penalised, penalties, new = (
            sections
        )
        temperature, top_p, min_p = floats.view(torch.float32)
        top_k, lengths, rows, places, masks, prompts = ints
        uniform = torch.empty_like(temperature)
        draw_uniform(seeds, lengths, uniform)
        changed = Changed(places, masks, rows, lengths, prompts)
        return cls(
            changed, temperature, top_k, top_p, min_p, uniform, bits, added,
            values.view(torch.float32), words, tokens, penalised, penalties.view(torch.float32),
            new,
        )  # fmt: skip


def _choose(
    copy: torch.Tensor,
    sent: _Sent,
    part: slice,
    to: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    *,
    truncates: bool,
) -> None:
    """A token for each changed row of a part; `to` are the last arguments of both kernels."""
    from octavo.kernels.sampling import sample_plain

    temperature = sent.temperature[part]
    sample_plain(copy, temperature, *to)
    if truncates:
        from octavo.kernels.truncated_sampling import sample_truncated

        truncation = (sent.top_k[part], sent.top_p[part], sent.min_p[part])
        sample_truncated(copy, temperature, *truncation, *to)


def _within(changes: NDArray[np.int32], part: slice) -> slice:
    """Which entries of a list are of the part's rows."""
    first, last = np.searchsorted(changes, (part.start, part.stop)).tolist()
    return slice(first, last)


def _joined(parts: Sequence[NDArray[Any]], num: int) -> NDArray[np.int32]:
    """[num, all] int32."""
    return np.concatenate((np.empty((num, 0), np.int32), *parts), axis=1).astype(np.int32)
