"""A step that no graph is replayed for: its numbers are sent, and its kernels launched one by one.

Knows nothing of graphs, nor of what rows ask for beyond a temperature.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from octavo.attention.interface import StepTensors
from octavo.layers.batch import ForwardBatch
from octavo.runner.batch import with_more_logits
from octavo.runner.prompt_logprobs import report_prompt
from octavo.runner.queued_state import PlainStep

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.attention.sections import Section
    from octavo.attention.shared_prefix import SharedPrefix
    from octavo.runner.batch import HostBatch
    from octavo.runner.prompt_logprobs import PromptReports, PromptTokens
    from octavo.runner.queued_state import QueueState


def launch_kernels(
    state: QueueState,
    host: HostBatch,
    updates: Section,
    shared: Sequence[SharedPrefix],
    prompt: PromptTokens | None,
) -> PlainStep:
    """Put a step of any shape into the queue.

    Args:
        state: whose step it is.
        host: the step.
        updates: [2, u] changes of block tables.
        shared: prefixes of its decodes.
        prompt: tokens whose log-probabilities are wanted too.
    """
    from octavo.kernels.prepare import prepare
    from octavo.kernels.sampling import sample_plain
    from octavo.kernels.uniform import draw_uniform

    backend, model, last_token = state.backend, state.model, state.last_token
    work = backend.plan_work(state.spec, host.layout, host.rows, None, shared)
    asked = host if prompt is None else with_more_logits(host, prompt.indices)
    sections = [
        host.token_ids,
        host.rows_of_token.astype(np.int32),
        host.positions.astype(np.int32),
        asked.logit_indices.astype(np.int32),
        *_sampling_sections(state, host),
        updates,
        *work.sections,
    ]
    on_device = state.staging.send(sections)
    token_ids, rows, positions, logit_indices, *sampling = on_device[:8]
    out_ids = torch.empty_like(token_ids)
    changed = on_device[8] if updates.shape[1] else None
    prepare(token_ids, rows, last_token, out_ids, changed, state.block_tables)
    step = StepTensors(positions, rows, state.block_tables)
    batch = ForwardBatch(
        token_ids=out_ids,
        positions=positions,
        logit_indices=logit_indices,
        backend=backend,
        meta=work.bind(on_device[9:], step),
        kv_caches=state.kv_caches,
    )
    temperature, seeds, lengths, device_rows = sampling
    reports: PromptReports | None = None
    logits: torch.Tensor
    if prompt is None:
        logits = model(batch)
    else:
        hidden = model.model(batch)
        logits = model.compute_logits(hidden[: len(lengths)])
        reports = report_prompt(model, hidden[len(lengths) :], prompt, state.staging)
    sampled = torch.empty_like(lengths)
    if len(sampled):
        uniform = torch.empty_like(lengths, dtype=torch.float32)
        draw_uniform(seeds, lengths, uniform)
        sample_plain(
            logits, temperature.view(torch.float32), uniform, device_rows, last_token, sampled
        )
    return PlainStep(host, logits, out_ids, sampled, prompt=reports)


def _sampling_sections(state: QueueState, host: HostBatch) -> list[Section]:
    """Temperatures as bits, seeds, lengths, and rows."""
    rows = host.sampled_rows
    return [
        state.sampler.temperature[rows].view(np.int32),
        state.sampler.seed_words[:, rows],
        state.table.num_tokens[rows].astype(np.int32),
        rows.astype(np.int32),
    ]
