"""What requests' parameters change in their logits before a token is chosen.

Order, as in vLLM's v1 engine: tokens are forbidden (structured outputs, allowed tokens, bad words,
stop tokens under `min_tokens`), then the bias is added, then penalties for repetition, frequency
and presence are taken. Here each row's changes are kept in a few arrays, no larger than what they
change, and applied in torch on any device. Queued steps apply them by kernels
(`changed_logits.py`).

Shapes: n rows, v vocabulary.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from octavo.runner.masks import is_forbidden, mask_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from octavo.runner.masks import Words
    from octavo.types import RowInit

    Ids = NDArray[np.int64]

_NO_IDS = np.empty(0, np.int64)


def changes_of(init: RowInit) -> RowChanges | None:
    """What a request changes in its logits; None if there never is anything."""
    params = init.params
    if not (
        params.min_tokens
        or params.logit_bias
        or params.allowed_token_ids is not None
        or init.bad_words_token_ids
        or params.repetition_penalty != 1
        or params.frequency_penalty
        or params.presence_penalty
    ):
        return None
    changes = RowChanges(init)
    return changes if changes.is_active(init.num_prompt_tokens) else None


class RowChanges:
    """What one request changes in its row of logits.

    Attributes:
        num_prompt_tokens: its tokens beyond these are the output.
        allowed: the only tokens that it may get; None: any.
        penalties: repetition, frequency and presence.
        penalises: whether they change anything.
        bad_words: int32 sequences, none empty; the last token of each is forbidden where the
            output ends with those before it.
        num_remembered: how many of its tokens a device has; `changed_logits.py` counts them.
    """

    def __init__(self, init: RowInit) -> None:
        params = init.params
        self.num_prompt_tokens = init.num_prompt_tokens
        allowed = params.allowed_token_ids
        self.allowed = None if allowed is None else np.unique(np.array(allowed, np.int64))
        self.penalties = (
            params.repetition_penalty,
            params.frequency_penalty,
            params.presence_penalty,
        )
        self.penalises = self.penalties != (1.0, 0.0, 0.0)
        self.bad_words = [np.array(ids, np.int32) for ids in init.bad_words_token_ids if ids]
        self.num_remembered = 0
        self._min_tokens = params.min_tokens
        self._stop_token_ids = np.unique(np.array(init.stop_token_ids, np.int64))
        self._bias_ids = np.array([*params.logit_bias], np.int64)
        self._bias = np.array([*params.logit_bias.values()], np.float32)
        self._lasts = bool(
            self.allowed is not None or self.penalises or self.bad_words or self._bias.size
        )
        self._counts = _Counts()

    @property
    def reads_tokens(self) -> bool:
        """Whether the changes depend on the tokens that the row has."""
        return self.penalises or bool(self.bad_words)

    def forbids_stop(self, num_tokens: int) -> bool:
        """Whether stop tokens are forbidden after so many tokens, the prompt's included."""
        too_short = num_tokens - self.num_prompt_tokens < self._min_tokens
        return too_short and bool(self._stop_token_ids.size)

    def is_active(self, num_tokens: int) -> bool:
        """Whether there is something to change after so many tokens, the prompt's included."""
        return self._lasts or self.forbids_stop(num_tokens)

    def added(self, num_tokens: int) -> tuple[Ids, NDArray[np.float32]]:
        """Token ids, each once, and what is added to their logits: the bias, -inf to forbid one."""
        if not self.forbids_stop(num_tokens):
            return self._bias_ids, self._bias
        keeps = np.isin(self._bias_ids, self._stop_token_ids, invert=True)
        minus_inf = np.full(len(self._stop_token_ids), -np.inf, np.float32)
        ids = np.concatenate((self._bias_ids[keeps], self._stop_token_ids))
        return ids, np.concatenate((self._bias[keeps], minus_inf))

    def allowed_mask(self, vocab_size: int) -> Words | None:
        """`allowed` as a mask of the vocabulary."""
        if self.allowed is None:
            return None
        if self._mask is None or self._mask[0] != vocab_size:
            self._mask = vocab_size, mask_of(self.allowed, vocab_size)
        return self._mask[1]

    _mask: tuple[int, Words] | None = None

    def completed_bad_words(self, tokens: NDArray[np.int32]) -> Ids:
        """What would complete a bad word after these tokens, the prompt's included."""
        by_last = self._bad_words_by_last
        found = [int(word[-1]) for word in by_last.get(None, ())]
        output = tokens[self.num_prompt_tokens :]
        if len(output):
            for word in by_last.get(int(output[-1]), ()):
                num = len(word) - 1
                if num <= len(output) and np.array_equal(output[-num:], word[:-1]):
                    found.append(int(word[-1]))
        return np.array(found, np.int64)

    @cached_property
    def _bad_words_by_last(self) -> Mapping[int | None, list[NDArray[np.int32]]]:
        """By the token before the last one; None where there is no other."""
        found: dict[int | None, list[NDArray[np.int32]]] = defaultdict(list)
        for word in self.bad_words:
            found[int(word[-2]) if len(word) > 1 else None].append(word)
        return dict(found)

    @cached_property
    def bad_word_sections(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """The tokens of all bad words one behind the other, and the length of each word."""
        lengths = np.array([len(word) for word in self.bad_words], np.int32)
        tokens = np.concatenate(self.bad_words) if self.bad_words else np.empty(0, np.int32)
        return tokens, lengths

    def counts(self, tokens: NDArray[np.int32]) -> tuple[Ids, NDArray[np.float32]]:
        """The distinct tokens of prompt and output, and how often each is in the output.

        Costs what is new since the call before: tokens are only ever appended.
        """
        return self._counts.of(tokens, self.num_prompt_tokens)


class _Counts:
    """Distinct tokens in the order in which they were first seen, and their counts."""

    def __init__(self) -> None:
        self._place: dict[int, int] = {}
        self._ids = _NO_IDS
        self._counts = np.empty(0, np.float32)
        self._num_seen = 0

    def of(
        self, tokens: NDArray[np.int32], num_prompt_tokens: int
    ) -> tuple[Ids, NDArray[np.float32]]:
        """See `RowChanges.counts`."""
        for begin, end in pairwise((self._num_seen, max(num_prompt_tokens, self._num_seen),
                                    len(tokens))):  # fmt: skip
            if begin < end:
                self._take(tokens[begin:end], counts=begin >= num_prompt_tokens)
        self._num_seen = len(tokens)
        num = len(self._place)
        return self._ids[:num], self._counts[:num]

    def _take(self, tokens: NDArray[np.int32], *, counts: bool) -> None:
        ids, numbers = np.unique(tokens, return_counts=True)
        first = len(self._place)
        places = [self._place.setdefault(token, len(self._place)) for token in ids.tolist()]
        num = len(self._place)
        if num > len(self._ids):
            room = max(2 * num, 64)
            grown, grown_counts = np.zeros(room, np.int64), np.zeros(room, np.float32)
            grown[:first], grown_counts[:first] = self._ids[:first], self._counts[:first]
            self._ids, self._counts = grown, grown_counts
        self._ids[places] = ids
        if counts:
            self._counts[places] += numbers


def change_logits(
    logits: torch.Tensor,
    rows: Ids,
    positions: Ids,
    changes: Mapping[int, RowChanges],
    tokens: NDArray[np.int32] | None,
    masks: Mapping[int, Words],
) -> None:
    """Apply the rows' changes in place.

    Args:
        logits: [n, v] float32.
        rows: [n], places in `changes` and `tokens`.
        positions: [n], tokens that a row has, the prompt's included.
        changes: of rows that have some.
        tokens: [R, t] those of every row; may be None if no row's changes read them.
        masks: by place among the n.
    """
    for place, words in masks.items():
        forbidden = torch.from_numpy(is_forbidden(words, logits.shape[1]))
        logits[place].masked_fill_(forbidden.to(logits.device, non_blocking=True), -torch.inf)
    if not changes:
        return
    for place, (row, num_tokens) in enumerate(zip(rows.tolist(), positions.tolist(), strict=True)):
        change = changes.get(row)
        if change is not None and change.is_active(num_tokens):
            known = None
            if change.reads_tokens:
                assert tokens is not None
                known = tokens[row, :num_tokens]
            _change_row(logits[place], change, num_tokens, known)


def _change_row(
    logits: torch.Tensor, change: RowChanges, num_tokens: int, tokens: NDArray[np.int32] | None
) -> None:
    """One row [v], in place."""
    vocab_size = logits.shape[0]

    def on_device(values: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(values).to(logits.device, non_blocking=True)

    if change.allowed is not None:
        allowed = on_device(change.allowed[change.allowed < vocab_size])
        kept = logits[allowed]
        logits.fill_(-torch.inf)
        logits[allowed] = kept
    ids, values = change.added(num_tokens)
    is_real = ids < vocab_size
    ids, values = ids[is_real], values[is_real]
    is_ban = np.isneginf(values)
    bans = [ids[is_ban]]
    if tokens is not None and change.bad_words:
        bad = change.completed_bad_words(tokens)
        bans.append(bad[bad < vocab_size])
    # Not added: infinity and its opposite are no number.
    logits.index_fill_(0, on_device(np.concatenate(bans)), -torch.inf)
    logits.index_add_(0, on_device(ids[~is_ban]), on_device(values[~is_ban]))
    if tokens is not None and change.penalises:
        ids, counts = change.counts(tokens)
        where, times = on_device(ids), on_device(counts)
        repetition, frequency, presence = change.penalties
        seen = logits[where]
        seen = torch.where(seen > 0, seen / repetition, seen * repetition)
        seen -= frequency * times
        logits[where] = seen - presence * (times > 0)
