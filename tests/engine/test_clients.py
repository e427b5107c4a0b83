from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from octavo.engine.channel import (
    ClientChannel,
    ClientsChannel,
    EngineChannel,
    ServerChannel,
    clients_address,
    new_address,
    remove_address,
)
from octavo.engine.clients import Clients
from octavo.engine.messages import (
    AbortRequests,
    ClientGone,
    EngineReady,
    Hello,
    Ping,
    Shutdown,
    StepOutputs,
)
from octavo.engine.process import run_engine_loop
from tests.engine.fake_core import FakeCore, fake_info
from tests.engine.test_process import next_message, outputs_until_end, request, tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from octavo.types import EngineInfo


@contextmanager
def loop_with_clients(
    core: FakeCore, num_clients: int = 2, info: EngineInfo | None = None
) -> Iterator[tuple[ServerChannel, list[ClientChannel]]]:
    """The engine's loop in a thread, with its parent's channel and those of some API servers."""
    address = new_address()
    parent, engine = ServerChannel(address), EngineChannel(address)
    router = ClientsChannel(clients_address(address))
    clients = [ClientChannel(router.address, f"c{index}") for index in range(num_clients)]
    told = info or fake_info()
    arguments = (core, engine, Clients(router, told))
    thread = threading.Thread(target=run_engine_loop, args=arguments)
    thread.start()
    try:
        for client in clients:
            client.send(Hello())
            ready = next_message(client)
            assert isinstance(ready, EngineReady)
            assert ready.info == told
        yield parent, clients
    finally:
        parent.send(Shutdown())
        thread.join(5)
        assert not thread.is_alive()
        for channel in (parent, engine, router, *clients):
            channel.close()
        remove_address(address)


def test_each_gets_its_own_outputs_and_everybody_the_news() -> None:
    with loop_with_clients(FakeCore(step_s=0.02)) as (_, (first, second)):
        first.send(request("a", 3))
        assert tokens(outputs_until_end(first, 1), "a") == [6, 7, 8]
        second.send(request("b", 3, (10,)))
        messages = outputs_until_end(second, 1)
        assert tokens(messages, "b") == [11, 12, 13]
        assert all(output.request_id == "b" for m in messages for output in m.outputs)
        own = [message for message in messages if message.outputs]
        assert [message.stats.num_received for message in own] == [1, 1, 1]
        news = [next_message(first) for _ in range(3)]
        assert all(isinstance(m, StepOutputs) and m.outputs == [] for m in news)
        assert news[-1].stats.num_received == 1  # type: ignore[union-attr]
        assert news[-1].stats.num_generation_tokens == 6  # type: ignore[union-attr]


def test_who_is_gone_is_forgotten_and_late_messages_are_too() -> None:
    core = FakeCore(step_s=0.02)
    with loop_with_clients(core) as (parent, (first, second)):
        first.send(request("a", 1000))
        second.send(request("b", 10))
        assert isinstance(next_message(first), StepOutputs)
        parent.send(ClientGone("c0"))
        first.send(request("late", 1000))
        assert tokens(outputs_until_end(second, 1), "b") == list(range(6, 16))
        assert core.requests == {}


def test_nobody_ends_the_requests_of_others_or_the_engine() -> None:
    with loop_with_clients(FakeCore(step_s=0.01)) as (parent, (first, second)):
        first.send(request("a", 10))
        assert isinstance(next_message(first), StepOutputs)
        second.send(AbortRequests(["a"]))
        second.send(Shutdown())
        assert len(tokens(outputs_until_end(first, 1), "a")) > 8
        parent.send(Ping())
        assert isinstance(next_message(parent), StepOutputs)


def test_the_parent_is_told_when_it_asks() -> None:
    with loop_with_clients(FakeCore()) as (parent, (first, _)):
        first.send(request("a", 10))
        outputs_until_end(first, 1)
        assert next_message(parent, 0.1) is None
        parent.send(Ping())
        told = next_message(parent)
        assert isinstance(told, StepOutputs)
        assert told.outputs == []
        assert told.stats.num_generation_tokens == 10
