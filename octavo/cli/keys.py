"""`octavo keys`: API keys of a gateway, in its ledger's database or through its admin API."""

from __future__ import annotations

import argparse
import os
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from octavo.cli.cost import add_ledger_flag, ledger_url
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from octavo.gateway.key_forms import KeyView

ADMIN_KEY = "OCTAVO_ADMIN_KEY"
TIMEOUT_S = 30.0
DEFAULT_OVERLAP = "24h"
_SPAN = re.compile(r"([0-9]{1,6})([smhdw])")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}

_EPILOG = """\
Keys are kept in the ledger's database, as SHA-256 only: a key is shown once, when it is made. With
--url they are made by a running gateway, whose admin key is read from $OCTAVO_ADMIN_KEY or a file.
A revoked key is refused by every gateway within seconds (keys.refresh_s, 2 by default).

examples:
  octavo keys create support-bot --tenant acme --feature support --model 'small*' --expires 90d
  octavo keys rotate 5f0c1a2b3c4d5e6f --overlap 1h
  octavo keys revoke 5f0c1a2b3c4d5e6f --reason "left the company"
  octavo keys list --url http://127.0.0.1:8080 --json
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `keys` to the command line."""
    keys = subparsers.add_parser("keys", help="API keys of a gateway", description="API keys.")
    modes = keys.add_subparsers(dest="mode", metavar="MODE", required=True)
    create = _mode(modes, "create", "make a key; prints it, once")
    create.add_argument("name", nargs="?", help="for people")
    create.add_argument("--id", metavar="ID", help="its public name (default: a random one)")
    _add_scopes(create)
    listing = _mode(modes, "list", "show all keys")
    listing.add_argument("--tenant", metavar="NAME", help="only this one's")
    listing.add_argument("--all", action="store_true", help="revoked ones too")
    show = _mode(modes, "show", "show a key: all but the key itself, which is kept nowhere")
    rotate = _mode(modes, "rotate", "give a key a new secret; prints it, once")
    rotate.add_argument(
        "--overlap",
        metavar="TIME",
        default=DEFAULT_OVERLAP,
        help="how long the old one passes too: 0s, 30m, 24h, 7d (default: %(default)s)",
    )
    revoke = _mode(modes, "revoke", "end a key for good")
    revoke.add_argument("--reason", metavar="TEXT", default="", help="for the audit log")
    for parser in (show, rotate, revoke):
        parser.add_argument("id", help="of the key, or the key itself")


def _mode(
    modes: argparse._SubParsersAction[argparse.ArgumentParser], name: str, what: str
) -> argparse.ArgumentParser:
    parser = modes.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_ledger_flag(parser)
    parser.add_argument("--url", metavar="URL", help="of a running gateway, instead of a ledger")
    parser.add_argument(
        "--admin-key-file",
        metavar="FILE",
        help=f"with --url: a file that has the admin key (default: ${ADMIN_KEY})",
    )
    parser.add_argument("--json", action="store_true", help="JSON on standard output")
    parser.set_defaults(run=run)
    return parser


def _add_scopes(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--tenant", metavar="NAME", help="whom it belongs to, for limits, budgets and caches")
    add("--team", metavar="NAME", help="likewise, for limits and budgets")
    for flag, what in (
        ("feature", "a feature that it may set, a shell pattern"),
        ("model", "a model or alias that it may ask for, a shell pattern"),
        ("route", "what it may use: chat, completions, embeddings, messages, responses..."),
        ("limit", "a limit of the configuration that holds for it"),
        ("budget", "likewise, a budget"),
    ):
        add(f"--{flag}", metavar="NAME", action="append", help=f"{what}; may be given again")
    add("--tag", metavar="NAME=VALUE", action="append", help="put on all its records")
    add("--max-tokens", metavar="N", type=int, help="ceiling of an answer's tokens")
    add("--default-max-tokens", metavar="N", type=int, help="for requests that name none")
    add("--require-max-tokens", action="store_true", help="refuse requests that name none")
    add("--expires", metavar="TIME", help="30d, 24h from now, or 2027-01-31T00:00:00Z")


def run(args: argparse.Namespace) -> int:
    """Do it, and print what came of it; the exit code."""
    from octavo.errors import RequestError
    from octavo.ledger.database import DatabaseUnavailableError

    if "id" in args and args.mode != "create":
        args.id = _id_of(args.id)
    try:
        with _open(args) as keys:
            return _MODES[args.mode](keys, args)
    except RequestError as error:
        raise ConfigError(error.message) from None
    except DatabaseUnavailableError as error:
        raise ConfigError(f"the ledger does not answer: {error}") from None


class Keys(Protocol):
    """Where keys are; bodies are those of the admin API."""

    def create(self, body: dict[str, Any]) -> KeyView:
        """Make a key."""
        ...

    def keys(self, tenant: str, with_revoked: bool) -> list[KeyView]:
        """All keys."""
        ...

    def show(self, key_id: str) -> KeyView:
        """One key."""
        ...

    def rotate(self, key_id: str, overlap_s: float) -> KeyView:
        """Give it a new secret."""
        ...

    def revoke(self, key_id: str, reason: str) -> KeyView:
        """End it."""
        ...


@contextmanager
def _open(args: argparse.Namespace) -> Iterator[Keys]:
    if args.url is None:
        from octavo.cli.keys_local import LocalKeys

        local = LocalKeys(ledger_url(args), create=args.mode == "create")
        try:
            yield local
        finally:
            local.close()
        return
    if args.ledger is not None:
        raise ConfigError("--ledger and --url contradict each other: give one of them")
    from octavo.cli.keys_remote import RemoteKeys

    with RemoteKeys(args.url, _admin_key(args), TIMEOUT_S) as remote:
        yield remote


def _admin_key(args: argparse.Namespace) -> str:
    if args.admin_key_file is not None:
        try:
            key = Path(args.admin_key_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--admin-key-file: {error}") from None
    else:
        key = os.environ.get(ADMIN_KEY, "").strip()
    if not key:
        raise ConfigError(f"no admin key: set ${ADMIN_KEY}, or give --admin-key-file")
    return key


def _create(keys: Keys, args: argparse.Namespace) -> int:
    body: dict[str, Any] = {
        "id": args.id, "name": args.name, "tenant": args.tenant, "team": args.team,
        "features": args.feature, "models": args.model, "routes": args.route,
        "limits": args.limit, "budgets": args.budget, "max_tokens": args.max_tokens,
        "default_max_tokens": args.default_max_tokens,
        "requires_max_tokens": args.require_max_tokens or None,
        "tags": _tags(args.tag) if args.tag else None,
    }  # fmt: skip
    body = {name: value for name, value in body.items() if value is not None}
    if args.expires is not None:
        if _SPAN.fullmatch(args.expires):
            body["expires_in_s"] = span_s(args.expires, "--expires")
        else:
            body["expires"] = args.expires
    return _print_new(keys.create(body), args)


def _list(keys: Keys, args: argparse.Namespace) -> int:
    views = keys.keys(args.tenant or "", args.all)
    if args.json:
        return _print_json({"data": views})
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for title in ("ID", "NAME", "TENANT", "STATUS", "CREATED", "EXPIRES", "LAST USED"):
        table.add_column(title, overflow="fold")
    for view in views:
        times = (view.created, view.expires, view.last_used)
        shown = ("-" if at is None else at.strftime("%Y-%m-%d %H:%M") for at in times)
        table.add_row(view.id, view.name, view.tenant, view.status, *shown)
    Console(soft_wrap=False, markup=False, highlight=False).print(table)
    return 0


def _show(keys: Keys, args: argparse.Namespace) -> int:
    return _print_view(keys.show(args.id), args)


def _rotate(keys: Keys, args: argparse.Namespace) -> int:
    return _print_new(keys.rotate(args.id, span_s(args.overlap, "--overlap")), args)


def _revoke(keys: Keys, args: argparse.Namespace) -> int:
    return _print_view(keys.revoke(args.id, args.reason), args)


_MODES = {
    "create": _create,
    "list": _list,
    "show": _show,
    "rotate": _rotate,
    "revoke": _revoke,
}


def _print_new(view: KeyView, args: argparse.Namespace) -> int:
    """The key alone goes to standard output, so that a script can take it."""
    if args.json:
        return _print_json(view)
    print(view.key)
    print(f"id {view.id}; the key is shown this once, keep it now", file=sys.stderr)
    if view.old_key_until is not None:
        print(f"the old key passes until {view.old_key_until:%Y-%m-%d %H:%M:%SZ}", file=sys.stderr)
    return 0


def _print_view(view: KeyView, args: argparse.Namespace) -> int:
    if args.json:
        return _print_json(view)
    import msgspec

    for name, value in msgspec.to_builtins(view).items():
        if value not in (None, "", [], {}, False):
            shown = value
            if isinstance(value, list):
                shown = ", ".join(map(str, value))
            elif isinstance(value, dict):
                shown = ", ".join(f"{key}={text}" for key, text in value.items())
            print(f"{name:20} {shown}")
    return 0


def _print_json(value: Any) -> int:
    import msgspec

    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
    return 0


def _id_of(text: str) -> str:
    """The id, where somebody gives the key."""
    from octavo.gateway.keys import id_in

    return id_in(text.encode()) or text


def span_s(text: str, flag: str) -> float:
    """A span of time in seconds: 0s, 30m, 24h, 7d, 2w.

    Raises:
        ConfigError: it is none.
    """
    match = _SPAN.fullmatch(text)
    if match is None:
        raise ConfigError(f"{flag} {text!r} is no span of time: write 0s, 30m, 24h or 7d")
    return int(match[1]) * _UNITS[match[2]]


def _tags(texts: Sequence[str]) -> dict[str, str]:
    tags = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--tag {text!r} has no value: write NAME=VALUE")
        tags[name] = value
    return tags
