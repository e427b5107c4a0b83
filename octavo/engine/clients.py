"""Several API servers on one engine: whose request is whose, and who is told what.

Lives in the engine process, between its loop and the socket. Knows nothing of steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from octavo.engine.messages import (
    AbortRequests,
    Admission,
    EngineReady,
    Hello,
    StepOutputs,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from octavo.engine.channel import ClientsChannel
    from octavo.engine.messages import Output
    from octavo.types import Charge, EngineInfo, EngineStats


class Clients:
    """See the module.

    Args:
        channel: closed by whoever made it.
        info: what a client is told when it comes.
    """

    def __init__(self, channel: ClientsChannel, info: EngineInfo) -> None:
        self.channel = channel
        self._info = info
        self._num_received: dict[str, int] = {}  # by client; those that said hello
        # By request that has not ended, or whose charge is still to come.
        self._owners: dict[str, str] = {}
        self._is_metered = info.work is not None
        self._gone: set[str] = set()

    def receive(self, stats: EngineStats) -> Admission | AbortRequests | None:
        """The next message for the core, or None when none has come.

        Newcomers are answered here. What a client sent that is gone is dropped, and nobody can end
        another one's requests.
        """
        while (received := self.channel.receive_from()) is not None:
            name, message = received
            if name in self._gone:
                continue
            if isinstance(message, Hello):
                self._num_received[name] = 0
                told = msgspec.structs.replace(stats, num_received=0)
                self.channel.send_to(name, EngineReady(self._info, told))
            elif isinstance(message, Admission) and name in self._num_received:
                self._num_received[name] += 1
                self._owners[message.request_id] = name
                return message
            elif isinstance(message, AbortRequests):
                ids = [i for i in message.request_ids if self._owners.get(i) == name]
                for request_id in () if self._is_metered else ids:
                    del self._owners[request_id]
                return AbortRequests(ids)
        return None

    def drop(self, name: str) -> list[str]:
        """Forget a client; the requests of its that have not ended."""
        self._gone.add(name)
        self._num_received.pop(name, None)
        ids = [i for i, owner in self._owners.items() if owner == name]
        for request_id in ids:
            del self._owners[request_id]
        return ids

    def send(
        self,
        outputs: Iterable[Output],
        stats: EngineStats,
        charges: Iterable[tuple[str, Charge]] = (),
    ) -> None:
        """Send every client its own outputs and charges.

        Those without any are told as well: silence means that a step hangs, and the queue's length
        is everybody's concern.
        """
        shares: dict[str, list[Output]] = {name: [] for name in self._num_received}
        owners = self._owners
        for output in outputs:
            owner = owners.get(output.request_id)
            if owner is None:
                continue  # aborted meanwhile
            shares[owner].append(output)
            if output.finish_reason is not None:
                del owners[output.request_id]
        charged: dict[str, list[tuple[str, Charge]]] = {}
        for request_id, charge in charges:
            owner = owners.pop(request_id, None)
            if owner is not None:
                charged.setdefault(owner, []).append((request_id, charge))
        for name, share in shares.items():
            told = msgspec.structs.replace(stats, num_received=self._num_received[name])
            self.channel.send_to(name, StepOutputs.of(share, told, charged.get(name, ())))
