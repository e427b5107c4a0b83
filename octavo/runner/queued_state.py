"""What all steps in a device's queue share, and what each has brought before its tokens are sent.

Knows neither graphs nor how a step is launched.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from octavo.attention.interface import AttentionSpec
    from octavo.attention.triton_paged import TritonAttention
    from octavo.models.base import CausalModel
    from octavo.runner.batch import HostBatch
    from octavo.runner.places import Slot
    from octavo.runner.prompt_logprobs import PromptReports
    from octavo.runner.rows import RowTable
    from octavo.runner.sampler import SamplerRows
    from octavo.runner.staging import Staging


@dataclass(frozen=True, slots=True)
class QueueState:
    """Whose steps run, and what goes from one to the next on the device.

    Attributes:
        model, backend, spec, kv_caches, table, sampler: see `QueuedSteps`.
        block_tables: [R, b] int32 on the device, by rows of `table`.
        last_token: [R] int32 on the device, the tokens that rows sampled last.
        staging: for what a step sends to the device beside a graph's inputs.
    """

    model: CausalModel
    backend: TritonAttention
    spec: AttentionSpec
    kv_caches: Sequence[torch.Tensor]
    table: RowTable
    sampler: SamplerRows
    block_tables: torch.Tensor
    last_token: torch.Tensor
    staging: Staging


@dataclass(frozen=True, slots=True)
class PlainStep:
    """A step whose plain sampling is in the queue.

    Attributes:
        logits: [n or more, v].
        input_ids: [t] int32 on the device.
        token_ids: [n or more] int32 on the device.
        slot: of a replayed step.
        prompt: log-probabilities of prompts' tokens; such a step is not replayed.
    """

    host: HostBatch
    logits: torch.Tensor
    input_ids: torch.Tensor
    token_ids: torch.Tensor
    slot: Slot | None = None
    prompt: PromptReports | None = None
