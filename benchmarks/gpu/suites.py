"""The suites of `offline.py`, over any engine of `engines.py`.

Each yields measures whose names and metrics are the baselines'.
"""

from __future__ import annotations

import itertools
import json
import random
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.common import Measure

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator, Sequence

    from benchmarks.gpu.engines import Counters, Engine

FIRST_ID, LAST_ID = 1000, 120000
"""Prompts are drawn from these ids, whatever the vocabulary, unless it is smaller."""
NANO_IDS = (0, 10000)


@dataclass
class Sample:
    """One timed call, and what the engine's counters moved by."""

    seconds: float
    num_steps: int
    scheduler_s: float
    device_s: float
    cpu_s: float
    num_preemptions: int
    gaps: list[float] = field(default_factory=list)


class Bench:
    """An engine, a clock and a source of prompts.

    Args:
        engine: what answers.
        repeats: repetitions of each measure.
        scale: of all lengths and counts; 1 is the benchmark, less is a dry run.
        deadline: `time.monotonic()` after which no repetition is begun but a measure's first.
        seed: of the prompts.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        repeats: int = 3,
        scale: float = 1.0,
        deadline: float,
        seed: int = 1,
    ) -> None:
        self.engine = engine
        self._repeats = repeats
        self._scale = scale
        self._deadline = deadline
        self._rng = random.Random(seed)

    @property
    def is_late(self) -> bool:
        return time.monotonic() > self._deadline

    def size(self, number: int) -> int:
        """A length or count of the benchmark, scaled."""
        return max(1, round(number * self._scale))

    def repeats(self, more: int = 0) -> Iterator[int]:
        for index in range(self._repeats + more):
            if index and self.is_late:
                return
            yield index

    def tokens(self, num: int, ids: tuple[int, int] = (FIRST_ID, LAST_ID)) -> list[int]:
        high = min(ids[1], self.engine.vocab_size)
        return self._rng.choices(range(min(ids[0], high // 10), high), k=num)

    def timed(
        self, prompts: Sequence[list[int]], num_out: int | Sequence[int], temperature: float = 0.0
    ) -> Sample:
        """Answer all prompts.

        Raises:
            RuntimeError: an answer has another length than it was asked for.
        """
        lengths = [num_out] * len(prompts) if isinstance(num_out, int) else list(num_out)
        start = self._start()
        answered = self.engine.generate(prompts, lengths, temperature)
        sample = self._sample(*start)
        if answered != lengths:
            raise RuntimeError("answers are not as long as they were asked for")
        return sample

    def streamed(self, prompt: list[int], num_out: int) -> Sample:
        """One answer, token by token.

        Raises:
            RuntimeError: it has another length than it was asked for.
        """
        start = self._start()
        times: list[float] = []
        for num_tokens in self.engine.stream(prompt, num_out):
            times += [time.perf_counter()] * num_tokens
        sample = self._sample(*start)
        if len(times) != num_out:
            raise RuntimeError("the answer is not as long as it was asked for")
        sample.gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
        return sample

    def _start(self) -> tuple[Counters, float, float]:
        return self.engine.counters(), time.thread_time(), time.perf_counter()

    def _sample(self, before: Counters, cpu_begin: float, begin: float) -> Sample:
        end, cpu_end, after = time.perf_counter(), time.thread_time(), self.engine.counters()
        return Sample(
            seconds=end - begin,
            num_steps=after.num_steps - before.num_steps,
            scheduler_s=(after.scheduler_ns - before.scheduler_ns) / 1e9,
            device_s=(after.device_ns - before.device_ns) / 1e9,
            cpu_s=cpu_end - cpu_begin,
            num_preemptions=after.num_preemptions - before.num_preemptions,
        )


def measure(
    name: str, metrics: dict[str, float], samples: Sequence[Sample], **more: Any
) -> Measure:
    """A measure with its samples' counters, per step, where the engine counts its steps."""
    seconds = [round(sample.seconds, 6) for sample in samples]
    steps = sum(sample.num_steps for sample in samples)
    if not steps:
        return Measure(name, metrics, {"seconds": seconds, **more})
    per_step = {
        "scheduler_us_per_step": sum(s.scheduler_s for s in samples) / steps * 1e6,
        "device_ms_per_step": sum(s.device_s for s in samples) / steps * 1e3,
        "cpu_ms_per_step": sum(s.cpu_s for s in samples) / steps * 1e3,
        "wall_ms_per_step": sum(s.seconds for s in samples) / steps * 1e3,
    }
    details: dict[str, Any] = {
        "seconds": seconds,
        "num_steps": [sample.num_steps for sample in samples],
        "num_preemptions": [sample.num_preemptions for sample in samples],
        **per_step,
        **more,
    }
    note = (
        f"{samples[-1].num_steps} steps of {per_step['wall_ms_per_step']:.3f} ms: device "
        f"{per_step['device_ms_per_step']:.3f} ms, CPU {per_step['cpu_ms_per_step']:.3f} ms, "
        f"of it scheduler {per_step['scheduler_us_per_step']:.0f} us"
    )
    if sum(details["num_preemptions"]):
        note += f"; preemptions {details['num_preemptions']}"
    return Measure(name, metrics, details, [note])


def median_s(samples: Sequence[Sample]) -> float:
    return statistics.median(sample.seconds for sample in samples)


def decode(bench: Bench, args: argparse.Namespace) -> Iterator[Measure]:
    num_in, num_out = bench.size(128), max(2, bench.size(256))
    bench.timed([bench.tokens(num_in) for _ in range(4)], bench.size(16))
    for batch in args.batches:
        if bench.is_late:
            return
        whole: list[Sample] = []
        first: list[Sample] = []
        for _ in bench.repeats():
            whole.append(bench.timed([bench.tokens(num_in) for _ in range(batch)], num_out))
            first.append(bench.timed([bench.tokens(num_in) for _ in range(batch)], 1))
        beyond = median_s(whole) - median_s(first)
        yield measure(
            f"decode/{batch}",
            {
                "ms_per_step": beyond / (num_out - 1) * 1e3,
                "output_tokens_per_s": batch * num_out / median_s(whole),
                "first_token_ms": median_s(first) * 1e3,
            },
            whole,
            first_token_s=[sample.seconds for sample in first],
        )


def prefill(bench: Bench, args: argparse.Namespace) -> Iterator[Measure]:
    num_in = bench.size(4096)
    bench.timed([bench.tokens(num_in)], 1)
    samples = [bench.timed([bench.tokens(num_in)], 1) for _ in bench.repeats(more=2)]
    total = median_s(samples)
    metrics = {"total_ms": total * 1e3, "prompt_tokens_per_s": num_in / total}
    yield measure("prefill/1x4096", metrics, samples)
    num_in = bench.size(2048)
    samples = [
        bench.timed([bench.tokens(num_in) for _ in range(16)], 1) for _ in bench.repeats(more=1)
    ]
    samples = samples[1:] or samples
    total = median_s(samples)
    metrics = {"total_ms": total * 1e3, "prompt_tokens_per_s": 16 * num_in / total}
    yield measure("prefill/16x2048", metrics, samples)


def mixed(bench: Bench, args: argparse.Namespace) -> Iterator[Measure]:
    lengths = json.loads(args.lengths.read_text())
    count = bench.size(len(lengths["input"]))
    inputs = [bench.size(n) for n in lengths["input"][:count]]
    outputs = [bench.size(n) for n in lengths["output"][:count]]
    samples = []
    for _ in bench.repeats():
        prompts = [bench.tokens(n) for n in inputs]
        bench.engine.reset_prefix_cache()
        samples.append(bench.timed(prompts, outputs))
    total = median_s(samples)
    metrics = {"total_s": total, "output_tokens_per_s": sum(outputs) / total}
    yield measure("mixed", metrics, samples, num_input=sum(inputs), num_output=sum(outputs))


def prefix(bench: Bench, args: argparse.Namespace) -> Iterator[Measure]:
    count, num_own, num_out = bench.size(64), bench.size(64), bench.size(64)
    cold: list[Sample] = []
    warm: list[Sample] = []
    for _ in bench.repeats(more=1):  # the first does not count
        shared = bench.tokens(bench.size(2048))
        bench.engine.reset_prefix_cache()
        for samples in (cold, warm):
            prompts = [shared + bench.tokens(num_own) for _ in range(count)]
            samples.append(bench.timed(prompts, num_out))
    cold, warm = cold[1:] or cold, warm[1:] or warm
    metrics = {"cold_s": median_s(cold), "warm_s": median_s(warm)}
    yield measure("prefix", metrics, cold, warm_seconds=[s.seconds for s in warm])


def nano_lengths(bench: Bench) -> tuple[list[int], list[int]]:
    """Input and output lengths as nano-vllm's benchmark draws them, tokens in between."""
    rng = random.Random(0)
    inputs = []
    for _ in range(256):
        inputs.append(rng.randint(100, 1024))
        for _ in range(inputs[-1]):
            rng.randint(*NANO_IDS)
    outputs = [rng.randint(100, 1024) for _ in range(256)]
    count = bench.size(256)
    return [bench.size(n) for n in inputs[:count]], [bench.size(n) for n in outputs[:count]]


def nano(bench: Bench, args: argparse.Namespace) -> Iterator[Measure]:
    inputs, outputs = nano_lengths(bench)
    bench.timed([bench.tokens(3, NANO_IDS)], bench.size(16), 1.0)
    samples = []
    for _ in bench.repeats():
        prompts = [bench.tokens(n, NANO_IDS) for n in inputs]
        bench.engine.reset_prefix_cache()
        samples.append(bench.timed(prompts, outputs, 0.6))
    total = median_s(samples)
    metrics = {"total_s": total, "output_tokens_per_s": sum(outputs) / total}
    yield measure("nano", metrics, samples, num_input=sum(inputs), num_output=sum(outputs))


def single(bench: Bench, args: argparse.Namespace) -> Iterator[Measure]:
    num_in, num_out = bench.size(128), max(3, bench.size(256))
    bench.streamed(bench.tokens(num_in), bench.size(16))
    samples = [bench.streamed(bench.tokens(num_in), num_out) for _ in bench.repeats()]
    means = [statistics.fmean(sample.gaps) for sample in samples]
    gaps = [gap * 1e3 for sample in samples for gap in sample.gaps]
    hundredths = statistics.quantiles(gaps, n=100, method="inclusive")
    yield measure(
        "single",
        {
            "ms_per_token": statistics.median(means) * 1e3,
            "itl_p50_ms": hundredths[49],
            "itl_p99_ms": hundredths[98],
        },
        samples,
        means_ms=[mean * 1e3 for mean in means],
    )


SUITES: dict[str, Callable[[Bench, argparse.Namespace], Iterator[Measure]]] = {
    "decode": decode,
    "prefill": prefill,
    "mixed": mixed,
    "prefix": prefix,
    "nano": nano,
    "single": single,
}
