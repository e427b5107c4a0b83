from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from octavo.bench.simulate.trace import Lengths, Tenant, make_trace
from octavo.bench.simulate.trace_file import load_lengths, load_trace
from octavo.errors import ConfigError
from tests.bench.simulate.helpers import simulate, spec

if TYPE_CHECKING:
    from pathlib import Path


def test_the_same_seed_makes_the_same_trace() -> None:
    one, two, other = (
        make_trace(spec(50, "5:50", "5:50", arrivals="poisson", rate=1.0, seed=seed))
        for seed in (1, 1, 2)
    )
    assert (one.arrival_s == two.arrival_s).all()
    assert (one.input_len == two.input_len).all()
    assert (one.input_len != other.input_len).any()


@pytest.mark.parametrize(
    ("arrivals", "burstiness", "cv"),
    [("poisson", 1.0, 1.0), ("gamma", 0.25, 2.0), ("gamma", 4.0, 0.5), ("uniform", 1.0, 0.0)],
)
def test_gaps_between_arrivals(arrivals: str, burstiness: float, cv: float) -> None:
    load = spec(20000, "1", "1", arrivals=arrivals, rate=5.0, burstiness=burstiness)
    gaps = np.diff(make_trace(load).arrival_s)
    assert gaps.mean() == pytest.approx(0.2, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.1, abs=1e-9)


def test_lengths() -> None:
    rng = np.random.default_rng(0)
    drawn = Lengths.parse("lognormal:220:1.0").draw(100_000, rng)
    assert drawn.mean() == pytest.approx(220, rel=0.02)
    assert np.log(drawn).std() == pytest.approx(1.0, rel=0.02)
    clipped = Lengths.parse("lognormal:220:1.0:16:300").draw(10_000, rng)
    assert (clipped.min(), clipped.max()) == (16, 300)
    assert set(Lengths.parse("3:5").draw(100, rng)) == {3, 4, 5}
    assert set(Lengths.parse("7").draw(10, rng)) == {7}
    for bad in ("0", "5:3", "x", "lognormal:0.5:1", "lognormal:5", "lognormal:5:1:9:2", ""):
        with pytest.raises(ConfigError, match="not a length"):
            Lengths.parse(bad)


def test_prompts_begin_alike_exactly_where_they_should() -> None:
    trace = make_trace(spec(6, "3", "2", num_prefixes=1, prefix_len=4, turns=3))
    first, second, third = (trace.prompt(index) for index in (0, 2, 4))
    other = trace.prompt(1)
    assert [len(prompt) for prompt in (first, second, third)] == [7, 12, 17]
    assert second[:7] == first
    assert second[7:9] == [trace.own_token(0)] * 2, "the first turn's output"
    assert third[:12] == second
    assert other[:4] == first[:4]
    assert other[4] != first[4]


def test_a_turn_waits_for_the_one_before() -> None:
    simulation = simulate(spec(30, "20", "10", turns=3, think_s=0.5, arrivals="poisson", rate=2.0))
    record, trace = simulation.record, simulation.trace
    assert trace.after is not None
    turns = np.flatnonzero(trace.after >= 0)
    assert len(turns) == 20
    waited = record.sent_s[turns] - record.last_s[trace.after[turns]]
    assert waited == pytest.approx(np.full(20, 0.5))


def test_a_closed_loop_keeps_its_requests_in_flight() -> None:
    simulation = simulate(spec(40, "20", "5:50", concurrency=8))
    record = simulation.record
    moments = record.sent_s[8:30]
    for moment in moments:
        in_flight = (record.sent_s <= moment) & (record.last_s > moment)
        assert in_flight.sum() == 8


def test_tenants_by_their_shares() -> None:
    trace = make_trace(spec(10_000, "1", "1", tenants=(Tenant("a", 1, 5), Tenant("b", 3))))
    assert (trace.tenant == 1).mean() == pytest.approx(0.75, abs=0.02)
    assert set(trace.priority[trace.tenant == 0]) == {5}


def test_a_trace_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [
        {"arrival_s": 12.0, "input_len": 9, "output_len": 2, "tenant": "b", "priority": 3},
        {"arrival_s": 10.0, "input_len": 8, "output_len": 1, "prefix": [["s", 4]]},
        {"arrival_s": 11.0, "input_len": 6, "output_len": 1, "prefix": [["s", 4], ["t", 9]]},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    trace = load_trace(path, speed=2.0)
    assert trace.arrival_s.tolist() == [0.0, 0.5, 1.0]
    assert trace.input_len.tolist() == [8, 6, 9]
    assert [trace.tenants[t] for t in trace.tenant] == ["", "", "b"]
    assert trace.priority.tolist() == [0, 0, 3]
    one, two, three = (trace.prompt(index) for index in range(3))
    assert [len(prompt) for prompt in (one, two, three)] == [8, 6, 9]
    assert one[:4] == two[:4]
    assert not set(one) & set(three)
    assert len(set(two)) == 2, "the second segment fills the rest of the prompt"
    assert len(load_trace(path, limit=2)) == 2


def test_an_azure_trace(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
        "2023-11-16 18:15:46.6805900,374,44\r\n"
        "2023-11-16 18:15:50.9951690,396,109\r\n"
    )
    trace = load_trace(path)
    assert trace.arrival_s == pytest.approx([0.0, 4.314579], abs=1e-6)
    assert trace.output_len.tolist() == [44, 109]
    assert trace.prefixes is None


def test_a_mooncake_trace(tmp_path: Path) -> None:
    path = tmp_path / "mooncake.jsonl"
    path.write_text(
        '{"timestamp": 0, "input_length": 1300, "output_length": 5, "hash_ids": [0, 1, 2]}\n'
        '{"timestamp": 3000, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 3]}\n'
    )
    trace = load_trace(path)
    assert trace.arrival_s.tolist() == [0.0, 3.0]
    one, two = trace.prompt(0), trace.prompt(1)
    assert one[:1024] == two[:1024]
    assert one[1024] != two[1024]
    assert simulate(trace).stats.prefix_cache_hits == 1024


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no requests"),
        ("{", "line 1"),
        ('{"input_len": 5, "output_len": 5}', "TIMESTAMP"),
        ('{"arrival_s": 1, "input_len": 5}', "output_len"),
        ('{"arrival_s": 1, "input_len": 0, "output_len": 5}', "at least 1"),
        ('{"arrival_s": "x", "input_len": 5, "output_len": 5}', "request 1"),
        ('{"arrival_s": 1, "input_len": 5, "output_len": 5, "prefix": [["a", 0]]}', "0 tokens"),
    ],
)
def test_broken_traces(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_trace(path)


def test_lengths_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "l.json"
    path.write_text('{"note": "x", "input": [5, 6], "output": [1, 2]}')
    inputs, outputs = load_lengths(path)
    rng = np.random.default_rng(0)
    assert inputs.draw(3, rng).tolist() == [5, 6, 5]
    assert outputs.draw(2, rng).tolist() == [1, 2]
    path.write_text('{"input": [5, 6], "output": [1]}')
    with pytest.raises(ConfigError, match="as many"):
        load_lengths(path)
