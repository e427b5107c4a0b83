from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from octavo.bench.serve import ServeBench, run_serve_bench, serve_bench
from octavo.bench.workload import Length
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.bench.client import Outcome
    from tests.bench.fake_server import Fake


def bench(fake: Fake, **options: Any) -> ServeBench:
    defaults: dict[str, Any] = {
        "url": fake.url,
        "num_prompts": 12,
        "input_len": Length(16, 16),
        "output_len": Length(10, 10),
        "warmup": 0,
        "timeout_s": 20.0,
    }
    if "rate" not in options:
        defaults["concurrency"] = 4
    if options.get("endpoint") == "chat":
        defaults["prompt_format"] = "text"
    return ServeBench(**defaults | options)


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_measures_what_the_server_does(fake: Fake, endpoint: str) -> None:
    fake.ttft_s, fake.itl_s = 0.08, 0.02
    for _ in range(3):  # something else may take the processors for as long as one run
        report = serve_bench(bench(fake, endpoint=endpoint, num_prompts=8))
        assert report.num_completed == 8
        assert report.ttft_ms is not None
        assert report.itl_ms is not None
        assert report.tpot_ms is not None
        assert report.e2e_ms is not None
        if report.ttft_ms.p50 < 95 and report.e2e_ms.p50 < 300 and report.duration_s < 0.62:
            break
    # Never early by more than a timer's resolution; late by what a shared machine may take.
    assert 79 <= report.ttft_ms.p50 < 95
    assert 19 <= report.itl_ms.p50 < 23
    assert 19 <= report.tpot_ms.p50 < 23
    assert 259 <= report.e2e_ms.p50 < 300
    assert report.itl_ms.num == 8 * 9
    assert report.output_tokens == 80
    assert report.duration_s == pytest.approx(2 * 0.26, abs=0.1)
    assert report.setup.model == "fake-model"


def test_the_closed_loop_keeps_its_concurrency(fake: Fake) -> None:
    fake.ttft_s = 0.02
    report = serve_bench(bench(fake, concurrency=3, num_prompts=9))
    assert fake.max_in_flight == 3
    assert report.send_lag_ms is None


def test_the_open_loop_sends_at_its_times(fake: Fake) -> None:
    fake.ttft_s, fake.itl_s = 0.3, 0.0
    report = serve_bench(bench(fake, rate=100.0, num_prompts=20, seed=3))
    assert report.num_completed == 20
    assert fake.max_in_flight > 10  # it does not wait for answers
    assert report.send_lag_ms is not None
    assert report.send_lag_ms.p50 < 20
    fake.max_in_flight = 0
    capped = serve_bench(bench(fake, rate=100.0, concurrency=2, num_prompts=4, seed=3))
    assert fake.max_in_flight == 2
    assert capped.send_lag_ms is not None
    assert capped.send_lag_ms.max > 200  # and says what the bound has cost


def test_failures_are_counted(fake: Fake) -> None:
    fake.ttft_s, fake.fail_every = 0.01, 4
    seen: list[Outcome] = []
    totals: list[int] = []
    report = serve_bench(bench(fake), observer=seen.append, began=totals.append)
    assert report.num_failed == 3
    assert report.num_completed == 9
    assert report.failures == {"HTTP 503: overloaded": 3}
    assert len(seen) == 12
    assert totals == [12]


def test_the_body_is_what_the_flags_say(fake: Fake) -> None:
    fake.ttft_s = 0.0
    extra = {"top_p": 0.9}
    serve_bench(bench(fake, num_prompts=3, prefix_len=4, vocab_size=50, extra_body=extra, seed=1))
    first, *_ = bodies = fake.bodies[1:]
    assert first["model"] == "fake-model"
    assert first["ignore_eos"] is True
    assert first["temperature"] == 0
    assert first["top_p"] == 0.9
    assert first["max_tokens"] == 10
    assert all(len(body["prompt"]) == 20 for body in bodies)
    assert len({tuple(body["prompt"][:4]) for body in bodies}) == 1
    assert len({tuple(body["prompt"]) for body in bodies}) == 3
    serve_bench(bench(fake, num_prompts=3, prefix_len=4, vocab_size=50, extra_body=extra, seed=1))
    again = fake.bodies[-3:]
    assert sorted(body["prompt"] for body in again) == sorted(body["prompt"] for body in bodies)


def test_without_a_seed_two_runs_share_no_prompt(fake: Fake) -> None:
    fake.ttft_s = 0.0
    reports = [serve_bench(bench(fake, num_prompts=3)) for _ in range(2)]
    prompts = [tuple(body["prompt"][:4]) for body in fake.bodies]
    assert len(set(prompts)) == len(prompts)
    assert reports[0].setup.seed != reports[1].setup.seed


def test_text_lengths_are_calibrated(fake: Fake) -> None:
    fake.ttft_s, fake.itl_s = 0.0, 0.0
    options: dict[str, Any] = {"endpoint": "chat", "input_len": Length(107, 107)}
    report = serve_bench(bench(fake, **options))
    assert report.input_tokens == 12 * 107  # the fake counts two tokens a word, and seven
    assert report.counted_by == "usage"


def test_servers_that_know_less(fake: Fake) -> None:
    fake.ttft_s, fake.rejects = 0.0, ("ignore_eos",)
    report = serve_bench(bench(fake))
    assert not report.setup.ignore_eos
    assert any("ignore_eos" in note for note in report.notes)
    with pytest.raises(ConfigError, match="unknown field ignore_eos"):
        serve_bench(bench(fake, ignore_eos=True))
    fake.rejects = ("ignore_eos", "stream_options")
    report = serve_bench(bench(fake))
    assert report.counted_by == "chunks"
    assert report.output_tokens == 120
    assert report.input_tokens == 12 * 16
    fake.rejects = ("prompt",)
    with pytest.raises(ConfigError, match="unknown field prompt"):
        serve_bench(bench(fake))


def test_datasets(fake: Fake, tmp_path: Path) -> None:
    fake.ttft_s = 0.0
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "a b"}\n{"prompt": "c", "max_tokens": 3}\n')
    report = serve_bench(bench(fake, dataset=path, num_prompts=None))
    assert report.num_completed == 2
    assert report.output_tokens == 13
    assert "ignore_eos" not in fake.bodies[-1]
    report = serve_bench(bench(fake, dataset=path, num_prompts=3, endpoint="chat"))
    assert report.num_completed == 3
    assert any("repeated" in note for note in report.notes)
    assert fake.bodies[-1]["messages"][0]["role"] == "user"
    path.write_text('{"messages": [{"role": "user", "content": "b"}]}\n')
    with pytest.raises(ConfigError, match="--endpoint chat"):
        serve_bench(bench(fake, dataset=path))
    path.write_text('{"prompt_ids": [1]}\n')
    with pytest.raises(ConfigError, match="token ids"):
        serve_bench(bench(fake, dataset=path, endpoint="chat"))


def test_warm_up_is_not_measured(fake: Fake) -> None:
    fake.ttft_s = 0.0
    report = serve_bench(bench(fake, warmup=5))
    assert report.num_completed == 12
    assert len(fake.bodies) == 1 + 5 + 12


async def test_an_interrupted_run_reports_what_there_is(fake: Fake) -> None:
    fake.ttft_s, fake.itl_s = 0.05, 0.02
    begun = asyncio.Event()
    ended = asyncio.Event()
    run = asyncio.create_task(
        run_serve_bench(
            bench(fake, num_prompts=100),
            began=lambda _: begun.set(),
            observer=lambda _: ended.set(),
        )
    )
    await ended.wait()
    run.cancel()
    report = await run
    assert 1 <= report.num_completed < 100
    assert report.num_cancelled == 100 - report.num_completed
    assert report.num_failed == 0
    assert any("interrupted" in note for note in report.notes)


def test_slo(fake: Fake) -> None:
    fake.ttft_s = 0.05
    met = serve_bench(bench(fake, slo_ms={"ttft": 5000.0})).goodput
    missed = serve_bench(bench(fake, slo_ms={"ttft": 40.0})).goodput
    assert met is not None
    assert missed is not None
    assert (met.num, missed.num) == (12, 0)


@pytest.mark.parametrize(
    "options",
    [{"concurrency": None}, {"concurrency": 0}, {"num_prompts": 0}, {"prefix_len": -1}],
)
def test_bad_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="--"):
        ServeBench(url="http://h", **{"concurrency": 1, **options})
