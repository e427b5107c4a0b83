"""The live page: its numbers against a scripted engine, its policy, and itself in a browser."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from decimal import Decimal
from importlib import resources
from typing import TYPE_CHECKING, Any

import httpx
import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from octavo.ledger.record import UsageRecord
from octavo.ledger.store import open_ledger
from octavo.observability.board import Board
from octavo.observability.board_text import BoardText
from octavo.observability.metrics_buckets import ITL_BUCKETS, TTFT_BUCKETS
from octavo.observability.metrics_requests import RequestMetrics
from octavo.protocol.dashboard import DashboardData
from octavo.server.dashboard.history import NUM_POINTS, History, Reading, quantile
from octavo.server.dashboard.slowest import NUM_MINUTES, NUM_SHOWN, SlowRequests
from octavo.server.dashboard.spend import LedgerToday
from octavo.types import DeviceTime, EngineStats
from tests.browser import CHROMIUM, DRIVER, Browser, browsing
from tests.server.test_bad_input import error_of
from tests.serving.server_process import completion, serving, write_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.server.conftest import RunningServer

NOW_NS = 1_790_000_000 * 10**9
HOSTILE = "</script><img src=x onerror=\"document.title='hacked'\">{{7*7}}'"
PROMTOOL = shutil.which("promtool")


def record(index: int, e2e_s: float = 1.0, **fields: Any) -> UsageRecord:
    values = {
        "request_id": f"r-{index}",
        "time_ns": NOW_NS,
        "route": "/v1/completions",
        "backend": "octavo",
        "model": "m",
        "prefill_ns": 2_000_000,
        "decode_ns": 3_000_000,
        "waste_ns": 0,
        "num_input_tokens": 7,
        "num_cached_tokens": 2,
        "num_output_tokens": 5,
        "e2e_ns": round(1e9 * e2e_s),
        "finish_reason": "stop",
        "hourly_rate_nano": 3_600 * 10**9,
        **fields,
    }
    return UsageRecord(**values)


def data_of(server: RunningServer) -> DashboardData:
    response = server.client.get("/dashboard/data")
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    return msgspec.json.decode(response.content, type=DashboardData, strict=True)


# Numbers


def test_data_tells_what_the_engine_and_the_server_counted(
    serve: Callable[..., RunningServer],
) -> None:
    server = serve(price_per_device_hour=Decimal("3.6"))
    server.engine.stats = EngineStats(
        num_running=3,
        num_waiting=2,
        kv_cache_usage=0.25,
        num_preemptions=4,
        num_prompt_tokens=90,
        num_generation_tokens=40,
        prefix_cache_queries=80,
        prefix_cache_hits=20,
        num_restarts=1,
        device_time=DeviceTime(num_devices=1, wall_ns=5 * 10**9, requests_ns=3 * 10**9),
    )
    tagged = {"X-Octavo-Feature": "search", "X-Request-Id": "mine"}
    body = {"model": "fake", "prompt": "hello", "max_tokens": 8}
    server.client.post("/v1/completions", json=body, headers=tagged)
    answer = server.chat(max_tokens=4)
    data = data_of(server)
    assert data.state.code == "up"
    assert data.models == ("fake", "org/alias")
    assert (data.load.num_running, data.load.num_waiting, data.load.kv_usage) == (3, 2, 0.25)
    assert data.servers.num_engine_restarts == 1
    assert data.totals.ends["length"] == 2
    assert (data.totals.prefix_hits, data.totals.prefix_queries) == (20, 80)
    assert data.device_seconds["requests"] == 3.0
    assert data.series.running == [3]
    assert {len(c) for c in msgspec.structs.astuple(data.series) if isinstance(c, list)} == {1}
    spend = {row.feature: row for row in data.spend}
    assert set(spend) == {"search", ""}
    assert spend["search"].num_requests == 1
    assert spend["search"].cost == pytest.approx(spend["search"].gpu_seconds / 1000)
    assert spend["search"].currency == data.currency == "USD"
    slow = {request.request_id.partition(".")[0]: request for request in data.slowest}
    assert set(slow) == {"mine", answer.headers["x-request-id"]}
    assert slow["mine"].feature == "search"
    assert slow["mine"].num_output_tokens == 8
    assert slow["mine"].finish_reason == "length"
    assert 0 < slow["mine"].ttft <= slow["mine"].e2e  # type: ignore[operator]
    assert data.ledger.state == "off"
    assert b"hello" not in server.client.get("/dashboard/data").content


def test_no_price_and_an_engine_that_fails(server: RunningServer) -> None:
    server.completion()
    assert data_of(server).price is None
    assert data_of(server).spend[0].cost is None
    server.engine.is_alive = False
    data = data_of(server)
    assert (data.state.code, data.state.message) == ("engine_dead", "the engine is dead")
    server.app.context.lifecycle.drain()
    assert data_of(server).state.code == "draining"


def reading(at: float, requests: RequestMetrics, **stats: Any) -> Reading:
    return Reading.of(EngineStats(**stats), requests, at, 1000.0 + at)


def test_rates_and_quantiles_are_those_of_their_windows() -> None:
    history, requests = History(), RequestMetrics(Board.private(), 1000)
    for step in range(100):
        if step < 60:  # old ones, which the last minute knows nothing of
            requests.time_to_first_token.observe(100.0)
        else:
            requests.time_to_first_token.observe(0.09)
            requests.inter_token_latency.observe(0.03, 10)
        device = DeviceTime(num_devices=2, wall_ns=2 * 10**9 * step, requests_ns=10**9 * step)
        history.add(
            reading(
                2.0 * step,
                requests,
                num_generation_tokens=50 * step,
                num_prompt_tokens=10 * step,
                num_preemptions=step,
                prefix_cache_queries=8 * step,
                prefix_cache_hits=2 * step,
                device_time=device,
            )
        )
    series = history.series()
    assert len(series.times) == 100
    assert series.output_rate[0] is None
    assert series.output_rate[-1] == 25.0
    assert series.prompt_rate[-1] == 5.0
    assert series.device_busy[-1] == 0.25
    assert series.prefix_hit_rate[-1] == 0.25
    assert series.preemptions[-1] == 30
    assert 0.08 < series.ttft_p95[-1] <= 0.1  # type: ignore[operator]
    assert series.ttft_p95[50] > 80  # type: ignore[operator]
    assert series.itl_mean[-1] == pytest.approx(0.03)
    assert series.e2e_p95[-1] is None


def test_a_long_step_is_no_pause() -> None:
    """A step of 14 seconds, of which nothing is known before its end; then nothing to do."""
    history, requests = History(), RequestMetrics(Board.private(), 1000)
    for step in range(20):
        done = 10**9 * (2 * step if step < 4 else 6 if step < 10 else 20)
        device = DeviceTime(num_devices=1, wall_ns=done, requests_ns=done)
        history.add(reading(2.0 * step, requests, device_time=device, num_running=int(step < 10)))
    busy = history.series().device_busy
    assert busy[1:11] == [1.0] * 10
    assert busy[15:] == [0.0] * 5


def test_an_engine_that_began_anew_gives_no_negative_rates() -> None:
    history, requests = History(), RequestMetrics(Board.private(), 1000)
    counts = [1000, 2000, 3000, 10, 20, 30]
    for step, count in enumerate(counts):
        history.add(reading(2.0 * step, requests, num_generation_tokens=count))
    rates = [rate for rate in history.series().output_rate if rate is not None]
    assert min(rates) > 0
    for step in range(NUM_POINTS):
        history.add(reading(100.0 + step, requests))
    assert len(history.series().times) == NUM_POINTS


@pytest.mark.skipif(PROMTOOL is None, reason="needs Debian's package prometheus")
def test_quantiles_are_prometheus_own(tmp_path: Path) -> None:
    tests = []
    for bounds in (TTFT_BUCKETS, ITL_BUCKETS):
        for counts in ([5] * 4, [0, 0, 3, 9], [0] * (len(bounds) - 1) + [2, 5], [1, 0, 0, 0, 7]):
            full = [*counts, *[0] * (len(bounds) + 1 - len(counts))]
            cumulative = [sum(full[: i + 1]) for i in range(len(full))]
            names = [*map(str, bounds), "+Inf"]
            series = [
                {"series": f'x_bucket{{le="{name}"}}', "values": f"{value}"}
                for name, value in zip(names, cumulative, strict=True)
            ]
            found = {q: quantile(bounds, cumulative, q) or 0.0 for q in (0.5, 0.95)}
            checks = [
                {
                    "expr": f"round(histogram_quantile({q}, x_bucket) * 1e9)",
                    "eval_time": "0m",
                    "exp_samples": [{"labels": "{}", "value": round(1e9 * value)}],
                }
                for q, value in found.items()
            ]
            tests.append({"interval": "1m", "input_series": series, "promql_expr_test": checks})
    file = tmp_path / "quantiles.yml"
    file.write_text(yaml.safe_dump({"rule_files": [], "tests": tests}))
    assert PROMTOOL is not None
    run = subprocess.run([PROMTOOL, "test", "rules", file], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


# The slowest requests


def test_the_slowest_are_kept_within_bounds_and_for_a_time() -> None:
    slowest = SlowRequests(BoardText(Board.private(), 1000))
    for index in range(3000):
        slowest.add(record(index, (index * 7919) % 3000, time_ns=NOW_NS + 10**9 * (index // 10)))
    shown = slowest.newest(NOW_NS + 300 * 10**9)
    assert [request.e2e for request in shown] == list(range(2999, 2999 - NUM_SHOWN, -1))
    assert sum(len(kept) for _, kept in slowest._minutes) <= NUM_MINUTES * NUM_SHOWN
    assert shown[0].cost == pytest.approx(0.005)
    assert slowest.newest(NOW_NS + (NUM_MINUTES + 6) * 60 * 10**9) == []


def test_every_api_server_tells_of_all_servers_requests() -> None:
    parent = Board.shared(2)
    assert parent.fd is not None
    servers = []
    for own in range(2):
        board = Board.attached(os.dup(parent.fd), 2, own)
        board.take(3)
        servers.append(SlowRequests(BoardText(board, 2000)))
    for index in range(40):
        name = HOSTILE if index == 7 else "x" * 100
        servers[index % 2].add(record(index, index, feature=name, request_id=f"{index}" * 30))
    for server in servers:
        server.publish(NOW_NS)
    first, second = (server.newest(NOW_NS) for server in servers)
    assert len(first) == len(second) == NUM_SHOWN
    assert first[:4] == second[:4]  # what does not fit onto the board is the least slow
    assert [request.e2e for request in first[:4]] == [39, 38, 37, 36]


@given(st.lists(st.binary(max_size=64), max_size=5))
def test_a_text_on_the_board_is_read_whole_or_not_at_all(texts: list[bytes]) -> None:
    parent = Board.shared(2)
    assert parent.fd is not None
    mine, other = (
        BoardText(Board.attached(os.dup(parent.fd), 2, own), max_bytes=64) for own in range(2)
    )
    assert other.others() == [b""]
    for text in texts:
        mine.write(text)
        assert other.others() == [text]
    if texts and texts[-1]:
        row = mine._rows[0]
        assert not isinstance(row, list)
        row.cast("B")[16] ^= 1  # half written
        assert other.others() == [texts[-1]]


# The ledger


async def read(today: LedgerToday) -> Any:
    assert today.newest().state in ("reading", "failed", "ok")
    assert today._task is not None
    await today._task
    return today.newest()


async def test_today_is_what_the_ledger_has_of_today(tmp_path: Path) -> None:
    url = str(tmp_path / "ledger.db")
    now = NOW_NS
    with open_ledger(url) as ledger:
        ledger.add_usage(
            [
                record(0, feature="a", time_ns=now),
                record(1, feature="a", time_ns=now - 10**9),
                record(2, feature="", time_ns=now, hourly_rate_nano=0),
                record(3, feature="old", time_ns=now - 86_400 * 10**9),
                *(record(10 + i, feature=f"f{i}", prefill_ns=1, time_ns=now) for i in range(40)),
            ]
        )
    newest = await read(LedgerToday(url, has_price=False, clock=lambda: now))
    assert (newest.state, newest.day) == ("ok", time.strftime("%Y-%m-%d", time.gmtime(now / 1e9)))
    assert newest.features[0].feature == "a"
    assert newest.features[0].num_requests == 2
    assert newest.features[0].cost == pytest.approx(0.01)
    untagged = next(row for row in newest.features if row.feature == "")
    assert untagged.cost is None
    assert len(newest.features) + newest.num_more == 42
    assert "old" not in {row.feature for row in newest.features}


async def test_a_ledger_that_cannot_be_read_is_told_without_its_password(tmp_path: Path) -> None:
    missing = await read(LedgerToday(str(tmp_path / "none.db"), has_price=True))
    assert missing.state == "failed"
    assert missing.message
    url = "postgresql://octavo:secret@127.0.0.1:1/none?connect_timeout=1"
    away = await read(LedgerToday(url, has_price=True))
    assert away.state == "failed"
    assert "secret" not in away.message
    assert LedgerToday(None, has_price=True).newest().state == "off"
    await asyncio.sleep(0)


# The page and its policy


def test_the_page_needs_no_key_and_its_numbers_do(serve: Callable[..., RunningServer]) -> None:
    server = serve(api_keys=("sk-1",))
    page = server.client.get("/dashboard")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "fake" not in page.text
    assert error_of(server.client.get("/dashboard/data"), 401)["code"] == "missing_api_key"
    headers = {"Authorization": "Bearer sk-1"}
    assert server.client.get("/dashboard/data", headers=headers).status_code == 200
    again = server.client.get("/dashboard", headers={"If-None-Match": page.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    server.app.context.lifecycle.drain()
    assert server.client.get("/dashboard").status_code == 200


def test_the_policy_lets_in_the_page_itself_and_nothing_else(server: RunningServer) -> None:
    page = server.client.get("/dashboard")
    rules = dict(
        rule.partition(" ")[::2] for rule in page.headers["content-security-policy"].split("; ")
    )
    for name, pattern in (
        ("script", r"<script>(.*?)</script>"),
        ("style", r"<style>(.*?)</style>"),
    ):
        [inside] = re.findall(pattern, page.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert rules.pop(f"{name}-src") == f"'sha256-{digest}'"
    assert rules == {
        "default-src": "'none'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
    }
    assert page.headers["x-content-type-options"] == "nosniff"
    hosts = set(re.findall(r"(?:https?:)?//([\w.-]+\.\w+)", page.text))
    assert hosts == {"www.w3.org"}  # the name of SVG, which nobody asks
    forbidden = r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|localStorage|url\("
    assert not re.search(forbidden, page.text)
    assert not re.search(r"<[^>]+\s(style|on\w+)=", page.text)


def test_the_page_is_package_data() -> None:
    folder = resources.files("octavo.server.dashboard")
    names = {path.name for path in folder.iterdir()}
    assert {"page.html", "page.css", "page.js", "chart.js", "tables.js", "format.js"} <= names


# In a browser

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="needs Debian's chromium and chromium-driver"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def errors_in(browser: Browser, *expected: str) -> list[dict[str, Any]]:
    """What the console complains of, but for answers that a test provokes."""
    return [
        entry
        for entry in browser.log()
        if entry["level"] in ("SEVERE", "WARNING")
        and not any(words in entry["message"] for words in expected)
    ]


def too_wide(browser: Browser) -> list[str]:
    """What makes a reader scroll sideways; tables on wide screens do that within themselves."""
    found: list[str] = browser.run(
        "if (document.documentElement.scrollWidth <= window.innerWidth) return [];"
        "return [...document.querySelectorAll('body *')]"
        ".filter(e => !e.closest('table') && e.getBoundingClientRect().right > window.innerWidth)"
        ".map(e => e.outerHTML)"
    )
    return found


@needs_browser
@pytest.mark.timeout(180)
def test_under_load_from_two_api_servers(browser: Browser, tmp_path: Path) -> None:
    model = write_model(tmp_path)
    options = {
        "api_server_count": 2,
        "ledger": str(tmp_path / "ledger.db"),
        "price_per_device_hour": "3600",
        "max_engine_restarts": 3,
    }
    with serving(model, tmp_path, options=options, step_s=0.01, is_metered=True) as server:
        base = server.wait_for("ready at ", 60).removesuffix("/v1")
        is_over = threading.Event()

        def work(feature: str) -> None:
            with httpx.Client(base_url=base, timeout=30, trust_env=False) as client:
                while not is_over.is_set():
                    client.post(
                        "/v1/completions",
                        json=completion(60, ignore_eos=True),
                        headers={"X-Octavo-Feature": feature},
                    )

        threads = [threading.Thread(target=work, args=(name,)) for name in ("chat", "search") * 2]
        for thread in threads:
            thread.start()
        try:
            browser.resize(1200, 900)
            browser.open(f"{base}/dashboard")
            rows = "document.querySelectorAll('#slowest tbody tr').length"
            browser.wait_for(f"{rows} >= 4", 60)
            browser.wait_for("document.querySelectorAll('.chart .line').length >= 8")
            browser.wait_for("/search/.test(document.querySelector('#spend tbody')?.textContent)")
            assert browser.text("#state") == "up"
            assert browser.text("#model") == "/ fake" or browser.text("#model") == "fake"
            assert re.search(r"[\d.]+ USD", browser.text("#spend tbody tr")), browser.text("#spend")
            tiles = browser.text("#tiles")
            assert re.search(r"Running\s+[1-4]\b", tiles), tiles
            assert re.search(r"TTFT P95\s+<?[\d.]+ m?s", tiles), tiles
            assert "NaN" not in browser.text("body")
            assert "undefined" not in browser.text("body")
            for width, is_dark in ((360, True), (1500, False)):
                browser.resize(width, 800, is_dark=is_dark)
                assert too_wide(browser) == []
            # by keys alone: to the first chart, and back in time
            browser.run("document.querySelector('.chart svg').focus()")
            browser.press("\ue012")
            assert re.fullmatch(r"\d\d:\d\d:\d\d", browser.text(".chart h2 span"))
            browser.press("\ue00c")
            assert browser.text(".chart h2 span") == "in the engine"
            browser.run("document.querySelector('#spend-start').click()")
            assert "Ended requests of this server" in browser.text("#spend-note")
            assert errors_in(browser) == []
        finally:
            is_over.set()
            for thread in threads:
                thread.join()
        os.kill(server.engine_pid(), signal.SIGKILL)
        browser.wait_for("/[1-9]/.test(document.querySelectorAll('#facts dd')[9].textContent)")
        server.popen.send_signal(signal.SIGTERM)
        server.end()
        browser.wait_for("document.querySelector('#state').textContent == 'no answer'")
        assert "does not answer" in browser.text("#notice")
        assert errors_in(browser, "Failed to load", "ERR_") == []


@needs_browser
@pytest.mark.timeout(120)
def test_a_key_hostile_names_and_a_dead_engine(
    browser: Browser, serve: Callable[..., RunningServer]
) -> None:
    server = serve(api_keys=("sk-1",), headers={"Authorization": "Bearer sk-1"})
    monitor = server.app.context.monitor
    monitor._config = msgspec.structs.replace(monitor._config, served_model_names=(HOSTILE,))
    server.client.headers["X-Octavo-Feature"] = HOSTILE
    server.completion()
    browser.resize(900, 900)
    browser.open(f"{server.url}/dashboard")
    browser.wait_for("!document.querySelector('#login').hidden")
    assert browser.run("return document.querySelector('main').hidden")
    for key, selector in (("wrong", "#refusal"), ("sk-1", "#spend table")):
        browser.run("document.querySelector('#key').focus()")
        browser.press(*key, "\ue007")
        browser.wait_for(f"(document.querySelector('{selector}')?.textContent ?? '') != ''")
    assert "does not know this key" not in browser.text("body")
    assert browser.text("#spend tbody td") == HOSTILE
    assert HOSTILE in browser.text("#slowest tbody tr")
    assert HOSTILE in browser.text("#model")
    assert browser.run("return document.images.length") == 0
    assert "No price is set" in browser.text("#spend-note")
    assert "keeps no ledger" not in browser.text("#spend")
    browser.run("document.querySelector('#spend-today').click()")
    assert "keeps no ledger" in browser.text("#spend")
    assert browser.run("return document.cookie + localStorage.length") == "0"
    server.engine.is_alive = False
    browser.wait_for("document.querySelector('#state').textContent == 'down'")
    assert "Restart the server" in browser.text("#notice")
    browser.run("document.querySelector('#forget').click()")
    assert browser.run("return sessionStorage.length") == 0
    assert browser.run("return document.querySelector('main').hidden")
    assert errors_in(browser, "401") == []
    browser.open("about:blank")
