"""Flags of commands that run requests: where what they use and cost is written down."""

from __future__ import annotations

import argparse
from decimal import Decimal, InvalidOperation
from typing import Any

from octavo.cli.engine_flags import attribute_docs
from octavo.config import ServerConfig, default_ledger

NO_LEDGER = "none"


def add_usage_flags(parser: argparse.ArgumentParser) -> None:
    """Add `--ledger` and what belongs to it."""
    docs = attribute_docs(ServerConfig)
    defaults = ServerConfig()
    group = parser.add_argument_group("usage and costs")

    def text(name: str) -> str:
        return docs[name].rstrip(".").replace("None:", "default:")

    group.add_argument(
        "--ledger",
        metavar="URL",
        help="where a record of what each request used and cost is kept: a file's path, as "
        "sqlite:///FILE or plain, postgresql://USER:PASSWORD@HOST/NAME, or none; several servers "
        "may share one (default: ledger.db in $OCTAVO_HOME)",
    )
    group.add_argument(
        "--ledger-retention-days", type=float, metavar="DAYS", help=text("ledger_retention_days")
    )
    group.add_argument(
        "--price-per-device-hour",
        type=_decimal,
        metavar="PRICE",
        help=text("price_per_device_hour"),
    )
    group.add_argument(
        "--currency",
        default=defaults.currency,
        metavar="CODE",
        help=f"{text('currency')} (default: {defaults.currency})",
    )
    group.add_argument("--log-usage", action="store_true", help=text("log_usage"))


def usage_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of `ServerConfig` that the flags fill."""
    ledger = default_ledger() if args.ledger is None else args.ledger
    return {
        "ledger": None if ledger == NO_LEDGER else ledger,
        "ledger_retention_days": args.ledger_retention_days,
        "price_per_device_hour": args.price_per_device_hour,
        "currency": args.currency,
        "log_usage": args.log_usage,
    }


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
