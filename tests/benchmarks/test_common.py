from __future__ import annotations

import io
import json
import os
import platform
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks.gpu.common import (
    BASELINES,
    LENGTHS,
    METRICS,
    Baselines,
    Measure,
    Records,
    engine_options,
    environment,
    flags_of,
    make_parser,
    print_table,
    times_better,
)
from octavo.cli.engine_flags import engine_options as parsed_options
from octavo.cli.main import build_parser

if TYPE_CHECKING:
    from pathlib import Path


def test_the_lengths_are_what_their_origin_says() -> None:
    lengths = json.loads(LENGTHS.read_text())
    rng = np.random.default_rng(0)
    for name, mean, most in (("input", 220, 2048), ("output", 190, 1024)):
        drawn = rng.lognormal(np.log(mean) - 0.5, 1.0, 500)
        assert lengths[name] == np.clip(np.rint(drawn), 16, most).astype(int).tolist()
    assert (sum(lengths["input"]), sum(lengths["output"])) == (105833, 82381)


def test_every_baseline_is_a_known_metric_above_zero() -> None:
    shapes = json.loads(BASELINES.read_text())["shapes"]
    figures = [item for shape in shapes.values() for m in shape.values() for item in m.items()]
    assert len(figures) > 40
    assert all(name in METRICS and value > 0 for name, value in figures)


def test_a_baseline_of_decode_agrees_with_its_own_parts() -> None:
    """Tokens per second, time to the first token and time per step are of the same runs."""
    shapes = json.loads(BASELINES.read_text())["shapes"]
    for shape in shapes.values():
        for name, figures in shape.items():
            kind, _, batch = name.partition("/")
            if kind != "decode":
                continue
            total_ms = figures["first_token_ms"] + 255 * figures["ms_per_step"]
            rate = int(batch) * 256 / total_ms * 1e3
            assert rate == pytest.approx(figures["output_tokens_per_s"], rel=0.001)


def test_better_is_above_one_whichever_way_the_metric_goes() -> None:
    assert times_better("output_tokens_per_s", 110, 100) == pytest.approx(1.1)
    assert times_better("ms_per_step", 5, 10) == 2


def test_the_table_shows_both_and_the_ratio() -> None:
    from rich.console import Console

    console = Console(width=150, file=io.StringIO(), record=True)
    measures = [
        Measure("decode/1", {"ms_per_step": 3.34265}, notes=["[notes]"]),
        Measure("decode/5", {"ms_per_step": 1234.5}),
    ]
    print_table(console, measures, Baselines("llama-3.1-8b"), "title")
    _, _, first, second, source = console.export_text().strip().splitlines()
    assert first.split() == ["decode/1", "ms", "per", "step", "3.343", "6.685", "2.000", "[notes]"]
    assert second.split() == ["decode/5", "ms", "per", "step", "1,234.500"]
    assert source.startswith("theirs: vLLM 0.24.0 on NVIDIA H100")


def test_the_card_is_named_by_the_drivers_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 580.1, 700.00 W'\necho other, 1, 2\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = environment()
    assert found["card"] == "NVIDIA H100 80GB HBM3"
    assert (found["driver"], found["power_limit"]) == ("580.1", "700.00 W")
    assert found["torch"] == metadata.version("torch")
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert environment()["card"] == platform.machine()


def test_records_are_lines_that_say_what_they_are(tmp_path: Path) -> None:
    records = Records(tmp_path / "out.jsonl", script="s")
    records.write("setup", card="c")
    records.add(Measure("m", {"total_s": 1.5}, {"seconds": [1.5]}))
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines[0] == {"record": "setup", "script": "s", "card": "c"}
    assert lines[1]["metrics"] == {"total_s": 1.5}
    assert [measure.name for measure in records.measures] == ["m"]


def test_options_mean_the_same_as_flags_of_the_command() -> None:
    options = {
        "load_format": "dummy",
        "max_model_len": 64,
        "enable_prefix_caching": False,
        "enforce_eager": True,
        "async_scheduling": True,
        "gpu_memory_utilization": 0.9,
        "kv_cache_memory": 1234,
    }
    args = build_parser(["serve"]).parse_args(["serve", "model", *flags_of(options)])
    parsed = parsed_options(args)
    assert {name: parsed[name] for name in options} == options


def test_the_scripts_flags_become_options() -> None:
    args = make_parser("").parse_args(["--kw", '{"max_model_len": 9, "block_size": 32}'])
    assert engine_options(args) == {"load_format": "dummy", "max_model_len": 9, "block_size": 32}
