"""How fast `octavo.LLM` is on this card, beside another engine's figures for the same work.

    PYTHONPATH=. python benchmarks/gpu/offline.py --suites decode,prefill,mixed,prefix
    PYTHONPATH=. python benchmarks/gpu/offline.py --model qwen3-0.6b --suites nano,single,decode \
        --batches 1,64,256

Suites (medians of --repeats; all requests are submitted at once; end-of-sequence is ignored):

  decode   prompts of 128 tokens, 256 out, at each batch of --batches. Time per step: the whole
           less the same with one token out, over 255.
  prefill  one prompt of 4096 tokens, and 16 of 2048, one token out of each
  mixed    500 requests with the lengths of lengths_mixed500.json, the cache empty
  prefix   64 requests of 2048 shared and 64 own tokens, 64 out; then 64 more on the same prefix
  nano     256 requests, input and output lengths of nano-vllm's benchmark, temperature 0.6
  single   one stream: prompt of 128 tokens, 256 out, time between tokens

Tokens are random and new in each repetition. Beside each figure stand the number of steps, and of
each step the wall's time, the device's, the engine's thread's on a CPU (with its waiting for the
device, as far as it spins) and the scheduler's. With `--engine vllm`, where vLLM is installed, the
same is measured of it, but for `single` and for what is told of steps.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gpu.common import (
    LENGTHS,
    Baselines,
    Records,
    engine_options,
    environment,
    make_console,
    make_parser,
    print_table,
)
from benchmarks.gpu.engines import ENGINES
from benchmarks.gpu.shapes import model_folder
from benchmarks.gpu.suites import SUITES, Bench

if TYPE_CHECKING:
    from benchmarks.gpu.engines import Engine


def names_of(text: str) -> list[str]:
    """Suites' names, apart by commas."""
    names = text.split(",")
    unknown = [name for name in names if name not in SUITES]
    if unknown:
        raise ValueError(f"no suite {unknown[0]!r}")
    return names


def numbers_of(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--engine", choices=ENGINES, default="octavo", help="default: %(default)s")
    parser.add_argument("--suites", type=names_of, default=["decode", "prefill", "mixed", "prefix"])
    parser.add_argument("--batches", type=numbers_of, default=[1, 8, 32, 64, 128, 256])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--budget-s", type=float, default=540.0, help="begin nothing after this")
    parser.add_argument("--lengths", type=Path, default=LENGTHS, help="file of the suite mixed")
    parser.add_argument("--scale", type=float, default=1.0, help="of lengths and counts: a dry run")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    if args.engine == "vllm" and "single" in args.suites:
        parser.error("vllm.LLM does not stream: leave the suite single out")
    begin = time.monotonic()
    deadline = begin + args.budget_s
    console = make_console()
    records = Records(
        args.out, script="offline", engine=args.engine, model=args.model, scale=args.scale
    )
    failed = 0
    with model_folder(args.model) as folder:
        engine: Engine = ENGINES[args.engine](folder, engine_options(args))
        try:
            engine.generate([[5] * 16], [16], 0.0)
            setup = environment()
            records.write(
                "setup", **setup, options=engine_options(args), title=engine.title,
                **engine.details, first_token_s=time.monotonic() - begin,
            )  # fmt: skip
            bench = Bench(
                engine, repeats=args.repeats, scale=args.scale, deadline=deadline, seed=args.seed
            )  # fmt: skip
            for name in args.suites:
                if bench.is_late:
                    console.print(f"no time left for {name}", highlight=False)
                    records.write("skipped", suite=name)
                    failed += 1
                    continue
                for result in SUITES[name](bench, args):
                    records.add(result)
                    console.print(
                        f"{result.name} {result.metrics} {'; '.join(result.notes)}",
                        highlight=False, markup=False, soft_wrap=True,
                    )  # fmt: skip
        finally:
            engine.close()
    is_whole = args.scale == 1.0 and args.lengths == LENGTHS
    baselines = Baselines(setup["card"], args.model) if is_whole else None
    title = f"{args.model} on {setup['card']}, {engine.title}"
    if args.engine == "octavo":
        title += f" ({setup['commit']})"
    print_table(console, records.measures, baselines, title)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
