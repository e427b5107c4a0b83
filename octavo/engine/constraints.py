"""Requests whose output is bound to a grammar: compiled beside the loop, followed token by token.

Knows what a grammar allows next. Knows nothing of scheduling, of models or of how grammars are
written: a `Grammars` makes matchers out of what the requests bring.
"""

from __future__ import annotations

import logging
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from octavo.engine.messages import TokenOutput
from octavo.engine.request import RequestStatus
from octavo.errors import RequestError
from octavo.types import StepMasks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from octavo.engine.messages import AddRequest
    from octavo.engine.request import Request
    from octavo.types import StepPlan, StructuredOutputs

logger = logging.getLogger(__name__)

NUM_COMPILERS = 2
"""Threads that compile: one slow grammar then does not hold up the others."""

NO_GRAMMARS = "this engine has no tokenizer, which structured outputs need"


class Matcher(Protocol):
    """Follows one output."""

    @property
    def is_finished(self) -> bool:
        """Whether the output is complete: nothing may follow but its end."""
        ...

    @property
    def failure(self) -> str | None:
        """Why it can tell no more, or None."""
        ...

    def accept(self, token_id: int) -> bool:
        """Take the next token; False if it was not allowed."""
        ...


M = TypeVar("M", bound=Matcher)


class Grammars(Protocol[M]):
    """Makes matchers; may be called from several threads at once."""

    def matcher(self, spec: StructuredOutputs) -> M:
        """A matcher at the beginning of an output; takes as long as compiling does.

        Raises:
            InvalidRequestError: there is no such grammar, or it is too large.
        """
        ...

    def fill_rows(self, matchers: Sequence[M], bits: NDArray[np.uint32]) -> None:
        """Write which tokens each matcher allows next.

        Args:
            matchers: m of them, each once; one that fails says so, and its row is of no use.
            bits: [m, words] as in `StepMasks`; all of it is written.
        """
        ...


@dataclass(slots=True)
class _Bound:
    """One request's place in its grammar.

    Attributes:
        matcher: at the beginning while the output is free.
        starts: tokens that begin reasoning, while nothing was sampled.
        ends: tokens that end it.
        is_free: whether the output is reasoning now.
    """

    matcher: Matcher
    starts: list[int]
    ends: frozenset[int]
    is_free: bool

    @classmethod
    def of(cls, matcher: Matcher, spec: StructuredOutputs) -> _Bound:
        starts, ends = list(spec.reasoning_start_token_ids), frozenset(spec.reasoning_end_token_ids)
        return cls(matcher, starts if ends else [], ends, is_free=bool(ends) and not starts)

    def accept(self, token_id: int) -> None:
        starts, self.starts = self.starts, []
        if token_id in starts:
            self.is_free = True
        elif not self.is_free:
            self.matcher.accept(token_id)
        elif token_id in self.ends:
            self.is_free = False


class Constraints:
    """All requests of an engine that are bound, from their compiling to their end.

    Args:
        make_grammars: called once, in a thread, when the first of them comes; None: they fail.
        vocab_size: tokens that a mask tells of.
    """

    def __init__(self, make_grammars: Callable[[], Grammars[Any]] | None, vocab_size: int) -> None:
        self._make_grammars = make_grammars
        self._num_words = -(-vocab_size // 32)
        self._threads: ThreadPoolExecutor | None = None
        self._grammars: Future[Grammars[Any]] | None = None
        self._pending: dict[str, tuple[AddRequest, Future[Matcher]]] = {}
        self._bound: dict[str, _Bound] = {}

    def __bool__(self) -> bool:
        """Whether any request that may run is bound."""
        return bool(self._bound)

    @property
    def num_pending(self) -> int:
        """Requests whose grammars are being compiled."""
        return len(self._pending)

    def prepare(self, message: AddRequest) -> None:
        """Begin to compile a request's grammar; `take_ready` returns the request then."""
        if self._threads is None:
            self._threads = ThreadPoolExecutor(NUM_COMPILERS, thread_name_prefix="grammar")
            self._grammars = self._threads.submit(self._make)
        future = self._threads.submit(self._compile, message)
        self._pending[message.request_id] = message, future

    def _make(self) -> Grammars[Any]:
        if self._make_grammars is None:
            raise RequestError(NO_GRAMMARS)
        return self._make_grammars()

    def _compile(self, message: AddRequest) -> Matcher:
        assert self._grammars is not None
        spec = message.params.structured_outputs
        assert spec is not None
        matcher: Matcher = self._grammars.result().matcher(spec)
        return matcher

    def take_ready(self, timeout_s: float = 0.0) -> tuple[list[AddRequest], list[TokenOutput]]:
        """Requests whose grammars are there, now bound to them, and ends of those that failed.

        Args:
            timeout_s: how long to wait for the first of them.
        """
        if self._pending and timeout_s:
            futures = [future for _, future in self._pending.values()]
            wait(futures, timeout_s, return_when=FIRST_COMPLETED)
        ready: list[AddRequest] = []
        failed: list[TokenOutput] = []
        for request_id, (message, future) in list(self._pending.items()):
            if not future.done():
                continue
            del self._pending[request_id]
            try:
                matcher = future.result()
            except Exception as error:
                if not isinstance(error, RequestError):
                    logger.exception("request %s: its grammar could not be compiled", request_id)
                failed.append(
                    TokenOutput(request_id, [], finish_reason="error", error=_reason(error))
                )
                continue
            spec = message.params.structured_outputs
            assert spec is not None
            self._bound[request_id] = _Bound.of(matcher, spec)
            ready.append(message)
        return ready, failed

    def binds(self, plan: StepPlan, requests: Sequence[Request]) -> bool:
        """Whether the plan samples for any request that is bound, or may be when it samples."""
        return any(
            samples and request.request_id in self._bound
            for request, samples in zip(requests, plan.samples, strict=True)
        )

    def masks(
        self, plan: StepPlan, requests: Sequence[Request]
    ) -> tuple[StepMasks, list[TokenOutput]]:
        """What the plan's bound rows may get, once all their tokens are known.

        Args:
            plan: to be sampled.
            requests: of the plan's rows.

        Returns:
            The masks, and ends of requests whose grammars failed: those must be aborted.
        """
        rows: list[int] = []
        names: list[str] = []
        for row, request, samples in zip(plan.rows, requests, plan.samples, strict=True):
            bound = self._bound.get(request.request_id) if samples else None
            if (
                bound is not None
                and not bound.is_free
                and request.status is not RequestStatus.FINISHED
            ):
                rows.append(row)
                names.append(request.request_id)
        if not rows:
            return StepMasks([], b""), []
        bounds = [self._bound[name] for name in names]
        bits = np.zeros((len(rows), self._num_words), np.uint32)
        assert self._grammars is not None
        self._grammars.result().fill_rows([bound.matcher for bound in bounds], bits)
        for bound, words in zip(bounds, bits, strict=True):
            for token_id in bound.starts:
                words[token_id // 32] |= np.uint32(1 << token_id % 32)
        failures = [bound.matcher.failure for bound in bounds]
        ends = [
            self._end(name, failure)
            for name, failure in zip(names, failures, strict=True)
            if failure is not None
        ]
        kept = [index for index, failure in enumerate(failures) if failure is None]
        if len(kept) < len(rows):
            rows, bits = [rows[index] for index in kept], bits[kept]
        return StepMasks(rows, bits.tobytes()), ends

    def advance(self, outputs: Iterable[TokenOutput]) -> list[TokenOutput]:
        """Take in new tokens. Ends of requests whose output is complete, or not allowed after all:
        those must be aborted.
        """
        ends: list[TokenOutput] = []
        for output in outputs:
            bound = self._bound.get(output.request_id)
            if bound is None:
                continue
            if output.finish_reason is not None:
                del self._bound[output.request_id]
                continue
            for token_id in output.token_ids:
                bound.accept(token_id)
            matcher = bound.matcher
            if matcher.failure is not None or matcher.is_finished:
                ends.append(self._end(output.request_id, matcher.failure))
        return ends

    def forget(self, request_id: str) -> bool:
        """Drop a request; False if it was not one that waits for its grammar."""
        self._bound.pop(request_id, None)
        pending = self._pending.pop(request_id, None)
        if pending is not None:
            pending[1].cancel()
        return pending is not None

    def close(self) -> None:
        """End the threads; what they compile is dropped."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _end(self, request_id: str, failure: str | None) -> TokenOutput:
        del self._bound[request_id]
        if failure is None:
            return TokenOutput(request_id, [], finish_reason="stop")
        text = f"the structured output could not go on: {failure}"
        return TokenOutput(request_id, [], finish_reason="error", error=text)


def _reason(error: Exception) -> str:
    if isinstance(error, RequestError):
        return error.message
    return f"the grammar could not be compiled: {error}"
