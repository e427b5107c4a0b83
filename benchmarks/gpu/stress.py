"""Random requests for some minutes, as unlike each other as the engine allows: errors and leaks.

    PYTHONPATH=. python benchmarks/gpu/stress.py --minutes 5 --out stress.jsonl

Through the engine's core, at --gpu-memory-utilization 0.95: prompts of one token up to the whole
context, some with a beginning in common, some asked several times over; greedy and sampled in all
ways; stop ids, log-probabilities; outputs long enough that the cache overflows and requests are
preempted; a fifth cancelled, also before they ever ran; from one request in flight up to four times
as many as can run. Every output is checked against what was asked. Now and then, and at the end,
the scheduler's own bookkeeping is checked; at the end all blocks must be free, a greedy answer must
be what it was at the beginning, and memory must not have grown over the second half of the time.
Exits with 1 otherwise. A line every --check-every-s says how it goes. What is in flight when the
time is over has another minute to end by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import psutil

from benchmarks.gpu.common import (
    Records,
    engine_options,
    environment,
    make_console,
    make_parser,
)
from benchmarks.gpu.shapes import model_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from octavo.engine.core import EngineCore
    from octavo.engine.messages import TokenOutput
    from octavo.types import EngineInfo, PositionLogprobs, SamplingParams

MIB = 1024**2
CALM_S = 60.0
"""How long what is in flight at the end may take, before it is cancelled."""
CANARY_LEN = 64
POOL_LEN = 300_000
MOST_FAULTS = 20
TIE = 1e-4


class StuckError(Exception):
    """The engine has work, steps, and gives nothing."""


@dataclass
class Asked:
    """A request in flight, what it got so far, and after how many tokens it is to be cancelled."""

    params: SamplingParams
    cancel_after: int | None = None
    num_tokens: int = 0


@dataclass
class Memory:
    """Bytes in use: of the whole device (None without one), and of this process on the host."""

    device: int | None
    host: int

    @classmethod
    def now(cls) -> Memory:
        import torch

        with contextlib.suppress(OSError, AttributeError):  # not every C library has it
            ctypes.CDLL(None).malloc_trim(0)  # what is free, but kept by the allocator
        device = None
        if torch.cuda.is_available():
            free, total = torch.cuda.mem_get_info()
            device = total - free
        return cls(device, psutil.Process().memory_info().rss)


class Source:
    """Draws requests that fit a given engine.

    A long one is so long that as many as there are rows would need two to four times the cache.
    """

    def __init__(self, info: EngineInfo, num_rows: int, seed: int) -> None:
        self._rng = random.Random(seed)
        self._vocab_size = info.vocab_size
        self._max_len = min(info.max_model_len, info.kv_cache.num_tokens)
        self._long = 2 * info.kv_cache.num_tokens / num_rows
        # A slice of it begins like no other, but for one in hundreds of thousands.
        self._pool = self._rng.choices(range(info.vocab_size), k=POOL_LEN)
        self._shared = [self._tokens(min(600, self._max_len // 4)) for _ in range(8)]

    def _tokens(self, num: int) -> list[int]:
        begin = self._rng.randrange(POOL_LEN - num)
        return self._pool[begin : begin + num]

    def _lengths(self) -> tuple[int, int]:
        rng = self._rng
        kind = rng.choices(("short", "long", "huge"), (70, 26, 4))[0]
        if kind == "short":
            total, share = 2 * math.exp(rng.uniform(0, math.log(128))), rng.random()
        elif kind == "long":
            total, share = self._long * rng.uniform(1, 2), rng.uniform(0.5, 0.9)
        else:
            total, share = self._max_len * rng.uniform(0.5, 1), rng.random()
        whole = max(2, min(int(total), self._max_len))
        num_out = min(max(1, int(whole * share)), whole - 1)
        return whole - num_out, num_out

    def params(self, num_out: int) -> SamplingParams:
        """Any way of sampling."""
        from octavo.types import SamplingParams

        rng = self._rng
        return SamplingParams(
            temperature=rng.choice((0.0, 0.0, 0.6, 1.0, 1.0, 2.0)),
            top_k=rng.choice((0, 0, 1, 20, 1000)),
            top_p=rng.choice((1.0, 1.0, 0.95, 0.3)),
            min_p=rng.choice((0.0, 0.0, 0.05)),
            seed=rng.choice((None, rng.getrandbits(62))),
            max_tokens=num_out,
            min_tokens=rng.choice((0, 0, 0, min(4, num_out))),
            stop_token_ids=rng.sample(range(self._vocab_size), rng.choice((0, 0, 1, 64))),
            ignore_eos=rng.random() < 0.5,
            logprobs=rng.choice((None, None, None, 0, 5, 20)),
        )

    def request(self) -> tuple[list[int], list[SamplingParams]]:
        """A prompt, and how it is to be answered: mostly once."""
        rng = self._rng
        num_in, num_out = self._lengths()
        prompt = self._tokens(num_in)
        if rng.random() < 0.3:
            prompt = (rng.choice(self._shared) + prompt)[:num_in]
        times = rng.choice((2, 3, 4)) if rng.random() < 0.1 else 1
        return prompt, [self.params(num_out) for _ in range(times)]

    def too_long(self) -> list[int]:
        """A prompt that must be refused."""
        return (self._pool * (1 + self._max_len // POOL_LEN))[: self._max_len]


def fault_of(asked: Asked, output: TokenOutput, vocab_size: int) -> str | None:
    """What is wrong with an output, given what was asked and came before."""
    params, tokens, reason = asked.params, output.token_ids, output.finish_reason
    done = asked.num_tokens + len(tokens)
    assert params.max_tokens is not None
    if output.error is not None or reason == "error":
        return f"error: {output.error}"
    if not tokens:
        return f"an output without tokens, {reason}"
    if not all(0 <= token < vocab_size for token in tokens):
        return f"tokens {tokens} outside the vocabulary"
    if done > params.max_tokens or (done == params.max_tokens) > (reason is not None):
        return f"{done} tokens of {params.max_tokens}, and {reason}"
    if reason == "length" and done != params.max_tokens:
        return f"ended for its length after {done} tokens of {params.max_tokens}"
    if reason == "stop" and done <= params.min_tokens:
        return f"stopped after {done} tokens, at least {params.min_tokens} were asked for"
    if output.stop_reason is not None and output.stop_reason not in params.stop_token_ids:
        return f"stopped by {output.stop_reason}, which is no stop id"
    if reason is None and tokens[-1] in params.stop_token_ids and done > params.min_tokens:
        return f"went on after the stop id {tokens[-1]}"
    if params.logprobs is None:
        return "log-probabilities that nobody asked for" if output.logprobs else None
    if len(output.logprobs) != len(tokens):
        return f"{len(output.logprobs)} log-probabilities for {len(tokens)} tokens"
    pairs = zip(tokens, output.logprobs, strict=True)
    return next((fault for pair in pairs if (fault := _logprob_fault(params, *pair))), None)


def _logprob_fault(params: SamplingParams, token: int, entry: PositionLogprobs) -> str | None:
    values = [alternative.logprob for alternative in entry.top]
    if entry.sampled.token_id != token:
        return f"the log-probability of {entry.sampled.token_id} for the token {token}"
    if not -math.inf < entry.sampled.logprob <= TIE:
        return f"a log-probability of {entry.sampled.logprob}"
    if len(values) != params.logprobs or values != sorted(values, reverse=True):
        return f"alternatives {values}, {params.logprobs} were asked for"
    if params.min_tokens or not values:
        return None  # what is masked at first may well be the most probable
    if (params.is_greedy or params.top_k == 1) and entry.sampled.logprob < values[0] - TIE:
        return f"not the most probable token: {entry.sampled}, {entry.top[0]}"
    return None


@dataclass
class Stress:
    """The run: adds, steps, cancels, checks; `counts` say what happened, `faults` what must not."""

    core: EngineCore
    info: EngineInfo
    num_rows: int
    seed: int
    stuck_s: float = 30.0
    say: Callable[[str], None] = print
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    memory: list[Memory] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._source = Source(self.info, self.num_rows, self.seed)
        self._asked: dict[str, Asked] = {}
        self._cancels: dict[int, list[str]] = {}
        self._step = 0
        self._target = 1
        self._begin = self._last_output = time.monotonic()

    @property
    def num_in_flight(self) -> int:
        return len(self._asked)

    def run(self, seconds: float, *, check_every_s: float = 10.0) -> None:
        """Load the engine for so long, and then let it come to rest.

        Raises:
            StuckError: it gives no output any more.
        """
        begin = time.monotonic()
        next_check = begin + min(check_every_s, seconds / 4)
        next_wave = begin
        while (now := time.monotonic()) < begin + seconds:
            if now >= next_wave:
                self._next_wave()
                next_wave = now + self._rng.uniform(0.01, 0.04) * seconds
            self._fill()
            self._advance()
            if now >= next_check:
                self._check()
                next_check = time.monotonic() + min(check_every_s, seconds / 4)
            if len(self.faults) > MOST_FAULTS:
                break
        while self._asked and time.monotonic() < begin + seconds + min(CALM_S, seconds):
            self._advance()
        self._cancel(list(self._asked))
        while self.core.has_work:
            self._advance()

    def check_rest(self) -> None:
        """Nothing runs, waits or holds a block."""
        self._check()
        stats, pool = self.core.stats, self.core.scheduler.kv_cache.pool
        if stats.num_running or stats.num_waiting or self._asked:
            self.faults.append(f"{stats.num_running} requests run, {stats.num_waiting} wait")
        if stats.kv_cache_usage or pool.num_free_blocks != pool.num_blocks:
            self.faults.append(f"{pool.num_blocks - pool.num_free_blocks} blocks are not free")

    def canary(self) -> list[int]:
        """The greedy answer to a fixed prompt, alone, with an empty prefix cache.

        Raises:
            StuckError: it gives no output any more.
        """
        from octavo.engine.messages import AddRequest
        from octavo.types import SamplingParams

        rng = random.Random(0)
        most = max(2, min(self.info.max_model_len, self.info.kv_cache.num_tokens) // 2)
        prompt = rng.choices(range(self.info.vocab_size), k=min(100, most - 1))
        length = min(CANARY_LEN, most)
        params = SamplingParams(temperature=0.0, max_tokens=length, ignore_eos=True)
        self.core.scheduler.kv_cache.reset_prefix_cache()
        self.core.add(AddRequest("canary", prompt, params, []))
        tokens: list[int] = []
        while self.core.has_work:
            for output in self._outputs():
                tokens += output.token_ids
        if len(tokens) != length:
            self.faults.append(f"the fixed prompt got {len(tokens)} tokens of {length}")
        return tokens

    def _next_wave(self) -> None:
        rows = self.num_rows
        self._target = self._rng.choice(
            (1, 2, rows // 8, rows // 2, rows, rows, 2 * rows, 4 * rows)
        )
        self.counts["waves"] += 1

    def _fill(self) -> None:
        """A few dozen requests a step at the most, as a server takes them in."""
        if self._rng.random() < 0.005:
            self._refused()
        for _ in range(self._rng.randint(1, 48)):
            if len(self._asked) >= self._target:
                return
            prompt, answers = self._source.request()
            self._add(prompt, answers)

    def _add(self, prompt: list[int], answers: Sequence[SamplingParams]) -> None:
        from octavo.engine.messages import AddRequest

        rng = self._rng
        for params in answers:
            request_id = f"r{self.counts['asked']}"
            self.counts["asked"] += 1
            self.counts["prompt tokens"] += len(prompt)
            self._asked[request_id] = Asked(params)
            eos = [] if params.ignore_eos else [rng.randrange(self.info.vocab_size)]
            self.core.add(AddRequest(request_id, prompt, params, eos))
            when = rng.choice(("at once", "soon", "later")) if rng.random() < 0.2 else "never"
            if when == "at once":
                self._cancel([request_id])
            elif when == "soon":
                due = self._step + rng.randint(1, 50)
                self._cancels.setdefault(due, []).append(request_id)
            elif when == "later":
                assert params.max_tokens is not None
                self._asked[request_id].cancel_after = rng.randint(1, params.max_tokens)

    def _refused(self) -> None:
        from octavo.engine.messages import AddRequest
        from octavo.errors import InvalidRequestError

        params = self._source.params(1)
        try:
            self.core.add(AddRequest("too long", self._source.too_long(), params, []))
        except InvalidRequestError:
            self.counts["refused, as they must be"] += 1
            return
        self.faults.append("a prompt that fills the context was not refused")
        self.core.abort(["too long"])

    def _cancel(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            asked = self._asked.pop(request_id, None)
            if asked is not None:
                kind = "cancelled after some tokens" if asked.num_tokens else "cancelled before any"
                self.counts[kind] += 1
                self.core.abort([request_id])

    def _advance(self) -> None:
        for output in self._outputs():
            self._take(output)
        self._step += 1
        self._cancel(self._cancels.pop(self._step, []))

    def _outputs(self) -> list[TokenOutput]:
        had_work, now = self.core.has_work, time.monotonic()
        outputs = self.core.step()
        if outputs or not had_work:
            self._last_output = time.monotonic()
        elif now - self._last_output > self.stuck_s:
            raise StuckError(f"no output for {self.stuck_s:g} s, {self.core.stats}")
        return outputs

    def _take(self, output: TokenOutput) -> None:
        asked = self._asked.get(output.request_id)
        if asked is None:
            self.faults.append(f"an output of {output.request_id}, which is not in flight")
            return
        fault = fault_of(asked, output, self.info.vocab_size)
        if fault is not None:
            self.faults.append(f"{output.request_id}: {fault} ({asked.params})")
        asked.num_tokens += len(output.token_ids)
        self.counts["output tokens"] += len(output.token_ids)
        if output.finish_reason is not None:
            del self._asked[output.request_id]
            self.counts[f"ended by {output.finish_reason}"] += 1
        elif asked.num_tokens == asked.cancel_after:
            self._cancel([output.request_id])

    def _check(self) -> None:
        self.memory.append(Memory.now())
        self.counts["checks"] += 1
        try:
            self.core.scheduler.check_integrity()
        except AssertionError as error:
            self.faults.append(f"the scheduler's books are wrong: {error}")
        device = self.memory[-1].device
        # At once: a run that is cut off has told what it saw.
        self.say(
            f"{time.monotonic() - self._begin:5.0f} s: {len(self._asked):,} requests in flight, "
            f"{self.counts['output tokens']:,} tokens, "
            f"{self.core.stats.num_preemptions:,} preemptions, "
            + ("" if device is None else f"{device / MIB:,.0f} MiB on the device, ")
            + f"{len(self.faults)} faults{f': {self.faults[-1]}' if self.faults else ''}"
        )


def memory_faults(memory: Sequence[Memory], growth: int, most: float | None) -> list[str]:
    """Growth over the second half of the time, and more on the device than it was allowed."""
    faults = []
    half, last = memory[len(memory) // 2], memory[-1]
    if last.host - half.host > growth:
        faults.append(f"the host's memory grew by {(last.host - half.host) / MIB:.0f} MiB")
    if half.device is not None and last.device is not None:
        if last.device - half.device > growth:
            grown = (last.device - half.device) / MIB
            faults.append(f"the device's memory grew by {grown:.0f} MiB")
        peak = max(m.device for m in memory if m.device is not None)
        if most is not None and peak > most:
            faults.append(f"{peak / MIB:.0f} MiB on the device, {most / MIB:.0f} are allowed")
    return faults


def stress(
    options: dict[str, Any], args: Any, say: Callable[[str], None] = print
) -> tuple[Stress, dict[str, Any]]:
    """Build the engine, run, and say what there is to say of it."""
    import torch

    from octavo.config import EngineConfig
    from octavo.launch import build_engine

    engine = build_engine(EngineConfig(**options))
    try:
        core = engine.core
        run = Stress(core, engine.info, core.stats.num_free_rows, args.seed, args.stuck_s, say)
        run.memory.append(Memory.now())
        begin = time.monotonic()
        try:
            first = run.canary()
            run.run(args.minutes * 60, check_every_s=args.check_every_s)
            if run.canary() != first:
                run.faults.append("the fixed prompt is answered otherwise than at the beginning")
        except StuckError as error:
            run.faults.append(str(error))
        seconds = time.monotonic() - begin
        run.check_rest()
        stats = core.stats
        run.memory.append(Memory.now())
        most = None
        if torch.cuda.is_available():
            total = torch.cuda.mem_get_info()[1]
            most = options["gpu_memory_utilization"] * total + args.slack_mib * MIB
        run.faults += memory_faults(run.memory, args.growth_mib * MIB, most)
        if stats.num_preemptions < args.min_preemptions:
            run.faults.append(f"only {stats.num_preemptions} preemptions: the cache was never full")
        facts: dict[str, Any] = {
            "seconds": seconds,
            "rows": run.num_rows,
            "KV blocks": engine.info.kv_cache.num_blocks,
            "steps": stats.num_steps,
            "preemptions": stats.num_preemptions,
            "prefix cache hits, tokens": stats.prefix_cache_hits,
            "output tokens per s": run.counts["output tokens"] / seconds,
        }
        if torch.cuda.is_available():
            allocator = torch.cuda.memory_stats()
            for what in ("reserved", "allocated"):
                most = allocator[f"{what}_bytes.all.peak"]
                facts[f"{what} by torch at most, MiB"] = most / MIB
            facts["allocation retries"] = allocator.get("num_alloc_retries", 0)
            facts["out of memory"] = allocator.get("num_ooms", 0)
            if facts["out of memory"]:
                run.faults.append(f"{facts['out of memory']} allocations failed")
        return run, facts
    finally:
        engine.close()


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--gpu-memory-utilization", type=float, default=0.95)
    parser.add_argument("--check-every-s", type=float, default=10.0)
    parser.add_argument("--growth-mib", type=int, default=256, help="of memory, second half")
    parser.add_argument("--slack-mib", type=int, default=256, help="beyond the share of memory")
    parser.add_argument("--stuck-s", type=float, default=30.0, help="longest time without output")
    parser.add_argument("--min-preemptions", type=int, default=1)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    args = parser.parse_args(argv)
    console = make_console()
    records = Records(args.out, script="stress", model=args.model)
    with model_folder(args.model) as folder:
        options = {
            "model": str(folder),
            "gpu_memory_utilization": args.gpu_memory_utilization,
            **engine_options(args),
        }
        say = functools.partial(console.print, highlight=False, markup=False)
        run, facts = stress(options, args, say)
    setup = environment()
    records.write(
        "stress", **setup, seed=args.seed, options=options, facts=facts, counts=dict(run.counts),
        faults=run.faults, memory=[msgspec.to_builtins(m) for m in run.memory],
    )  # fmt: skip
    console.print(
        f"{args.model} on {setup['card']}, octavo {setup['octavo']} ({setup['commit']}), "
        f"seed {args.seed}",
        highlight=False, markup=False,
    )  # fmt: skip
    for name, value in (facts | dict(sorted(run.counts.items()))).items():
        text = f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"
        console.print(f"{name:<30} {text:>14}", highlight=False)
    for place in ("device", "host"):
        used = [value for m in run.memory if (value := getattr(m, place)) is not None]
        if used:
            console.print(
                f"memory of the {place}, MiB: {used[0] / MIB:,.0f} at first, "
                f"{max(used) / MIB:,.0f} at most, {used[-1] / MIB:,.0f} at the end",
                highlight=False,
            )
    for fault in run.faults[:MOST_FAULTS]:
        console.print(f"FAULT: {fault}", highlight=False, markup=False)
    console.print(f"{len(run.faults)} faults" if run.faults else "no fault", highlight=False)
    return 1 if run.faults else 0


if __name__ == "__main__":
    sys.exit(main())
