"""Who is told what a request cost: each request's listener once, however the request ends."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from octavo.config import EngineConfig
from octavo.engine.client import AsyncEngine
from octavo.engine.dues import Dues
from octavo.engine.link import EngineLink
from octavo.engine.messages import AbortRequests, StepOutputs
from octavo.engine.spawn import EngineProcess
from octavo.engine.supervisor import EngineSupervisor
from octavo.errors import InvalidRequestError
from octavo.types import Charge, RequestOptions, SamplingParams
from tests.engine.byte_tokenizer import byte_tokenizer
from tests.engine.fake_core import FakeCore, fake_info
from tests.engine.test_client import FOREVER, collect, running, until
from tests.engine.test_clients import loop_with_clients
from tests.engine.test_process import next_message, outputs_until_end, request

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from octavo.engine.channel import Channel


class Listener(dict[str, Charge]):
    """Keeps what it is told, and refuses to be told twice."""

    def __call__(self, request_id: str, charge: Charge) -> None:
        assert request_id not in self
        self[request_id] = charge


@asynccontextmanager
async def metered(
    monkeypatch: pytest.MonkeyPatch, **core: Any
) -> AsyncIterator[tuple[AsyncEngine, Listener]]:
    listener = Listener()
    async with running(monkeypatch, is_metered=True, **core) as engine:
        engine.listen_for_charges(listener)
        yield engine, listener


async def test_whoever_ends_it_a_request_is_charged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with metered(monkeypatch, step_s=0.002) as (engine, listener):
        # The engine ends it: not later than the last delta, which has it too.
        async for delta in engine.generate([5], SamplingParams(max_tokens=3), request_id="length"):
            assert (delta.finish_reason is None) == ("length" not in listener)
        assert listener["length"] == delta.charge == Charge(1, 3)

        # A stop string, which only we see; the deadline; an abort; a reader that goes away.
        stopped = SamplingParams(max_tokens=1000, stop=["k"])
        deltas = await collect(engine, [ord("a")], stopped, "stop")
        assert (deltas[-1].finish_reason, deltas[-1].charge) == ("stop", None)
        options = RequestOptions(timeout_s=0.02)
        late = engine.generate([5], FOREVER, request_id="late", options=options)
        assert [d.finish_reason async for d in late][-1] == "timeout"
        task = asyncio.ensure_future(collect(engine, [5], FOREVER, "aborted"))
        await until(lambda: engine.num_in_flight == 1)
        await engine.abort("aborted")
        assert (await task)[-1].finish_reason == "abort"
        async with aclosing(engine.generate([5], FOREVER, request_id="left")) as stream:
            await anext(stream)
        await until(lambda: len(listener) == 5)
        assert all(listener[name].prefill_ns == 1 for name in ("stop", "late", "left"))
        assert listener["stop"].decode_ns >= listener["length"].decode_ns + 3

        # What is refused is never admitted here, and costs nothing where the engine refuses it.
        with pytest.raises(InvalidRequestError):
            await collect(engine, [], SamplingParams(), "empty")
        assert (await collect(engine, [13], SamplingParams(), "refused"))[-1].charge is None
        await until(lambda: "refused" in listener)
        assert listener["refused"] == Charge()
        assert "empty" not in listener


async def test_closing_waits_for_the_last_charges(monkeypatch: pytest.MonkeyPatch) -> None:
    async with metered(monkeypatch, step_s=0.01) as (engine, listener):
        tasks = [asyncio.ensure_future(collect(engine, [5], FOREVER, f"r{i}")) for i in range(3)]
        await until(lambda: engine.stats.num_steps > 1)
        await engine.close()
        assert [(await task)[-1].finish_reason for task in tasks] == ["abort"] * 3
    assert {charge.prefill_ns for charge in listener.values()} == {1}
    assert len(listener) == 3


@pytest.mark.parametrize("how", ["killed", "raises"])
async def test_a_dead_engine_charges_nothing(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    core = {"raise_at": 3} if how == "raises" else {}
    async with metered(monkeypatch, step_s=0.01, **core) as (engine, listener):
        task = asyncio.ensure_future(collect(engine, [5], FOREVER, "open"))
        await until(lambda: engine.stats.num_steps > 0)
        if how == "killed":
            engine._process.kill()
        assert (await task)[-1].finish_reason == "error"
        assert listener == {"open": Charge()}


async def test_without_a_meter_the_listener_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listener = Listener()
    async with running(monkeypatch, step_s=0.002) as engine:
        engine.listen_for_charges(listener)
        await collect(engine, [5], SamplingParams(max_tokens=3), "length")
        async with aclosing(engine.generate([5], FOREVER, request_id="left")) as stream:
            await anext(stream)
        assert listener == {"length": Charge(), "left": Charge()}


async def test_engines_one_after_another_have_one_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ENGINE", json.dumps({"is_metered": True, "step_s": 0.005}))

    async def start() -> AsyncEngine:
        process = EngineProcess("tests.engine.fake_core:build", EngineConfig(model="fake"))
        return await AsyncEngine.connect(process, tokenizer=byte_tokenizer())

    first = await start()
    supervisor = EngineSupervisor(first, start, startup_s=0.1, max_restarts=1)
    listener = Listener()
    supervisor.listen_for_charges(listener)
    watching = asyncio.ensure_future(supervisor.watch())
    try:
        stream = supervisor.generate([5], FOREVER, request_id="before")
        await anext(stream)
        first.kill("planted")
        assert [d.finish_reason async for d in stream][-1] == "error"
        await until(lambda: supervisor.stats.num_restarts == 1 and supervisor.stats.is_up, 20)
        params = SamplingParams(max_tokens=2)
        [*_, last] = [d async for d in supervisor.generate([5], params, request_id="after")]
        assert listener == {"before": Charge(), "after": last.charge}
        assert last.charge == Charge(1, 2)
    finally:
        watching.cancel()
        await supervisor.close()


def test_each_of_several_servers_is_told_of_its_own() -> None:
    def charges(channel: Channel[Any, Any]) -> list[tuple[str, Charge]]:
        while True:
            message = next_message(channel)
            assert isinstance(message, StepOutputs)
            if message.charges:
                return message.charges

    core = FakeCore(step_s=0.01, is_metered=True)
    with loop_with_clients(core, info=fake_info(is_metered=True)) as (_, (first, second)):
        first.send(request("a", 3))
        outputs = [output for m in outputs_until_end(first, 1) for output in m.outputs]
        assert outputs[-1].charge == Charge(1, 3)
        first.send(request("b", 1000))
        second.send(request("c", 1000))
        assert isinstance(next_message(second), StepOutputs)
        second.send(AbortRequests(["b"]))  # not its own
        second.send(AbortRequests(["c"]))
        [(name, charge)] = charges(second)
        assert (name, charge.prefill_ns) == ("c", 1)
        first.send(AbortRequests(["b"]))
        assert [name for name, _ in charges(first)] == ["b"]


async def test_several_servers_listen_through_their_links(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_ENGINE", json.dumps({"is_metered": True, "step_s": 0.002}))
    process = EngineProcess(
        "tests.engine.fake_core:build", EngineConfig(model="fake"), has_clients=True
    )
    monitor = await AsyncEngine.connect(process)
    assert process.clients_address is not None
    engines = [
        await AsyncEngine.connect(EngineLink(process.clients_address, name)) for name in "ab"
    ]
    listeners = [Listener(), Listener()]
    try:
        for engine, listener in zip(engines, listeners, strict=True):
            engine.listen_for_charges(listener)
        tasks = [asyncio.ensure_future(collect(engine, [5], FOREVER, "same")) for engine in engines]
        await until(lambda: all(engine.stats.num_running == 2 for engine in engines))
        await engines[0].abort("same")
        assert (await tasks[0])[-1].finish_reason == "abort"
        await until(lambda: len(listeners[0]) == 1)
        assert not listeners[1]
        os.kill(process.pid, signal.SIGKILL)
        await until(lambda: not monitor.is_alive, 5)
        engines[1].die("the parent told")
        assert (await tasks[1])[-1].finish_reason == "error"
        assert listeners == [{"same": listeners[0]["same"]}, {"same": Charge()}]
        assert listeners[0]["same"].prefill_ns == 1
    finally:
        for engine in (*engines, monitor):
            await engine.close()


def test_a_listener_that_fails_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def fails(request_id: str, charge: Charge) -> None:
        raise OSError("full")

    dues = Dues()
    dues.listener = fails
    dues.open("r:0", "r")
    with caplog.at_level(logging.ERROR):
        dues.settle("r:0", Charge(1))
    dues.settle("r:0", Charge(1))
    assert caplog.text.count("its charge was not taken") == 1
    assert len(dues) == 0
