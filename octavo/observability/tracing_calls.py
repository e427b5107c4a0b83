"""Runs of the model as spans, with the phases of each, and as metrics; see `tracing_spans`."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

from opentelemetry.trace import SpanContext, TraceFlags

from octavo.errors import DeadlineError, EngineError, RequestError
from octavo.observability import tracing_names as names
from octavo.types import Delta, PoolingParams, SamplingParams

if TYPE_CHECKING:
    from octavo.observability.tracing_spans import Attributes, RequestTrace, Tracer
    from octavo.types import FinishReason

_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class ModelCall:
    """One run of the model for a request: a choice, or all vectors of one request.

    Make it with `RequestTrace.call`. The first call of one of its methods counts.
    """

    __slots__ = (
        "_arrived",
        "_is_over",
        "_params",
        "_parent",
        "_request_id",
        "_submitted",
        "_trace",
        "_tracer",
    )

    def __init__(
        self,
        tracer: Tracer,
        trace: RequestTrace,
        parent: SpanContext | None,
        request_id: str,
        params: SamplingParams | PoolingParams,
        arrived: float,
    ) -> None:
        self._tracer = tracer
        self._trace = trace
        self._parent = parent
        self._request_id = request_id
        self._params = params
        self._arrived = arrived
        self._submitted = perf_counter()
        self._is_over = False

    def end(self, reason: FinishReason, delta: Delta | None, first_token_at: float | None) -> None:
        """It ended.

        Args:
            reason: why.
            delta: the last one that came, whose counts are of the whole run; None: none came.
            first_token_at: when the first token came, `time.perf_counter()`; None: none came.
        """
        error_type = {"error": "engine_error", "abort": "aborted"}.get(reason, "")
        self._finish(error_type, reason, delta, first_token_at)

    def end_vectors(self, num_inputs: int, num_input_tokens: int) -> None:
        """The vectors of so many inputs came."""
        self._finish("", None, Delta(num_prompt_tokens=num_input_tokens), None, num_inputs)

    def fail_vectors(self, error: BaseException) -> None:
        """There are none, because of this."""
        if isinstance(error, RequestError):
            is_counted = isinstance(error, DeadlineError)
            error_type = error.code or type(error).__name__
        else:
            is_counted = True
            error_type = "engine_error" if isinstance(error, EngineError) else "aborted"
        self._finish(error_type, None, None, None, is_counted=is_counted)

    def refuse(self, error_type: str) -> None:
        """The model never ran: metrics do not count it. `error_type` is one of few."""
        self._finish(error_type, None, None, None, is_counted=False)

    def _finish(
        self,
        error_type: str,
        reason: FinishReason | None,
        delta: Delta | None,
        first_token_at: float | None,
        num_inputs: int = 0,
        *,
        is_counted: bool = True,
    ) -> None:
        if self._is_over:
            return
        self._is_over = True
        end = perf_counter()
        if error_type:
            self._trace.failure = error_type
        to_first_s = None if first_token_at is None else first_token_at - self._arrived
        metrics = self._tracer.metrics
        if metrics is not None and is_counted:
            metrics.observe(
                self._trace.operation,
                duration_s=end - self._arrived,
                num_input_tokens=0 if delta is None else delta.num_prompt_tokens,
                num_output_tokens=0 if delta is None else delta.num_output_tokens,
                error_type=error_type,
                time_to_first_token_s=to_first_s,
            )
        if self._parent is None:
            return
        attributes = self._attributes()
        if error_type:
            attributes[names.ERROR_TYPE] = error_type
        if reason is not None:
            attributes[names.FINISH_REASONS] = (reason,)
        if num_inputs:
            attributes[names.NUM_INPUTS] = num_inputs
        if delta is not None:
            _add_counts(attributes, delta)
            self._add_costs(attributes, delta)
        if to_first_s is not None:
            attributes[names.TIME_TO_FIRST_TOKEN] = to_first_s
        own = SpanContext(
            self._parent.trace_id,
            self._tracer.new_span_id(),
            False,
            _SAMPLED,
            self._parent.trace_state,
        )
        begin_ns, end_ns = self._trace.at_ns(self._submitted), self._trace.at_ns(end)
        if delta is not None:
            self._send_phases(own, delta, begin_ns, end_ns, first_token_at)
        self._tracer.send(
            f"{self._trace.operation} {self._tracer.model}",
            own,
            self._parent,
            begin_ns,
            end_ns,
            attributes,
            is_error=bool(error_type),
        )

    def _send_phases(
        self,
        own: SpanContext,
        delta: Delta,
        begin_ns: int,
        end_ns: int,
        first_token_at: float | None,
    ) -> None:
        """The engine's own times, put one after the other from when it was asked."""
        phases: list[tuple[str, int, int]] = []
        if delta.prefill_ns:
            started_ns = begin_ns + delta.queue_ns
            first_ns = started_ns + delta.prefill_ns
            phases += [("queue", begin_ns, started_ns), ("prefill", started_ns, first_ns)]
        elif first_token_at is not None:
            first_ns = self._trace.at_ns(first_token_at)
        else:
            return
        if delta.num_output_tokens > 1:
            phases.append(("decode", first_ns, end_ns))
        for name, start_ns, stop_ns in phases:
            context = SpanContext(
                own.trace_id, self._tracer.new_span_id(), False, _SAMPLED, own.trace_state
            )
            self._tracer.send(name, context, own, min(start_ns, end_ns), min(stop_ns, end_ns), {})

    def _add_costs(self, attributes: Attributes, delta: Delta) -> None:
        """What the engine told at its end; the costs of an aborted run are in the ledger alone."""
        charge = delta.charge
        if charge is None:
            return
        attributes[names.GPU_SECONDS] = charge.total_ns / 1e9
        attributes[names.GPU_SECONDS_PREFILL] = charge.prefill_ns / 1e9
        attributes[names.GPU_SECONDS_DECODE] = charge.decode_ns / 1e9
        attributes[names.GPU_SECONDS_WASTE] = charge.waste_ns / 1e9
        rate = self._tracer.hourly_rate_nano
        if rate:
            attributes[names.COST] = rate * charge.total_ns / 3600e18
            attributes[names.CURRENCY] = self._tracer.currency

    def _attributes(self) -> Attributes:
        model = self._tracer.model
        found: Attributes = {
            names.OPERATION: self._trace.operation,
            names.PROVIDER: "octavo",
            names.REQUEST_MODEL: model,
            names.RESPONSE_MODEL: model,
            names.RESPONSE_ID: self._request_id,
        }
        params = self._params
        if isinstance(params, PoolingParams):
            if params.dimensions is not None:
                found[names.DIMENSIONS] = params.dimensions
            return found
        found[names.RESPONSE_ID] = self._request_id.rpartition("-")[0] or self._request_id
        found[names.TEMPERATURE] = params.temperature
        found[names.TOP_P] = params.top_p
        if params.top_k > 0:
            found[names.TOP_K] = params.top_k
        if params.max_tokens is not None:
            found[names.MAX_TOKENS] = params.max_tokens
        if params.seed is not None:
            found[names.SEED] = params.seed
        if params.frequency_penalty:
            found[names.FREQUENCY_PENALTY] = params.frequency_penalty
        if params.presence_penalty:
            found[names.PRESENCE_PENALTY] = params.presence_penalty
        outputs = params.structured_outputs
        if outputs is not None and (outputs.json is not None or outputs.json_object):
            found[names.OUTPUT_TYPE] = "json"
        return found


def _add_counts(attributes: Attributes, delta: Delta) -> None:
    attributes[names.INPUT_TOKENS] = delta.num_prompt_tokens
    if delta.num_output_tokens:
        attributes[names.OUTPUT_TOKENS] = delta.num_output_tokens
    if delta.num_cached_tokens:
        attributes[names.CACHED_TOKENS] = delta.num_cached_tokens
    if delta.num_preemptions:
        attributes[names.NUM_PREEMPTIONS] = delta.num_preemptions
