"""The audit log: who changed what at the gateway, in the ledger's database.

Rows are only ever added. A change of a key and its row are one transaction. Nothing secret is
written: neither keys nor their digests.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from octavo.ledger.database import Connection

MAX_ENTRIES = 1000


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One action.

    Attributes:
        seq: in the order of writing.
        time_ns: nanoseconds since 1970.
        actor: `admin:NAME` for an admin key, `cli:USER` for the command line.
        action: `key.create`, `key.update`, `key.rotate`, `key.revoke`, `config.reload`...
        subject: what it was done to: a key's id; empty: the gateway.
        detail: what was set.
    """

    seq: int
    time_ns: int
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]


def append(
    connection: Connection, actor: str, action: str, subject: str, detail: dict[str, Any]
) -> None:
    """Add a row, in the transaction that is open."""
    connection.execute(
        "INSERT INTO audit (time_ns, actor, action, subject, detail) VALUES (?, ?, ?, ?, ?)",
        (time.time_ns(), actor, action, subject, msgspec.json.encode(detail).decode()),
    )


def entries(
    connection: Connection,
    *,
    limit: int = 100,
    before_seq: int | None = None,
    subject: str = "",
    actor: str = "",
    action: str = "",
) -> list[AuditEntry]:
    """What was done, the newest first.

    Args:
        connection: to the ledger.
        limit: how many at most.
        before_seq: only older ones than this.
        subject: only those with this value; empty: all.
        actor: likewise.
        action: likewise.
    """
    where = ["1 = 1"]
    values: list[Any] = []
    for name, value in (("subject", subject), ("actor", actor), ("action", action)):
        if value:
            where.append(f"{name} = ?")
            values.append(value)
    if before_seq is not None:
        where.append("seq < ?")
        values.append(before_seq)
    rows = connection.rows(
        "SELECT seq, time_ns, actor, action, subject, detail FROM audit "
        f"WHERE {' AND '.join(where)} ORDER BY seq DESC LIMIT {min(limit, MAX_ENTRIES)}",
        values,
    )
    return [
        AuditEntry(
            seq=seq, time_ns=time_ns, actor=actor, action=action, subject=subject,
            detail=as_json(detail),
        )
        for seq, time_ns, actor, action, subject, detail in rows
    ]  # fmt: skip


def as_json(value: Any) -> dict[str, Any]:
    """A JSON column, which SQLite gives as text and PostgreSQL's driver decoded."""
    decoded: dict[str, Any] = msgspec.json.decode(value) if isinstance(value, str) else value
    return decoded
