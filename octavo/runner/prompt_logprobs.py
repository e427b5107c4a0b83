"""Log-probabilities of prompts' tokens, a few positions at a time.

The logits of a position speak of the token after it. So the last position of a chunk reports the
first token of the next one, and a prompt's first token is never reported.

Shapes: p positions that report, s scheduled rows, v vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from octavo.runner.reports import PackedReports, report

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from octavo.models.base import CausalModel
    from octavo.runner.batch import HostBatch
    from octavo.runner.reports import Reports
    from octavo.runner.rows import RowTable
    from octavo.runner.sampler import SamplerRows
    from octavo.runner.staging import Staging
    from octavo.types import PositionLogprobs

MOST_POSITIONS = 256
"""Positions whose logits are held at a time, if the vocabulary allows."""

MOST_LOGITS = 2**25
MOST_CPU_LOGITS = 2**23
"""And so many logits. A CPU makes keys of them, in 8 bytes each, and several arrays of floats."""


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """Tokens of prompts that a step reports.

    Attributes:
        indices: [p] positions of the batch whose logits speak of them.
        token_ids: [p] the tokens themselves.
        num_logprobs: [p] int32, how many alternatives are asked for.
        seqs: [p] which of the scheduled rows they belong to, rising.
    """

    indices: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    num_logprobs: NDArray[np.int32]
    seqs: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PromptReports:
    """Their log-probabilities, on the host or on their way there.

    Attributes:
        tokens: what is reported.
        num_each: how many of them each part reports, the last one perhaps fewer.
        parts: one after the other.
    """

    tokens: PromptTokens
    num_each: int
    parts: list[Reports]

    def entries(self, num_seqs: int) -> list[list[PositionLogprobs] | None]:
        """See `StepResult.prompt_logprobs`; the device must have come so far."""
        entries: list[list[PositionLogprobs] | None] = [None] * num_seqs
        for begin, part in zip(range(0, len(self.tokens.seqs), self.num_each), self.parts,
                               strict=True):  # fmt: skip
            seqs = self.tokens.seqs[begin : begin + self.num_each].tolist()
            for seq, entry in zip(seqs, part.entries(len(seqs)), strict=True):
                assert entry is not None
                of_seq = entries[seq]
                if of_seq is None:
                    of_seq = entries[seq] = []
                of_seq.append(entry)
        return entries


def find_prompt_tokens(host: HostBatch, table: RowTable, state: SamplerRows) -> PromptTokens | None:
    """What the step has to report; None if there is nothing."""
    if not state.asking_prompts:
        return None
    asked = state.num_prompt_logprobs[host.rows]
    starts, context_lens = host.layout.query_starts, host.layout.context_lens
    parts: list[tuple[NDArray[np.int64], ...]] = []
    for seq in np.flatnonzero(asked >= 0).tolist():
        row, first = host.rows[seq], int(context_lens[seq])
        num_new = int(starts[seq + 1] - starts[seq])
        end = min(first + num_new, int(state.num_prompt_tokens[row]) - 1)
        if first < end:
            positions = np.arange(first, end)
            parts.append((
                positions + (starts[seq] - first),
                table.token_ids[row, positions + 1].astype(np.int64),
                np.full_like(positions, asked[seq]),
                np.full_like(positions, seq),
            ))  # fmt: skip
    if not parts:
        return None
    indices, token_ids, nums, seqs = (np.concatenate(part) for part in zip(*parts, strict=True))
    return PromptTokens(indices, token_ids, nums.astype(np.int32), seqs)


def num_at_once(vocab_size: int, device: torch.device) -> int:
    """Positions whose logits are held at a time."""
    most = MOST_CPU_LOGITS if device.type == "cpu" else MOST_LOGITS
    return min(MOST_POSITIONS, max(most // vocab_size, 1))


def report_prompt(
    model: CausalModel, hidden: torch.Tensor, tokens: PromptTokens, staging: Staging | None = None
) -> PromptReports:
    """Compute their log-probabilities.

    Args:
        model: whose output layer is applied.
        hidden: [p, hidden] at the tokens' `indices`.
        tokens: what to report.
        staging: of a device with a queue, where kernels report and nothing is waited for; None:
            torch does, on any device.
    """
    num_each = num_at_once(model.shape.vocab_size, hidden.device)
    if staging is not None:
        (on_device,) = staging.send([tokens.token_ids.astype(np.int32)])
    else:
        on_device = torch.from_numpy(tokens.token_ids).to(hidden.device)
    parts: list[Reports] = []
    for begin in range(0, len(tokens.seqs), num_each):
        part = slice(begin, begin + num_each)
        logits = model.compute_logits(hidden[part])
        token_ids, nums = on_device[part], tokens.num_logprobs[part]
        places = np.arange(len(nums))
        if staging is None:
            parts.append(report(logits, token_ids, nums, places))
            continue
        from octavo.kernels.logprobs import report_logprobs

        rows = torch.arange(len(nums), dtype=torch.int32, device=hidden.device)
        packed = report_logprobs(logits, rows, token_ids).to("cpu", non_blocking=True)
        parts.append(PackedReports(packed, places, nums, logits.shape[1]))
    return PromptReports(tokens, num_each, parts)
