"""The tables of budgets: rows locked and read into `budgets_store.Books`, and what changed written.

All within the caller's transaction, in SQL that SQLite and PostgreSQL both read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.gateway.budgets_store import FORGET_NS, Books, Held, Standing
from octavo.gateway.model import Amount

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from octavo.gateway.budgets_scope import CounterKey
    from octavo.ledger.database import Connection

_BATCH = 256

MAX_EXPIRED = 1000
"""Reservations that one transaction ends."""

KEEP_NS = 400 * FORGET_NS
"""How long counters are kept after their period began; those of `total` stay."""

_AMOUNTS = ("cost_nano", "num_tokens", "device_ns")
_RESERVED = ("reserved_cost_nano", "reserved_tokens", "reserved_device_ns")
_COUNTER = ", ".join((*_AMOUNTS, *_RESERVED))
_OF_COUNTER = "budget = ? AND scope = ? AND period_start = ?"
_ADD_COUNTER = (
    f"INSERT INTO budget_counters (budget, scope, period_start, {_COUNTER}) "
    "VALUES (?, ?, ?, 0, 0, 0, 0, 0, 0) ON CONFLICT DO NOTHING"
)
_SET_COUNTER = (
    "UPDATE budget_counters SET "
    + ", ".join(f"{name} = ?" for name in (*_AMOUNTS, *_RESERVED))
    + f" WHERE {_OF_COUNTER}"
)
_ADD_HELD = (
    "INSERT INTO budget_reservations "
    f"(id, budget, scope, period_start, {', '.join(_AMOUNTS)}, expires_ns) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)


def load(connection: Connection, keys: Iterable[CounterKey], held_ids: Iterable[str]) -> Books:
    """Lock and read counters, and read reservations.

    Counters are locked in one order, whoever does it; who changes a reservation has its counters
    locked.
    """
    books = Books()
    keys = sorted(set(keys))
    if keys and not connection.is_sqlite:
        connection.execute_many(_ADD_COUNTER, keys)
    lock = "" if connection.is_sqlite else " FOR UPDATE"
    for key in keys:
        rows = connection.rows(
            f"SELECT {_COUNTER} FROM budget_counters WHERE {_OF_COUNTER}{lock}", key
        )
        if rows:
            books.counters[key] = _standing(rows[0])
    wanted = sorted(set(held_ids))
    for at in range(0, len(wanted), _BATCH):
        some = wanted[at : at + _BATCH]
        rows = connection.rows(
            f"SELECT id, budget, scope, period_start, {', '.join(_AMOUNTS)}, expires_ns "
            f"FROM budget_reservations WHERE id IN ({', '.join('?' * len(some))})",
            some,
        )
        for held_id, budget, scope, start_ns, cost, tokens, device, expires_ns in rows:
            before = books.held.get(held_id)
            own = (*(before.keys if before is not None else ()), (budget, scope, start_ns))
            books.held[held_id] = Held(own, Amount(cost, tokens, device), expires_ns)
    return books


def save(
    connection: Connection,
    books: Books,
    counters: dict[CounterKey, Standing],
    held: dict[str, Held],
) -> None:
    """Write what differs from how it was read."""
    changed = {k: s for k, s in sorted(books.counters.items()) if counters.get(k) != s}
    if changed:
        if connection.is_sqlite:
            connection.execute_many(_ADD_COUNTER, [key for key in changed if key not in counters])
        connection.execute_many(
            _SET_COUNTER,
            [(*_plain(s.used), *_plain(s.reserved), *key) for key, s in changed.items()],
        )
    gone = [(held_id,) for held_id, one in held.items() if books.held.get(held_id) != one]
    if gone:
        connection.execute_many("DELETE FROM budget_reservations WHERE id = ?", gone)
    new = [
        (held_id, *key, *_plain(one.amount), one.expires_ns)
        for held_id, one in books.held.items()
        if held.get(held_id) != one
        for key in one.keys
    ]
    if new:
        connection.execute_many(_ADD_HELD, new)


def find_expired(connection: Connection, now_ns: int) -> list[tuple[Any, ...]]:
    """Reservations to be ended or forgotten: id and key of each of their counters."""
    ids = connection.rows(
        "SELECT DISTINCT id FROM budget_reservations "
        "WHERE expires_ns > 0 AND expires_ns <= ? OR expires_ns <= 0 AND expires_ns >= ? "
        f"ORDER BY id LIMIT {MAX_EXPIRED}",
        (now_ns, -now_ns),
    )
    rows: list[tuple[Any, ...]] = []
    for (held_id,) in ids:
        rows += connection.rows(
            "SELECT id, budget, scope, period_start FROM budget_reservations WHERE id = ?",
            (held_id,),
        )
    return rows


def rows_of(
    connection: Connection, budget: str, start_ns: int, limit: int
) -> list[tuple[str, Standing]]:
    """See `budgets_store.Store.rows`."""
    rows = connection.rows(
        f"SELECT scope, {_COUNTER} FROM budget_counters "
        "WHERE budget = ? AND period_start = ? ORDER BY scope LIMIT ?",
        (budget, start_ns, limit),
    )
    return [(row[0], _standing(row[1:])) for row in rows]


def claim(connection: Connection, key: CounterKey, threshold: str) -> bool:
    """See `budgets_store.Store.claim`."""
    num_new = connection.execute(
        "INSERT INTO budget_alerts (budget, scope, period_start, threshold) "
        "VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (*key, threshold),
    )
    return bool(num_new)


def sweep(connection: Connection, now_ns: int) -> None:
    """Delete counters, and what was told of them, whose period began long ago."""
    before_ns = now_ns - KEEP_NS
    for table in ("budget_counters", "budget_alerts"):
        connection.execute(
            f"DELETE FROM {table} WHERE period_start > 0 AND period_start < ?", (before_ns,)
        )


def _standing(row: Sequence[int]) -> Standing:
    return Standing(Amount(*row[:3]), Amount(*row[3:]))


def _plain(amount: Amount) -> tuple[int, int, int]:
    return amount.cost_nano, amount.num_tokens, amount.device_ns
