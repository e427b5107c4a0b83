"""Rows of a queued step that ask for more than a temperature, by the fused kernels.

`kernels/sampling.py` has given every row a token already. Here those that truncate, or change their
logits, get theirs anew, and log-probabilities go on their way to the host. All of it is queued:
nothing waits for the device. Semantics are those of `sampler.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from octavo.runner.changed_logits import find_changed
from octavo.runner.reports import PackedReports

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo.runner.changed_logits import ChangedLogits, StepInputs
    from octavo.runner.masks import Words
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
    changer: ChangedLogits,
    inputs: StepInputs,
    masks: Mapping[int, Words],
) -> PackedReports | None:
    """Sample rows that ask for more anew, in the place of their tokens.

    Args:
        logits: [n or more, v] on the device, unchanged.
        token_ids: [n or more] int32, what the rows got so far; overwritten.
        last_token: [R] int32 by rows of `state`; overwritten likewise.
        rows: [n], places in `state`.
        positions: [n], tokens that the row has before the sampled one, prompt included.
        state: parameters.
        staging: of the device.
        changer: for the rows that change their logits.
        inputs: of this step.
        masks: by place among the n rows, see `masks.py`.

    Returns:
        Log-probabilities of those rows that ask for some; None if none does.
    """
    if not masks and state.is_plain[rows].all():
        return None
    num_rows, vocab_size = len(rows), logits.shape[1]
    logits, token_ids = logits[:num_rows], token_ids[:num_rows]
    asking = np.flatnonzero(state.num_logprobs[rows] >= 0)
    changed = find_changed(rows, positions, state, masks)
    places: torch.Tensor | None = None
    truncates = state.truncates[rows]
    truncates[changed] = False
    if truncates.any():
        places = _sample_truncated(
            logits, token_ids, last_token, rows, positions, state, staging, truncates, asking
        )
    elif asking.size:
        (places,) = staging.send([asking.astype(np.int32)])
    if changed.size:
        changer.sample(logits, token_ids, last_token, rows, changed, state, masks, inputs)
    if places is None or not asking.size:
        return None
    from octavo.kernels.logprobs import report_logprobs

    report = report_logprobs(logits, places, token_ids).to("cpu", non_blocking=True)
    return PackedReports(report, asking, state.num_logprobs[rows[asking]], vocab_size)


def _sample_truncated(
    logits: torch.Tensor,
    token_ids: torch.Tensor,
    last_token: torch.Tensor,
    rows: Rows,
    positions: Rows,
    state: SamplerRows,
    staging: Staging,
    truncates: np.ndarray,
    asking: Rows,
) -> torch.Tensor:
    """Sample rows that truncate; gives `asking` on the device, which goes there in the same copy.

    The others keep what they have: to the kernels they are greedy.
    """
    from octavo.kernels.truncated_sampling import sample_truncated
    from octavo.kernels.uniform import draw_uniform

    temperature = np.where(truncates, state.temperature[rows], np.float32(0))
    sections = [
        np.stack((temperature, state.top_p[rows], state.min_p[rows])).view(np.int32),
        np.stack((state.top_k[rows], positions, rows)).astype(np.int32),
        state.seed_words[:, rows],
        asking.astype(np.int32),
    ]
    floats, (top_k, lengths, device_rows), seeds, places = staging.send(sections)
    on_device, top_p, min_p = floats.view(torch.float32)
    uniform = torch.empty_like(on_device)
    draw_uniform(seeds, lengths, uniform)
    sample_truncated(
        logits, on_device, top_k, top_p, min_p, uniform, device_rows, last_token, token_ids
    )
    return places
