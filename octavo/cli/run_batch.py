"""`octavo run-batch`: answer a file of requests, in this process or by a server that runs."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from octavo.cli.engine_flags import add_engine_flags, engine_config
from octavo.cli.usage_flags import add_usage_flags, usage_settings
from octavo.config import ServerConfig, default_api_keys
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

    from octavo.server.batch_file import OutputFile, Summary

EXIT_FAILED_LINES = 3
DEFAULT_CONCURRENCY = 64

_EPILOG = f"""\
The input has OpenAI's batch format, one request a line:
  {{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {{"model": ...}}}}
with url one of /v1/chat/completions, /v1/completions, /v1/embeddings, /v1/responses. Results are
appended to the output as they come, each in one piece, with the custom_id of its request. Run the
same command again to go on: requests whose results are there are skipped. A request that is
refused or fails has a result that says so.

Exit codes: 0 all requests were answered, {EXIT_FAILED_LINES} some were refused or failed, 1 the run
could not go on.

examples:
  octavo run-batch -i requests.jsonl -o results.jsonl smollm2
  octavo run-batch -i requests.jsonl -o results.jsonl --url http://127.0.0.1:8000 --concurrency 128
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `run-batch` to the command line."""
    parser = subparsers.add_parser(
        "run-batch",
        help="answer a file of requests",
        description="Answer a file of requests with a model in this process, or by a server.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", metavar="MODEL", nargs="?", help="a pulled name, a folder or a GGUF file"
    )
    parser.add_argument(
        "-i", "--input-file", metavar="FILE", type=Path, required=True, help="the requests, JSONL"
    )
    parser.add_argument(
        "-o", "--output-file", metavar="FILE", type=Path, required=True, help="the results, JSONL"
    )
    parser.add_argument("--url", help="a server that runs, in the place of MODEL")
    parser.add_argument(
        "--api-key", metavar="KEY", help="sent to the server (default: $OCTAVO_API_KEY)"
    )
    parser.add_argument(
        "--concurrency",
        type=int,
        default=DEFAULT_CONCURRENCY,
        metavar="N",
        help=f"most requests at a time (default: {DEFAULT_CONCURRENCY})",
    )
    parser.add_argument(
        "--served-model-name",
        metavar="NAME",
        action="append",
        default=[],
        help="a name that requests call MODEL by; may be repeated (default: MODEL)",
    )
    parser.add_argument("--json", action="store_true", help="print a summary as JSON at the end")
    add_usage_flags(parser)
    add_engine_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the file; the exit code.

    Raises:
        ConfigError: a file or a flag is unusable.
        ServerAwayError: the server was away for too long.
    """
    if (args.model is None) == (args.url is None):
        raise ConfigError("give either MODEL, to run it in this process, or --url")
    if args.concurrency < 1:
        raise ConfigError(f"--concurrency must be at least 1, got {args.concurrency}")
    import asyncio

    from octavo.server.batch_file import OutputFile, Summary, count_requests, has_work

    source, target = args.input_file, args.output_file
    summary = Summary(total=count_requests(source))
    if target.exists() and target.samefile(source):
        raise ConfigError("--output-file must not be the input")
    begin = time.perf_counter()
    with OutputFile(target) as output:
        try:
            if has_work(source, output):
                asyncio.run(_run(args, output, summary))
            else:
                summary.skipped = summary.total
        except KeyboardInterrupt:
            print(
                f"interrupted: {summary.left} of {summary.total} requests are left; the same "
                "command goes on with them",
                file=sys.stderr,
            )
            raise
        finally:
            _report(args, summary, time.perf_counter() - begin)
    return EXIT_FAILED_LINES if summary.failed else 0


async def _run(args: argparse.Namespace, output: OutputFile, summary: Summary) -> None:
    from octavo.server.batch_file import run_file

    async with _client(args) as client:
        with _Bar(summary) as bar:
            await run_file(
                client,
                args.input_file,
                output,
                summary,
                concurrency=args.concurrency,
                progress=bar.show,
            )


@asynccontextmanager
async def _client(args: argparse.Namespace) -> AsyncIterator[httpx.AsyncClient]:
    """Asks the server, or the model in this process."""
    import httpx

    if args.url is not None:
        from octavo.bench.client import api_base

        key = args.api_key or next(iter(default_api_keys()), None)
        limits = httpx.Limits(max_connections=args.concurrency, max_keepalive_connections=None)
        async with httpx.AsyncClient(
            base_url=api_base(args.url).removesuffix("/v1"),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(None, connect=10.0),
            limits=limits,
        ) as client:
            yield client
        return
    from octavo.launch import ENGINE_BUILDER
    from octavo.observability.logs import configure_logs
    from octavo.serving.offline import local_application

    configure_logs("warning")
    config = ServerConfig(
        served_model_names=tuple(args.served_model_name) or (args.model,),
        log_level="warning",
        **usage_settings(args),
    )
    async with local_application(ENGINE_BUILDER, engine_config(args), config) as application:
        transport = httpx.ASGITransport(application, raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://local", timeout=None
        ) as client:
            yield client


class _Bar:
    """The progress on standard error, where that is a terminal."""

    def __init__(self, summary: Summary) -> None:
        self._summary = summary

    def __enter__(self) -> Self:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._progress = Progress(
            TextColumn("requests"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[failed]}", style="red"),
            console=Console(stderr=True),
            transient=True,
            refresh_per_second=2,
        )
        self._begin = time.perf_counter()
        self._task = self._progress.add_task("", total=self._summary.total, rate="", failed="")
        self._progress.start()
        self.show()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._progress.stop()

    def show(self) -> None:
        """Draw the summary as it is."""
        summary = self._summary
        rate = summary.output_tokens / max(1e-9, time.perf_counter() - self._begin)
        self._progress.update(
            self._task,
            completed=summary.total - summary.left,
            rate=f"{rate:.0f} tokens/s" if summary.output_tokens else "",
            failed=f"{summary.failed} failed" if summary.failed else "",
        )


def _report(args: argparse.Namespace, summary: Summary, seconds: float) -> None:
    """The summary, as a sentence on standard error or as JSON on standard output."""
    rate = summary.output_tokens / seconds
    if args.json:
        import json
        from dataclasses import asdict

        figures = {
            **asdict(summary),
            "left": summary.left,
            "seconds": round(seconds, 3),
            "output_tokens_per_s": round(rate, 3),
        }
        print(json.dumps(figures))
        return
    print(
        f"{summary.completed} answered, {summary.failed} failed, {summary.skipped} there before; "
        f"{summary.output_tokens} tokens in {seconds:.1f} s, {rate:.1f} tokens/s",
        file=sys.stderr,
    )
