"""The flags of `octavo bench`, in their groups. `cli/bench.py` reads them."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from octavo.cli.engine_flags import POOLING_FLAGS, add_engine_flags

_SERVE_EXAMPLES = """\
examples:
  octavo bench serve --url http://127.0.0.1:8000 --concurrency 16 --num-prompts 200
  octavo bench serve --url http://127.0.0.1:8000 --rate 4 --slo ttft:500,tpot:50
  octavo bench serve --url https://host/v1 --endpoint chat --random-len 64:512 --json result.json
  octavo bench serve --url http://127.0.0.1:8000 --dataset prompts.jsonl --output-len 256

a line of a dataset: {"prompt": "text"}, {"messages": [...]} (with --endpoint chat) or
{"prompt_ids": [1, 2]}, each with "max_tokens" if it should differ from --output-len
"""

_OFFLINE_EXAMPLES = """\
examples:
  octavo bench offline smollm2
  octavo bench offline smollm2 --num-prompts 64 --input-len 512 --output-len 64 --json -
"""


DEFAULT_LEN = "128"
Run = Callable[[argparse.Namespace], int]


def add_bench_parser(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
    run_serve: Run,
    run_offline: Run,
) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    """Add `bench serve` and `bench offline`, done by the two functions; where to add more modes."""
    parser = subparsers.add_parser(
        "bench",
        help="measure a server or an engine, or simulate one",
        description="Measure latency and throughput, or simulate them.",
    )
    modes = parser.add_subparsers(dest="mode", metavar="MODE", required=True)
    serve = modes.add_parser(
        "serve",
        help="load any OpenAI-compatible server and report latency and throughput",
        description="Load any OpenAI-compatible server and report latency and throughput.",
        epilog=_SERVE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_target_flags(serve)
    _add_load_flags(serve)
    _add_prompt_flags(serve)
    _add_report_flags(serve)
    serve.add_argument(
        "--slo",
        metavar="BOUNDS",
        help="report goodput: requests that keep every bound, in milliseconds, as in "
        "ttft:500,tpot:50 (metrics: ttft, tpot, itl, e2e)",
    )
    serve.set_defaults(run=run_serve)
    offline = modes.add_parser(
        "offline",
        help="prefill and decode throughput of a model in this process",
        description="Prefill and decode throughput of a model in this process, without HTTP.",
        epilog=_OFFLINE_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    offline.add_argument("model", metavar="MODEL", help="a pulled name, a folder or a GGUF file")
    for flag, default, text in (
        ("--num-prompts", 16, "prompts per batch"),
        ("--input-len", 128, "tokens per prompt"),
        ("--output-len", 128, "tokens generated per prompt"),
        ("--repeats", 3, "times it is run; the report has the medians"),
    ):
        offline.add_argument(
            flag, type=int, default=default, metavar="N", help=f"{text} (default: {default})"
        )
    offline.add_argument("--seed", type=int, metavar="N", help="of the prompts (default: drawn)")
    _add_report_flags(offline)
    add_engine_flags(offline, skip=("seed", *POOLING_FLAGS))
    offline.set_defaults(run=run_offline)
    return modes


def _add_target_flags(parser: argparse.ArgumentParser) -> None:
    target = parser.add_argument_group("server")
    target.add_argument(
        "--url",
        default="http://127.0.0.1:8000/v1",
        help="the server; a URL without a path gets /v1 (default: http://127.0.0.1:8000/v1)",
    )
    target.add_argument("--model", help="model to ask for (default: the first of /v1/models)")
    target.add_argument(
        "--api-key", metavar="KEY", help="sent as a bearer token (default: $OCTAVO_API_KEY)"
    )
    target.add_argument(
        "--endpoint",
        choices=("completions", "chat"),
        default="completions",
        help="/v1/completions or /v1/chat/completions (default: completions)",
    )
    target.add_argument(
        "--timeout",
        type=float,
        default=600.0,
        metavar="SECONDS",
        help="a request that takes longer fails (default: 600)",
    )
    target.add_argument(
        "--extra-body",
        metavar="JSON",
        default="{}",
        help="members added to every request's body, as in '{\"top_p\": 0.9}'",
    )


def _add_load_flags(parser: argparse.ArgumentParser) -> None:
    load = parser.add_argument_group("load")
    load.add_argument(
        "--concurrency",
        type=int,
        metavar="N",
        help="requests in flight: kept at N without --rate, bounded by N with it (default: 16 "
        "without --rate, no bound with it)",
    )
    load.add_argument(
        "--rate", type=float, metavar="R", help="send R requests a second, at random times"
    )
    load.add_argument(
        "--burstiness",
        type=float,
        default=1.0,
        metavar="SHAPE",
        help="shape of the gamma-distributed gaps under --rate: 1 is Poisson, less comes in "
        "bursts, more is more even (default: 1)",
    )
    load.add_argument(
        "--num-prompts",
        type=int,
        metavar="N",
        help="requests to send (default: 100, or the whole dataset)",
    )
    load.add_argument(
        "--warmup",
        type=int,
        default=1,
        metavar="N",
        help="requests of the same kind sent before, not measured (default: 1)",
    )


def _add_prompt_flags(parser: argparse.ArgumentParser) -> None:
    prompts = parser.add_argument_group("prompts")
    prompts.add_argument(
        "--dataset",
        default="random",
        metavar="random|FILE",
        help="random prompts, or a JSONL file (default: random)",
    )
    for name, what in (("--input-len", "per prompt"), ("--output-len", "to generate")):
        prompts.add_argument(
            name,
            metavar="N|A:B",
            help=f"tokens {what}, fixed or uniform in A..B (default: {DEFAULT_LEN})",
        )
    spread = prompts.add_mutually_exclusive_group()
    spread.add_argument(
        "--random-len", metavar="A:B", help="both lengths uniform in A..B, instead of the two above"
    )
    spread.add_argument(
        "--random-range",
        type=float,
        metavar="SHARE",
        help="spread both lengths uniformly by this share up and down (default: 0)",
    )
    prompts.add_argument(
        "--prefix-len",
        type=int,
        default=0,
        metavar="N",
        help="tokens that all prompts begin with, before --input-len of their own (default: 0)",
    )
    prompts.add_argument(
        "--prompt-format",
        choices=("ids", "text"),
        help="send token ids (exact lengths) or text (for servers that take no ids; its length is "
        "calibrated by the server's own count) (default: ids, and text for chat)",
    )
    prompts.add_argument(
        "--vocab-size",
        type=int,
        metavar="N",
        help="token ids are drawn below N (default: 32000, which suits nearly every model)",
    )
    prompts.add_argument(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        help="generate to the full --output-len (default: on for random prompts where the server "
        "takes it)",
    )
    prompts.add_argument("--temperature", type=float, default=0.0, help="(default: 0, greedy)")
    prompts.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="of prompts, lengths and arrivals (default: drawn, so that no cache knows them)",
    )


def _add_report_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        metavar="FILE|-",
        help="write the report as JSON; with - to stdout, and the table to stderr",
    )
