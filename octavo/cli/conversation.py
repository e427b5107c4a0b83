"""Where a chat's answers come from: a server over HTTP, or a model in this process.

Knows nothing of the terminal. Both kinds answer with an iterator of pieces; closing it, or a Ctrl-C
while it is read, stops the answer where it is made and frees what it held.
"""

from __future__ import annotations

import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from octavo.errors import EngineError, OctavoError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from types import FrameType

    import httpx

    from octavo.types import Delta, SamplingParams

Message = dict[str, str]

DEFAULT_URL = "http://127.0.0.1:8000/v1"
_ANSWERS_WITHIN_S = 2.0
"""A server that is there lists its models within this."""


class Piece(msgspec.Struct, frozen=True):
    """Some text of an answer, or of the reasoning before it."""

    text: str
    is_reasoning: bool = False


@dataclass(slots=True)
class Stats:
    """Figures of one answer; seconds.

    Attributes:
        num_prompt_tokens, num_output_tokens: None when the server did not say.
        ttft_s: from the question to the first piece; None when there was none.
        duration_s: from the question to the end.
        finish_reason: `stop`, `length`, or None when it was stopped.
    """

    num_prompt_tokens: int | None = None
    num_output_tokens: int | None = None
    ttft_s: float | None = None
    duration_s: float = 0.0
    finish_reason: str | None = None
    began: float = field(default_factory=time.perf_counter)

    def arrived(self) -> None:
        """A piece came."""
        if self.ttft_s is None:
            self.ttft_s = time.perf_counter() - self.began

    def ended(self) -> None:
        """The answer is over."""
        self.duration_s = time.perf_counter() - self.began

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens after the first over the time after the first."""
        if self.num_output_tokens is None or self.ttft_s is None or self.num_output_tokens < 2:
            return None
        return (self.num_output_tokens - 1) / max(self.duration_s - self.ttft_s, 1e-9)

    def __str__(self) -> str:
        parts = []
        if self.num_prompt_tokens is not None:
            parts.append(f"{self.num_prompt_tokens} prompt tokens")
        if self.num_output_tokens is not None:
            parts.append(f"{self.num_output_tokens} output tokens")
        if self.ttft_s is not None:
            parts.append(f"first token after {self.ttft_s * 1000:.0f} ms")
        if (rate := self.tokens_per_s) is not None:
            parts.append(f"then {rate:.1f} tokens/s")
        return ", ".join([*parts, f"{self.duration_s:.2f} s in all"])


class Partner(Protocol):
    """Whom the user talks to.

    Attributes:
        title: who that is, for the first line of the screen.
    """

    title: str

    def answer(
        self, messages: list[Message], options: dict[str, Any], stats: Stats
    ) -> Generator[Piece]:
        """Answer the conversation, and fill `stats` on the way.

        Args:
            messages: OpenAI's, the last one the user's.
            options: `temperature`, `max_tokens`, as far as they were given.
            stats: begun by the caller.

        Raises:
            OctavoError: the request was refused, or the answer broke off.
        """
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class ChatError(OctavoError):
    """The server refused a turn, or its answer broke off."""


class NotAServerError(ChatError):
    """Something answers, but it is no server of OpenAI's API."""


class Server:
    """A running server, over HTTP.

    Args:
        url: OpenAI's base, with `/v1`.
        api_key: sent as a bearer token.
        read_timeout_s: longest silence before and within an answer.
    """

    def __init__(
        self, url: str, *, api_key: str | None = None, read_timeout_s: float = 600.0
    ) -> None:
        import httpx

        from octavo.cli.serve import is_loopback

        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            host = httpx.URL(url).host
            self._http = httpx.Client(
                base_url=url,
                headers=headers,
                timeout=httpx.Timeout(read_timeout_s, connect=10.0),
                trust_env=not is_loopback(host),  # a proxy cannot reach this machine's servers
            )
        except (httpx.InvalidURL, UnicodeEncodeError) as error:
            raise ChatError(f"{url!r} is not a URL: {error}") from None
        self._url = url
        self.model = ""
        self.title = url

    def models(self) -> list[str] | None:
        """The ids that the server lists; None when no server answers.

        Raises:
            ChatError: it wants another key.
            NotAServerError: what answers does not list models.
        """
        import httpx

        try:
            response = self._http.get("/models", timeout=_ANSWERS_WITHIN_S)
        except httpx.HTTPError:
            return None
        except httpx.InvalidURL as error:
            raise ChatError(f"{self._url!r} is not a URL: {error}") from None
        if response.status_code != 200:
            is_key = response.status_code in (401, 403)
            kind = ChatError if is_key else NotAServerError
            raise kind(f"{self._url}: {_error_text(response)}")
        try:
            return [str(model["id"]) for model in response.json()["data"]]
        except (ValueError, KeyError, TypeError):
            raise NotAServerError(f"{self._url}/models does not list models") from None

    def choose(self, model: str) -> None:
        """Ask for this model from now on."""
        self.model = model
        self.title = f"{model} at {self._url}"

    def answer(
        self, messages: list[Message], options: dict[str, Any], stats: Stats
    ) -> Generator[Piece]:
        """See `Partner`. Closing it closes the connection, by which the server learns to stop."""
        import httpx

        from octavo.bench.sse import SSEParser

        body = {
            "model": self.model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
            **options,
        }
        parser = SSEParser()
        try:
            with self._http.stream("POST", "/chat/completions", json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise ChatError(_error_text(response))
                for data in response.iter_bytes():
                    for event in parser.feed(data):
                        if event == b"[DONE]":
                            return
                        yield from _pieces(event, stats)
            if stats.finish_reason is None:
                raise ChatError("the server ended its answer in the middle")
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise ChatError(f"{self._url} does not answer: {reason}") from None
        finally:
            stats.ended()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


def _pieces(event: bytes, stats: Stats) -> Iterator[Piece]:
    from octavo.bench.client import decode_chunk, error_text

    try:
        chunk = decode_chunk(event)
    except msgspec.DecodeError:
        raise ChatError("the server sent something that is not a chunk of an answer") from None
    if chunk.error is not None:
        raise ChatError(error_text(chunk.error))
    if chunk.usage is not None:
        stats.num_prompt_tokens = chunk.usage.prompt_tokens
        stats.num_output_tokens = chunk.usage.completion_tokens
    for choice in chunk.choices:
        if choice.delta is not None:
            reasoning = choice.delta.reasoning_content or choice.delta.reasoning
            for text, is_reasoning in ((reasoning, True), (choice.delta.content, False)):
                if text:
                    stats.arrived()
                    yield Piece(text, is_reasoning)
        stats.finish_reason = choice.finish_reason or stats.finish_reason


def _error_text(response: httpx.Response) -> str:
    try:
        body = response.json()
        message = body["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = f"HTTP {response.status_code} {response.reason_phrase}"
    return str(message)


class ChatsLocally(Protocol):
    """The part of `LLM` that a chat needs."""

    def stream_chat(self, messages: list[Message], params: SamplingParams) -> Iterator[Delta]:
        """Deltas up to the one with a finish reason."""
        ...

    def close(self) -> None:
        """Free the engine."""
        ...


class InProcess:
    """A model in this process.

    Args:
        llm: the engine; closed with this.
        title: the model's name.
        params: makes sampling parameters out of the options.
    """

    def __init__(
        self, llm: ChatsLocally, title: str, params: Callable[[dict[str, Any]], SamplingParams]
    ) -> None:
        self._llm = llm
        self._params = params
        self.title = title

    def answer(
        self, messages: list[Message], options: dict[str, Any], stats: Stats
    ) -> Generator[Piece]:
        """See `Partner`. A Ctrl-C takes effect between two deltas, never within a step."""
        deltas = self._llm.stream_chat(messages, self._params(options))
        try:
            with deferred_interrupt() as is_interrupted:
                for delta in deltas:
                    record(delta, stats)
                    if delta.text:
                        yield Piece(delta.text)
                    if is_interrupted():
                        raise KeyboardInterrupt
        finally:
            close = getattr(deltas, "close", None)
            if close is not None:
                close()
            stats.ended()

    def close(self) -> None:
        """Free the engine."""
        self._llm.close()


def record(delta: Delta, stats: Stats) -> None:
    """Enter one delta of an engine into the figures.

    Raises:
        EngineError: it says that the engine failed.
    """
    if delta.finish_reason == "error":
        raise EngineError(delta.error or "the engine failed")
    if delta.token_ids:
        stats.arrived()
    stats.num_prompt_tokens = delta.num_prompt_tokens
    stats.num_output_tokens = delta.num_output_tokens
    stats.finish_reason = delta.finish_reason


@contextmanager
def deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Make the first Ctrl-C a question that the caller asks when it suits: was there one?

    An engine in this process must not be broken off within a step. A second Ctrl-C does raise
    `KeyboardInterrupt` where it finds us, so that nothing can hang.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread gets signals
        return
    seen = False

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal seen
        if seen:
            raise KeyboardInterrupt
        seen = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: seen
    finally:
        signal.signal(signal.SIGINT, before)
