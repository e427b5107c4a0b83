"""Collectors that keep what they get: over gRPC with the protocol's servicers, and over HTTP."""

from __future__ import annotations

import gzip
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics_pb
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_rpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_rpc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Received:
    """What came.

    Attributes:
        url: where it came to.
        spans: with the resource's attributes.
        metrics: names, with the resource's attributes and the number of points counted.
        headers: of the newest request.
    """

    def __init__(self) -> None:
        self.url = ""
        self.spans: list[tuple[dict[str, Any], Any]] = []
        self.metrics: list[tuple[str, dict[str, Any], int]] = []
        self.headers: dict[str, str] = {}

    def add_traces(self, request: trace_pb.ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            who = attributes_of(resource.resource)
            for scope in resource.scope_spans:
                self.spans += [(who, span) for span in scope.spans]

    def add_metrics(self, request: metrics_pb.ExportMetricsServiceRequest) -> None:
        for resource in request.resource_metrics:
            who = attributes_of(resource.resource)
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    num = sum(point.count for point in metric.histogram.data_points)
                    self.metrics.append((metric.name, who, num))

    def named(self, name: str) -> list[Any]:
        return [span for _, span in self.spans if span.name == name]

    def wait(self, is_true: Callable[[], object], timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_true():
            assert time.monotonic() < deadline, [span.name for _, span in self.spans]
            time.sleep(0.01)


def attributes_of(thing: Any) -> dict[str, Any]:
    """Attributes of a span or resource as plain values."""
    return {item.key: value_of(item.value) for item in thing.attributes}


def value_of(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [value_of(item) for item in value.array_value.values]
    return getattr(value, kind)


class _Traces(trace_rpc.TraceServiceServicer):
    def __init__(self, received: Received) -> None:
        self._received = received

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._received.headers = dict(context.invocation_metadata())
        self._received.add_traces(request)
        return trace_pb.ExportTraceServiceResponse()


class _Metrics(metrics_rpc.MetricsServiceServicer):
    def __init__(self, received: Received) -> None:
        self._received = received

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._received.add_metrics(request)
        return metrics_pb.ExportMetricsServiceResponse()


@contextmanager
def grpc_collector() -> Iterator[Received]:
    received = Received()
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        trace_rpc.add_TraceServiceServicer_to_server(_Traces(received), server)
        metrics_rpc.add_MetricsServiceServicer_to_server(_Metrics(received), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        received.url = f"http://127.0.0.1:{port}"
        try:
            yield received
        finally:
            server.stop(None).wait()


@contextmanager
def http_collector() -> Iterator[Received]:
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            received.headers = dict(self.headers.items())
            if self.path == "/v1/traces":
                received.add_traces(trace_pb.ExportTraceServiceRequest.FromString(body))
            elif self.path == "/v1/metrics":
                received.add_metrics(metrics_pb.ExportMetricsServiceRequest.FromString(body))
            else:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        received.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield received
        finally:
            server.shutdown()
            thread.join()
