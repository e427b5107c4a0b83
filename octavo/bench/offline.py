"""Throughput of an engine in this process: prefill and decode apart, without HTTP.

Knows nothing of how the engine is made: it takes whatever generates from token ids.
"""

from __future__ import annotations

import datetime
import secrets
import statistics
import time
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from octavo.bench.workload import Length, random_asks
from octavo.errors import ConfigError
from octavo.types import SamplingParams
from octavo.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console

OFFLINE_SCHEMA = "octavo.bench.offline/1"


class Completion(Protocol):
    """One generated sequence."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The generated tokens."""
        ...


class Output(Protocol):
    """What came of one prompt."""

    @property
    def outputs(self) -> Sequence[Completion]:
        """Its sequences."""
        ...


class Generates(Protocol):
    """The part of `LLM` that is measured."""

    def generate(
        self, prompts: Sequence[Any], sampling_params: SamplingParams | None = None
    ) -> Sequence[Output]:
        """Outputs in the order of the prompts, `{"prompt_token_ids": [...]}` each."""
        ...


class OfflineBench(msgspec.Struct, frozen=True, kw_only=True):
    """What to run. `repeats` times `num_prompts` prompts of `input_len`, `output_len` out of each.

    `seed` None draws one, so that two runs share no prompts.
    """

    num_prompts: int = 16
    input_len: int = 128
    output_len: int = 128
    repeats: int = 3
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_prompts", "input_len", "output_len", "repeats"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {value}")


class Repeat(msgspec.Struct, frozen=True):
    """Seconds of one repeat.

    Attributes:
        prefill_s: all prompts, one token out of each.
        total_s: other prompts of the same lengths, `output_len` tokens out of each.
    """

    prefill_s: float
    total_s: float


class OfflineReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `octavo bench offline`; rates are medians over the repeats.

    Attributes:
        prefill_tokens_per_s: prompt tokens over the time to one token each.
        decode_tokens_per_s: tokens after the first over the time beyond prefill; None when
            `output_len` is 1, or where the times are too short to tell prefill and total apart.
        output_tokens_per_s: all generated tokens over the whole time.
        total_tokens_per_s: prompt and generated tokens over the whole time.
    """

    schema: str = OFFLINE_SCHEMA
    octavo_version: str
    created: str
    model: str
    setup: OfflineBench
    engine: dict[str, Any]
    repeats: list[Repeat]
    prefill_tokens_per_s: float
    decode_tokens_per_s: float | None
    output_tokens_per_s: float
    total_tokens_per_s: float


def offline_bench(
    bench: OfflineBench,
    llm: Generates,
    *,
    model: str,
    vocab_size: int,
    engine: dict[str, Any] | None = None,
    observer: Callable[[Repeat], None] = lambda _: None,
) -> OfflineReport:
    """Measure `llm`, after one short warm-up of the same batch.

    Args:
        bench: what to run.
        llm: the engine; prompt and output must fit into its context.
        model: its name, for the report.
        vocab_size: prompt ids are below it.
        engine: what else the report should say of the engine.
        observer: called after each repeat.

    Raises:
        ConfigError, InvalidRequestError: prompt and output do not fit into the context.
    """
    seed = bench.seed if bench.seed is not None else secrets.randbits(48)
    bench = msgspec.structs.replace(bench, seed=seed)
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")

    def timed(name: str, num_tokens: int) -> float:
        """Seconds for a batch of fresh prompts, so that a prefix cache cannot answer."""
        asks = random_asks(
            bench.num_prompts,
            seed,
            input_len=Length(bench.input_len, bench.input_len),
            output_len=Length(num_tokens, num_tokens),
            vocab_size=vocab_size,
            name=name,
        )
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        prompts = [{"prompt_token_ids": ask.prompt} for ask in asks]
        begin = time.perf_counter()
        outputs = llm.generate(prompts, params)
        seconds = time.perf_counter() - begin
        shortest = min(len(output.outputs[0].token_ids) for output in outputs)
        if shortest < num_tokens:
            raise ConfigError(
                f"an answer ended after {shortest} of {num_tokens} tokens: the context is too "
                "short for --input-len and --output-len"
            )
        return seconds

    timed("warm", min(bench.output_len, 2))
    repeats: list[Repeat] = []
    for index in range(bench.repeats):
        repeat = Repeat(timed(f"prefill/{index}", 1), timed(f"total/{index}", bench.output_len))
        repeats.append(repeat)
        observer(repeat)
    num_in = bench.num_prompts * bench.input_len
    num_out = bench.num_prompts * bench.output_len
    num_decoded = num_out - bench.num_prompts
    beyond = [repeat.total_s - repeat.prefill_s for repeat in repeats]
    has_decode = num_decoded > 0 and min(beyond) > 0
    total_s = statistics.median(repeat.total_s for repeat in repeats)
    return OfflineReport(
        octavo_version=__version__,
        created=created,
        model=model,
        setup=bench,
        engine=engine or {},
        repeats=repeats,
        prefill_tokens_per_s=num_in / statistics.median(repeat.prefill_s for repeat in repeats),
        decode_tokens_per_s=num_decoded / statistics.median(beyond) if has_decode else None,
        output_tokens_per_s=num_out / total_s,
        total_tokens_per_s=(num_in + num_out) / total_s,
    )


def print_report(report: OfflineReport, console: Console) -> None:
    """Print it for a reader."""
    setup = report.setup
    console.print(
        f"{report.model}: {setup.num_prompts} prompts, input {setup.input_len}, output "
        f"{setup.output_len}, medians of {setup.repeats}, seed {setup.seed}",
        highlight=False,
        markup=False,
    )
    decode = report.decode_tokens_per_s
    figures = {
        "prefill tokens/s": f"{report.prefill_tokens_per_s:.1f}",
        "decode tokens/s": "not measurable" if decode is None else f"{decode:.1f}",
        "output tokens/s": f"{report.output_tokens_per_s:.1f}",
        "total tokens/s": f"{report.total_tokens_per_s:.1f}",
    }
    for name, value in figures.items():
        console.print(f"{name:<17} {value:>12}", highlight=False)
