"""From logits to tokens: greedy or random with truncation, and log-probabilities.

What a row gets depends on its own logits, parameters, seed and position alone, bit for bit, and
never on the rest of the batch. Knows nothing of requests, models, text or when a request ends.

First come the changes of logits (`changes.py`). For random rows then temperature, and min-p, top-k
and top-p on the scaled distribution, as `transformers` composes its warpers; then the inverse of
the cumulative distribution at one uniform number (`philox.uniform`). Rows without top-k and top-p
need no order among tokens, so their distribution is accumulated in token order; the others are
accumulated from the most probable token down, ties by lower token id. (Steps that are queued on a
GPU sample by `special.py`'s kernels: the same distributions, accumulated in another order.)

On a CPU all this is one call of native code where the library is (`kernels/cpu/sampling.py`); torch
does it elsewhere. Both choose the same token, but for the rounding of float32.

Shapes: n rows, v vocabulary, c candidates (the c most probable tokens), m rows of a subset.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from octavo.kernels.cpu import sampling as native
from octavo.runner.changes import RowChanges, change_logits, changes_of
from octavo.runner.order import INT32_MAX, below_max, order_keys, smallest, token_ids_of
from octavo.runner.philox import uniform
from octavo.runner.reports import PackedReports, can_be_native, report

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo.runner.masks import Words
    from octavo.runner.reports import Reports
    from octavo.types import PositionLogprobs, RowInit

Rows = NDArray[np.int64]

NUM_CANDIDATES = 1024
"""How many tokens top-p without top-k looks at before it sorts the whole vocabulary (CPU only)."""

MAX_DEVICE_LOGITS = 2**24
"""How many logits are worked on at a time on a GPU: some 500 MB of keys and sorted keys."""

_FLOAT32 = np.finfo(np.float32)


class SamplerRows:
    """Parameters of every row of the device's request table, as arrays indexed by row.

    Attributes:
        temperature: float32, 0 is greedy.
        top_k: int32, 0 keeps all.
        top_p, min_p: float32.
        farthest: float32, min-p's largest distance to the largest logit, over temperature.
        seed: uint64.
        num_logprobs, num_prompt_logprobs: int32, -1 for none.
        num_prompt_tokens: int64.
        asking_prompts: rows whose prompts are to be reported.
        changes: what rows change in their logits; rows that change nothing are not in it.
        truncates: bool, random and not from all tokens (of a vocabulary larger than `top_k`).
        is_plain: bool, nothing asked for but a temperature.
    """

    def __init__(self, max_num_seqs: int) -> None:
        self.temperature = np.zeros(max_num_seqs, np.float32)
        self.top_k = np.zeros(max_num_seqs, np.int32)
        self.top_p = np.ones(max_num_seqs, np.float32)
        self.min_p = np.zeros(max_num_seqs, np.float32)
        self.farthest = np.full(max_num_seqs, np.inf, np.float32)
        self.seed = np.zeros(max_num_seqs, np.uint64)
        self.num_logprobs = np.full(max_num_seqs, -1, np.int32)
        self.num_prompt_logprobs = np.full(max_num_seqs, -1, np.int32)
        self.num_prompt_tokens = np.zeros(max_num_seqs, np.int64)
        self.asking_prompts: set[int] = set()
        self.changes: dict[int, RowChanges] = {}
        self.truncates = np.zeros(max_num_seqs, np.bool_)
        self.is_plain = np.zeros(max_num_seqs, np.bool_)

    def are_greedy(self, rows: Rows) -> bool:
        """Whether all of `rows` take the token of the largest logit, and report nothing."""
        return bool((self.is_plain[rows] & (self.temperature[rows] == 0)).all())

    @cached_property
    def parameters(self) -> native.Parameters:
        """For native sampling."""
        return native.Parameters(self.temperature, self.top_k, self.top_p, self.farthest, self.seed)

    @property
    def seed_words(self) -> NDArray[np.int32]:
        """[2, rows] the low and the high halves of the seeds; a view."""
        return self.seed.view(np.int32).reshape(-1, 2).T  # little-endian

    def set(self, row: int, init: RowInit) -> None:
        """Take over what `init` says for `row`; whatever the row held before is gone."""
        params = init.params
        temperature = params.temperature
        if temperature > 0:  # a tiny one must not become greedy, a huge one not infinite
            temperature = min(max(temperature, float(_FLOAT32.tiny)), float(_FLOAT32.max))
        self.temperature[row] = temperature
        self.top_k[row] = min(max(params.top_k, 0), INT32_MAX)
        self.top_p[row] = max(params.top_p, float(_FLOAT32.tiny))
        self.min_p[row] = params.min_p
        with np.errstate(divide="ignore"):
            self.farthest[row] = -np.log(self.min_p[row])
        self.seed[row] = init.seed % 2**64  # two's complement of a signed seed
        self.num_logprobs[row] = -1 if params.logprobs is None else params.logprobs
        asked = params.prompt_logprobs
        self.num_prompt_logprobs[row] = -1 if asked is None else asked
        self.num_prompt_tokens[row] = init.num_prompt_tokens
        self.asking_prompts.discard(row)
        if asked is not None:
            self.asking_prompts.add(row)
        self.changes.pop(row, None)
        changes = changes_of(init)
        if changes is not None:
            self.changes[row] = changes
        truncates = params.top_k > 0 or params.top_p < 1 or params.min_p > 0
        self.truncates[row] = truncates and temperature > 0
        alone = params.logprobs is None and row not in self.changes
        self.is_plain[row] = alone and not self.truncates[row]


@dataclass(frozen=True, slots=True)
class Sampled:
    """One token per row of the batch.

    Attributes:
        token_ids: [n] on the logits' device.
        reports: log-probabilities on their way to the host, if any row asked for some.
    """

    token_ids: torch.Tensor
    reports: Reports | None

    @property
    def logprobs(self) -> list[PositionLogprobs | None]:
        """Parallel to the tokens, None where a row asked for none; empty when no row asked.

        The device must have come to the end of the sampling.
        """
        return [] if self.reports is None else self.reports.entries(len(self.token_ids))


def sample(
    logits: torch.Tensor,
    rows: Rows,
    positions: Rows,
    state: SamplerRows,
    tokens: NDArray[np.int32] | None = None,
    masks: Mapping[int, Words] | None = None,
) -> Sampled:
    """Choose the next token of each row, without waiting for the device.

    Args:
        logits: [n, v]; may be overwritten. -inf forbids a token; +inf is allowed.
        rows: [n], places in `state`.
        positions: [n], tokens that the row has before the sampled one, prompt included.
        state: parameters.
        tokens: [R, t] tokens of every row; may be None if no row has bad words or penalties.
        masks: by place among the n rows, see `masks.py`.
    """
    changes = bool(state.changes or masks)
    is_native = can_be_native(logits)
    if changes or not is_native:
        logits = logits.float()
    asking = np.flatnonzero(state.num_logprobs[rows] >= 0)
    raw: torch.Tensor | None = None
    if asking.size and (changes or not is_native):
        raw = logits[_index(asking, logits)]  # a copy: changes come later

    change_logits(logits, rows, positions, state.changes, tokens, masks or {})
    if is_native:
        return _sample_natively(logits, rows, positions, state, asking, raw)
    random = state.temperature[rows] > 0
    if random.all():
        token_ids = torch.empty(len(rows), dtype=torch.int64, device=logits.device)
    else:
        token_ids = largest(logits)
    if random.any():
        vocab_size = logits.shape[-1]
        top_k = state.top_k[rows]
        ordered = ((top_k > 0) & (top_k < vocab_size)) | (state.top_p[rows] < 1)
        for draw, chosen in ((_draw, random & ~ordered), (_draw_ordered, random & ordered)):
            for subset in _few_at_a_time(np.flatnonzero(chosen), logits):
                where = _index(subset, logits)
                part = logits if len(subset) == len(rows) else logits[where]
                u = uniform(state.seed[rows[subset]], positions[subset])
                token_ids[where] = draw(part, rows[subset], u, state)

    if raw is None:
        return Sampled(token_ids, None)
    picked = token_ids[_index(asking, logits)]
    return Sampled(token_ids, report(raw, picked, state.num_logprobs[rows[asking]], asking))


def _sample_natively(
    logits: torch.Tensor,
    rows: Rows,
    positions: Rows,
    state: SamplerRows,
    asking: Rows,
    raw: torch.Tensor | None,
) -> Sampled:
    """Choose and report in one call; `raw` are the logits of the rows that ask, if not the same."""
    nums = state.num_logprobs[rows[asking]]
    most = min(int(nums.max(initial=0)), logits.shape[1])
    token_ids, packed = native.sample(logits, rows, positions, state.parameters, asking, most, raw)
    if packed is None:
        return Sampled(token_ids, None)
    return Sampled(token_ids, PackedReports(packed, asking, nums, logits.shape[1]))


def _index(indices: Rows, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(indices).to(like.device, non_blocking=True)


def _few_at_a_time(subset: Rows, logits: torch.Tensor) -> list[Rows]:
    """Pieces small enough that a GPU's memory holds what sorting them takes."""
    if not subset.size:
        return []
    if logits.device.type == "cpu":
        return [subset]
    return np.array_split(subset, -(-len(subset) * logits.shape[-1] // MAX_DEVICE_LOGITS))


def _column(values: NDArray[np.floating | np.integer], like: torch.Tensor) -> torch.Tensor:
    """[m] on the host to [m, 1] on the device."""
    return torch.from_numpy(values).to(like.device, non_blocking=True)[:, None]


def _scale(
    logits: torch.Tensor, rows: Rows, state: SamplerRows
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Temperature: probabilities [m, v], scaled distances [m, v], min-p's largest distance [m, 1].

    A token less probable than the `min_p`-th part of the most probable one is one farther from it
    than -log(min_p).
    """
    distance = below_max(logits).div_(_column(state.temperature[rows], logits))
    # softmax, and not a sum: its reductions never depend on the number of rows.
    return torch.softmax(-distance, dim=-1), distance, _column(state.farthest[rows], logits)


def _draw(
    logits: torch.Tensor, rows: Rows, u: NDArray[np.float64], state: SamplerRows
) -> torch.Tensor:
    """Draw from all tokens, or those that min-p leaves, accumulated in token order: [m]."""
    probs, distance, farthest = _scale(logits, rows, state)
    if (state.min_p[rows] > 0).any():
        probs.masked_fill_(distance > farthest, 0.0)
    cdf = torch.cumsum(probs, dim=-1, dtype=torch.float64)
    return _invert(cdf, cdf[:, -1:], u).squeeze(1)


def _draw_ordered(
    logits: torch.Tensor, rows: Rows, u: NDArray[np.float64], state: SamplerRows
) -> torch.Tensor:
    """Draw from what min-p, top-k and top-p leave, accumulated from the most probable down: [m]."""
    vocab_size = logits.shape[-1]
    probs, distance, farthest = _scale(logits, rows, state)
    limited = state.top_k[rows] > 0
    top_k = np.where(limited, np.minimum(state.top_k[rows], vocab_size), vocab_size)
    num_candidates = vocab_size
    if limited.all():
        num_candidates = int(top_k.max())
    elif logits.device.type == "cpu":  # elsewhere, to look whether it was enough would be a wait
        num_candidates = min(max(NUM_CANDIDATES, int(top_k[limited].max(initial=1))), vocab_size)

    keys = order_keys(logits)
    candidates = smallest(keys, num_candidates)
    keep_k, top_p = _column(top_k, logits), _column(state.top_p[rows], logits)
    order = token_ids_of(candidates)
    cdf, keep, enough = _truncate(probs, distance, order, farthest, keep_k, top_p)
    token_ids = order.gather(1, _invert(cdf, cdf.gather(1, keep - 1), u))
    if num_candidates < vocab_size and not limited.all():
        # The longer order begins with the shorter one: the same result where both are enough.
        again = np.flatnonzero(~enough.squeeze(1).numpy())
        if again.size:
            i = _index(again, logits)
            order = token_ids_of(smallest(keys[i], vocab_size))
            cdf, keep, _ = _truncate(probs[i], distance[i], order, farthest[i], keep_k[i], top_p[i])
            token_ids[i] = order.gather(1, _invert(cdf, cdf.gather(1, keep - 1), u[again]))
    return token_ids.squeeze(1)


def _truncate(
    probs: torch.Tensor,
    distance: torch.Tensor,
    order: torch.Tensor,
    farthest: torch.Tensor,
    top_k: torch.Tensor,
    top_p: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """How many of the most probable tokens stay.

    `probs` and `distance` are [m, v]; `order` is [m, c], the c most probable tokens in order;
    `farthest`, `top_k` and `top_p` are [m, 1].

    Returns:
        [m, c] float64 cumulative probabilities along `order`; [m, 1] how many tokens stay, 1..c;
        [m, 1] bool, whether c was enough to tell.
    """
    num_candidates, vocab_size = order.shape[-1], probs.shape[-1]
    cdf = torch.cumsum(probs.gather(1, order), dim=-1, dtype=torch.float64)
    near = torch.searchsorted(distance.gather(1, order), farthest, right=True)
    # Beyond the candidates min-p may keep more; without min-p it keeps all.
    near = torch.where(torch.isinf(farthest), vocab_size, near)
    kept = torch.minimum(near, top_k)
    last = kept.clamp(max=num_candidates) - 1
    # Top-p counts in shares of what min-p and top-k leave; nothing left out is a total of 1.
    total = torch.where(kept < vocab_size, cdf.gather(1, last), 1.0)
    share = top_p.double() * total
    num_top_p = torch.searchsorted(cdf, share) + 1  # the first token that reaches it is the last
    num_top_p = torch.where(top_p < 1, num_top_p, vocab_size)
    whole = num_candidates == vocab_size
    counted = whole | (top_k <= num_candidates) | (near < num_candidates)
    reached = torch.isinf(farthest) & (cdf[:, -1:] >= share)
    keep = torch.minimum(kept, num_top_p).clamp(max=num_candidates)
    return cdf, keep, counted | reached


def _invert(cdf: torch.Tensor, total: torch.Tensor, u: NDArray[np.float64]) -> torch.Tensor:
    """[m, 1] first place whose cumulative probability exceeds `u * total`: never one of zero mass.

    `u < 1` keeps it below the first place that reaches `total`.
    """
    target = _column(u, cdf) * total
    return torch.searchsorted(cdf, target, right=True).clamp_(max=cdf.shape[-1] - 1)


def largest(logits: torch.Tensor) -> torch.Tensor:
    """[n] the token of the largest logit, the lowest id among ties."""
    if logits.device.type == "cpu":  # numpy's is vectorized and about a hundred times as fast
        return torch.from_numpy(logits.numpy().argmax(axis=-1))
    return logits.argmax(dim=-1)
