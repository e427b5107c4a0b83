"""Greedy decoding checked against `transformers` by teacher forcing.

One reference forward over prompt and output gives, at each position, what the reference would have
chosen after the very same tokens. If every choice is the reference's, the outputs are equal by
induction, whatever the length.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tests.gguf_reader import read_once

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.llm import RequestOutput

TIE = 1e-4
"""Two logits closer than this are equal within float32's noise; either may win."""


@dataclass
class Verdict:
    """What a comparison found.

    Attributes:
        num_tokens: compared.
        num_ties: tokens that are not the reference's, where its two best lie within TIE.
        max_logprob_error: largest distance of a sampled token's log-probability.
    """

    num_tokens: int = 0
    num_ties: int = 0
    max_logprob_error: float = 0.0


def load_reference(path: Path) -> Any:
    """The checkpoint in `transformers`, float32, from a folder or a GGUF file."""
    from transformers import AutoModelForCausalLM, GgufConfig

    if path.is_dir():
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    config = GgufConfig(dequantize=True)
    with read_once():
        return AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, quantization_config=config
        ).eval()


@torch.inference_mode()
def compare(reference: Any, outputs: list[RequestOutput]) -> Verdict:
    """Compare greedy outputs, made with `logprobs` or without, token by token."""
    verdict = Verdict()
    for output in outputs:
        completion = output.outputs[0]
        prompt, generated = output.prompt_token_ids, completion.token_ids
        ids = torch.tensor([prompt + generated[:-1]])
        logits = reference(ids).logits[0, len(prompt) - 1 :].float()
        assert logits.shape[0] == len(generated)
        chosen = torch.tensor(generated)
        verdict.num_tokens += len(generated)
        wrong = (logits.argmax(-1) != chosen).nonzero().flatten().tolist()
        for position in wrong:
            best, second = logits[position].topk(2).values.tolist()
            mine = logits[position, chosen[position]].item()
            assert best - second < TIE, (
                f"token {position} of prompt {prompt[:8]}: {generated[position]} has logit {mine}, "
                f"the reference's best {best}, second {second}"
            )
            assert best - mine < TIE
            verdict.num_ties += 1
        if completion.logprobs:
            expected = logits.log_softmax(-1).gather(1, chosen[:, None]).flatten()
            got = torch.tensor([entry.sampled.logprob for entry in completion.logprobs])
            error = (expected - got).abs().max().item()
            verdict.max_logprob_error = max(verdict.max_logprob_error, error)
    return verdict
