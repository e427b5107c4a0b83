"""A new configuration under a running gateway: whole or not at all, and no stream is dropped."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from octavo.errors import ConfigError
from tests.gateway.fake_upstream import FakeUpstream
from tests.gateway.running import QUICK, running
from tests.gateway.test_app import AUTH, KEY

if TYPE_CHECKING:
    from pathlib import Path

ADMIN_KEY = "an-admin-key-of-the-tests"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
LIMITS = "limits: {rules: {few: {requests_per_minute: 3, burst_s: 60}}}"


def config(*fakes: FakeUpstream, key: str = KEY, more: str = "") -> str:
    backends = "".join(
        f"\n  b{index}:\n    url: {fake.url}\n    models: {{m{index}: {{}}, slow: {{}}}}{QUICK}"
        for index, fake in enumerate(fakes)
    )
    return f"""
keys: {{inline: [{{id: k1, key: {key}}}]}}
admin: {{keys: {{root: {ADMIN_KEY}}}}}
backends:{backends}
{more}
"""


async def test_a_new_configuration_takes_effect_whole(tmp_path: Path) -> None:
    async with (
        FakeUpstream() as one,
        FakeUpstream() as two,
        running(tmp_path, config(one)) as gateway,
    ):
        gateway.client.headers.update(AUTH)
        assert (await gateway.chat("m0")).status_code == 200
        assert (await gateway.chat("m1")).status_code == 404
        gateway.path.write_text(config(one, two, key="another-key-of-the-tests"))
        answer = await gateway.client.post("/admin/v1/reload", headers=ADMIN)
        assert answer.status_code == 200, answer.text
        assert (await gateway.chat("m0")).status_code == 401
        gateway.client.headers["authorization"] = "Bearer another-key-of-the-tests"
        assert (await gateway.chat("m1")).status_code == 200
        assert gateway.gateway.metrics.reloads == {"ok": 1, "refused": 0}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        ("backends: {", "not YAML"),
        ("backends: {}", "backends"),
        (None, "cannot read"),
        ("more: {}\nbackends: {a: {url: 'http://x', models: {m: {}}}}", "more"),
    ],
)
async def test_a_bad_configuration_changes_nothing_and_says_why(
    tmp_path: Path, bad: str | None, why: str
) -> None:
    async with FakeUpstream() as fake, running(tmp_path, config(fake)) as gateway:
        gateway.client.headers.update(AUTH)
        parts = gateway.gateway.parts
        gateway.path.unlink() if bad is None else gateway.path.write_text(bad)
        answer = await gateway.client.post("/admin/v1/reload", headers=ADMIN)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_config")
        assert why in answer.json()["error"]["message"]
        with pytest.raises(ConfigError, match=why):
            await gateway.gateway.reload()
        assert gateway.gateway.parts is parts
        assert (await gateway.chat("m0")).status_code == 200
        text = (await gateway.client.get("/metrics")).text
        assert 'octavo_gateway_config_reloads_total{result="refused"} 2' in text.splitlines()


async def test_a_stream_in_flight_keeps_the_old_configuration_until_it_ends(
    tmp_path: Path,
) -> None:
    async with FakeUpstream() as one, FakeUpstream() as two:
        one.delay_s = 0.05
        async with running(tmp_path, config(one)) as gateway:
            gateway.client.headers.update(AUTH)
            old = gateway.gateway.parts
            stream = asyncio.ensure_future(gateway.chat("slow", stream=True))
            while not old.num_open:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            gateway.path.write_text(config(two))  # the backend that streams is in it no more
            await gateway.gateway.reload()
            assert gateway.gateway.parts is not old
            assert (await gateway.chat("m0")).status_code == 200
            assert not old.dispatcher.upstreams["b0"].is_closed
            answer = await stream
            assert answer.text.endswith("data: [DONE]\n\n")
            assert len(two.seen) == 1
            async with asyncio.timeout(2):
                while not old.dispatcher.upstreams["b0"].is_closed:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)


async def test_what_was_counted_and_remembered_goes_on(tmp_path: Path) -> None:
    async with (
        FakeUpstream() as fake,
        running(tmp_path, config(fake, more=LIMITS)) as gateway,
    ):
        gateway.client.headers.update(AUTH)
        old = gateway.gateway.parts
        for _ in range(2):
            assert (await gateway.chat("m0")).status_code == 200
        await gateway.gateway.reload()
        new = gateway.gateway.parts
        assert new.limits is not old.limits
        assert new.router.memory is old.router.memory
        assert new.dispatcher is old.dispatcher  # connections and breakers, too
        assert (await gateway.chat("m0")).status_code == 200
        assert (await gateway.chat("m0")).status_code == 429


async def test_a_change_of_one_backend_leaves_the_others_alone(tmp_path: Path) -> None:
    """Their connections, what probes found, and a breaker that is open."""

    def text(last: FakeUpstream) -> str:
        fragile = "breaker: {failures: 2, ratio: 0.1, window: 60, open: 60}"
        whole = config(warm, broken, last).replace("m1: {}", '"500": {}')
        head, mark, rest = whole.partition("  b1:\n")
        return head + mark + rest.replace("breaker: {failures: 1000}", fragile, 1)

    async with (
        FakeUpstream() as warm,
        FakeUpstream() as broken,
        FakeUpstream() as one,
        FakeUpstream() as two,
        running(tmp_path, text(one)) as gateway,
    ):
        gateway.client.headers.update(AUTH)
        for model, status in (("m0", 200), ("500", 502), ("500", 502), ("500", 503), ("m2", 200)):
            assert (await gateway.chat(model)).status_code == status
        old = gateway.gateway.parts.dispatcher
        for fake in (two, one):  # and back again
            gateway.path.write_text(text(fake))
            await gateway.gateway.reload()
            new = gateway.gateway.parts.dispatcher
            assert new.upstreams["b2"] is not old.upstreams["b2"]
            assert new.health.breaker_state("b1") == "open"
            assert (await gateway.chat("500")).json()["error"]["code"] == "no_backend"
            assert (await gateway.chat("m0")).status_code == 200
            assert (await gateway.chat("m2")).status_code == 200
        assert (warm.num_connections, len(warm.seen)) == (1, 3)
        assert len(broken.seen) == 2
        assert (len(one.seen), len(two.seen)) == (2, 1)
        await two.idle()  # its backend is gone, and nothing of it stays
        assert old.upstreams["b0"] is new.upstreams["b0"]
        assert not new.upstreams["b0"].is_closed


async def test_a_refused_configuration_takes_no_part_of_the_one_in_force(tmp_path: Path) -> None:
    judges = "judges: {mine: {kind: eval, function: 'no_such_module:judge', passes_at: 1}}"
    async with (
        FakeUpstream() as one,
        FakeUpstream() as two,
        running(tmp_path, config(one)) as gateway,
    ):
        gateway.client.headers.update(AUTH)
        assert (await gateway.chat("m0")).status_code == 200
        gateway.path.write_text(config(one, two, more=judges))
        with pytest.raises(ConfigError, match="no_such_module"):
            await gateway.gateway.reload()
        upstream = gateway.gateway.parts.dispatcher.upstreams["b0"]
        gateway.path.write_text(config(two))
        await gateway.gateway.reload()
        await one.idle()
        assert upstream.is_closed  # nobody else held it


async def test_many_reloads_leave_nothing_behind(tmp_path: Path) -> None:
    async with (
        FakeUpstream() as one,
        FakeUpstream() as two,
        running(tmp_path, config(one)) as gateway,
    ):
        gateway.client.headers.update(AUTH)
        for index in range(10):
            gateway.path.write_text(config(two if index % 2 else one, one))
            chat, _ = await asyncio.gather(gateway.chat("slow"), gateway.gateway.reload())
            assert chat.status_code == 200
        await gateway.idle()
        await asyncio.sleep(0.05)
        assert not gateway.gateway._retiring
        await one.idle(1)
        await two.idle(1)


async def test_only_admin_keys_reload(tmp_path: Path) -> None:
    async with FakeUpstream() as fake, running(tmp_path, config(fake)) as gateway:
        for headers in ({}, AUTH, {"Authorization": "Bearer wrong-wrong-wrong-wrong"}):
            answer = await gateway.client.post("/admin/v1/reload", headers=headers)
            assert answer.status_code == 401
        assert gateway.gateway.metrics.reloads == {"ok": 0, "refused": 0}


async def test_what_needs_a_new_start_is_told(tmp_path: Path) -> None:
    async with FakeUpstream() as fake, running(tmp_path, config(fake)) as gateway:
        gateway.path.write_text(config(fake, more="server: {port: 1234}\nledger: {url: x.db}"))
        answer = await gateway.client.post("/admin/v1/reload", headers=ADMIN)
        assert answer.json()["needs_start"] == ["server.port", "ledger"]
