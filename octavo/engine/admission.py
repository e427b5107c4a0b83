"""What a request must satisfy before the engine sees it. The same for every way in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from octavo.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.types import EngineInfo, RequestOptions, SamplingParams


def check_options(options: RequestOptions, info: EngineInfo) -> None:
    """Refuse a priority that the scheduler would not look at.

    Raises:
        InvalidRequestError: the policy has no priorities.
    """
    if options.priority and info.scheduling_policy != "priority":
        raise InvalidRequestError(
            f"this server schedules by {info.scheduling_policy!r}, without priorities: leave "
            "priority out, or start the server with --scheduling-policy priority",
            param="priority",
        )


def check_request(
    prompt_token_ids: Sequence[int],
    params: SamplingParams,
    info: EngineInfo,
    *,
    has_tokenizer: bool,
) -> SamplingParams:
    """The parameters with `max_tokens` set, if the request can run at all.

    Raises:
        InvalidRequestError: the prompt is empty, holds ids out of the vocabulary, or does not fit
            into the context with `max_tokens` (code `context_length_exceeded`); stop ids are out of
            the vocabulary, or there are stop strings and no tokenizer.
    """
    vocab_size, max_len = info.vocab_size, info.max_model_len
    if not prompt_token_ids:
        raise InvalidRequestError("the prompt has no tokens", param="prompt")
    if min(prompt_token_ids) < 0 or max(prompt_token_ids) >= vocab_size:
        wrong = next(i for i in prompt_token_ids if not 0 <= i < vocab_size)
        raise InvalidRequestError(
            f"the prompt has token id {wrong}, but ids go from 0 to {vocab_size - 1}",
            param="prompt",
        )
    if any(token_id >= vocab_size for token_id in params.stop_token_ids):
        raise InvalidRequestError(
            f"stop_token_ids must be below the vocabulary's size, {vocab_size}",
            param="stop_token_ids",
        )
    if params.stop_strings and not has_tokenizer:
        raise InvalidRequestError("there is no tokenizer to find stop strings", param="stop")
    room = max_len - len(prompt_token_ids)
    wanted = room if params.max_tokens is None else params.max_tokens
    if room < 1 or wanted > room:
        raise InvalidRequestError(
            f"the maximum context length is {max_len} tokens, but the prompt has "
            f"{len(prompt_token_ids)} tokens and max_tokens is {params.max_tokens}",
            param="max_tokens" if room >= 1 else "prompt",
            code="context_length_exceeded",
        )
    if params.max_tokens is None:
        return msgspec.structs.replace(params, max_tokens=room)
    return params
