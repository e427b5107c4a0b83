"""Hold the simulator against what vLLM 0.24 reached on an H100, and write the table into the docs.

    python -m scripts.simulator_table

The measured seconds are medians of three runs on one H100 80GB HBM3 (SXM), greedy, random prompts,
dummy weights; offline with 16384 batched tokens, over HTTP with 8192, 1024 sequences, 0.92 of
memory, blocks of 16.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from octavo.bench.simulate.cost import CostModel
from octavo.bench.simulate.hardware import HOSTS, MODELS
from octavo.bench.simulate.run import Simulation
from octavo.bench.simulate.settings import EngineSettings
from octavo.bench.simulate.trace import Lengths, Synthetic, make_trace
from octavo.runner.devices import DEVICES, WeightDType

TARGET = Path(__file__).resolve().parent.parent / "docs" / "decisions" / "0007-simulator.md"
BEGIN, END = "<!-- table: scripts/simulator_table.py -->", "<!-- end -->"
TOLERANCE = 0.15


@dataclass(frozen=True)
class Workload:
    """One measured run.

    Attributes:
        measured_s: from the first request in to the last token out.
        counts_output: whether its throughput is output tokens, or else prompt tokens, per second.
    """

    name: str
    measured_s: float
    num_requests: int
    input_len: Lengths
    output_len: Lengths
    model: str = "llama-3.1-8b"
    dtype: WeightDType = "bf16"
    host: str = "vllm-offline"
    counts_output: bool = True
    enable_prefix_caching: bool = True
    more: dict[str, Any] = field(default_factory=dict)


def _exactly(length: int) -> Lengths:
    return Lengths("uniform", length, length)


def _decode(name: str, measured: dict[int, float], **fields: Any) -> list[Workload]:
    return [
        Workload(f"{name}, decode, batch {n}", s, n, _exactly(128), _exactly(256), **fields)
        for n, s in measured.items()
    ]


@cache
def chat_lengths() -> tuple[Lengths, Lengths]:
    """The 500 lengths of the mixed workload: lognormal, of the shape that chats have."""
    rng = np.random.default_rng(0)

    def draw(mean: float, most: int) -> Lengths:
        drawn = np.rint(rng.lognormal(np.log(mean) - 0.5, 1.0, 500))
        return Lengths("list", values=tuple(np.clip(drawn, 16, most).astype(int).tolist()))

    return draw(220, 2048), draw(190, 1024)


@cache
def uniform_lengths() -> tuple[Lengths, Lengths]:
    """256 lengths, in and out, uniform in 100..1024, as nano-vLLM's benchmark draws them."""
    source = random.Random(0)

    def prompt() -> int:
        length = source.randint(100, 1024)
        for _ in range(length):
            source.randint(0, 10000)
        return length

    inputs = tuple(prompt() for _ in range(256))
    outputs = tuple(source.randint(100, 1024) for _ in range(256))
    return Lengths("list", values=inputs), Lengths("list", values=outputs)


def workloads() -> list[Workload]:
    """All that was measured."""
    chat = chat_lengths()
    small: dict[str, Any] = {"model": "qwen3-0.6b"}
    http: dict[str, Any] = {"host": "vllm-http"}
    prefix: dict[str, Any] = {"more": {"num_prefixes": 1, "prefix_len": 2048}}
    bf16 = {1: 1.7168, 8: 1.8035, 32: 1.9808, 64: 2.2486, 128: 2.7552, 256: 4.0108}
    first: dict[str, Any] = {"counts_output": False}
    return [
        *_decode("8B", bf16),
        Workload("8B, prefill, 1 x 4096", 0.10774, 1, _exactly(4096), _exactly(1), **first),
        Workload("8B, prefill, 16 x 2048", 0.77619, 16, _exactly(2048), _exactly(1), **first),
        Workload("8B, mixed, 500 requests", 11.9686, 500, *chat),
        Workload("8B, 64 x (2048 shared + 64)", 0.85265, 64, _exactly(64), _exactly(64), **prefix),
        Workload(
            "8B, the same, no prefix caching", 3.98347, 64, _exactly(64), _exactly(64),
            enable_prefix_caching=False, **prefix,
        ),
        Workload("8B, HTTP, mixed, 64 concurrent", 18.6692, 500, *chat, **http,
                 more={"concurrency": 64}),
        Workload("8B, HTTP, mixed, 256 concurrent", 13.5601, 500, *chat, **http,
                 more={"concurrency": 256}),
        Workload("8B, HTTP, mixed, 1 concurrent", 13.5227, 12, *chat, **http,
                 more={"concurrency": 1}),
        *_decode("8B fp8", {1: 1.10232, 64: 1.59228, 256: 3.26489}, dtype="fp8"),
        Workload("8B fp8, prefill, 1 x 4096", 0.072388, 1, _exactly(4096), _exactly(1),
                 dtype="fp8", **first),
        Workload("8B fp8, prefill, 16 x 2048", 0.520165, 16, _exactly(2048), _exactly(1),
                 dtype="fp8", **first),
        *_decode("0.6B", {1: 0.679558, 64: 0.837002, 256: 2.23325}, **small),
        Workload("0.6B, 256 requests of 100 to 1024", 7.4368, 256, *uniform_lengths(), **small),
    ]  # fmt: skip


def simulate(workload: Workload) -> Simulation:
    """The workload through the simulator, with the parameters of the measured run."""
    trace = make_trace(
        Synthetic(
            num_requests=workload.num_requests,
            input_len=workload.input_len,
            output_len=workload.output_len,
            **workload.more,
        )
    )
    device, host = DEVICES["h100"], HOSTS[workload.host]
    simulation = Simulation(
        trace,
        CostModel(device, host, MODELS[workload.model], workload.dtype),
        EngineSettings(
            max_num_seqs=1024,
            max_num_batched_tokens=16384 if workload.host == "vllm-offline" else 8192,
            max_model_len=8192,
            enable_prefix_caching=workload.enable_prefix_caching,
        ),
    )
    simulation.run()
    return simulation


def rates(workload: Workload) -> tuple[float, float]:
    """Tokens a second, measured and simulated."""
    simulation = simulate(workload)
    trace = simulation.trace
    num_tokens = int((trace.output_len if workload.counts_output else trace.input_len).sum())
    return num_tokens / workload.measured_s, num_tokens / simulation.record.end_s


def render() -> str:
    """The table in Markdown."""
    lines = [
        "| workload | measured, tokens/s | simulated, tokens/s | off by |",
        "|---|---|---|---|",
    ]
    for workload in workloads():
        measured, simulated = rates(workload)
        off = simulated / measured - 1
        lines.append(f"| {workload.name} | {measured:.0f} | {simulated:.0f} | {off:+.1%} |")
    return "\n".join(lines)


def with_table(document: str) -> str:
    """The document with the table between the two marks."""
    before, _, rest = document.partition(BEGIN)
    return f"{before}{BEGIN}\n{render()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    TARGET.write_text(with_table(TARGET.read_text()))
