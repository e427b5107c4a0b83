"""The process that tries grammars out, so that nothing they do can harm another one.

Reads a line of JSON for each grammar from standard input and answers with one on standard output.
A grammar may take any time and memory, or end this process: the parent gives it up then.
"""

from __future__ import annotations

import contextlib
import random
import sys
import time

import msgspec

from octavo.errors import InvalidRequestError
from octavo.text.grammar.compiler import GrammarCompiler
from octavo.types import StructuredOutputs

NUM_WALK = 24
"""Tokens of an output that are tried, chosen at random among those allowed."""

WALK_S = 0.2
"""How long the trial of an output may take, seconds; it stops there, and what it saw counts."""

MEMORY_BYTES = 2**31
"""Address space that one grammar may add."""

CPU_S = 5
"""Processor time for one grammar, seconds; the kernel ends us then, should the parent be gone."""


class Start(msgspec.Struct, frozen=True):
    """The first line: the tokenizer that grammars are tried with."""

    tokenizer_json: str
    vocab_size: int
    eos_token_ids: list[int]


class Verdict(msgspec.Struct, frozen=True):
    """The answer to a grammar: what is wrong with it, or None."""

    reason: str | None = None


def main() -> None:
    """Answer until standard input ends."""
    lines = sys.stdin.buffer
    start = msgspec.json.decode(lines.readline(), type=Start)
    compiler = GrammarCompiler(
        start.tokenizer_json, vocab_size=start.vocab_size, eos_token_ids=start.eos_token_ids
    )
    _answer(Verdict())
    while line := lines.readline():
        _limit()
        try:
            verdict = _try(compiler, msgspec.json.decode(line, type=StructuredOutputs), start)
        except InvalidRequestError as error:
            verdict = Verdict(error.message)
        except MemoryError:
            verdict = Verdict("it needs too much memory")
        _answer(verdict)


def _try(compiler: GrammarCompiler, spec: StructuredOutputs, start: Start) -> Verdict:
    """Compile the grammar and begin an output."""
    import numpy as np  # not where only the messages are wanted

    matcher = compiler.matcher(spec)
    bits = np.zeros(-(-start.vocab_size // 32), np.uint32)
    chance = random.Random(0)
    deadline = time.perf_counter() + WALK_S
    for _ in range(NUM_WALK):
        matcher.fill(bits)
        if matcher.failure is not None:
            return Verdict(f"it cannot be used: {matcher.failure}")
        allowed = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))
        if not allowed.size:
            return Verdict("it cannot be used: nothing can be written by it")
        matcher.accept(int(chance.choice(allowed)))
        if matcher.is_finished or time.perf_counter() > deadline:
            break
    if matcher.failure is not None:
        return Verdict(f"it cannot be used: {matcher.failure}")
    return Verdict()


def _limit() -> None:
    """Bound what the next grammar may take."""
    with contextlib.suppress(ImportError, ValueError, OSError):  # not on every platform
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + 1 + CPU_S
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, most))
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - no path of the user's
            pages = int(file.read().split()[0])
        room = pages * resource.getpagesize() + MEMORY_BYTES
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (room, most))


def _answer(verdict: Verdict) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(verdict) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
