"""Sends a call to a tier's targets in turn, until one begins to answer.

Nothing has reached the client by then: an answer that is not streamed is read whole before it is
given, and a stream's first event is here. So whatever breaks earlier is tried elsewhere, and what
breaks later is the client's to see.
"""

from __future__ import annotations

import math
from time import perf_counter
from typing import TYPE_CHECKING

from octavo.errors import UpstreamError
from octavo.gateway.health import Health
from octavo.gateway.outgoing import outgoing, upstream_id_of
from octavo.gateway.reply import BackendReply
from octavo.gateway.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from octavo.gateway.config_backends import Backend
    from octavo.gateway.model import Attempt, Call, Tier


class Dispatcher:
    """All backends of one configuration. Implements `seams.Dispatch`.

    Args:
        backends: by name.
        before: of the configuration before. Backends that are the same keep their connections and
            what is known of them; both dispatchers must be closed.

    Attributes:
        health: what is known of them: `HealthView` and `LoadView`.
        upstreams: by name.

    Raises:
        ConfigError: a backend's certificates cannot be read.
    """

    def __init__(self, backends: Mapping[str, Backend], before: Dispatcher | None = None) -> None:
        self.upstreams: dict[str, Upstream] = {}
        for name, backend in backends.items():
            upstream = None if before is None else before.upstreams.get(name)
            if upstream is None or upstream.backend != backend or upstream.is_closed:
                upstream = Upstream(name, backend)
            self.upstreams[name] = upstream
        for upstream in self.upstreams.values():  # all are good: nothing is shared in vain
            upstream.share()
        known: Health | None = None if before is None else before.health
        self.health: Health = Health(self.upstreams, before=known)

    def start(self) -> None:
        """Begin to probe; needs a running loop."""
        self.health.start()

    async def close(self) -> None:
        """Probe no more, and close connections; those in use when they are given back, and those
        of another dispatcher with it.
        """
        await self.health.close()
        for upstream in self.upstreams.values():
            await upstream.close()

    async def open(
        self,
        call: Call,
        tier: Tier,
        body: bytes,
        *,
        deadline: float,
        failed: Callable[[Attempt], None],
        number: int = 0,
    ) -> BackendReply:
        """See `seams.Dispatch.open`. Where this is cancelled, `failed` is told, too.

        Raises:
            UpstreamError: nobody answered; 504 in time, 502 for other failures, 503 where nobody
                could be asked now or all have limited us, then with the time to come again.
            InvalidRequestError: the body is no JSON object.
        """
        last: UpstreamError | None = None
        waits: list[float] = []
        health = self.health
        for target in tier.targets:
            upstream = self.upstreams.get(target.backend)
            if upstream is None:
                continue
            if perf_counter() >= deadline:
                last = UpstreamError(
                    "the time for the request was over before a backend had answered",
                    status=504,
                    code="upstream_timeout",
                )
                break
            upstream_id = upstream_id_of(call.request_id, number)
            request = outgoing(call, upstream, target.model, body, upstream_id)
            if not health.begin(target):
                waits.append(health.retry_after_s(target))
                continue
            reply = BackendReply(
                call, tier.name, target, upstream, health, number=number, upstream_id=upstream_id
            )
            try:
                await reply.begin(request, deadline)
            except UpstreamError as error:
                failed(reply.attempt)
                last = error
                number += 1
                if error.retry_after_s is not None:
                    waits.append(float(error.retry_after_s))
            except BaseException:
                failed(reply.attempt)
                raise
            else:
                return reply
        raise _for_client(tier, last, waits)


def _for_client(tier: Tier, last: UpstreamError | None, waits: list[float]) -> UpstreamError:
    """What the client is told where nobody answered."""
    if last is None:
        message = f"no backend of {tier.name} can take requests now"
        status, code = 503, "no_backend"
    else:
        message, status, code = last.message, last.status, last.code or "upstream_error"
    retry_after_s = None
    if status == 503:
        retry_after_s = max(1, math.ceil(min(waits, default=1.0)))
    return UpstreamError(
        message, status=status, code=code, retry_after_s=retry_after_s, may_retry=False
    )
