"""`octavo cost`: what requests, features and outcomes cost, out of a ledger."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.cli import cost_escalations
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from octavo.planning.cost_prices import ListPrice
    from octavo.planning.cost_query import CostQuery

DEFAULT_SINCE = "30d"

_EPILOG = """\
NAMES of --by and --filter: feature, tenant, key, model, backend, route, finish_reason, currency,
session, trace, tag:NAME; --by takes hour, day or month as well. Times are UTC.

Money is exact in --json (as decimal strings) and --csv; in tables, columns of sums are rounded so
that the rows add up to the total. What the columns mean: docs/metering.md.

examples:
  octavo cost report --by feature,model --since 7d
  octavo cost report --by tenant,day --since 2026-11-01 --until 2026-12-01 --html november.html
  octavo cost report --outcome ticket_resolved --view loaded --filter feature=support
  octavo cost report --by model --compare-with gpt-5-mini,claude-sonnet-4-5
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `cost` to the command line."""
    cost = subparsers.add_parser("cost", help="what requests cost", description="Costs.")
    modes = cost.add_subparsers(dest="mode", metavar="MODE", required=True)
    parser = modes.add_parser(
        "report",
        help="what requests, features and outcomes cost",
        description="What requests, features and outcomes cost, by what a ledger says of them; and "
        "what the same tokens would have cost at cloud list prices.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_ledger_flag(parser)
    parser.add_argument(
        "--by",
        metavar="NAMES",
        default="feature",
        help="what stands in a row, names apart by commas; empty: one row (default: feature)",
    )
    parser.add_argument(
        "--since",
        metavar="TIME",
        default=DEFAULT_SINCE,
        help="requests that ended at or after: 24h, 7d, all, 2026-11-01, 2026-11-01T09:00Z "
        f"(default: {DEFAULT_SINCE})",
    )
    parser.add_argument("--until", metavar="TIME", help="requests that ended before (default: now)")
    parser.add_argument(
        "--filter",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="only requests with this value; again with the same name: or that one",
    )
    parser.add_argument(
        "--outcome",
        metavar="NAME",
        action="append",
        default=[],
        help="a name of outcomes to report: success rate, cost per success, value and return; may "
        "be given again",
    )
    parser.add_argument(
        "--view",
        choices=("usage", "loaded"),
        default="usage",
        help="usage: requests' own device time; loaded: with the time that devices were idle, "
        "started or planned, spread in proportion (default: usage)",
    )
    parser.add_argument(
        "--compare-with",
        metavar="MODELS",
        default="",
        help="models apart by commas: what the same tokens would have cost there, by --prices or "
        "the list prices of the package genai-prices (no network)",
    )
    parser.add_argument(
        "--prices",
        metavar="FILE",
        help="a price list of your own, YAML or JSON; without --compare-with, compare with all in "
        "it",
    )
    formats = parser.add_mutually_exclusive_group()
    formats.add_argument("--json", action="store_true", help="JSON on standard output")
    formats.add_argument("--csv", action="store_true", help="CSV on standard output")
    parser.add_argument(
        "--html", metavar="FILE", help="also write one page with plots, without outside hosts"
    )
    parser.set_defaults(run=run_report)
    cost_escalations.add_mode(modes)


def add_ledger_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--ledger`, of commands that open a ledger themselves."""
    parser.add_argument(
        "--ledger",
        metavar="URL",
        help="sqlite:///FILE, a path, or postgresql://USER@HOST/NAME (default: the server's own, "
        "ledger.db in $OCTAVO_HOME)",
    )


def ledger_url(args: argparse.Namespace) -> str:
    """The ledger that the flag names, or the one that a server writes by default."""
    from octavo.config import default_ledger

    return str(args.ledger or default_ledger())


def run_report(args: argparse.Namespace) -> int:
    """Print the report; the exit code."""
    from octavo.cli.bench import check_target
    from octavo.ledger.database import DatabaseUnavailableError
    from octavo.ledger.store import open_ledger
    from octavo.planning.cost_ledger import report_of

    query = _query(args)
    prices = _prices(args)
    check_target(args.html)
    try:
        with open_ledger(ledger_url(args), create=False) as ledger:
            report, notes = report_of(ledger, query, prices)
    except DatabaseUnavailableError as error:
        raise ConfigError(f"the ledger cannot be read: {error}") from None
    if args.html is not None:
        from octavo.planning.cost_html import to_html

        try:
            Path(args.html).write_text(to_html(report, query, notes), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"cannot write {args.html}: {error.strerror}") from None
    if args.json or args.csv:
        from octavo.planning.cost_export import to_csv, to_json

        sys.stdout.write(to_json(report, query, notes) if args.json else to_csv(report))
        return 0
    from rich.console import Console

    from octavo.planning.cost_table import print_report

    print_report(report, query, notes, Console())
    return 0


def _query(args: argparse.Namespace) -> CostQuery:
    from datetime import UTC, datetime

    from octavo.planning.cost_query import CostQuery, parse_by, parse_filters, parse_time

    now = datetime.now(UTC)
    since_ns = parse_time(args.since, now)
    until_ns = None if args.until is None else parse_time(args.until, now)
    if until_ns is not None and until_ns <= since_ns:
        raise ConfigError(f"--until {args.until} is not after --since {args.since}")
    return CostQuery(
        since_ns=since_ns,
        until_ns=until_ns,
        by=parse_by(args.by),
        filters=parse_filters(args.filter),
        outcomes=tuple(dict.fromkeys(args.outcome)),
        view=args.view,
    )


def _prices(args: argparse.Namespace) -> list[ListPrice]:
    if not args.compare_with and args.prices is None:
        return []
    from octavo.planning.cost_price_file import read_price_file
    from octavo.planning.cost_prices import choose_prices

    own = {} if args.prices is None else read_price_file(Path(args.prices))
    names = [name.strip() for name in args.compare_with.split(",") if name.strip()]
    return choose_prices(list(dict.fromkeys(names)), own)
