"""Token counts of a response, in OpenAI's shape."""

from __future__ import annotations

import msgspec


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """How the prompt's tokens came to be computed."""

    cached_tokens: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one HTTP request, summed over its prompts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, *, prompt: int, completion: int, cached: int) -> Usage:
        """Usage of so many prompt tokens, `cached` of them from the prefix cache, and output."""
        return cls(prompt, completion, prompt + completion, PromptTokensDetails(cached))
