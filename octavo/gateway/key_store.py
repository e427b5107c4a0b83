"""API keys in the ledger's database: only digests, and every change in the audit log beside it.

SQL through the drivers, as the ledger's own writer does: a gateway starts without SQLAlchemy.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import InvalidRequestError, NotFoundError
from octavo.gateway import audit
from octavo.gateway.keys import StoredKey, digest_of, id_in, new_key
from octavo.gateway.model import KeyInfo
from octavo.ledger.database import Database, DatabaseUnavailableError, ensure_schema

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from octavo.ledger.database import Connection

OVERLAP_NS = 60 * 10**9
"""A change may be seen this much later than it is stamped: by clocks that differ, and transactions
that take their time."""

DEFAULT_ROTATION_S = 86_400.0
"""How long the old key passes beside the new one."""

MAX_PAGE = 1000

_COLUMNS = (
    "key_id", "digest", "old_digest", "old_until_ns", "name", "tenant", "team", "info",
    "created_ns", "changed_ns", "expires_ns", "rotated_ns", "revoked_ns", "last_used_ns",
)  # fmt: skip
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM keys"
_IN_COLUMNS = ("key_id", "name", "tenant", "team", "expires_ns")
"""Fields of `KeyInfo` that have columns; the others are in `info`."""


class KeyStore:
    """The keys of one ledger. Any thread may call; one at a time works. Close it at the end.

    Every method may raise DatabaseUnavailableError; those that change are on disk when they return.

    Args:
        url: as `ledger.database.Database` takes it.
        create: make the ledger where there is none.
        wall_ns: nanoseconds since 1970.
    """

    def __init__(
        self, url: str, *, create: bool = True, wall_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self._database = Database(url)
        self._create = create
        self._wall_ns = wall_ns
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    @property
    def name(self) -> str:
        """The database's, without its password."""
        return self._database.name

    def now_ns(self) -> int:
        """See `keys.KeySource`."""
        return self._wall_ns()

    def create(self, info: KeyInfo, *, actor: str) -> tuple[StoredKey, str]:
        """Make a key.

        Args:
            info: whom it is for; without `key_id` it gets one.
            actor: for the audit log.

        Returns:
            What is kept, and the key itself, which is kept nowhere.

        Raises:
            InvalidRequestError: the id is taken, or the key would have ended already.
        """
        now = self._wall_ns()
        if info.expires_ns is not None and info.expires_ns <= now:
            raise InvalidRequestError("the time is past", param="expires")
        key_id, key = new_key(info.key_id)
        if id_in(key.encode()) != key_id:
            raise InvalidRequestError("an id may not have an underscore", param="id")
        info = msgspec.structs.replace(info, key_id=key_id)
        stored = StoredKey(info=info, digest=digest_of(key.encode()), created_ns=now)
        with self._changing() as connection:
            marks = ", ".join("?" * len(_COLUMNS))
            num_new = connection.execute(
                f"INSERT INTO keys ({', '.join(_COLUMNS)}) VALUES ({marks}) "
                "ON CONFLICT (key_id) DO NOTHING",
                _row(stored, now),
            )
            if not num_new:
                raise InvalidRequestError(f"there is a key {key_id} already", param="id")
            audit.append(connection, actor, "key.create", key_id, told(info))
        return stored, key

    def get(self, key_id: str) -> StoredKey:
        """One key.

        Raises:
            NotFoundError: there is none.
        """
        with self._asking() as connection:
            return _one(connection, key_id)

    def keys(
        self, *, tenant: str = "", with_revoked: bool = True, after: str = "", limit: int = MAX_PAGE
    ) -> list[StoredKey]:
        """Keys by their ids.

        Args:
            tenant: only this one's; empty: all.
            with_revoked: revoked ones too.
            after: ids that come after this one.
            limit: how many at most.
        """
        where, values = ["key_id > ?"], [after]
        if tenant:
            where.append("tenant = ?")
            values.append(tenant)
        if not with_revoked:
            where.append("revoked_ns IS NULL")
        most = min(limit, MAX_PAGE + 1)  # one above a page tells that there are more
        sql = f"{_SELECT} WHERE {' AND '.join(where)} ORDER BY key_id LIMIT {most}"
        with self._asking() as connection:
            return [_key(row) for row in connection.rows(sql, values)]

    def update(self, key_id: str, changes: Mapping[str, Any], *, actor: str) -> StoredKey:
        """Change whom a key is for and what it may do.

        Args:
            key_id: whose.
            changes: fields of `KeyInfo` but the id, and their new values.
            actor: for the audit log.

        Raises:
            NotFoundError: there is no such key.
            InvalidRequestError: it is revoked.
        """
        with self._changing() as connection:
            key = _one(connection, key_id, for_update=True)
            _refuse_revoked(key)
            info = msgspec.structs.replace(key.info, **changes)
            new = msgspec.structs.replace(key, info=info)
            self._write(connection, new)
            audit.append(
                connection, actor, "key.update", key_id, msgspec.to_builtins(dict(changes))
            )
        return new

    def rotate(
        self, key_id: str, *, overlap_s: float = DEFAULT_ROTATION_S, actor: str
    ) -> tuple[StoredKey, str]:
        """Give a key a new secret. Its id stays, and with it its limits, budgets and records.

        Args:
            key_id: whose.
            overlap_s: how long the old key passes too, seconds. One from a rotation before that
                ends now.
            actor: for the audit log.

        Raises:
            NotFoundError: there is no such key.
            InvalidRequestError: it is revoked.
        """
        now = self._wall_ns()
        _, secret = new_key(key_id)
        with self._changing() as connection:
            key = _one(connection, key_id, for_update=True)
            _refuse_revoked(key)
            new = msgspec.structs.replace(
                key,
                digest=digest_of(secret.encode()),
                old_digest=key.digest if overlap_s > 0 else b"",
                old_until_ns=now + int(overlap_s * 1e9) if overlap_s > 0 else None,
                rotated_ns=now,
            )
            self._write(connection, new)
            audit.append(connection, actor, "key.rotate", key_id, {"overlap_s": overlap_s})
        return new, secret

    def revoke(self, key_id: str, *, actor: str, reason: str = "") -> StoredKey:
        """End a key for good; one that is revoked already stays as it is.

        Raises:
            NotFoundError: there is no such key.
        """
        with self._changing() as connection:
            key = _one(connection, key_id, for_update=True)
            if key.revoked_ns is not None:
                return key
            new = msgspec.structs.replace(key, revoked_ns=self._wall_ns())
            self._write(connection, new)
            audit.append(connection, actor, "key.revoke", key_id, {"reason": reason})
        return new

    def changed(self, since_ns: int | None) -> Sequence[StoredKey]:
        """See `keys.KeySource`."""
        with self._asking() as connection:
            if since_ns is None:
                rows = connection.rows(f"{_SELECT} WHERE revoked_ns IS NULL")
            else:
                since = since_ns - OVERLAP_NS
                rows = connection.rows(f"{_SELECT} WHERE changed_ns >= ?", (since,))
        return [_key(row) for row in rows]

    def mark_used(self, times_ns: Mapping[str, int]) -> None:
        """See `keys.KeySource`."""
        with self._changing() as connection:
            connection.execute_many(
                "UPDATE keys SET last_used_ns = ? WHERE key_id = ? "
                "AND (last_used_ns IS NULL OR last_used_ns < ?)",
                [(at, key_id, at) for key_id, at in sorted(times_ns.items())],
            )

    def audit_entries(self, **filters: Any) -> list[audit.AuditEntry]:
        """See `audit.entries`."""
        with self._asking() as connection:
            return audit.entries(connection, **filters)

    def add_audit(self, actor: str, action: str, subject: str = "", **detail: Any) -> None:
        """Add to the audit log what was changed elsewhere."""
        with self._changing() as connection:
            audit.append(connection, actor, action, subject, detail)

    def close(self) -> None:
        """End the connection."""
        with self._lock:
            self._disconnect()

    # The connection.

    @contextlib.contextmanager
    def _asking(self) -> Iterator[Connection]:
        """Our connection, made anew where it failed or the database's file is another."""
        with self._lock:
            connection = self._connection
            if connection is not None and self._database.is_replaced(connection):
                self._disconnect()
                connection = None
            if connection is None:
                ensure_schema(self._database, create=self._create)
                connection = self._connection = self._database.connect()
            try:
                yield connection
            except DatabaseUnavailableError:
                self._disconnect()
                raise

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Connection]:
        with self._asking() as connection, connection.transaction():
            yield connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _write(self, connection: Connection, key: StoredKey) -> None:
        names = _COLUMNS[1:-1]  # not when it was used: that is written beside
        sets = ", ".join(f"{name} = ?" for name in names)
        row = _row(key, self._wall_ns())
        connection.execute(f"UPDATE keys SET {sets} WHERE key_id = ?", (*row[1:-1], row[0]))


def _one(connection: Connection, key_id: str, *, for_update: bool = False) -> StoredKey:
    lock = " FOR UPDATE" if for_update and not connection.is_sqlite else ""
    rows = connection.rows(f"{_SELECT} WHERE key_id = ?{lock}", (key_id,))
    if not rows:
        raise NotFoundError(f"There is no key {key_id[:64]!r}", code="key_not_found")
    return _key(rows[0])


def _refuse_revoked(key: StoredKey) -> None:
    if key.revoked_ns is not None:
        raise InvalidRequestError(
            f"The key {key.info.key_id} is revoked, which is for good: create another",
            code="key_revoked",
        )


def _row(key: StoredKey, changed_ns: int) -> tuple[Any, ...]:
    info = key.info
    return (
        info.key_id, key.digest.hex(), key.old_digest.hex(), key.old_until_ns,
        info.name, info.tenant, info.team, msgspec.json.encode(_info(info)).decode(),
        key.created_ns, changed_ns, info.expires_ns, key.rotated_ns, key.revoked_ns,
        key.last_used_ns,
    )  # fmt: skip


def _key(row: Sequence[Any]) -> StoredKey:
    column = dict(zip(_COLUMNS, row, strict=True))
    info = audit.as_json(column["info"]) | {name: column[name] for name in _IN_COLUMNS}
    return StoredKey(
        info=msgspec.convert(info, KeyInfo),
        digest=bytes.fromhex(column["digest"]),
        old_digest=bytes.fromhex(column["old_digest"]),
        **{name: column[name] for name in StoredKey.__struct_fields__ if name.endswith("_ns")},
    )


def _info(info: KeyInfo) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(info)
    return {name: value for name, value in fields.items() if name not in _IN_COLUMNS}


def told(info: KeyInfo) -> dict[str, Any]:
    """What is set of a key, for the audit log and answers."""
    fields: dict[str, Any] = msgspec.to_builtins(info)
    return {name: value for name, value in fields.items() if value}
