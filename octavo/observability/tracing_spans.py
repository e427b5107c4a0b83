"""Requests as spans: one for each HTTP request, below it one for each time that the model runs for
it, and below that one for each phase of the model's work.

A request's numbers are gathered in plain objects, and its spans are made when it has ended: ten
times cheaper than keeping the SDK's spans open, and nothing is done while tokens come. Knows
nothing of HTTP but names. Nobody's text is in a span: neither prompts nor answers nor stop strings.
"""

from __future__ import annotations

import time
from time import perf_counter
from typing import TYPE_CHECKING

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    TraceFlags,
    TraceState,
    set_span_in_context,
)
from opentelemetry.trace.status import Status, StatusCode

from octavo.errors import DeadlineError, EngineError, RequestError
from octavo.observability import tracing_names as names
from octavo.observability.trace_context import TraceContext, TraceParent
from octavo.types import Delta, PoolingParams, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.sdk.trace.sampling import Sampler
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    from octavo.observability.tracing_metrics import TelemetryMetrics
    from octavo.types import FinishReason

    Attributes: TypeAlias = dict[str, str | bool | int | float | tuple[str, ...]]

MAX_CALLS = 64
"""Runs of the model that one request's trace shows; metrics count all."""

SERVER, INTERNAL = SpanKind.SERVER, SpanKind.INTERNAL
_UNSET, _ERROR = Status(StatusCode.UNSET), Status(StatusCode.ERROR)
_SAMPLED, _NOT_SAMPLED = TraceFlags(TraceFlags.SAMPLED), TraceFlags(TraceFlags.DEFAULT)


class Tracer:
    """Begins traces.

    Args:
        model: the served model's name.
        resource, scope: who tells.
        sampler: decides which requests are told of.
        ids: makes ids.
        send: takes finished spans; None: none are wanted.
        metrics: counts requests; None: nobody wants to know.
    """

    def __init__(
        self,
        model: str,
        resource: Resource,
        scope: InstrumentationScope,
        sampler: Sampler,
        ids: IdGenerator,
        send: Callable[[ReadableSpan], None] | None,
        metrics: TelemetryMetrics | None,
    ) -> None:
        self.model = model
        self.metrics = metrics
        self.new_span_id = ids.generate_span_id
        self._new_trace_id = ids.generate_trace_id
        self._resource = resource
        self._scope = scope
        self._sampler = sampler
        self._send = send

    def begin(
        self,
        name: str,
        operation: str,
        attributes: Attributes,
        caller: TraceContext | None = None,
        *,
        kind: SpanKind = SERVER,
    ) -> RequestTrace:
        """A request came.

        Args:
            name: of its span, of few kinds.
            operation: what the model is asked for, of the conventions' words.
            attributes: known already.
            caller: where in a trace it belongs; None: it begins one.
            kind: `INTERNAL` where no client waits for it.
        """
        parent: SpanContext | None = None
        context = Context()
        if caller is None:
            trace_id = self._new_trace_id()
        else:
            trace_id = int(caller.parent.trace_id, 16)
            flags = TraceFlags(caller.parent.flags)
            parent = SpanContext(
                trace_id, int(caller.parent.parent_id, 16), True, flags, TraceState(caller.state)
            )
            context = set_span_in_context(NonRecordingSpan(parent), context)
        decision = self._sampler.should_sample(
            context, trace_id, name, kind=kind, attributes=attributes
        )
        is_sampled = decision.decision is Decision.RECORD_AND_SAMPLE and self._send is not None
        own = SpanContext(
            trace_id,
            self.new_span_id(),
            False,
            _SAMPLED if is_sampled else _NOT_SAMPLED,
            decision.trace_state,
        )
        return RequestTrace(self, name, operation, kind, own, parent, attributes)

    def send(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        start_ns: int,
        end_ns: int,
        attributes: Mapping[str, object],
        *,
        kind: SpanKind = INTERNAL,
        is_error: bool = False,
    ) -> None:
        """Hand on a finished span."""
        if self._send is not None:
            self._send(
                ReadableSpan(
                    name=name,
                    context=context,
                    parent=parent,
                    resource=self._resource,
                    attributes=attributes,  # type: ignore[arg-type]
                    kind=kind,
                    status=_ERROR if is_error else _UNSET,
                    start_time=start_ns,
                    end_time=max(start_ns, end_ns),
                    instrumentation_scope=self._scope,
                )
            )


class RequestTrace:
    """One HTTP request. Make it with `Tracer.begin`.

    Attributes:
        name: of its span.
        operation: what the model is asked for.
        attributes: of its span; more may be put in until it ends.
        failure: how a run of the model failed, of few kinds; empty: none did.
        is_sampled: whether its spans are sent.
    """

    __slots__ = (
        "_kind",
        "_num_calls",
        "_own",
        "_parent",
        "_start_ns",
        "_tracer",
        "_zero_ns",
        "attributes",
        "failure",
        "is_sampled",
        "name",
        "operation",
    )

    def __init__(
        self,
        tracer: Tracer,
        name: str,
        operation: str,
        kind: SpanKind,
        own: SpanContext,
        parent: SpanContext | None,
        attributes: Attributes,
    ) -> None:
        self.operation = operation
        self.attributes = attributes
        self.is_sampled = own.trace_flags.sampled
        self.failure = ""
        self._tracer = tracer
        self.name = name
        self._kind = kind
        self._own = own
        self._parent = parent
        self._num_calls = 0
        self._start_ns = time.time_ns()
        self._zero_ns = self._start_ns - int(perf_counter() * 1e9)

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""
        return f"{self._own.trace_id:032x}"

    @property
    def place(self) -> TraceParent:
        """Where the request is in its trace, as `traceparent` and `traceresponse` tell it."""
        return TraceParent(self.trace_id, f"{self._own.span_id:016x}", int(self.is_sampled))

    def headers(self) -> list[tuple[bytes, bytes]]:
        """What to send along with a request that we make for this one."""
        return TraceContext(self.place, tuple(self._own.trace_state.items())).headers()

    def at_ns(self, reading: float) -> int:
        """A reading of `time.perf_counter()` as nanoseconds since the epoch."""
        return self._zero_ns + int(reading * 1e9)

    def call(
        self, request_id: str, params: SamplingParams | PoolingParams, arrived: float
    ) -> ModelCall:
        """The model is about to run for it; see `ModelCall`. May be called after `end`."""
        self._num_calls += 1
        is_shown = self.is_sampled and self._num_calls <= MAX_CALLS
        return ModelCall(
            self._tracer, self, self._own if is_shown else None, request_id, params, arrived
        )

    def end(self, error_type: str = "") -> None:
        """Its answer is out, or never will be.

        Args:
            error_type: how it failed, of few kinds; empty: it did not, as far as the answer's
                status tells.
        """
        if not self.is_sampled:
            return
        error_type = error_type or self.failure
        if error_type:
            self.attributes[names.ERROR_TYPE] = error_type
        if self._num_calls > 1:
            self.attributes[names.NUM_CALLS] = self._num_calls
        self._tracer.send(
            self.name,
            self._own,
            self._parent,
            self._start_ns,
            time.time_ns(),
            self.attributes,
            kind=self._kind,
            is_error=bool(error_type),
        )


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
    charge = delta.charge
    if charge is not None:
        attributes[names.GPU_SECONDS] = charge.total_ns / 1e9
        attributes[names.GPU_SECONDS_PREFILL] = charge.prefill_ns / 1e9
        attributes[names.GPU_SECONDS_DECODE] = charge.decode_ns / 1e9
        attributes[names.GPU_SECONDS_WASTE] = charge.waste_ns / 1e9
