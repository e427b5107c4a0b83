"""One streaming request to an OpenAI-compatible server, and the times at which its tokens came.

Knows nothing of load, arrivals or statistics. Times are `time.perf_counter()` seconds.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Literal

import msgspec

from octavo.bench.http import BufferSink, HTTPClient, TransportError
from octavo.bench.sse import SSEParser
from octavo.errors import ConfigError

Endpoint = Literal["completions", "chat"]
PATHS: dict[Endpoint, str] = {"completions": "/completions", "chat": "/chat/completions"}
_MAX_ERROR_CHARS = 300


class _Delta(msgspec.Struct):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[Any] | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    @property
    def has_token(self) -> bool:
        """True when a token stands behind this chunk.

        A chunk that only opens the message (a role) or only ends it (a finish reason) has none. An
        empty text may be a token whose bytes do not make a character yet.
        """
        if self.text or self.delta is None:
            return bool(self.text) or self.finish_reason is None
        delta = self.delta
        if delta.content or delta.reasoning_content or delta.reasoning or delta.tool_calls:
            return True
        return delta.role is None and delta.content is not None and self.finish_reason is None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class Chunk(msgspec.Struct):
    """One event of an OpenAI stream, as far as we read it; unknown members are skipped."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(Chunk)


def decode_chunk(event: bytes) -> Chunk:
    """A chunk from an event's data.

    Raises:
        msgspec.DecodeError: it is not one.
    """
    return _decoder.decode(event)


@dataclass(slots=True)
class Outcome:
    """What became of one request.

    Attributes:
        start: when the request was begun, before a connection was sought.
        token_times: when each chunk with a token arrived.
        end: when the response was over or had failed.
        num_prompt_tokens, num_cached_tokens: as the server counted; 0 if it did not say.
        num_output_tokens: as the server counted, else the number of chunks.
        has_usage: whether the server counted.
        finish_reason: the server's word, or None.
        error: one line, when it failed; then the counts mean nothing.
        status: HTTP status; 0 if there was no answer.
    """

    start: float = 0.0
    token_times: list[float] = field(default_factory=list)
    end: float = 0.0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    has_usage: bool = False
    finish_reason: str | None = None
    error: str | None = None
    status: int = 0

    @property
    def ttft(self) -> float:
        """Time to first token, seconds."""
        return self.token_times[0] - self.start

    @property
    def e2e(self) -> float:
        """From the beginning of the request to the end of the response, seconds."""
        return self.end - self.start

    @property
    def itls(self) -> list[float]:
        """Inter-token latencies: the gaps between neighbouring chunks with tokens, seconds."""
        times = self.token_times
        return [later - earlier for earlier, later in itertools.pairwise(times)]

    @property
    def tpot(self) -> float | None:
        """Time per output token after the first, seconds; None for an answer of one token."""
        if self.num_output_tokens < 2:
            return None
        return (self.token_times[-1] - self.token_times[0]) / (self.num_output_tokens - 1)


class _StreamSink:
    """Reads an event stream (or an error body) into an `Outcome`."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self._parser = SSEParser()
        self._raw = bytearray()
        self.is_done = False

    def start(self, status: int) -> None:
        self.outcome.status = status

    def body(self, data: bytes, now: float) -> bool:
        if self.outcome.status != 200:
            self._raw += data[: 65536 - len(self._raw)]
            return False
        for event in self._parser.feed(data):
            if event == b"[DONE]":
                self.is_done = True
                break
            self._chunk(event, now)
            if self.outcome.error:
                break
        return self.is_done or self.outcome.error is not None

    def _chunk(self, event: bytes, now: float) -> None:
        outcome = self.outcome
        try:
            chunk = decode_chunk(event)
        except msgspec.DecodeError as error:
            outcome.error = f"not a chunk of OpenAI's stream: {error}"
            return
        if chunk.error is not None:
            outcome.error = f"error in the stream: {error_text(chunk.error)}"
            return
        for choice in chunk.choices:
            if choice.has_token:
                outcome.token_times.append(now)
            outcome.finish_reason = choice.finish_reason or outcome.finish_reason
        if chunk.usage is not None:
            usage = chunk.usage
            outcome.has_usage = True
            outcome.num_prompt_tokens = usage.prompt_tokens
            outcome.num_output_tokens = usage.completion_tokens
            if usage.prompt_tokens_details is not None:
                outcome.num_cached_tokens = usage.prompt_tokens_details.cached_tokens or 0

    def finish(self) -> None:
        """Judge the answer, now that it is over."""
        outcome = self.outcome
        if outcome.error is not None:
            return
        if outcome.status != 200:
            outcome.error = f"HTTP {outcome.status}: {_body_text(bytes(self._raw))}"
        elif not self.is_done and outcome.finish_reason is None:
            outcome.error = "the stream ended before the answer did"
        elif not outcome.token_times:
            outcome.error = "the answer has no tokens"
        elif outcome.finish_reason in ("error", "abort"):
            outcome.error = f"the server ended the answer with {outcome.finish_reason!r}"
        if not outcome.has_usage:
            outcome.num_output_tokens = len(outcome.token_times)


def error_text(error: object) -> str:
    """One short line out of an `error` member, whatever its shape."""
    if isinstance(error, dict):
        error = error.get("message") or error
    return " ".join(str(error).split())[:_MAX_ERROR_CHARS]


def _body_text(raw: bytes) -> str:
    try:
        body = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return error_text(raw.decode("utf-8", "replace")) or "(empty body)"
    if isinstance(body, dict):
        body = body.get("error") or body.get("detail") or body.get("message") or body
    return error_text(body)


def api_base(url: str) -> str:
    """The URL that OpenAI's paths are appended to: a bare `http://host:port` gets `/v1`."""
    scheme, separator, rest = url.strip().partition("://")
    host, _, path = rest.partition("/")
    path = path.strip("/") or "v1"
    return f"{scheme}{separator}{host}/{path}"


class OpenAIClient:
    """Sends prepared bodies to one server.

    Args:
        url: the server's, with or without `/v1`.
        api_key: sent as a bearer token.
        timeout_s: a request that takes longer fails.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 600.0) -> None:
        self.url = api_base(url)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._http = HTTPClient(self.url, headers)
        self._timeout_s = timeout_s

    async def stream(self, endpoint: Endpoint, body: bytes) -> Outcome:
        """Send one request whose body says `stream: true`; failures come back in the outcome."""
        outcome = Outcome()
        sink = _StreamSink(outcome)
        outcome.start = perf_counter()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._http.request(
                    "POST", PATHS[endpoint], sink, body, accept="text/event-stream"
                )
        except TransportError as error:
            if not sink.is_done:
                outcome.error = outcome.error or str(error)
        except TimeoutError:
            outcome.error = f"no complete answer within {self._timeout_s:g} s"
        outcome.end = perf_counter()
        sink.finish()
        return outcome

    async def models(self) -> list[str]:
        """The ids of `/v1/models`.

        Raises:
            ConfigError: the server does not answer, or not with a list of models.
        """
        sink = BufferSink()
        try:
            async with asyncio.timeout(min(self._timeout_s, 30.0)):
                await self._http.request("GET", "/models", sink)
        except TransportError as error:
            raise ConfigError(f"no server answers at {self.url}: {error}") from None
        except TimeoutError:
            raise ConfigError(f"the server at {self.url} does not answer") from None
        if sink.status != 200:
            reason = _body_text(bytes(sink.content))
            raise ConfigError(f"{self.url}/models answers with HTTP {sink.status}: {reason}")
        try:
            return [str(model["id"]) for model in msgspec.json.decode(sink.content)["data"]]
        except (msgspec.DecodeError, KeyError, TypeError):
            raise ConfigError(f"{self.url}/models does not list models; give --model") from None

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()
