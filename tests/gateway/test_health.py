"""Backends are probed, believed, left alone, and found again."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from octavo.gateway.config_backends import Backend, BreakerRule, Kind, ModelInfo, Probe
from octavo.gateway.health import Health
from octavo.gateway.model import Target
from octavo.gateway.upstream import Upstream
from tests.gateway.fake_upstream import FakeUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

OK = Target("a", "ok")
OTHER = Target("a", "other")


class Clock:
    """Time that moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def watching(
    fake: FakeUpstream, kind: Kind = "octavo", **more: Any
) -> AsyncIterator[tuple[Health, Clock]]:
    """Health of one backend, `a`."""
    probe = more.pop("probe", Probe(timeout=0.2, interval=5.0))
    section = Backend(url=fake.url, kind=kind, models={"ok": ModelInfo()}, probe=probe, **more)
    clock = Clock()
    way = Upstream("a", section)
    health = Health({"a": way}, clock)
    try:
        yield health, clock
    finally:
        await health.close()
        await way.close()


@pytest.mark.parametrize("kind", ["octavo", "openai"])
async def test_bad_probes_take_a_backend_out_and_a_good_one_brings_it_back(kind: Kind) -> None:
    async with FakeUpstream() as fake, watching(fake, kind) as (health, _):
        await health.probe("a")
        assert health.is_usable(OK)
        fake.is_well = False
        await health.probe("a")
        assert health.is_usable(OK)  # once is nothing
        await health.probe("a")
        assert not health.is_usable(OK)
        path = "/health" if kind == "octavo" else "/v1/models"
        assert health.states["a"].problem.endswith("answers 503")
        assert fake.probes[-1].path == path
        fake.is_well = True
        await health.probe("a")
        assert health.is_usable(OK)
        assert health.states["a"].problem == ""


async def test_one_bad_probe_is_enough_for_a_backend_that_was_never_well() -> None:
    async with FakeUpstream(is_well=False) as fake, watching(fake) as (health, _):
        assert health.is_usable(OK)  # nobody has asked yet
        await health.probe("a")
        assert not health.is_usable(OK)


async def test_a_backend_that_is_gone_or_hangs_is_not_well() -> None:
    async with FakeUpstream() as fake, watching(fake) as (health, _):
        await health.probe("a")
        await fake.down()
        for _ in range(2):
            await health.probe("a")
        assert not health.is_usable(OK)
        await fake.up()
        await health.probe("a")
        assert health.is_usable(OK)


async def test_a_probe_that_hangs_ends_in_time() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        await reader.read()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    fake = FakeUpstream(port=server.sockets[0].getsockname()[1])
    async with watching(fake, probe=Probe(timeout=0.05, failures=1)) as (health, _):
        async with asyncio.timeout(0.5):
            await health.probe("a")
        assert not health.is_usable(OK)
        assert "in time" in health.states["a"].problem
    await asyncio.sleep(0.01)
    server.close()


async def test_a_connection_that_died_while_nobody_used_it_is_no_bad_probe() -> None:
    async with (
        FakeUpstream() as fake,
        watching(fake, probe=Probe(timeout=0.2, failures=1)) as (health, _),
    ):
        await health.probe("a")
        await fake.down()
        await fake.up()
        await health.probe("a")
        assert health.is_usable(OK)


async def test_a_backend_that_is_busy_does_not_look_ill() -> None:
    async with FakeUpstream() as fake, watching(fake, max_connections=1) as (health, _):
        way = health.states["a"].upstream
        held = await way.acquire(1.0)
        await health.probe("a")
        assert health.states["a"].problem == ""
        assert fake.num_connections == 2
        way.release(held)


async def test_probes_are_made_by_themselves() -> None:
    async with (
        FakeUpstream() as fake,
        watching(fake, probe=Probe(timeout=0.2, interval=0.01)) as (health, _),
    ):
        health.start()
        async with asyncio.timeout(2):
            while len(fake.probes) < 6:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        await health.close()
        num_probes = len(fake.probes)
        await asyncio.sleep(0.03)
        assert len(fake.probes) == num_probes


async def test_load_is_what_the_engine_says_and_what_it_cannot_know_yet() -> None:
    async with (
        FakeUpstream(load=5, waiting=3, kv_usage=0.25) as fake,
        watching(fake) as (health, clock),
    ):
        for _ in range(2):
            assert health.begin(OK)
        assert health.load(OK) == 2  # ours alone: it has not told yet
        await health.probe("a")
        assert health.states["a"].kv_usage == 0.25
        assert health.load(OK) == 8
        for _ in range(4):
            assert health.begin(OK)
        assert health.load(OK) == 12
        for _ in range(6):
            health.succeed(OK)
            health.end(OK)
        assert health.load(OK) == 6  # ours were among those that it had
        clock.now += 60
        assert health.load(OK) == 0  # what it told is too old


async def test_metrics_as_the_official_library_writes_them() -> None:
    registry = CollectorRegistry()
    labels = ("model_name", "engine")
    running = Gauge("vllm:num_requests_running", "Running.", labels, registry=registry)
    waiting = Gauge("vllm:num_requests_waiting", "Waiting.", labels, registry=registry)
    reason = Gauge("vllm:num_requests_waiting_by_reason", "Why.", ["r"], registry=registry)
    usage = Gauge("vllm:kv_cache_usage_perc", "Usage.", labels, registry=registry)
    for engine, (run, wait, used) in enumerate(((3, 1, 0.5), (4, 0, 0.75))):
        running.labels('a "b"}, c', engine).set(run)
        waiting.labels('a "b"}, c', engine).set(wait)
        usage.labels('a "b"}, c', engine).set(used)
    reason.labels("capacity").set(77)
    async with FakeUpstream() as fake, watching(fake) as (health, _):
        state = health.states["a"]
        health._put_metrics(state, generate_latest(registry), 0)
        assert (state.num_running, state.num_waiting, state.kv_usage) == (7, 1, 0.75)
        health._put_metrics(
            state, b'sglang:num_running_reqs{a="b"} 2.0\nsglang:num_queue_reqs 1\n', 0
        )
        assert (state.num_running, state.num_waiting) == (2, 1)
        health._put_metrics(state, b"nothing of the kind 1\n", 0)
        assert health.load(OK) == 3


async def test_429_concerns_one_model_for_so_long() -> None:
    async with FakeUpstream() as fake, watching(fake) as (health, clock):
        assert health.begin(OK)
        health.limit(OK, 7)
        health.end(OK)
        assert not health.is_usable(OK)
        assert not health.begin(OK)
        assert health.is_usable(OTHER)
        assert health.retry_after_s(OK) == 7
        clock.now += 7
        assert health.is_usable(OK)
        assert health.breaker_state("a") == "closed"
        assert health.begin(OK)
        health.limit(OK, 10**6)
        health.end(OK)
        assert health.retry_after_s(OK) == 300  # nobody is left alone for days


async def test_the_breaker_is_the_whole_backends() -> None:
    rule = BreakerRule(failures=2, open=5.0)
    async with FakeUpstream() as fake, watching(fake, breaker=rule) as (health, clock):
        for target in (OK, OTHER):
            assert health.begin(target)
            health.fail(target, "why")
            health.end(target)
        assert health.breaker_state("a") == "open"
        assert not health.is_usable(OTHER)
        clock.now += 5
        assert health.breaker_state("a") == "half_open"
        assert health.begin(OK)
        assert not health.begin(OTHER)
        health.drop(OK)
        health.end(OK)
        assert health.begin(OTHER)
        health.succeed(OTHER)
        health.end(OTHER)
        assert health.breaker_state("a") == "closed"


async def test_a_good_probe_after_bad_ones_need_not_wait_for_the_breaker() -> None:
    rule = BreakerRule(failures=1, ratio=0.1, open=60.0)
    async with (
        FakeUpstream() as fake,
        watching(fake, breaker=rule, probe=Probe(timeout=0.2, failures=1)) as (health, _),
    ):
        await fake.down()
        assert health.begin(OK)
        health.fail(OK, "gone")
        health.end(OK)
        await health.probe("a")
        await fake.up()
        await health.probe("a")
        assert health.breaker_state("a") == "half_open"
        assert health.is_usable(OK)


async def test_a_backend_that_is_not_configured() -> None:
    async with FakeUpstream() as fake, watching(fake) as (health, _):
        assert not health.is_usable(Target("b", "ok"))
        assert not health.begin(Target("b", "ok"))
        assert health.load(Target("b", "ok")) == 0
