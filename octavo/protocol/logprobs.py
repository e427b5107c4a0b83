"""Log-probabilities of prompts on the wire, in vLLM's shape."""

from __future__ import annotations

import msgspec


class PromptLogprob(msgspec.Struct, frozen=True):
    """One token at a position of the prompt, given those before it; rank 1 is the most probable."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = dict[str, PromptLogprob]
"""By token id: the prompt's own token first, then the most probable alternatives."""
