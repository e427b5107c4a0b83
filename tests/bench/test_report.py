from __future__ import annotations

import io

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from octavo.bench.client import Outcome
from octavo.bench.report import (
    Distribution,
    ServeReport,
    Setup,
    parse_slo,
    percentile,
    print_report,
    summarize,
)
from octavo.errors import ConfigError

SETUP = Setup(
    url="http://x/v1",
    endpoint="completions",
    model="m[0]",
    dataset="random",
    prompt_format="ids",
    num_prompts=5,
    input_len="8",
    output_len="4",
    prefix_len=0,
    concurrency=2,
    rate=None,
    burstiness=1.0,
    warmup=0,
    ignore_eos=True,
    temperature=0.0,
    seed=1,
    extra_body={},
)


def outcome(start: float, *tokens: float, usage: int | None = None) -> Outcome:
    return Outcome(
        start=start,
        token_times=list(tokens),
        end=tokens[-1],
        num_prompt_tokens=8 if usage is not None else 0,
        num_output_tokens=len(tokens) if usage is None else usage,
        has_usage=usage is not None,
        finish_reason="length",
        status=200,
    )


def report(*outcomes: Outcome, slo: str = "") -> ServeReport:
    return summarize(
        SETUP,
        outcomes,
        version="0",
        created="now",
        made_input_tokens=80,
        cpu_s=0.1,
        slo_ms=parse_slo(slo) if slo else {},
    )


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50),
    st.floats(0, 100),
)
def test_percentiles_agree_with_numpy(values: list[float], percent: float) -> None:
    ordered = sorted(values)
    expected = np.percentile(values, percent)
    assert percentile(ordered, percent) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(st.lists(st.floats(0, 100), min_size=1, max_size=50))
def test_distributions_agree_with_numpy(seconds: list[float]) -> None:
    d = Distribution.of(seconds)
    assert d is not None
    ms = np.array(seconds) * 1000
    numbers = [ms.size, ms.mean(), ms.min(), *np.percentile(ms, [50, 90, 95, 99]), ms.max()]
    assert list(msgspec.structs.astuple(d)) == pytest.approx(numbers, rel=1e-9, abs=1e-9)
    assert Distribution.of([]) is None


def test_measures_of_hand_made_outcomes() -> None:
    failed = Outcome(start=1.0, end=11.0, error="HTTP 503: no")
    r = report(
        outcome(1.0, 1.5, 1.6, 1.8, usage=3),
        outcome(2.0, 2.1, 2.2, usage=3),
        failed,
        slo="ttft:400,tpot:60",
    )
    assert r.duration_s == pytest.approx(10.0)
    assert (r.num_completed, r.num_failed, r.num_cancelled) == (2, 1, 2)
    assert r.failures == {"HTTP 503: no": 1}
    assert (r.input_tokens, r.output_tokens, r.counted_by) == (16, 6, "usage")
    assert r.requests_per_s == pytest.approx(0.2)
    assert r.output_tokens_per_s == pytest.approx(0.6)
    assert r.total_tokens_per_s == pytest.approx(2.2)
    assert r.ttft_ms is not None
    assert (r.ttft_ms.min, r.ttft_ms.max) == pytest.approx((100, 500))
    assert r.itl_ms is not None
    assert (r.itl_ms.num, r.itl_ms.min, r.itl_ms.max) == pytest.approx((3, 100, 200))
    assert r.tpot_ms is not None
    # 0.3 s over two gaps; 0.1 s over two gaps although they came in one chunk
    assert (r.tpot_ms.min, r.tpot_ms.max) == pytest.approx((50, 150))
    assert r.e2e_ms is not None
    assert r.e2e_ms.max == pytest.approx(800)
    assert r.goodput is not None
    assert (r.goodput.num, r.goodput.share) == pytest.approx((1, 1 / 3))
    assert any("tokens per chunk" in note for note in r.notes)


def test_counts_chunks_where_the_server_does_not_count() -> None:
    r = report(outcome(0.0, 1.0, 2.0))
    assert (r.counted_by, r.input_tokens, r.output_tokens) == ("chunks", 80, 2)
    assert any("chunks were counted" in note for note in r.notes)
    mixed = report(outcome(0.0, 1.0, 2.0), outcome(0.0, 1.0, 2.0, usage=2))
    assert mixed.counted_by == "mixed"


def test_a_busy_client_is_said() -> None:
    assert not any("of a core" in note for note in report(outcome(0.0, 1.0, usage=1)).notes)
    busy = report(outcome(0.0, 0.1, usage=1))
    assert busy.client_cpu_share == pytest.approx(1.0)
    assert any("100% of a core" in note for note in busy.notes)


def test_nothing_completed() -> None:
    for r in (report(), report(Outcome(start=1.0, end=1.0, error="x"))):
        assert r.ttft_ms is None
        assert r.requests_per_s == 0
        print_report(r, Console(file=io.StringIO()))


def test_the_json_keeps_its_shape() -> None:
    data = msgspec.json.decode(msgspec.json.encode(report(outcome(0.0, 1.0, 2.0, usage=2))))
    assert data["schema"] == "octavo.bench.serve/1"
    assert list(data) == [
        *("schema", "octavo_version", "created", "setup", "duration_s"),
        *("num_completed", "num_failed", "num_cancelled", "failures"),
        *("input_tokens", "cached_tokens", "output_tokens", "counted_by"),
        *("requests_per_s", "output_tokens_per_s", "total_tokens_per_s"),
        *("ttft_ms", "itl_ms", "tpot_ms", "e2e_ms", "send_lag_ms"),
        *("client_cpu_share", "slo_ms", "goodput", "notes"),
    ]
    assert list(data["ttft_ms"]) == ["num", "mean", "min", "p50", "p90", "p95", "p99", "max"]
    assert msgspec.convert(data, ServeReport)


def test_the_table_shows_names_with_brackets_as_they_are() -> None:
    out = io.StringIO()
    bad = Outcome(start=0.0, end=1.0, error="HTTP 400: messages[0].role [bold]")
    print_report(report(outcome(0.0, 1.0, 2.0), bad, slo="e2e:5000"), Console(file=out, width=100))
    text = out.getvalue()
    assert "m[0] at http://x/v1" in text
    assert "messages[0].role [bold]" in text
    assert "goodput" in text
    assert "time to first token (TTFT)" in text


@pytest.mark.parametrize("text", ["", "ttft", "ttft:0", "ttft:x", "foo:5", "ttft:5,", "ttft:nan"])
def test_bad_slos_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--slo"):
        parse_slo(text)


def test_slo() -> None:
    assert parse_slo("ttft:500, tpot:50") == {"ttft": 500.0, "tpot": 50.0}
