"""A real Prometheus scrapes a real server under load: every expression of the dashboards and of the
rules finds what it asks for, a promise that nobody can keep raises its alert, and so would a
dashboard that was made for vLLM.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import httpx
import pytest
import yaml

from tests.observability.vllm_names import DASHBOARD
from tests.test_readme import _wait_until_ready, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.conftest import TinyLlama

DEPLOY = Path(__file__).parent.parent.parent / "deploy"
RULES = sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))
ALERT = "OctavoTTFTAboveObjective"
NAMES = re.compile(r"\b(?:(?:vllm|octavo):\w+|http_\w+|process_\w+|up\b)")
VALUES = {"__rate_interval": "3m", "__range": "5m"}

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        shutil.which("prometheus") is None or shutil.which("promtool") is None,
        reason="prometheus is not installed",
    ),
]


class Query(NamedTuple):
    """An expression, and where it stands."""

    where: str
    expr: str


def panels() -> list[Query]:
    queries = []
    for path in sorted((DEPLOY / "grafana").glob("*.json")):
        dashboard = json.loads(path.read_text())
        for panel in dashboard["panels"]:
            for target in panel.get("targets", ()):
                expr = re.sub(r"\$(\w+)", lambda m: VALUES.get(m[1], ".*"), target["expr"])
                queries.append(Query(f"{path.stem}: {panel['title']}", expr))
    return queries


def alerts() -> list[Query]:
    return [
        Query(rule.get("alert") or rule["record"], rule["expr"])
        for path in RULES
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
    ]


class Prometheus:
    """Asks a running Prometheus."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=30, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._client.close()

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            with suppress(httpx.HTTPError):
                if self._client.get("/-/ready").status_code == 200:
                    return
            assert time.monotonic() < deadline, "Prometheus did not start"
            time.sleep(0.1)

    def query(self, expr: str) -> list[float]:
        """Values of all series."""
        answer = self._client.get("/api/v1/query", params={"query": expr}).json()
        assert answer["status"] == "success", f"{expr}: {answer}"
        return [float(series["value"][1]) for series in answer["data"]["result"]]

    def alerts(self) -> dict[str, Any]:
        found = self._client.get("/api/v1/alerts").json()["data"]["alerts"]
        return {alert["labels"]["alertname"]: alert for alert in found}

    def wait_for(self, expr: str, at_least: float = 1.0) -> None:
        deadline = time.monotonic() + 60
        while max(self.query(expr), default=0.0) < at_least:
            assert time.monotonic() < deadline, f"{expr} did not come to {at_least}"
            time.sleep(0.2)


@contextmanager
def ended(popen: subprocess.Popen[Any]) -> Iterator[subprocess.Popen[Any]]:
    try:
        yield popen
    finally:
        popen.send_signal(signal.SIGTERM)
        popen.wait(30)


def configured(folder: Path, target: str) -> Path:
    """The files of deploy/, at a pace of seconds, with a promise that nobody can keep."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (job,) = config["scrape_configs"]
    job["scrape_timeout"] = "1s"
    job["static_configs"] = [{"targets": [target]}]
    (folder / "rules").mkdir()
    for path in RULES:
        text = path.read_text().replace("expr: vector(2)\n", "expr: vector(0.000001)\n")
        rules = yaml.safe_load(text)
        for group in rules["groups"]:
            for rule in group["rules"]:
                if rule.get("alert") == ALERT:
                    del rule["for"]
        (folder / "rules" / path.name).write_text(yaml.safe_dump(rules))
    file = folder / "prometheus.yml"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture(scope="module")
def url(tiny_llama: TinyLlama, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`octavo serve` of a tiny model."""
    command = [sys.executable, "-m", "octavo.cli.main", "serve", str(tiny_llama()), "--port", "0"]
    command += ["--served-model-name", "m", "--price-per-device-hour", "3.6"]
    home = {"OCTAVO_HOME": str(tmp_path_factory.mktemp("home"))}
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(
            command, env=environment() | home, stdout=log, stderr=subprocess.STDOUT, text=True
        )
        with ended(server):
            yield _wait_until_ready(server, log)


@pytest.fixture(scope="module")
def prometheus(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """One that has scraped the server before, during and after its load."""
    folder = tmp_path_factory.mktemp("prometheus")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        "prometheus",
        f"--config.file={configured(folder, url.removeprefix('http://'))}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        "--log.level=error",
    ]
    with ExitStack() as stack:
        stack.enter_context(ended(subprocess.Popen(command, cwd=folder)))
        asked = stack.enter_context(Prometheus(f"http://{address}"))
        asked.wait_until_ready()
        asked.wait_for("count_over_time(octavo:engine_up[1m])", 2)
        put_load(url)
        asked.wait_for("sum(octavo:feature_requests_total)", 9)  # rates need two different values
        put_load(url)  # finds its prompts in the prefix cache
        asked.wait_for('sum(vllm:request_success_total{finished_reason="length"})', 2 * 9)
        time.sleep(3)  # some scrapes and evaluations more
        yield asked


def put_load(url: str) -> None:
    prompt = "The quick brown fox jumps over the lazy dog. " * 2
    bodies: list[dict[str, Any]] = [
        {"model": "m", "prompt": prompt, "max_tokens": 8, "ignore_eos": True, "seed": i}
        for i in range(6)
    ]
    bodies.append(bodies[0] | {"n": 2})
    bodies.append(bodies[0] | {"stream": True})
    bodies.append({"model": "m", "prompt": ""})  # refused
    bodies.append(bodies[0] | {"max_tokens": 100, "timeout": 0.001})
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:

        def post(number: int) -> int:
            features = {"X-Octavo-Feature": f"feature-{number % 3}"}
            return client.post("/v1/completions", json=bodies[number], headers=features).status_code

        with ThreadPoolExecutor(4) as pool:
            codes = list(pool.map(post, range(len(bodies))))
    assert codes[:8] == [200] * 8


def test_every_panel_shows_something(prometheus: Prometheus) -> None:
    for where, expr in panels():
        values = prometheus.query(expr)
        assert values, f"{where}: nothing for {expr}"
        assert not all(map(isnan, values)), f"{where}: only NaN for {expr}"


def test_every_metric_that_is_named_has_data(prometheus: Prometheus) -> None:
    names = {name for _, expr in panels() + alerts() for name in NAMES.findall(expr)}
    assert len(names) > 40
    names.update(DASHBOARD)  # and those that a dashboard for vLLM asks for
    assert not {name for name in names if not prometheus.query(f"count({name})")}


def test_rules_are_evaluated_and_the_broken_promise_is_told(prometheus: Prometheus) -> None:
    for _, expr in alerts():
        prometheus.query(expr)
    prometheus.wait_for(f'ALERTS{{alertname="{ALERT}",alertstate="firing"}}')
    found = prometheus.alerts()
    assert re.search(r"m: P95 time to first token is \d", found[ALERT]["annotations"]["summary"])
    assert not {"OctavoDown", "OctavoEngineDown", "OctavoEngineStuck"} & set(found)


def test_what_the_load_left(prometheus: Prometheus) -> None:
    """Some values that are known."""
    ends = 'vllm:request_success_total{finished_reason="length",model_name="m",engine="0"}'
    assert prometheus.query(ends) == [2 * 9]
    assert prometheus.query("vllm:request_params_n_count") == [2 * 9]  # n = 2 is one request
    assert prometheus.query('vllm:request_params_n_bucket{le="1.0"}') == [2 * 8]
    assert prometheus.query('vllm:request_success_total{finished_reason="timeout"}') == [2]
    for name in ("queue", "prefill", "decode", "inference"):
        (count,) = prometheus.query(f"vllm:request_{name}_time_seconds_count")
        assert 2 * 9 <= count <= 2 * 10  # those whose time was up may have had a first token
    assert prometheus.query("vllm:prefix_cache_hits_total")[0] > 0
    assert len(prometheus.query("octavo:feature_cost_total > 0")) == 3
    spent = prometheus.query("sum by (currency) (octavo:feature_cost_total)")
    assert spent == pytest.approx(prometheus.query("octavo:cost_total"))
    seconds = prometheus.query("sum(octavo:feature_gpu_seconds_total)")
    rounded = 20e-9  # each request's cost is whole billionths
    assert spent == pytest.approx([x * 3.6 / 3600 for x in seconds], abs=rounded)
    assert prometheus.query("octavo:ledger_records_written_total")[0] >= 2 * 9
    parts, whole = "octavo:gpu_seconds_total", "octavo:device_wall_seconds_total"
    assert prometheus.query(f"sum({parts}) / sum({whole})") == pytest.approx([1], abs=0.05)
    answers = 'sum by (status) (http_requests_total{handler="/v1/completions",method="POST"})'
    assert len(prometheus.query(answers)) >= 2
