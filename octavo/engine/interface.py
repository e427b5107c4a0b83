"""What the API server asks of an engine. Knows nothing of processes, sockets, text or HTTP.

The server is written against this protocol; `engine/client.py` implements it, and tests use fakes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from octavo.types import (
        Charge,
        Delta,
        EngineInfo,
        EngineStats,
        Pooled,
        PoolingParams,
        RequestOptions,
        SamplingParams,
    )


class EngineClient(Protocol):
    """A running engine, seen from the API server's event loop."""

    @property
    def info(self) -> EngineInfo:
        """What the engine reported when it was ready."""
        ...

    @property
    def stats(self) -> EngineStats:
        """The newest snapshot that the engine sent."""
        ...

    def check_health(self) -> None:
        """Return while the engine takes requests and answers them.

        Raises:
            EngineUnavailableError: it is dead, stuck, restarting or shutting down.
        """
        ...

    def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        options: RequestOptions = ...,
    ) -> AsyncIterator[Delta]:
        """Generate from a prompt: an async generator of increments, one or more tokens each.

        The last delta has `finish_reason` set, `error` included. Closing the generator (`aclose()`
        or cancellation) aborts the request and frees its blocks within one step.

        Args:
            prompt_token_ids: at least one id, each below `info.vocab_size`.
            params: how to sample; `max_tokens` None means up to the context's end.
            request_id: unique among the requests in flight.
            options: `timeout_s` counts from this call.

        Raises:
            InvalidRequestError: before the first delta: the prompt is empty, too long for the
                context (code `context_length_exceeded`), or has ids out of the vocabulary; or the
                engine has no priorities.
            EngineUnavailableError: before the first delta: `check_health` would raise, or too many
                requests wait (`QueueFullError`).
        """
        ...

    async def pool(
        self,
        prompt_token_ids: Sequence[int],
        params: PoolingParams,
        *,
        request_id: str,
        options: RequestOptions = ...,
    ) -> Pooled:
        """A text's vector. Cancelling the call aborts the request, if it still waits.

        Args:
            prompt_token_ids: 1 to `info.max_model_len` ids, each below `info.vocab_size`.
            params: what is wanted; its task is one of `info.tasks`.
            request_id: unique among the requests in flight.
            options: `timeout_s` counts from this call.

        Raises:
            InvalidRequestError: the engine cannot do that, or not with this text.
            EngineUnavailableError: `check_health` would raise, or too many requests wait.
        """
        ...

    def listen_for_charges(self, listener: Callable[[str, Charge], None]) -> None:
        """Have a function called with the device time that each request cost in the end.

        It is called in the event loop, exactly once for each request that `generate` or `pool` sent
        to the engine: with the request's id, not later than the last delta where the engine ended
        the request. Where it was ended from outside (aborted, closed, timed out, a stop string in
        the text) the call comes when the last step with the request is done. The charge is zero
        where the engine died first, refused the request, or does not meter. Requests that raise are
        never told of.

        There is one listener; another call replaces it. It must not raise.
        """
        ...

    async def abort(self, request_id: str) -> None:
        """End a request: its last delta says `abort`. Unknown ids are ignored."""
        ...

    async def close(self) -> None:
        """Stop the engine and wait for its end. Requests in flight end with `abort` or `error`."""
        ...
