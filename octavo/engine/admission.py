"""What a request must satisfy before the engine sees it. The same for every way in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

from octavo.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from octavo.types import EngineInfo, PoolingParams, RequestOptions, SamplingParams, Task


class EncodesText(Protocol):
    """What is asked of a tokenizer here."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The text's token ids."""
        ...


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


def check_task(task: Task, info: EngineInfo) -> None:
    """Refuse what this engine was not started for.

    Raises:
        InvalidRequestError: code `task_not_supported`; the message says which flag or route helps.
    """
    if task in info.tasks:
        return
    if "generate" in info.tasks:
        raise InvalidRequestError(
            f"this server generates text with {info.architecture}: to {task}, start one with "
            f"`octavo serve MODEL --task {task}` (such as all-minilm for embeddings)",
            code="task_not_supported",
        )
    routes = {"embed": "/v1/embeddings, /score and /rerank", "classify": "/classify"}
    does = " and ".join(info.tasks)
    use = routes.get(info.tasks[0], "/score and /rerank")
    advice = "start one with a model that generates" if task == "generate" else f"use {use}"
    raise InvalidRequestError(
        f"this server was started to {does} with {info.architecture} and cannot {task}: {advice}"
        + (f", or use {use} here" if task == "generate" else ""),
        code="task_not_supported",
    )


def check_pooling(prompt_token_ids: Sequence[int], params: PoolingParams, info: EngineInfo) -> None:
    """Refuse a request for a vector that this engine cannot make.

    Raises:
        InvalidRequestError: the engine has another task (code `task_not_supported`); the text is
            empty, holds ids out of the vocabulary, or is longer than the context (code
            `context_length_exceeded`); the vector cannot have so many dimensions.
    """
    check_task(params.task, info)
    _check_ids(prompt_token_ids, info.vocab_size, "input")
    if len(prompt_token_ids) > info.max_model_len:
        raise InvalidRequestError(
            f"the maximum context length is {info.max_model_len} tokens, but the input has "
            f"{len(prompt_token_ids)}: shorten it, or give truncate_prompt_tokens",
            param="input",
            code="context_length_exceeded",
        )
    check_dimensions(params.dimensions, info)


def check_dimensions(dimensions: int | None, info: EngineInfo) -> None:
    """Refuse to cut vectors that lose their meaning when they are cut.

    Raises:
        InvalidRequestError: the model was not trained for it, or not for this length.
    """
    pooling = info.pooling
    if dimensions is None or pooling is None:
        return
    if not pooling.is_matryoshka:
        raise InvalidRequestError(
            f"{info.architecture} is no Matryoshka model: its embeddings have "
            f"{pooling.num_dimensions} dimensions, leave dimensions out",
            param="dimensions",
        )
    allowed = pooling.matryoshka_dimensions
    if allowed and dimensions not in allowed:
        raise InvalidRequestError(
            f"dimensions must be one of {', '.join(map(str, allowed))}, got {dimensions}",
            param="dimensions",
        )
    if not 1 <= dimensions <= pooling.num_dimensions:
        raise InvalidRequestError(
            f"dimensions must be in 1..{pooling.num_dimensions}, got {dimensions}",
            param="dimensions",
        )


def _check_ids(token_ids: Sequence[int], vocab_size: int, param: str) -> None:
    if not token_ids:
        raise InvalidRequestError(f"the {param} has no tokens", param=param)
    if min(token_ids) < 0 or max(token_ids) >= vocab_size:
        wrong = next(i for i in token_ids if not 0 <= i < vocab_size)
        raise InvalidRequestError(
            f"the {param} has token id {wrong}, but ids go from 0 to {vocab_size - 1}",
            param=param,
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
            into the context with `max_tokens` (code `context_length_exceeded`); stop ids, biased or
            allowed ids are out of the vocabulary, or there are stop strings or bad words and no
            tokenizer.
    """
    check_task("generate", info)
    vocab_size, max_len = info.vocab_size, info.max_model_len
    _check_ids(prompt_token_ids, vocab_size, "prompt")
    if any(token_id >= vocab_size for token_id in params.stop_token_ids):
        raise InvalidRequestError(
            f"stop_token_ids must be below the vocabulary's size, {vocab_size}",
            param="stop_token_ids",
        )
    if any(token_id >= vocab_size for token_id in params.allowed_token_ids or ()):
        raise InvalidRequestError(
            f"allowed_token_ids must be below the vocabulary's size, {vocab_size}",
            param="allowed_token_ids",
        )
    check_logit_bias(params.logit_bias, vocab_size)
    if params.bad_words and not has_tokenizer:
        raise InvalidRequestError("there is no tokenizer to read bad words", param="bad_words")
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


def check_logit_bias(logit_bias: Mapping[int, float], vocab_size: int) -> None:
    """Refuse biases of tokens that the model does not have.

    Raises:
        InvalidRequestError: `param` is `logit_bias.ID`.
    """
    wrong = next((token_id for token_id in logit_bias if not 0 <= token_id < vocab_size), None)
    if wrong is not None:
        param = f"logit_bias.{wrong}"
        raise InvalidRequestError(f"{param}: token ids go from 0 to {vocab_size - 1}", param=param)


def bad_words_token_ids(
    words: Sequence[str], tokenizer: EncodesText, vocab_size: int
) -> list[list[int]]:
    """The token sequences that `bad_words` forbid: each word's, with and without a space before it.

    As vLLM's `SamplingParams.update_from_tokenizer`, which leaves out the spaced sequence where its
    length is another one; here it is left out only where it ends with the one without.

    Raises:
        InvalidRequestError: a word has no tokens, or one that the model's output does not have.
    """
    sequences: list[list[int]] = []
    for index, word in enumerate(words):
        bare = word.lstrip()
        plain = tokenizer.encode(bare, add_special_tokens=False)
        if not bare or not plain:
            raise InvalidRequestError(
                f"bad_words[{index}] has no tokens: leave it out", param=f"bad_words[{index}]"
            )
        spaced = tokenizer.encode(f" {bare}", add_special_tokens=False)
        forms = [plain] if spaced[-len(plain) :] == plain else [plain, spaced]
        for form in forms:
            if max(form) >= vocab_size:
                raise InvalidRequestError(
                    f"bad_words[{index}] has token {max(form)}, which the model never gives",
                    param=f"bad_words[{index}]",
                )
            if form not in sequences:
                sequences.append(form)
    return sequences
