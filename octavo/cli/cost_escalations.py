"""`octavo cost escalations`: whether cheap attempts with a judge pay, out of a ledger."""

from __future__ import annotations

import argparse
import json
import sys

from octavo.errors import ConfigError

_EPILOG = """\
NAMES of --by and --filter: feature, tenant, key, rule, judge, tier, backend, model, route; --by
takes hour, day or month as well; with --list, --filter takes the first five. Times are UTC.

examples:
  octavo cost escalations --by feature --since 7d
  octavo cost escalations --list 20 --filter feature=support
  octavo cost escalations --by judge,day --json
"""


def add_mode(modes: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `escalations` to `octavo cost`."""
    from octavo.cli.cost import DEFAULT_SINCE, add_ledger_flag

    parser = modes.add_parser(
        "escalations",
        help="whether cheap attempts with a judge pay",
        description="Whether the gateway's hybrid of cheap and dear models pays: judged attempts, "
        "how many were escalated, what both cost, and what was saved.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_ledger_flag(parser)
    parser.add_argument(
        "--by", metavar="NAMES", default="feature", help="what stands in a row (default: feature)"
    )
    parser.add_argument(
        "--since",
        metavar="TIME",
        default=DEFAULT_SINCE,
        help=f"as for `octavo cost report` (default: {DEFAULT_SINCE})",
    )
    parser.add_argument("--until", metavar="TIME", help="likewise (default: now)")
    parser.add_argument(
        "--filter",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="only those with this value; again with the same name: or that one",
    )
    parser.add_argument(
        "--list", metavar="N", type=int, help="the newest N escalations, one by one, with reasons"
    )
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report; the exit code."""
    from datetime import UTC, datetime

    from rich.console import Console

    from octavo.cli.cost import ledger_url
    from octavo.ledger.database import DatabaseUnavailableError
    from octavo.ledger.store import open_ledger
    from octavo.planning import escalation_report
    from octavo.planning.cost_query import parse_time, split_filters

    now = datetime.now(UTC)
    span = (
        parse_time(args.since, now),
        None if args.until is None else parse_time(args.until, now),
    )
    by = tuple(name.strip() for name in args.by.split(",") if name.strip())
    where = split_filters(args.filter)
    if args.list is not None and args.list < 1:
        raise ConfigError("--list must be at least 1")
    try:
        with open_ledger(ledger_url(args), create=False) as ledger:
            if args.list is not None:
                records = ledger.escalations(*span, where, args.list)
            else:
                totals = ledger.hybrid_totals(by, *span, where)
    except DatabaseUnavailableError as error:
        raise ConfigError(f"the ledger cannot be read: {error}") from None
    if args.list is not None:
        found = [escalation_report.escalation_of(record) for record in records]
    else:
        found = escalation_report.rows_of(totals, by)
    if args.json:
        json.dump({"data": found}, sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    elif args.list is not None:
        escalation_report.print_list(records, Console())
    else:
        escalation_report.print_totals(found, by, Console())
    return 0
