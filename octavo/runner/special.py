"""Rows of a queued step that ask for more than a temperature, by the fused kernels.

`kernels/sampling.py` has given every row a token already. Here those that truncate, or whose stop
tokens are forbidden yet, get theirs anew, and log-probabilities go on their way to the host. All of
it is queued: nothing waits for the device. Semantics are those of `sampler.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from octavo.runner.sampler import Sampled
from octavo.types import PositionLogprobs, TokenLogprob

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from octavo.runner.sampler import Rows, SamplerRows
    from octavo.runner.staging import Staging


def choose_special(
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    last_token: torch.Tensor,
    rows: Rows,
    positions: Rows,
    state: SamplerRows,
    staging: Staging,
) -> tuple[Rows | None, Sampled | None]:
    """Sample rows that ask for more anew, in the place of their tokens.

    Args:
        logits: [n or more, v] on the device, unchanged in the end.
        token_ids: [n or more] int32, what the rows got so far; overwritten.
        last_token: [R] int32 by rows of `state`; overwritten likewise.
        rows: [n], places in `state`.
        positions: [n], tokens that the row has before the sampled one, prompt included.
        state: parameters.
        staging: of the device.

    Returns:
        Which of the n rows report log-probabilities, and these; None if none does.
    """
    if state.is_plain[rows].all():
        return None, None
    num_rows, vocab_size = len(rows), logits.shape[1]
    logits, token_ids = logits[:num_rows], token_ids[:num_rows]
    asking = np.flatnonzero(state.num_logprobs[rows] >= 0)
    forbidden = _forbidden(rows, positions, state, vocab_size)
    truncates = bool(state.truncates[rows].any())
    if not (asking.size or forbidden.size or truncates):
        return None, None
    sections = [
        np.stack((state.temperature[rows], state.top_p[rows], state.min_p[rows])).view(np.int32),
        np.stack((state.top_k[rows], positions, rows)).astype(np.int32),
        state.seed_words[:, rows],
        asking.astype(np.int32),
        forbidden,
    ]
    floats, (top_k, lengths, device_rows), seeds, places, index = staging.send(sections)
    temperature, top_p, min_p = floats.view(torch.float32)
    if truncates or forbidden.size:
        from octavo.kernels.uniform import draw_uniform

        uniform = torch.empty_like(temperature)
        draw_uniform(seeds, lengths, uniform)
    if forbidden.size:
        from octavo.kernels.sampling import sample_plain

        where = tuple(index.long())
        before = logits[where]
        logits.index_put_(where, torch.full_like(before, -torch.inf))
        # The others get what they have.
        sample_plain(logits, temperature, uniform, device_rows, last_token, token_ids)
    if truncates:
        from octavo.kernels.truncated_sampling import sample_truncated

        sample_truncated(
            logits, temperature, top_k, top_p, min_p, uniform, device_rows, last_token, token_ids
        )
    if forbidden.size:
        logits.index_put_(where, before)  # log-probabilities are of the raw logits
    if not asking.size:
        return None, None
    from octavo.kernels.logprobs import report_logprobs

    report = report_logprobs(logits, places, token_ids).to("cpu", non_blocking=True)
    reports = PackedReports(report, state.num_logprobs[rows[asking]], vocab_size)
    return asking, Sampled(token_ids.index_select(0, places), reports)


def _forbidden(
    rows: Rows, positions: Rows, state: SamplerRows, vocab_size: int
) -> NDArray[np.int32]:
    """[2, f] int32, which of the n rows, and which token would end it too early."""
    too_short = positions - state.num_prompt_tokens[rows] < state.min_tokens[rows]
    pairs = [
        (place, token)
        for place in np.flatnonzero(too_short).tolist()
        for token in state.stop_token_ids[rows[place]].tolist()
        if token < vocab_size
    ]
    return np.array(pairs, np.int32).reshape(-1, 2).T


@dataclass(frozen=True, slots=True)
class PackedReports:
    """Log-probabilities of m rows, on the host or on their way there.

    Attributes:
        packed: [m, 3 + 3 * `NUM_TOP`], see `report_logprobs`.
        num_logprobs: [m] how many of the most probable tokens each row asked for.
        vocab_size: the most there are.
    """

    packed: torch.Tensor
    num_logprobs: NDArray[np.int32]
    vocab_size: int

    def entries(self, num_rows: int) -> list[PositionLogprobs | None]:
        """One for each of the m rows."""
        integers = self.packed.numpy()
        floats = integers.view(np.float32)
        most = (integers.shape[1] - 3) // 3
        entries: list[PositionLogprobs | None] = []
        for ints, bits, num in zip(
            integers.tolist(), floats.tolist(), self.num_logprobs.tolist(), strict=True
        ):
            sampled = TokenLogprob(ints[0], bits[2], ints[1])
            top = [
                TokenLogprob(ints[3 + i], bits[3 + 2 * most + i], ints[3 + most + i])
                for i in range(min(num, self.vocab_size))
            ]
            entries.append(PositionLogprobs(sampled, top))
        return entries
