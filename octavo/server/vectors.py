"""From texts to vectors through the engine: what every route that does not generate is made of.

`embed` is the whole way for a route with its own words for it. Knows no wire format.
"""

from __future__ import annotations

import asyncio
from array import array
from base64 import b64encode
from dataclasses import dataclass
from sys import byteorder
from typing import TYPE_CHECKING

import msgspec

from octavo.engine.admission import check_dimensions
from octavo.errors import (
    DeadlineError,
    EngineError,
    EngineUnavailableError,
    InvalidRequestError,
    RequestError,
)
from octavo.observability.tracing import start_call
from octavo.server.generation import with_time_left
from octavo.server.prompts import MAX_CHARS_PER_TOKEN, MAX_INLINE_CHARS
from octavo.types import PoolingParams, RequestOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.server.account import Account, UsageLine
    from octavo.server.context import ServerContext
    from octavo.types import Task


@dataclass(frozen=True, slots=True)
class Encoded:
    """An input as the model reads it.

    Attributes:
        token_ids: within vocabulary and context.
        second_start: where the second text of a pair begins, for models with token types.
    """

    token_ids: list[int]
    second_start: int | None = None


@dataclass(frozen=True, slots=True)
class Vectors:
    """What came of inputs.

    Attributes:
        data: in the order of the inputs: float32, least significant byte first.
        num_tokens: of all inputs.
    """

    data: list[bytes]
    num_tokens: int


async def embed(
    context: ServerContext,
    inputs: Sequence[str | list[int]],
    *,
    request_id: str,
    account: Account,
    options: RequestOptions | None = None,
    max_len: int | None = None,
    dimensions: int | None = None,
    is_normalized: bool | None = None,
    add_special_tokens: bool = True,
    param: str = "input",
    names: Sequence[str] | None = None,
) -> Vectors:
    """Embed texts or lists of token ids.

    Args:
        context: the server's.
        inputs: at least one.
        request_id: unique among those in flight.
        account: of the HTTP request.
        options: how to treat it.
        max_len: cut longer inputs to so many tokens; None: refuse them.
        dimensions: see `PoolingParams`.
        is_normalized: whether vectors get length 1; None: as the model does it.
        add_special_tokens: around texts.
        param: the inputs' field, as the caller spells it.
        names: each input's field, where they come from several; None: `param`, or its items.

    Raises:
        RequestError: the server does not embed, an input does not fit, or there is no engine now.
        EngineError: the engine failed.
    """
    context.check_task("embed")
    check_dimensions(dimensions, context.engine.info)
    encoded = await encode(
        context,
        inputs,
        max_len=max_len,
        add_special_tokens=add_special_tokens,
        param=param,
        names=names,
    )
    return await pool(
        context,
        encoded,
        "embed",
        request_id=request_id,
        account=account,
        options=options or RequestOptions(),
        dimensions=dimensions,
        is_activated=is_normalized,
    )


async def encode(
    context: ServerContext,
    inputs: Sequence[str | list[int] | tuple[str, str]],
    *,
    max_len: int | None,
    add_special_tokens: bool = True,
    param: str = "input",
    names: Sequence[str] | None = None,
) -> list[Encoded]:
    """Texts, token ids or pairs of texts as the model reads them.

    Args:
        context: the server's.
        inputs: at least one.
        max_len: cut longer ones to so many tokens, special ones included; None: refuse them.
        add_special_tokens: around texts.
        param: the inputs' field, as the caller spells it.
        names: each input's field, where they come from several; None: `param`, or its items.

    Raises:
        InvalidRequestError: an input is empty, too long, or holds unknown ids.
    """
    info = context.engine.info
    pooling = info.pooling
    lowercases = pooling is not None and pooling.lowercases
    has_types = pooling is not None and pooling.has_token_types
    tokenizer = context.tokenizer

    def name(index: int) -> str:
        if names is not None:
            return names[index]
        return param if len(inputs) == 1 else f"{param}[{index}]"

    def encode_one(index: int, item: str | list[int] | tuple[str, str]) -> Encoded:
        if isinstance(item, list):
            context.prompts.check_ids(item, param=name(index))
            kept = item if max_len is None else item[:max_len]
            return _checked(Encoded(kept), info.max_model_len, name(index))
        texts: tuple[str, ...] = (item,) if isinstance(item, str) else item
        num_chars = sum(map(len, texts))
        if max_len is None and num_chars > info.max_model_len * MAX_CHARS_PER_TOKEN:
            raise _too_long(f"{num_chars} characters", info.max_model_len, name(index))
        if lowercases:
            texts = tuple(text.lower() for text in texts)
        ids, second_start = tokenizer.encode_texts(
            *texts, add_special_tokens=add_special_tokens, max_len=max_len
        )
        encoded = Encoded(ids, second_start if has_types else None)
        return _checked(encoded, info.max_model_len, name(index))

    def encode_all() -> list[Encoded]:
        return [encode_one(index, item) for index, item in enumerate(inputs)]

    num_chars = sum(
        len(item) if isinstance(item, str | list) else sum(map(len, item)) for item in inputs
    )
    return encode_all() if num_chars <= MAX_INLINE_CHARS else await asyncio.to_thread(encode_all)


def _checked(encoded: Encoded, max_model_len: int, name: str) -> Encoded:
    if not encoded.token_ids:
        raise InvalidRequestError(f"{name} has no tokens", param=name)
    if len(encoded.token_ids) > max_model_len:
        raise _too_long(f"{len(encoded.token_ids)} tokens", max_model_len, name)
    return encoded


def _too_long(has: str, max_model_len: int, name: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"the maximum context length is {max_model_len} tokens, but {name} has {has}: shorten it, "
        "or give truncate_prompt_tokens",
        param=name,
        code="context_length_exceeded",
    )


async def pool(
    context: ServerContext,
    inputs: Sequence[Encoded],
    task: Task,
    *,
    request_id: str,
    account: Account,
    options: RequestOptions,
    dimensions: int | None = None,
    is_activated: bool | None = None,
) -> Vectors:
    """Run encoded inputs on the engine, all at the same time.

    Raises:
        RequestError: the engine refuses one of them, or time is up; the others are aborted.
        EngineError: the engine failed.
    """
    params = PoolingParams(task=task, dimensions=dimensions, is_activated=is_activated)
    call = start_call(request_id, params, account.arrived)
    lines = account.lines(len(inputs))
    tasks = [
        asyncio.ensure_future(
            _pool_one(
                context,
                item.token_ids,
                msgspec.structs.replace(params, second_start=item.second_start),
                f"{request_id}-{index}",
                account.arrived,
                lines[index],
                options,
            )
        )
        for index, item in enumerate(inputs)
    ]
    try:
        vectors = await asyncio.gather(*tasks)
    except BaseException as exc:
        if call is not None:
            call.fail_vectors(exc)
        raise
    finally:
        for running in tasks:
            running.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    num_tokens = sum(len(item.token_ids) for item in inputs)
    if call is not None:
        call.end_vectors(len(inputs), num_tokens)
    return Vectors(vectors, num_tokens)


async def _pool_one(
    context: ServerContext,
    token_ids: list[int],
    params: PoolingParams,
    request_id: str,
    arrived: float,
    line: UsageLine,
    options: RequestOptions,
) -> bytes:
    timer, num_tokens = context.metrics.start_request(arrived), len(token_ids)
    line.open(request_id)
    try:
        pooled = await context.engine.pool(
            token_ids, params, request_id=request_id, options=with_time_left(options, arrived)
        )
    except asyncio.CancelledError:
        timer.finish("abort")
        line.end("abort", None, num_input_tokens=num_tokens)
        raise
    except RequestError as exc:
        timer.refuse(exc)
        line.refuse(request_id)
        raise
    except Exception:
        timer.finish("error")
        line.end("error", None, num_input_tokens=num_tokens)
        raise
    timer.on_pooled(num_tokens, pooled.finish_reason)
    line.end(pooled.finish_reason, None, num_input_tokens=num_tokens)
    if pooled.finish_reason == "stop":
        return pooled.vector
    if pooled.finish_reason == "timeout":
        raise DeadlineError(
            f"the request's timeout of {options.timeout_s:g} s passed before it was computed",
            code="timeout",
        )
    if pooled.finish_reason == "abort":
        raise EngineUnavailableError("the engine is shutting down", code="engine_dead")
    raise EngineError(pooled.error or "no reason given")


def to_floats(vector: bytes) -> list[float]:
    """The numbers of a vector."""
    numbers = array("f", vector)
    if byteorder == "big":
        numbers.byteswap()
    return numbers.tolist()


def to_wire(vector: bytes, encoding_format: str | None) -> list[float] | str:
    """A vector as JSON has it: numbers, or base64 of the float32 for `base64`."""
    return b64encode(vector).decode() if encoding_format == "base64" else to_floats(vector)
