from __future__ import annotations

import io
import json
import os
import platform
import subprocess
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from benchmarks.gpu import common
from benchmarks.gpu.common import (
    HERE,
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

CARDS = {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200"}
"""By the name of the baselines' file, what the card's driver calls it."""


def baselines_of(card: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((HERE / f"baselines_{card}.json").read_text())
    return content


def test_the_lengths_are_what_their_origin_says() -> None:
    lengths = json.loads(LENGTHS.read_text())
    rng = np.random.default_rng(0)
    for name, mean, most in (("input", 220, 2048), ("output", 190, 1024)):
        drawn = rng.lognormal(np.log(mean) - 0.5, 1.0, 500)
        assert lengths[name] == np.clip(np.rint(drawn), 16, most).astype(int).tolist()
    assert (sum(lengths["input"]), sum(lengths["output"])) == (105833, 82381)


@pytest.mark.parametrize("card", CARDS)
def test_every_baseline_is_a_known_metric_above_zero(card: str) -> None:
    shapes = baselines_of(card)["shapes"]
    figures = [item for shape in shapes.values() for m in shape.values() for item in m.items()]
    assert len(figures) > 40
    assert all(name in METRICS and value > 0 for name, value in figures)


@pytest.mark.parametrize("card", CARDS)
def test_a_baseline_of_decode_agrees_with_its_own_parts(card: str) -> None:
    """Tokens per second, time to the first token and time per step are of the same runs."""
    for shape in baselines_of(card)["shapes"].values():
        for name, figures in shape.items():
            kind, _, batch = name.partition("/")
            if kind != "decode":
                continue
            total_ms = figures["first_token_ms"] + 255 * figures["ms_per_step"]
            rate = int(batch) * 256 / total_ms * 1e3
            assert rate == pytest.approx(figures["output_tokens_per_s"], rel=0.001)


@pytest.mark.parametrize("card", CARDS)
def test_a_baseline_of_a_fixed_workload_agrees_with_its_own_parts(card: str) -> None:
    """The totals are those of the lengths' file and of nano-vllm's benchmark."""
    shapes = baselines_of(card)["shapes"]
    num_output = sum(json.loads(LENGTHS.read_text())["output"])
    for figures, total in (
        (shapes["llama-3.1-8b"]["mixed"], num_output),
        (shapes["qwen3-0.6b"]["nano"], 133966),
    ):
        rate = total / figures["total_s"]
        assert rate == pytest.approx(figures["output_tokens_per_s"], rel=0.0001)
    for name, total in (("prefill/1x4096", 4096), ("prefill/16x2048", 16 * 2048)):
        figures = shapes["llama-3.1-8b"][name]
        rate = total / figures["total_ms"] * 1e3
        assert rate == pytest.approx(figures["prompt_tokens_per_s"], rel=0.0001)


def test_the_cards_have_the_same_measures() -> None:
    """But for starts with everything cached, which were taken on one of them."""
    first, second = (
        {
            shape: {name: set(metrics) for name, metrics in measures.items() if "warm" not in name}
            for shape, measures in baselines_of(card)["shapes"].items()
        }
        for card in CARDS
    )
    assert first == second


@pytest.mark.parametrize("card", CARDS)
def test_a_card_is_compared_with_its_own_kind(card: str) -> None:
    content = baselines_of(card)
    baselines = Baselines(CARDS[card], "qwen3-0.6b")
    assert baselines.get("nano", "total_s") == content["shapes"]["qwen3-0.6b"]["nano"]["total_s"]
    assert baselines.get("nano", "ready_s") is None
    assert baselines.get("nothing", "total_s") is None
    assert baselines.source == f"theirs: vLLM 0.24.0 on {content['card']}, {content['date']}"


@pytest.mark.parametrize(
    ("card", "shape"),
    [
        ("NVIDIA H100 PCIe", "llama-3.1-8b"),  # with less bandwidth than the one with HBM3
        ("NVIDIA H200 NVL", "llama-3.1-8b"),
        ("NVIDIA A100-SXM4-80GB", "llama-3.1-8b"),
        ("x86_64", "llama-3.1-8b"),
        ("NVIDIA H200", "tiny-llama"),
    ],
)
def test_another_card_or_shape_is_compared_with_nothing(card: str, shape: str) -> None:
    from rich.console import Console

    console = Console(width=150, file=io.StringIO(), record=True)
    measures = [Measure("decode/1", {"ms_per_step": 3.34265})]
    print_table(console, measures, Baselines(card, shape), "title")
    _, _, row, source = console.export_text().strip().splitlines()
    assert row.split() == ["decode/1", "ms", "per", "step", "3.343"]
    assert source == f"compared with nothing: no figures of {shape} on {card}"


def test_a_dry_run_is_compared_with_nothing() -> None:
    from rich.console import Console

    console = Console(width=150, file=io.StringIO(), record=True)
    print_table(console, [Measure("decode/1", {"ms_per_step": 3.34265})], None, "title")
    assert console.export_text().split()[-5:] == ["decode/1", "ms", "per", "step", "3.343"]


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
    print_table(console, measures, Baselines(CARDS["h100"], "llama-3.1-8b"), "title")
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


def test_the_commit_is_of_this_tree_or_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    tree = tmp_path / "repository" / "tree"
    tree.mkdir(parents=True)
    monkeypatch.setattr(common, "ROOT", tree)
    assert environment()["commit"] == "unknown", "no repository at all"

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        command = ["git", "-C", str(tree.parent), *identity, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    git("init")
    (tree / "file").write_text("1")
    git("add", "tree")
    git("commit", "-m", "c")
    assert environment()["commit"] == "unknown", "another repository's"
    monkeypatch.setattr(common, "ROOT", tree.parent)
    commit = git("rev-parse", "--short", "HEAD")
    assert environment()["commit"] == commit
    (tree / "file").write_text("2")
    assert environment()["commit"] == f"{commit}-dirty"


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
