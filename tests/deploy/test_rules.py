"""The alerts: each fires when it should and is quiet when it should be: promtool's unit tests."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

FOLDER = Path(__file__).parent.parent.parent / "deploy" / "prometheus"
README = (FOLDER.parent / "README.md").read_text()
ALERTS = {
    rule["alert"]: rule
    for group in yaml.safe_load((FOLDER / "rules" / "octavo.yml").read_text())["groups"]
    for rule in group["rules"]
}

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed"
)


class Case(NamedTuple):
    """Series, each with promtool's notation of its values; and when to look at what came of it.

    Values are a minute apart, and in cases that take a day, ten.
    """

    fires: dict[str, str]
    quiet: dict[str, str]
    minutes: int = 20

    @property
    def is_long(self) -> bool:
        return self.minutes > 200


def histogram(name: str, *, under: int, at: str) -> dict[str, str]:
    """Ten requests a minute; `under` of them at most `at`, all of them at most 60 seconds."""
    own = f'{name}_bucket{{model_name="m",instance="i"'
    return {
        f'{own},le="{at}"}}': f"0+{under}x40",
        f'{own},le="60.0"}}': "0+10x40",
        f'{own},le="+Inf"}}': "0+10x40",
    }


def series(name: str, values: str, **labels: str) -> dict[str, str]:
    inside = ",".join(
        f'{k}="{v}"' for k, v in {"instance": "i", "model_name": "m", **labels}.items()
    )
    return {f"{name}{{{inside}}}": values}


TTFT, E2E = "vllm:time_to_first_token_seconds", "vllm:e2e_request_latency_seconds"
WAITING, ENDS = "vllm:num_requests_waiting", "vllm:request_success_total"
HITS, QUERIES = "vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total"
UP, ANSWERS = "octavo:engine_up", "octavo:engine_answers"
HTTP = "http_requests_total"
DAY = 24 * 6
"""Steps of ten minutes."""

CASES = {
    # The objective for P95 is 2 s.
    "OctavoTTFTAboveObjective": Case(
        histogram(TTFT, under=9, at="2.0"), histogram(TTFT, under=10, at="1.0")
    ),
    "OctavoE2EAboveObjective": Case(
        histogram(E2E, under=9, at="30.0"), histogram(E2E, under=10, at="20.0")
    ),
    "OctavoKVCacheNearlyFull": Case(
        series("vllm:kv_cache_usage_perc", "0.9x40"),
        # Above it, but never for five minutes.
        series("vllm:kv_cache_usage_perc", "0.9x3 0.8 0.9x3 0.8 0.9x3 0.8 0.9x3 0.8 0.9x3 0.8x20"),
    ),
    "OctavoQueueGrows": Case(
        series(WAITING, "0+5x40"),
        series(WAITING, "50x40"),  # long, but not growing
    ),
    "OctavoRequestsRejected": Case(
        series("vllm:admission_rejections_total", "0+6x40", reason="max_num_queued_reqs"),
        series("vllm:admission_rejections_total", "7x40", reason="max_num_queued_reqs"),
    ),
    "OctavoPrefixHitRateDropped": Case(
        {
            **series(QUERIES, f"0+10000x{2 * DAY}"),
            **series(HITS, f"0+8000x{DAY} {8000 * DAY}+1000x{DAY}"),
        },
        {**series(QUERIES, f"0+10000x{2 * DAY}"), **series(HITS, f"0+8000x{2 * DAY}")},
        minutes=10 * (DAY + 6),
    ),
    "OctavoErrorsAboveObjective": Case(
        {
            **series(ENDS, "0+95x40", finished_reason="stop"),
            **series(ENDS, "0+5x40", finished_reason="error"),
        },
        {
            **series(ENDS, "0+100x40", finished_reason="stop"),
            **series(ENDS, "0+9x40", finished_reason="abort"),  # clients that left
            **series(ENDS, "0+1x40", finished_reason="timeout"),
        },
    ),
    "OctavoServerErrors": Case(
        {
            **series(HTTP, "0+90x40", job="octavo", status="2xx"),
            **series(HTTP, "0+10x40", job="octavo", status="5xx"),
        },
        {
            **series(HTTP, "0+90x40", job="octavo", status="2xx"),
            **series(HTTP, "0+50x40", job="octavo", status="4xx"),
            **series(HTTP, "0+90x40", job="another", status="5xx"),
        },
    ),
    "OctavoDown": Case(series("up", "1x10 0x30", job="octavo"), series("up", "1x40", job="octavo")),
    "OctavoEngineDown": Case(
        {**series(UP, "1x10 0x30"), **series(ANSWERS, "1x10 0x30")},
        {**series(UP, "1x17 0 1x30"), **series(ANSWERS, "1x40")},  # a quick restart
    ),
    "OctavoEngineStuck": Case(
        {**series(UP, "1x40"), **series(ANSWERS, "1x10 0x30")},
        {**series(UP, "1x10 0x30"), **series(ANSWERS, "1x10 0x30")},  # down, and said so elsewhere
    ),
    "OctavoEngineRestarted": Case(
        series("octavo:engine_restarts_total", "0x15 1x30"),
        series("octavo:engine_restarts_total", "3x40"),
    ),
    "OctavoAPIServerRestarted": Case(
        series("octavo:api_server_restarts_total", "0x15 1x30"),
        series("octavo:api_server_restarts_total", "1x40"),
    ),
    "OctavoBudgetBurn": Case(  # the objective is 100 a day
        series("octavo:cost_total", "0+0.08x200", currency="USD"),
        series("octavo:cost_total", "0+0.06x200", currency="USD"),
        minutes=120,
    ),
    "OctavoBudgetSpent": Case(
        series("octavo:cost_total", f"0+0.8x{2 * DAY}", currency="USD"),
        series("octavo:cost_total", f"0+0.6x{2 * DAY}", currency="USD"),
        minutes=10 * (DAY + 6),
    ),
    "OctavoLedgerSpills": Case(
        series("octavo:ledger_records_spilled_total", "0x5 1+1x40"),
        series("octavo:ledger_records_spilled_total", "9x40"),
    ),
    "OctavoLedgerLosesRecords": Case(
        series("octavo:ledger_records_lost_total", "0x15 2x30"),
        series("octavo:ledger_records_lost_total", "0x40"),
    ),
}


def unit_tests(*, are_long: bool) -> list[dict[str, Any]]:
    tests = []
    for alert, case in CASES.items():
        if case.is_long != are_long:
            continue
        for is_firing, inputs in ((True, case.fires), (False, case.quiet)):
            firing = f'ALERTS{{alertname="{alert}",alertstate="firing"}}'
            tests.append(
                {
                    "name": f"{alert} {'fires' if is_firing else 'is quiet'}",
                    "interval": "10m" if are_long else "1m",
                    "input_series": [
                        {"series": name, "values": values} for name, values in inputs.items()
                    ],
                    "promql_expr_test": [
                        {
                            "expr": f"count({firing}) or vector(0)",
                            "eval_time": f"{case.minutes}m",
                            "exp_samples": [{"labels": "{}", "value": int(is_firing)}],
                        }
                    ],
                }
            )
    return tests


def test_every_alert_has_a_case_and_says_what_to_do() -> None:
    assert set(CASES) == set(ALERTS)
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("warning", "critical"), name
        assert set(rule["annotations"]) == {"summary", "description", "runbook"}, name
        assert all(len(text) > 10 for text in rule["annotations"].values()), name
        assert f"| `{name}` | {rule['labels']['severity']} |" in README, name


@needs_promtool
def test_the_configuration_is_valid() -> None:
    command = ["promtool", "check", "config", "--lint-fatal", "prometheus.yml"]
    run = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@needs_promtool
@pytest.mark.parametrize("are_long", [False, True])
def test_each_alert_fires_and_does_not(tmp_path: Path, are_long: bool) -> None:
    files = sorted((FOLDER / "rules").glob("*.yml"))
    groups = [
        group["name"] for path in files for group in yaml.safe_load(path.read_text())["groups"]
    ]
    document = {
        "rule_files": [str(path) for path in files],
        # Otherwise in any order, and in steps of 10 minutes older objectives are not seen.
        "group_eval_order": groups,
        "evaluation_interval": "10m" if are_long else "1m",
        "tests": unit_tests(are_long=are_long),
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump(document))
    command = ["promtool", "test", "rules", str(file)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
