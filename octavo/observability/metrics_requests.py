"""What the API server measures of requests: latencies, lengths, ends. Fed by a `RequestTimer` each.

Names, types and buckets are vLLM's. Times up to the first token are the engine's own, told with its
outputs; those after it are the API server's, like everything that a client can see.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, get_args

from octavo.errors import QueueFullError, RequestError
from octavo.observability.histogram import Histogram
from octavo.observability.metrics_buckets import (
    E2E_BUCKETS,
    ITL_BUCKETS,
    N_BUCKETS,
    PREEMPTION_BUCKETS,
    TTFT_BUCKETS,
    token_buckets,
)
from octavo.observability.metrics_text import Family
from octavo.types import Delta, FinishReason

if TYPE_CHECKING:
    from collections.abc import Iterator

    from octavo.observability.board import Board
    from octavo.observability.tracing_calls import ModelCall

REASONS: dict[FinishReason, int] = {
    reason: index for index, reason in enumerate(get_args(FinishReason))
}
QUEUE_FULL = "max_num_queued_reqs"
"""Why a request was refused, in vLLM's word."""


class Siblings:
    """Sequences that one prompt is sampled for: `n` is one parameter, and the longest counts.

    Args:
        n: how many the client asked for.
        num_run: how many of them run as requests of their own.
    """

    __slots__ = ("longest", "n", "num_left")

    def __init__(self, n: int = 1, num_run: int | None = None) -> None:
        self.n = n
        self.num_left = n if num_run is None else num_run
        self.longest = 0


class RequestMetrics:
    """Histograms and counters of requests.

    Args:
        board: where to count.
        max_model_len: bounds the histograms of lengths.
    """

    def __init__(self, board: Board, max_model_len: int) -> None:
        def histogram(bounds: tuple[float, ...]) -> Histogram:
            return Histogram(bounds, board.take(Histogram.num_cells(bounds)))

        lengths = token_buckets(max_model_len)
        self.time_to_first_token = histogram(TTFT_BUCKETS)
        self.inter_token_latency = histogram(ITL_BUCKETS)
        self.e2e_request_latency = histogram(E2E_BUCKETS)
        self.queue_time = histogram(E2E_BUCKETS)
        self.prefill_time = histogram(E2E_BUCKETS)
        self.decode_time = histogram(E2E_BUCKETS)
        self.inference_time = histogram(E2E_BUCKETS)
        self.time_per_output_token = histogram(ITL_BUCKETS)
        self.prompt_tokens = histogram(lengths)
        self.generation_tokens = histogram(lengths)
        self.max_num_generation_tokens = histogram(lengths)
        self.params_max_tokens = histogram(lengths)
        self.prefill_kv_computed_tokens = histogram(lengths)
        self.params_n = histogram(N_BUCKETS)
        self.num_preemptions = histogram(PREEMPTION_BUCKETS)
        self._ends = board.take(len(REASONS))
        self._rejections = board.take(1)

    @property
    def finished(self) -> dict[FinishReason, int]:
        """Number of ended requests by reason.

        Requests that the engine refused were never admitted and are not in it; clients that went
        away are, as `abort`.
        """
        return {
            reason: int(sum(cells[index] for cells in self._ends))
            for reason, index in REASONS.items()
        }

    def count_end(self, reason: FinishReason) -> None:
        """Count a request that ended."""
        self._ends[0][REASONS[reason]] += 1

    def count_rejection(self) -> None:
        """Count a request that was refused because too many waited."""
        self._rejections[0][0] += 1

    def families(self) -> Iterator[Family]:
        """What a scrape tells of it."""
        yield Family(
            "vllm:request_success",
            "counter",
            "Ended requests by reason.",
            [((("finished_reason", reason),), num) for reason, num in self.finished.items()],
        )
        yield Family(
            "vllm:admission_rejections",
            "counter",
            "Requests refused because too many waited.",
            [((("reason", QUEUE_FULL),), int(sum(cells[0] for cells in self._rejections)))],
        )
        itl = "Time between two tokens of a request, seconds."
        for name, text, histogram in (
            (
                "time_to_first_token_seconds",
                "From arrival to first token, seconds.",
                self.time_to_first_token,
            ),
            ("inter_token_latency_seconds", itl, self.inter_token_latency),
            ("time_per_output_token_seconds", f"Old name: {itl}", self.inter_token_latency),
            (
                "request_time_per_output_token_seconds",
                "Mean time between two tokens, of each request, seconds.",
                self.time_per_output_token,
            ),
            (
                "e2e_request_latency_seconds",
                "From arrival to end, seconds.",
                self.e2e_request_latency,
            ),
            ("request_queue_time_seconds", "In the engine's queue, seconds.", self.queue_time),
            (
                "request_prefill_time_seconds",
                "From the first step to the first token, seconds.",
                self.prefill_time,
            ),
            (
                "request_decode_time_seconds",
                "From the first to the last token, seconds.",
                self.decode_time,
            ),
            (
                "request_inference_time_seconds",
                "From the first step to the last token, seconds.",
                self.inference_time,
            ),
            ("request_prompt_tokens", "Tokens of prompts.", self.prompt_tokens),
            ("request_generation_tokens", "Tokens of outputs.", self.generation_tokens),
            (
                "request_max_num_generation_tokens",
                "Tokens of the longest output among a prompt's.",
                self.max_num_generation_tokens,
            ),
            (
                "request_params_max_tokens",
                "The parameter max_tokens, or what takes its place.",
                self.params_max_tokens,
            ),
            ("request_params_n", "The parameter n.", self.params_n),
            (
                "request_prefill_kv_computed_tokens",
                "Tokens of prompts that the prefix cache did not have.",
                self.prefill_kv_computed_tokens,
            ),
            (
                "request_num_preemptions",
                "How often a request lost its blocks.",
                self.num_preemptions,
            ),
        ):
            yield Family(f"vllm:{name}", "histogram", text, [((), histogram)])


class RequestTimer:
    """Measures one request from its start to its one end, in seconds of the monotonic clock.

    Time to first token: from the start to the first delta with tokens. Inter-token latency: a
    later delta of k tokens counts k times with a k-th of the time since the one before, so that
    the sum is the time and the count is the number of tokens.

    Args:
        metrics: where to count.
        arrived: `time.perf_counter()` when the request came.
        max_tokens: most tokens that it may generate; None: it generates none.
        siblings: sequences of the same prompt, this one among them; None: there are no others.

    Attributes:
        call: told of the end too, for its trace; None: nobody traces the request.
        finished_reason: None until the end.
    """

    __slots__ = (
        "_first",
        "_last",
        "_max_tokens",
        "_metrics",
        "_newest",
        "_siblings",
        "_start",
        "call",
        "finished_reason",
    )

    def __init__(
        self,
        metrics: RequestMetrics,
        arrived: float,
        max_tokens: int | None = None,
        siblings: Siblings | None = None,
    ) -> None:
        self._metrics = metrics
        self._start = arrived
        self._max_tokens = max_tokens
        self._siblings = siblings
        self._first: float | None = None
        self._last = arrived
        self._newest: Delta | None = None
        self.call: ModelCall | None = None
        self.finished_reason: FinishReason | None = None

    def on_delta(self, delta: Delta) -> None:
        """Count a delta; the one that ends the request finishes the timer."""
        num_tokens = len(delta.token_ids)
        if num_tokens:
            now = perf_counter()
            if self._first is None:
                self._first = now
                self._metrics.time_to_first_token.observe(now - self._start)
            else:
                self._metrics.inter_token_latency.observe(
                    (now - self._last) / num_tokens, num_tokens
                )
            self._last = now
        self._newest = delta
        if delta.finish_reason is not None:
            self.finish(delta.finish_reason)

    def finish(self, reason: FinishReason) -> None:
        """Count the request's end. The first call counts, later ones do nothing."""
        if self.finished_reason is not None:
            return
        self.finished_reason = reason
        self._metrics.count_end(reason)
        self._metrics.e2e_request_latency.observe(perf_counter() - self._start)
        if self._max_tokens is not None:
            self._metrics.params_max_tokens.observe(self._max_tokens)
            newest = self._newest
            self._count_output(0 if newest is None else newest.num_output_tokens)
            if newest is not None:
                self._count_way(newest)
        if self.call is not None:
            self.call.end(reason, self._newest, self._first)

    @property
    def first_token_at(self) -> float | None:
        """`time.perf_counter()` when the first token came; None: none has."""
        return self._first

    @property
    def newest(self) -> Delta | None:
        """The last delta that came, which has the numbers of tokens."""
        return self._newest

    def on_pooled(self, num_prompt_tokens: int, reason: FinishReason) -> None:
        """Count the end of a request for a vector."""
        self._metrics.prompt_tokens.observe(num_prompt_tokens)
        self.finish(reason)

    def refuse(self, error: RequestError) -> None:
        """The engine never admitted the request."""
        if isinstance(error, QueueFullError):
            self._metrics.count_rejection()
        if self.call is not None:
            self.call.refuse(error.code or type(error).__name__)

    def _count_output(self, num_tokens: int) -> None:
        siblings = Siblings() if self._siblings is None else self._siblings
        siblings.longest = max(siblings.longest, num_tokens)
        siblings.num_left -= 1
        if not siblings.num_left:
            self._metrics.params_n.observe(siblings.n)
            self._metrics.max_num_generation_tokens.observe(siblings.longest)

    def _count_way(self, newest: Delta) -> None:
        """What is known of a request that the engine said anything of."""
        metrics = self._metrics
        num_prompt, num_output = newest.num_prompt_tokens, newest.num_output_tokens
        metrics.prompt_tokens.observe(num_prompt)
        metrics.generation_tokens.observe(num_output)
        metrics.num_preemptions.observe(newest.num_preemptions)
        if self._first is None or not newest.prefill_ns:
            return
        decode_s = self._last - self._first
        metrics.prefill_kv_computed_tokens.observe(num_prompt - newest.num_cached_tokens)
        metrics.queue_time.observe(newest.queue_ns / 1e9)
        metrics.prefill_time.observe(newest.prefill_ns / 1e9)
        metrics.decode_time.observe(decode_s)
        metrics.inference_time.observe(newest.prefill_ns / 1e9 + decode_s)
        if num_output > 1:
            metrics.time_per_output_token.observe(decode_s / (num_output - 1))
