"""Requests as spans: one for each HTTP request, below it one for each time that the model runs for
it, and below that one for each phase of the model's work (`tracing_calls`).

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

from octavo.observability import tracing_names as names
from octavo.observability.trace_context import TraceContext, TraceParent
from octavo.observability.tracing_calls import ModelCall

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.sdk.trace.sampling import Sampler
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    from octavo.observability.tracing_metrics import TelemetryMetrics
    from octavo.types import PoolingParams, SamplingParams

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

    Attributes:
        hourly_rate_nano: price of one device hour, in 1e-9 of `currency`; 0: there is none.
        currency: of the price.
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
        self.hourly_rate_nano = 0
        self.currency = "USD"
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
