"""Token counts of a response, in OpenAI's shape."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType


class CostFields(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer's usage has more where the header `X-Octavo-Include-Cost` asks for it.

    Attributes:
        gpu_seconds: of the device, over all choices; nine decimals, exact. Null: not known, as the
            engine failed, is slow to tell, or runs with `--no-metering`.
        cost: device time at the server's price; nine decimals. Null: that, or there is no price.
        currency: of the price.
    """

    gpu_seconds: float | UnsetType | None = UNSET
    cost: float | UnsetType | None = UNSET
    currency: str | UnsetType = UNSET


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """How the prompt's tokens came to be computed."""

    cached_tokens: int = 0


class Usage(CostFields, frozen=True):
    """Tokens of one HTTP request, summed over its prompts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, *, prompt: int, completion: int, cached: int) -> Usage:
        """Usage of so many prompt tokens, `cached` of them from the prefix cache, and output."""
        return cls(prompt, completion, prompt + completion, PromptTokensDetails(cached))
