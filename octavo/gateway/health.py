"""What is known of the backends: whether they are well, how busy they are, whom to leave alone.

Three things are looked at. Probes ask each backend every few seconds; requests tell how they
fared (`breaker`); a backend that said 429 is left alone with that model for as long as it asked.
Belongs to one event loop.

How busy one is, engines tell in their metrics: vLLM's names, which Octavo has too, or SGLang's.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from time import monotonic
from typing import TYPE_CHECKING

from octavo.errors import UpstreamError
from octavo.gateway.breaker import Breaker

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from octavo.gateway.breaker import State
    from octavo.gateway.model import Target
    from octavo.gateway.upstream import Upstream

logger = logging.getLogger("octavo.gateway")

MAX_METRICS_BYTES = 4 * 1024**2
MAX_LIMITED_S = 300.0
LIMITED_S = 1.0
"""How long a backend is left alone that says 429 and not when to come again."""
STALE_INTERVALS = 3
"""What a backend told is believed for as many intervals of its probe."""

_SAMPLE = re.compile(
    rb"^(?:vllm:|sglang:)(num_requests_running|num_requests_waiting|kv_cache_usage_perc"
    rb"|num_running_reqs|num_queue_reqs|token_usage)(?:\{.*\})? ([0-9.eE+\-]+)",
    re.MULTILINE,
)


class BackendState:
    """One backend, as it stands. Read it; `Health` changes it.

    Attributes:
        breaker: of its requests.
        is_well: by its probes; True where there are none yet.
        problem: what the last bad probe found, or empty.
        num_running, num_waiting: requests, by its own word.
        kv_usage: part of its cache's blocks that are in use, by its own word.
        told: when it told these, None: never.
        num_ours: requests that we have there now.
    """

    __slots__ = (
        "_num_bad",
        "_was_well",
        "breaker",
        "is_well",
        "kv_usage",
        "limited",
        "num_ours",
        "num_ours_told",
        "num_running",
        "num_waiting",
        "problem",
        "told",
        "upstream",
    )

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.breaker = Breaker(upstream.backend.breaker)
        self.is_well = True
        self.problem = ""
        self.num_running = self.num_waiting = 0.0
        self.kv_usage = 0.0
        self.told: float | None = None
        self.num_ours = self.num_ours_told = 0
        self.limited: dict[str, float] = {}
        self._num_bad = 0
        self._was_well = False

    def is_usable(self, model: str, now: float) -> bool:
        """Whether a request for a model may be sent there."""
        if not self.is_well or not self.breaker.allows(now):
            return False
        return not self.limited or now >= self.limited.get(model, 0.0)

    def load(self, now: float) -> float:
        """See `LoadView`."""
        told = self.told
        interval = self.upstream.backend.probe_interval_s
        if told is None or now - told > STALE_INTERVALS * interval + 1.0:
            return float(self.num_ours)
        # What it told includes those of ours that were there; since then some came or went
        since = self.num_ours - self.num_ours_told
        return max(float(self.num_ours), self.num_running + self.num_waiting + since)

    def retry_after_s(self, model: str, now: float) -> float:
        """Seconds until it may be worth another try; 0: now, or nobody knows."""
        return max(self.breaker.retry_after_s(now), self.limited.get(model, 0.0) - now, 0.0)

    def put_probe(self, problem: str, now: float) -> None:
        """A probe has ended; `problem` empty: well."""
        name = self.upstream.name
        if not problem:
            self._num_bad = 0
            self._was_well = True
            if not self.is_well:
                self.is_well = True
                logger.info("backend %s is well again", name)
                self.breaker.recover(now)
            self.problem = ""
            return
        self._num_bad += 1
        self.problem = problem
        # One that was never well yet has no good name to lose
        is_enough = not self._was_well or self._num_bad >= self.upstream.backend.probe.failures
        if self.is_well and is_enough:
            self.is_well = False
            logger.warning("backend %s is not well: %s", name, problem)


class Health:
    """All backends. Implements `HealthView` and `LoadView`.

    Args:
        upstreams: by name.
        clock: seconds, monotonic.
        before: what was known under the configuration before: stays known of the upstreams that
            are the same ones.

    Attributes:
        states: by name.
    """

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        clock: Callable[[], float] = monotonic,
        before: Health | None = None,
    ) -> None:
        self._clock = clock
        self.states: dict[str, BackendState] = {}
        for name, upstream in upstreams.items():
            state = None if before is None else before.states.get(name)
            if state is None or state.upstream is not upstream:
                state = BackendState(upstream)
            self.states[name] = state
        self._probes: list[asyncio.Task[None]] = []

    def is_usable(self, target: Target) -> bool:
        """Whether a request may be sent there now. A backend that is not configured is not."""
        state = self.states.get(target.backend)
        return state is not None and state.is_usable(target.model, self._clock())

    def load(self, target: Target) -> float:
        """Requests running and waiting there."""
        state = self.states.get(target.backend)
        return 0.0 if state is None else state.load(self._clock())

    def breaker_state(self, backend: str) -> State:
        """How a backend's breaker stands."""
        return self.states[backend].breaker.state(self._clock())

    def retry_after_s(self, target: Target) -> float:
        """Seconds until a target may be worth another try; 0: now, or nobody knows."""
        return self.states[target.backend].retry_after_s(target.model, self._clock())

    def begin(self, target: Target) -> bool:
        """A request is about to be sent; False: it may not be. What became of it must be told, by
        one of `succeed`, `fail`, `limit` and `drop`, and then its `end`.
        """
        state = self.states.get(target.backend)
        now = self._clock()
        if state is None or not state.is_usable(target.model, now) or not state.breaker.begin(now):
            return False
        state.num_ours += 1
        return True

    def succeed(self, target: Target) -> None:
        """It is answered, if only by saying that the caller is at fault."""
        self.states[target.backend].breaker.succeed(self._clock())

    def fail(self, target: Target, reason: str) -> None:
        """It failed by the backend's fault, before it was answered or after."""
        breaker = self.states[target.backend].breaker
        before = breaker.num_opened
        breaker.fail(self._clock())
        if breaker.num_opened != before:
            seconds = breaker.retry_after_s(self._clock())
            logger.warning(
                "backend %s gets no requests for %.1f s: %s", target.backend, seconds, reason
            )

    def limit(self, target: Target, retry_after_s: float | None) -> None:
        """It said 429: the model is left alone for a while."""
        state = self.states[target.backend]
        state.breaker.drop()
        seconds = LIMITED_S if retry_after_s is None else min(retry_after_s, MAX_LIMITED_S)
        state.limited[target.model] = self._clock() + seconds

    def drop(self, target: Target) -> None:
        """What became of it says nothing of the backend."""
        self.states[target.backend].breaker.drop()

    def end(self, target: Target) -> None:
        """It is over."""
        self.states[target.backend].num_ours -= 1

    def start(self) -> None:
        """Begin to probe; needs a running loop."""
        for state in self.states.values():
            if state.upstream.backend.probe_interval_s:
                self._probes.append(asyncio.create_task(self._probe_on(state)))

    async def close(self) -> None:
        """Probe no more."""
        for task in self._probes:
            task.cancel()
        await asyncio.gather(*self._probes, return_exceptions=True)
        self._probes.clear()

    async def probe(self, backend: str) -> None:
        """Ask one backend now."""
        state = self.states[backend]
        upstream = state.upstream
        section = upstream.backend
        is_engine = section.kind != "openai"
        path = section.probe.path or ("/health" if is_engine else "/models")
        is_route = not (is_engine or section.probe.path)
        base = upstream.address.path if is_route else upstream.address.root
        try:
            async with asyncio.timeout(section.probe.timeout):
                status, _ = await _get(upstream, base + path)
                # A provider that limits us, or lists nothing for this key, is there all the same
                is_bad = status >= (400 if is_engine else 500)
                problem = f"{path} answers {status}" if is_bad else ""
                state.put_probe(problem, self._clock())
                if is_engine and not problem:
                    num_ours = state.num_ours
                    status, body = await _get(upstream, upstream.address.root + "/metrics")
                    if status == 200:
                        self._put_metrics(state, body, num_ours)
        except (UpstreamError, TimeoutError) as error:
            state.put_probe(str(error) or f"{path} is not answered in time", self._clock())

    def _put_metrics(self, state: BackendState, body: bytes, num_ours: int) -> None:
        sums = {b"running": 0.0, b"waiting": 0.0, b"usage": 0.0}
        found = _SAMPLE.findall(body)
        for name, value in found:
            kind = b"running" if b"running" in name else b"waiting"
            if b"usage" in name:
                kind = b"usage"
            try:
                number = float(value)
            except ValueError:
                continue
            # Engines of one server add up; their caches do not
            sums[kind] = max(sums[kind], number) if kind == b"usage" else sums[kind] + number
        if found:
            state.num_running, state.num_waiting = sums[b"running"], sums[b"waiting"]
            state.kv_usage = sums[b"usage"]
            state.told = self._clock()
            state.num_ours_told = num_ours

    async def _probe_on(self, state: BackendState) -> None:
        interval = state.upstream.backend.probe_interval_s
        while True:
            try:
                await self.probe(state.upstream.name)
            except Exception:
                logger.exception("the probe of backend %s failed", state.upstream.name)
            # Gateways that started together shall not ask together for ever
            await asyncio.sleep(interval * random.uniform(0.9, 1.1))


async def _get(upstream: Upstream, path: str) -> tuple[int, bytes]:
    """Status and body.

    Raises:
        UpstreamError: there is no answer, or too long a one.
    """
    probe = upstream.backend.probe
    message = b"GET %b HTTP/1.1\r\n%bAccept: */*\r\n\r\n" % (path.encode("ascii"), upstream.head)
    for is_new in (False, True):
        connection = await upstream.acquire(probe.timeout, is_new=is_new, is_extra=True)
        try:
            connection.send(message, b"", limit_s=probe.timeout)
            await connection.head()
            body = await connection.body(MAX_METRICS_BYTES)
        except UpstreamError:
            # A server may close a connection while we begin to use it again
            if connection.num_exchanges == 1 or connection.has_answer or is_new:
                raise
        else:
            return connection.status, body
        finally:
            upstream.release(connection)
    raise AssertionError("unreachable")
