"""`octavo gateway`: one URL for many backends. Knows flags; `gateway.run` does the work."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from octavo.errors import ConfigError

_EXAMPLES = """\
examples:
  octavo gateway --config gateway.yaml
  octavo gateway --config gateway.yaml --check       # say what is wrong with it, and end
  kill -HUP PID                                      # read it anew, dropping nothing
  curl http://127.0.0.1:8080/v1/chat/completions -H 'Authorization: Bearer KEY' \\
    -H 'Content-Type: application/json' \\
    -d '{"model": "chat", "messages": [{"role": "user", "content": "Hello"}]}'
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `gateway` to the command line."""
    parser = subparsers.add_parser(
        "gateway",
        help="one URL in front of many backends, with keys, limits, budgets and records",
        description="Route requests to backends, hold them to limits and budgets, and record what "
        "they cost.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", type=Path, required=True, metavar="FILE", help="the configuration, YAML"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="say what is wrong with the configuration, a line each, and end; the exit code is 1 "
        "where something is",
    )
    parser.add_argument("--host", metavar="HOST", help="instead of the configuration's server.host")
    parser.add_argument(
        "--port", type=int, metavar="N", help="instead of server.port; 0 takes a free one"
    )
    parser.add_argument("--uds", metavar="FILE", help="instead of server.uds: a Unix socket's path")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop; the exit code."""
    if args.check:
        from octavo.gateway.config import check_config

        problems = check_config(args.config)
        for problem in problems:
            print(problem, file=sys.stderr)
        if not problems:
            print(f"{args.config} is good")
        return 1 if problems else 0
    if args.port is not None and not 0 <= args.port <= 65535:
        raise ConfigError(f"--port must be in 0..65535, got {args.port}")
    from octavo.gateway.config import load_config
    from octavo.gateway.run import serve, with_flags
    from octavo.observability.logs import configure_logs

    config = with_flags(load_config(args.config), host=args.host, port=args.port, uds=args.uds)
    configure_logs(config.server.log_level)
    return serve(args.config, config)
