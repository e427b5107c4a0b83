"""Telemetry over OpenTelemetry's protocol: whether there is any, and the way to it.

Imports nothing of OpenTelemetry, which is an extra: a server without it pays for one look at a
context variable per request. What is sent is made by `tracing_export` and its siblings.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import TYPE_CHECKING

from octavo.config import default_otlp_is_on
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from octavo.config import ServerConfig
    from octavo.observability.tracing_calls import ModelCall
    from octavo.observability.tracing_export import Telemetry
    from octavo.observability.tracing_spans import RequestTrace
    from octavo.types import PoolingParams, SamplingParams

logger = logging.getLogger("octavo.telemetry")

INSTALL = 'pip install "octavo[otel]"'

_current: ContextVar[RequestTrace | None] = ContextVar("octavo_trace", default=None)


def current_trace() -> RequestTrace | None:
    """The trace of the request that this task works for; None: nobody wants to know."""
    return _current.get()


def start_call(
    request_id: str, params: SamplingParams | PoolingParams, arrived: float
) -> ModelCall | None:
    """The model is about to run for the current trace's request; None: nobody wants to know."""
    trace = _current.get()
    return None if trace is None else trace.call(request_id, params, arrived)


@contextmanager
def within(trace: RequestTrace) -> Iterator[None]:
    """Make it the current trace of this task, and of the tasks that it starts."""
    token = _current.set(trace)
    try:
        yield
    finally:
        _current.reset(token)


def is_wanted(config: ServerConfig) -> bool:
    """Whether the flags or OpenTelemetry's own environment variables ask for telemetry."""
    return config.otlp_endpoint is not None or default_otlp_is_on()


def check_installed(config: ServerConfig) -> None:
    """Return if what the flags ask for can be had. Quick: nothing is imported without need.

    Raises:
        ConfigError: the packages are missing; the message says how to get them.
    """
    if config.otlp_endpoint is not None and not _is_installed():
        raise ConfigError(f"--otlp-endpoint needs OpenTelemetry's packages: {INSTALL}")


def start_telemetry(config: ServerConfig) -> Telemetry | None:
    """What takes and sends telemetry, if any is wanted; the caller calls its `shutdown`.

    Where only the environment asks for it and the packages are missing, the log says so.

    Raises:
        ConfigError: see `check_installed`, or the exporters refuse their settings.
    """
    if not is_wanted(config):
        return None
    check_installed(config)
    if not _is_installed():
        logger.warning("the environment asks for OTLP, which needs packages: %s", INSTALL)
        return None
    from octavo.observability.tracing_export import Telemetry

    return Telemetry.from_config(config)


def _is_installed() -> bool:
    try:
        return all(
            find_spec(f"opentelemetry.{name}") is not None
            for name in ("sdk", "exporter.otlp.proto.grpc", "exporter.otlp.proto.http")
        )
    except ModuleNotFoundError:
        return False
