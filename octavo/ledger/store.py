"""A ledger: everything that is asked of it in one place.

`LedgerWriter` is what servers write through; this is for reports, imports, tools and tests.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Self

from octavo.ledger.database import Connection, Database, DatabaseUnavailableError, ensure_schema
from octavo.ledger.rollup import prune, roll_up
from octavo.ledger.writes import insert, insert_engine_time, insert_outcomes, insert_usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import sqlalchemy as sa

    from octavo.ledger.gateway_queries import HybridTotals
    from octavo.ledger.record import EngineTime, Entry, EscalationRecord, Outcome, UsageRecord
    from octavo.ledger.totals import EngineTotals, OutcomeTotals, Totals


def open_ledger(url: str, *, create: bool = True) -> Ledger:
    """Open a ledger, made or brought to the newest schema where that is needed.

    Args:
        url: `sqlite:///FILE`, a path, or `postgresql://...`, as `Database` takes it.
        create: make the ledger where there is none.

    Raises:
        ConfigError: not such a URL; the schema is newer than this Octavo; or there is no ledger and
            none shall be made.
        DatabaseUnavailableError: the database cannot be reached.
    """
    database = Database(url)
    ensure_schema(database, create=create)
    return Ledger(database)


class Ledger:
    """An open ledger, for one thread at a time. Close it, or use it in a `with`.

    Every method may raise DatabaseUnavailableError.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Connection | None = None
        self._engine: sa.Engine | None = None

    @property
    def name(self) -> str:
        """The file, or the URL without its password."""
        return self._database.name

    def add_usage(self, records: Sequence[UsageRecord]) -> None:
        """Keep records, all or none, on disk when this returns; known ids are left as they are."""
        with self._writing() as connection, connection.transaction():
            insert_usage(connection, records)

    def add_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Keep outcomes, all or none, on disk when this returns; known ids are left as they are."""
        with self._writing() as connection, connection.transaction():
            insert_outcomes(connection, outcomes)

    def add_engine_time(self, times: Sequence[EngineTime]) -> None:
        """Keep device time; what the same server said about the same hour before is replaced."""
        with self._writing() as connection, connection.transaction():
            insert_engine_time(connection, times)

    def roll_up(self) -> int:
        """Add all that is new to the sums by hour and day; how many records that were."""
        with self._writing() as connection:
            return sum(iter(lambda: roll_up(connection), 0))

    def prune(self, before_ns: int) -> int:
        """Delete raw records of hours that ended before a time, which hourly sums keep then.

        Args:
            before_ns: nanoseconds since 1970 UTC.

        Returns:
            How many rows went.
        """
        self.roll_up()
        with self._writing() as connection:
            return sum(iter(lambda: prune(connection, before_ns), 0))

    def totals(
        self,
        by: Sequence[str] = (),
        start_ns: int | None = None,
        end_ns: int | None = None,
        where: Mapping[str, Sequence[str]] | None = None,
        edges: Sequence[int] = (),
    ) -> list[Totals]:
        """Sums over requests that ended in `[start_ns, end_ns)`, by group, in order of the groups.

        Args:
            by: any of feature, tenant, key, model, backend, finish_reason, currency, hour, day,
                month; and of session, trace, route, tag:NAME, which pruned requests do not have.
            start_ns: nanoseconds since 1970 UTC; None: since ever.
            end_ns: the first one that is out; None: without a limit.
            where: by such a name (times excepted) the values that are let in.
            edges: lengths of inputs by which each group is divided further (`Totals.band`); others
                than `INPUT_EDGES` are not known of pruned requests.

        Raises:
            ConfigError: an unknown name, or what is asked for is pruned; says since when it is
                known.
        """
        with self._reading() as connection:
            from octavo.ledger.queries import usage_totals

            return usage_totals(connection, by, start_ns, end_ns, where or {}, edges)

    def outcome_totals(
        self,
        by: Sequence[str] = (),
        start_ns: int | None = None,
        end_ns: int | None = None,
        where: Mapping[str, Sequence[str]] | None = None,
        names: Sequence[str] | None = None,
    ) -> list[OutcomeTotals]:
        """Sums over outcomes and the requests that they join, by group and name of outcome.

        Args:
            by: as in `totals`, of requests: an outcome is dated and grouped by the last request
                that it joins.
            start_ns: of requests, as in `totals`.
            end_ns: likewise.
            where: likewise.
            names: of outcomes; None: all.

        Raises:
            ConfigError: as `totals`.
        """
        with self._reading() as connection:
            from octavo.ledger.outcome_queries import outcome_totals

            return outcome_totals(connection, by, start_ns, end_ns, where or {}, names)

    def num_unmatched_outcomes(self, start_ns: int | None = None, end_ns: int | None = None) -> int:
        """How many outcomes of `[start_ns, end_ns)`, by their own time, join no known request."""
        with self._reading() as connection:
            from octavo.ledger.outcome_queries import unmatched

            return unmatched(connection, start_ns, end_ns)

    def engine_totals(
        self,
        by: Sequence[str] = (),
        start_ns: int | None = None,
        end_ns: int | None = None,
    ) -> list[EngineTotals]:
        """Sums over engines' device time; an hour counts whole, where it begins in the range.

        Args:
            by: any of hour, day, month, server.
            start_ns: nanoseconds since 1970 UTC; None: since ever.
            end_ns: the first one that is out; None: without a limit.

        Raises:
            ConfigError: another name.
        """
        with self._reading() as connection:
            from octavo.ledger.queries import engine_totals

            return engine_totals(connection, by, start_ns, end_ns)

    def hybrid_totals(
        self,
        by: Sequence[str] = (),
        start_ns: int | None = None,
        end_ns: int | None = None,
        where: Mapping[str, Sequence[str]] | None = None,
    ) -> list[HybridTotals]:
        """Sums over the gateway's judged attempts; see `gateway_queries.hybrid_totals`."""
        with self._reading() as connection:
            from octavo.ledger.gateway_queries import hybrid_totals

            return hybrid_totals(connection, by, start_ns, end_ns, where)

    def escalations(
        self,
        start_ns: int | None = None,
        end_ns: int | None = None,
        where: Mapping[str, Sequence[str]] | None = None,
        limit: int = 100,
    ) -> list[EscalationRecord]:
        """The gateway's newest escalations; see `gateway_queries.list_escalations`."""
        with self._reading() as connection:
            from octavo.ledger.gateway_queries import list_escalations

            return list_escalations(connection, start_ns, end_ns, where, limit)

    def add(self, entries: Sequence[Entry]) -> None:
        """Keep entries of any kind, all or none, on disk when this returns."""
        with self._writing() as connection, connection.transaction():
            insert(connection, entries)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        """A transaction whose view of the database does not move."""
        import sqlalchemy as sa

        from octavo.ledger.engine import make_engine, reading

        if self._engine is None:
            self._engine = make_engine(self._database)
        try:
            with reading(self._engine) as connection:
                yield connection
        except sa.exc.DBAPIError as exc:
            raise DatabaseUnavailableError(f"{self.name}: {exc.orig}") from exc

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Connection]:
        if self._connection is None:
            self._connection = self._database.connect()
        try:
            yield self._connection
        except DatabaseUnavailableError:
            self.close()  # the next call tries a new one
            raise

    def close(self) -> None:
        """Give connections back."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._engine is not None:
            self._engine.dispose()
            self._engine = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
