"""`octavo bench simulate`: its flags, and from them to a report."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from octavo.bench.simulate.hardware import HOSTS, MODELS
from octavo.errors import ConfigError
from octavo.runner.devices import DEVICES
from octavo.types import SchedulingPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from octavo.bench.simulate.report import SimulationReport
    from octavo.bench.simulate.trace import Tenant, Trace

_EXAMPLES = """\
examples:
  octavo bench simulate --model llama-3.1-8b --device h100 --num-requests 100000 --rate 20
  octavo bench simulate --input-len lognormal:220:1.0:16:2048 --output-len 190 --concurrency 64
  octavo bench simulate --tenants small:1,flood:50 --rate 90 --policies fcfs,fair --plots plots
  octavo bench simulate --turns 5 --prefixes 8 --prefix-len 1024 --rate 4 --slo ttft:500,tpot:50
  octavo bench simulate --trace requests.jsonl --json report.json

a line of a trace: {"arrival_s": 0.5, "input_len": 220, "output_len": 190}, and if it has them
"tenant", "priority" and "prefix": [["system", 128]]; the Azure LLM inference traces (CSV) and the
Mooncake traces (JSONL) are read as they are
"""
_SYNTHETIC = {
    "num_requests": 1000,
    "input_len": "220",
    "output_len": "190",
    "lengths": None,
    "rate": None,
    "arrivals": None,
    "burstiness": None,
    "prefixes": None,
    "prefix_len": None,
    "turns": None,
    "think_time": None,
    "tenants": None,
    "seed": 0,
}
"""Flags of synthetic workloads and their defaults; a trace file takes none of them."""


def add_simulate_parser(
    modes: argparse._SubParsersAction[argparse.ArgumentParser],
    run: Callable[[argparse.Namespace], int],
) -> None:
    """Add `bench simulate`, done by `run`."""
    parser = modes.add_parser(
        "simulate",
        help="run the scheduler in virtual time under a model of a device's speed",
        description="Run the real scheduler and block manager in virtual time, under a model of "
        "how long each step takes on a device, and compare scheduling policies.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_engine_flags(parser)
    _add_load_flags(parser)
    _add_report_flags(parser)
    parser.set_defaults(run=run)


def simulate(args: argparse.Namespace, console: Console) -> SimulationReport:
    """Run every policy that was asked for.

    Raises:
        ConfigError: a flag's value, or a file, is no good.
    """
    from octavo.bench.report import parse_slo
    from octavo.bench.simulate.compare import Comparison, compare
    from octavo.bench.simulate.hardware import find_model
    from octavo.bench.simulate.settings import EngineSettings

    policies = _policies(args.policies)
    if args.plots is not None:
        from octavo.bench.simulate.plots import check_plots

        check_plots()
    trace, load = make(args)
    comparison = Comparison(
        device=args.device,
        host=args.host_profile,
        model=find_model(args.model),
        dtype=args.dtype,
        settings=EngineSettings(
            max_num_seqs=args.max_num_seqs,
            max_num_batched_tokens=args.max_num_batched_tokens,
            max_model_len=args.max_model_len,
            block_size=args.block_size,
            gpu_memory_utilization=args.gpu_memory_utilization,
            num_kv_blocks=args.num_kv_blocks,
            enable_prefix_caching=args.enable_prefix_caching,
            async_scheduling=args.async_scheduling,
        ),
        policies=policies,
        slo_ms=parse_slo(args.slo) if args.slo else {},
        load=load,
        skip=args.skip_alike,
    )
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        refresh_per_second=2,
    )
    with progress:
        tasks = {name: progress.add_task(name, total=len(trace)) for name in policies}
        report = compare(
            comparison,
            trace,
            observer=lambda policy, done: progress.update(tasks[policy], completed=done),
        )
    if args.plots is not None:
        from octavo.bench.simulate.plots import write_plots

        for path in write_plots(report, Path(args.plots)):
            console.print(f"wrote {path}", style="dim", highlight=False, markup=False)
    return report


def make(args: argparse.Namespace) -> tuple[Trace, dict[str, Any]]:
    """The trace that the flags describe, and what it was made of.

    Raises:
        ConfigError: flags contradict each other, or a file is no good.
    """
    import msgspec

    from octavo.bench.simulate.trace import Lengths, Synthetic, make_trace
    from octavo.bench.simulate.trace_file import load_lengths, load_trace

    given = {name for name in _SYNTHETIC if getattr(args, name) is not None}
    if args.trace is not None:
        _refuse(given - {"num_requests"}, "a trace has its own requests")
        speed = 1.0 if args.speed is None else args.speed
        trace = load_trace(
            Path(args.trace),
            limit=args.num_requests,
            speed=speed,
            concurrency=args.concurrency,
        )
        return trace, {"trace": args.trace, "speed": speed, "concurrency": args.concurrency}
    _refuse({"speed"} if args.speed is not None else set(), "it is for --trace")
    values = {name: getattr(args, name) for name in given}
    values = {**_SYNTHETIC, **values}
    if values["lengths"] is not None:
        _refuse(given & {"input_len", "output_len"}, "--lengths brings both")
        input_len, output_len = load_lengths(Path(values["lengths"]))
    else:
        input_len, output_len = (Lengths.parse(values[n]) for n in ("input_len", "output_len"))
    arrivals = values["arrivals"]
    if arrivals is None and args.rate is not None:
        arrivals = "poisson" if args.burstiness is None else "gamma"
    if args.rate is None:
        _refuse(given & {"arrivals", "burstiness"}, "it needs --rate")
    elif arrivals != "gamma":
        _refuse(given & {"burstiness"}, "it is for --arrivals gamma")
    if args.prefix_len is None:
        _refuse(given & {"prefixes"}, "it needs --prefix-len")
    if args.turns is None:
        _refuse(given & {"think_time"}, "it needs --turns")
    elif args.concurrency is not None:
        raise ConfigError("--turns and --concurrency exclude each other: turns wait for their own")
    spec = Synthetic(
        num_requests=values["num_requests"],
        input_len=input_len,
        output_len=output_len,
        arrivals=arrivals or "at-once",
        rate=values["rate"] or 0.0,
        burstiness=1.0 if values["burstiness"] is None else values["burstiness"],
        concurrency=args.concurrency,
        num_prefixes=1 if values["prefixes"] is None else values["prefixes"],
        prefix_len=values["prefix_len"] or 0,
        turns=1 if values["turns"] is None else values["turns"],
        think_s=values["think_time"] or 0.0,
        tenants=_tenants(values["tenants"]) if values["tenants"] else (),
        seed=values["seed"],
    )
    load: dict[str, Any] = msgspec.to_builtins(spec)
    if values["lengths"] is not None:
        load["input_len"] = load["output_len"] = values["lengths"]
    return make_trace(spec), load


def _refuse(names: set[str], reason: str) -> None:
    if names:
        flag = "--" + min(names).replace("_", "-")
        raise ConfigError(f"{flag} would have no effect: {reason}")


def _policies(text: str) -> tuple[str, ...]:
    known = get_args(SchedulingPolicy)
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in known:
            raise ConfigError(f"--policies: {name!r} is none of {', '.join(known)}")
    return names


def _tenants(text: str) -> tuple[Tenant, ...]:
    from octavo.bench.simulate.trace import Tenant

    tenants = []
    for part in text.split(","):
        name, *numbers = part.strip().split(":")
        try:
            share, priority = (*numbers, "0")[:2] if len(numbers) < 3 else ("", "")
            tenants.append(Tenant(name, float(share), int(priority)))
        except ValueError:
            raise ConfigError(
                f"--tenants: {part!r} is not NAME:SHARE or NAME:SHARE:PRIORITY"
            ) from None
    return tuple(tenants)


def _add_engine_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine")
    group.add_argument(
        "--model",
        default="llama-3.1-8b",
        help=f"{', '.join(sorted(MODELS))}, or a config.json or a folder with one "
        "(default: llama-3.1-8b)",
    )
    group.add_argument(
        "--device",
        choices=tuple(DEVICES),
        default="h100",
        help="the h100 was measured, the others are scaled from their data sheets (default: h100)",
    )
    group.add_argument(
        "--host-profile",
        choices=tuple(HOSTS),
        default="ideal",
        help="what the processes beside the device cost: nothing (ideal), or as measured of vLLM "
        "0.24 (default: ideal)",
    )
    group.add_argument(
        "--dtype", choices=("bf16", "fp8"), default="bf16", help="of the weights (default: bf16)"
    )
    for flag, default, text in (
        ("--max-num-seqs", 1024, "most requests in a batch"),
        ("--max-num-batched-tokens", 8192, "token budget of a step"),
        ("--block-size", 16, "tokens per KV block"),
    ):
        group.add_argument(
            flag, type=int, default=default, metavar="N", help=f"{text} (default: {default})"
        )
    group.add_argument(
        "--max-model-len", type=int, metavar="TOKENS", help="(default: what the model allows)"
    )
    group.add_argument(
        "--gpu-memory-utilization",
        type=float,
        default=0.92,
        metavar="SHARE",
        help="share of the device's memory to use in all (default: 0.92)",
    )
    group.add_argument(
        "--num-kv-blocks",
        type=int,
        metavar="N",
        help="blocks of the KV cache (default: what the memory has room for)",
    )
    group.add_argument(
        "--enable-prefix-caching",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="reuse the KV blocks of prompts that begin alike (default: on)",
    )
    group.add_argument(
        "--async-scheduling",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="plan a step while the one before it runs (default: on)",
    )
    group.add_argument(
        "--policies",
        default="fcfs",
        metavar="NAMES",
        help=f"policies to compare, apart by commas: {', '.join(get_args(SchedulingPolicy))} "
        "(default: fcfs)",
    )
    group.add_argument(
        "--skip-alike",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="pass over runs of steps that only decode without planning each one; the result is "
        "the same (default: on)",
    )


def _add_load_flags(parser: argparse.ArgumentParser) -> None:
    load = parser.add_argument_group("load")
    load.add_argument("--trace", metavar="FILE", help="a JSONL or CSV file of requests")
    load.add_argument(
        "--speed", type=float, metavar="X", help="a trace's arrivals come X times as fast"
    )
    load.add_argument(
        "--num-requests",
        type=int,
        metavar="N",
        help="how many (default: 1000, or the whole trace)",
    )
    load.add_argument(
        "--concurrency",
        type=int,
        metavar="N",
        help="closed loop: N requests in flight (default: no bound)",
    )
    load.add_argument(
        "--rate",
        type=float,
        metavar="R",
        help="requests, or sessions, a second (default: all at once)",
    )
    load.add_argument(
        "--arrivals",
        choices=("poisson", "gamma", "uniform"),
        help="gaps between them under --rate (default: poisson)",
    )
    load.add_argument(
        "--burstiness",
        type=float,
        metavar="SHAPE",
        help="shape of gamma-distributed gaps: 1 is Poisson, less comes in bursts (default: 1)",
    )
    prompts = parser.add_argument_group("requests")
    for flag, what, default in (
        ("--input-len", "prompt tokens", "220"),
        ("--output-len", "tokens to generate", "190"),
    ):
        prompts.add_argument(
            flag,
            metavar="LENGTH",
            help=f"{what}: 128, 64:256 (uniform), lognormal:MEAN:SIGMA or "
            f"lognormal:MEAN:SIGMA:LEAST:MOST (default: {default})",
        )
    prompts.add_argument(
        "--lengths",
        metavar="FILE",
        help='pairs of lengths in turn, as JSON: {"input": [...], "output": [...]}',
    )
    prompts.add_argument(
        "--prefix-len",
        type=int,
        metavar="N",
        help="tokens of a shared prefix before each prompt's own (default: 0)",
    )
    prompts.add_argument(
        "--prefixes", type=int, metavar="N", help="different shared prefixes (default: 1)"
    )
    prompts.add_argument(
        "--turns",
        type=int,
        metavar="N",
        help="requests per session, each with the conversation so far as its prefix (default: 1)",
    )
    prompts.add_argument(
        "--think-time",
        type=float,
        metavar="SECONDS",
        help="from a turn's answer to the next turn (default: 0)",
    )
    prompts.add_argument(
        "--tenants",
        metavar="LIST",
        help="NAME:SHARE or NAME:SHARE:PRIORITY, apart by commas; shares of the requests, as in "
        "small:1,flood:50",
    )
    prompts.add_argument(
        "--seed", type=int, metavar="N", help="of lengths and arrivals (default: 0)"
    )


def _add_report_flags(parser: argparse.ArgumentParser) -> None:
    report = parser.add_argument_group("report")
    report.add_argument(
        "--slo",
        metavar="BOUNDS",
        help="report goodput: requests that keep every bound, in milliseconds, as in "
        "ttft:500,tpot:50 (metrics: ttft, tpot, itl, e2e)",
    )
    report.add_argument(
        "--json",
        metavar="FILE|-",
        help="write the report as JSON; with - to stdout, and the table to stderr",
    )
    report.add_argument(
        "--plots", metavar="FOLDER", help="write plots as PNG there (needs the plots extra)"
    )
