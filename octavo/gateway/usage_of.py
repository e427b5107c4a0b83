"""What an answer says it used, on all routes, of all kinds of backends.

One pass over the JSON that skips what is not asked for: an answer of megabytes is not built.
`gpu_seconds` and `cost` are Octavo's, see `protocol.usage.CostFields`.
"""

from __future__ import annotations

import math

import msgspec

from octavo.gateway.model import Route, Tokens


class _Cached(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    """All spellings at once. Anthropic's `input_tokens` are without those in the cache."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: _Cached | None = None
    input_tokens_details: _Cached | None = None
    prompt_cache_hit_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    gpu_seconds: float | None = None
    cost: float | None = None


class _Incomplete(msgspec.Struct):
    reason: str | None = None


class _Response(msgspec.Struct):
    """An answer of /v1/responses, by itself or within an event."""

    status: str | None = None
    usage: _Usage | None = None
    incomplete_details: _Incomplete | None = None


class _Message(msgspec.Struct):
    usage: _Usage | None = None


class _Delta(msgspec.Struct):
    stop_reason: str | None = None


class _Choice(msgspec.Struct):
    finish_reason: str | None = None


class _Answer(msgspec.Struct):
    """Whatever has usage: answers and events of all routes."""

    usage: _Usage | None = None
    choices: list[_Choice] | None = None
    message: _Message | None = None
    response: _Response | None = None
    delta: _Delta | str | None = None
    stop_reason: str | None = None
    status: str | None = None
    incomplete_details: _Incomplete | None = None


_decoder = msgspec.json.Decoder(_Answer)


def parse_usage(
    route: Route, data: bytes, before: Tokens | None = None
) -> tuple[Tokens | None, str]:
    """What an answer, or an event of a stream, says it used, and why it ended.

    Args:
        route: whose shape it has.
        data: JSON.
        before: what an earlier event of the stream said: Anthropic's tell the input first and the
            output last.

    Returns:
        The tokens, None where it tells none; the reason as the route spells it, or empty.

    Raises:
        msgspec.DecodeError: it is no JSON object, or its usage is no usage.
    """
    answer = _decoder.decode(data)
    usage = answer.usage
    finish = ""
    if route == "responses":
        response = answer.response or answer
        usage = response.usage
        finish = response.status or ""
        if finish == "incomplete" and response.incomplete_details is not None:
            finish = response.incomplete_details.reason or finish
    elif route == "messages":
        if answer.message is not None:
            usage = answer.message.usage
        delta = answer.delta
        finish = answer.stop_reason or (
            delta.stop_reason if isinstance(delta, _Delta) and delta.stop_reason else ""
        )
    elif answer.choices:
        finish = answer.choices[-1].finish_reason or ""
    if usage is None:
        return None, finish
    if route == "messages":
        return _of_anthropic(usage, before or Tokens()), finish
    return _of_openai(usage), finish


def _of_openai(usage: _Usage) -> Tokens:
    given = usage.prompt_tokens if usage.prompt_tokens is not None else usage.input_tokens
    output = usage.completion_tokens if usage.completion_tokens is not None else usage.output_tokens
    if given is None:  # /v1/rerank tells the sum alone
        given = max(0, (usage.total_tokens or 0) - (output or 0))
    details = usage.prompt_tokens_details or usage.input_tokens_details
    cached = details.cached_tokens if details is not None else usage.prompt_cache_hit_tokens
    return _tokens(usage, given, cached or 0, output or 0)


def _of_anthropic(usage: _Usage, before: Tokens) -> Tokens:
    """Counts in later events are of the whole answer, and what they leave out stays as it was."""
    if usage.input_tokens is None:
        given, cached = before.input, before.cached
    else:
        cached = usage.cache_read_input_tokens or 0
        given = usage.input_tokens + cached + (usage.cache_creation_input_tokens or 0)
        if given < before.input:
            given, cached = before.input, before.cached
    output = before.output if usage.output_tokens is None else usage.output_tokens
    return _tokens(usage, given, cached, output)


def _tokens(usage: _Usage, given: int, cached: int, output: int) -> Tokens:
    """No token takes no time: an engine that tells none does not meter, and knows no cost."""
    given, output = max(0, given), max(0, output)
    is_metered = usage.gpu_seconds != 0 or not (given or output)
    return Tokens(
        input=given,
        cached=min(max(0, cached), given),
        output=output,
        device_ns=_nano(usage.gpu_seconds) if is_metered else None,
        cost_nano=_nano(usage.cost) if is_metered else None,
    )


def _nano(value: float | None) -> int | None:
    """Nine decimals are exact up to 1e6 in a double's 53 bits."""
    if value is None or not math.isfinite(value) or not 0 <= value < 9e9:
        return None
    return round(value * 1e9)
