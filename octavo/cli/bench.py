"""`octavo bench serve`, `offline` and `simulate`: from flags to a report, with progress."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.cli.bench_flags import DEFAULT_LEN, add_bench_parser
from octavo.cli.bench_simulate import add_simulate_parser
from octavo.cli.engine_flags import engine_config, engine_options
from octavo.config import default_api_keys
from octavo.errors import ConfigError

if TYPE_CHECKING:
    import argparse

    from rich.console import Console


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `bench` to the command line."""
    modes = add_bench_parser(subparsers, run_serve, run_offline)
    add_simulate_parser(modes, run_simulate)


def run_serve(args: argparse.Namespace) -> int:
    """Load a server; the exit code is 1 when no request was answered."""
    from octavo.bench.report import parse_slo, print_report
    from octavo.bench.serve import ServeBench, serve_bench
    from octavo.bench.workload import DEFAULT_VOCAB_SIZE, Length

    _refuse_what_would_be_ignored(args)
    check_target(args.json)
    texts = (args.random_len or args.input_len, args.random_len or args.output_len)
    lengths = [Length.parse(text or DEFAULT_LEN) for text in texts]
    input_len, output_len = (length.spread(args.random_range or 0.0) for length in lengths)
    bench = ServeBench(
        url=args.url,
        model=args.model,
        api_key=args.api_key or next(iter(default_api_keys()), None),
        endpoint=args.endpoint,
        concurrency=16 if args.concurrency is None and args.rate is None else args.concurrency,
        rate=args.rate,
        burstiness=args.burstiness,
        dataset=None if args.dataset == "random" else Path(args.dataset),
        num_prompts=args.num_prompts,
        input_len=input_len,
        output_len=output_len,
        prefix_len=args.prefix_len,
        prompt_format=args.prompt_format or ("text" if args.endpoint == "chat" else "ids"),
        vocab_size=DEFAULT_VOCAB_SIZE if args.vocab_size is None else args.vocab_size,
        warmup=args.warmup,
        ignore_eos=args.ignore_eos,
        temperature=args.temperature,
        extra_body=_json_object(args.extra_body),
        timeout_s=args.timeout,
        seed=args.seed,
        slo_ms=parse_slo(args.slo) if args.slo else {},
    )
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    progress = Progress(
        TextColumn("requests"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[failed]}", style="red"),
        console=_console(to_stderr=True),
        transient=True,
        refresh_per_second=2,  # drawing is the client's own CPU time
    )
    task = progress.add_task("", total=None, failed="")
    num_failed = 0

    def began(total: int) -> None:
        progress.update(task, total=total)

    def ended(error: str | None) -> None:
        nonlocal num_failed
        if error is not None:
            num_failed += 1
            progress.update(task, failed=f"{num_failed} failed")
        progress.advance(task)

    with progress:
        report = serve_bench(bench, began=began, observer=lambda outcome: ended(outcome.error))
    _deliver(report, args.json, print_report)
    if report.num_cancelled:
        return 130
    return 0 if report.num_completed else 1


def run_offline(args: argparse.Namespace) -> int:
    """Measure an engine in this process."""
    from octavo.bench.offline import OfflineBench, Repeat, offline_bench, print_report

    check_target(args.json)
    bench = OfflineBench(
        num_prompts=args.num_prompts,
        input_len=args.input_len,
        output_len=args.output_len,
        repeats=args.repeats,
        seed=args.seed,
    )
    config = engine_config(args)
    from octavo.llm import LLM

    console = _console(to_stderr=True)

    def ended(repeat: Repeat) -> None:
        console.print(
            f"prefill {repeat.prefill_s:.2f} s, whole {repeat.total_s:.2f} s", style="dim"
        )

    llm = LLM(config.model, **engine_options(args))
    try:
        info = llm.info
        report = offline_bench(
            bench,
            llm,
            model=args.model,
            vocab_size=info.vocab_size,
            engine={"device": info.device, "dtype": info.dtype, "architecture": info.architecture},
            observer=ended,
        )
    finally:
        llm.close()
    _deliver(report, args.json, print_report)
    return 0


def run_simulate(args: argparse.Namespace) -> int:
    """Simulate an engine; the exit code is 1 when no request could run."""
    from octavo.bench.simulate.tables import print_report
    from octavo.cli.bench_simulate import simulate

    check_target(args.json)
    console = _console(to_stderr=True)
    report = simulate(args, console)
    _deliver(report, args.json, print_report)
    return 0 if any(policy.num_completed for policy in report.policies) else 1


def _refuse_what_would_be_ignored(args: argparse.Namespace) -> None:
    """Raise `ConfigError` for a flag that has no effect beside another one."""
    names: tuple[str, ...] = ()
    reason = ""
    if args.dataset != "random":
        names = ("input_len", "random_len", "random_range", "prefix_len")
        names += ("vocab_size", "prompt_format")
        reason = "a dataset brings its own prompts"
    elif args.random_len is not None:
        names, reason = ("input_len", "output_len"), "--random-len sets both lengths"
    elif args.prompt_format == "text" or args.endpoint == "chat":
        names, reason = ("vocab_size",), "the prompts are text"
    for name in names:
        if getattr(args, name):
            raise ConfigError(f"--{name.replace('_', '-')} would have no effect: {reason}")


def check_target(target: str | None) -> None:
    """Refuse a `--json` file that could not be written, before the time for a run is spent."""
    if target is not None and target != "-":
        path = Path(target)
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise ConfigError(f"cannot write {target}: it is a folder, or lies in none")


def _json_object(text: str) -> dict[str, Any]:
    import msgspec

    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ConfigError(f"--extra-body is not a JSON object: {error}") from None


def _console(*, to_stderr: bool) -> Console:
    from rich.console import Console

    console = Console(stderr=to_stderr)
    if not console.is_terminal:
        console.width = 120  # the table is wider than what is assumed of a pipe
    return console


def _deliver(report: Any, target: str | None, print_report: Any) -> None:
    """The table to the terminal, and the JSON to where it was asked for."""
    import msgspec

    print_report(report, _console(to_stderr=target == "-"))
    if target is None:
        return
    data = msgspec.json.format(msgspec.json.encode(report)).decode() + "\n"
    if target == "-":
        sys.stdout.write(data)
        return
    try:
        Path(target).write_text(data, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {target}: {error.strerror}") from None
