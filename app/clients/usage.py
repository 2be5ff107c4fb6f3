"""How many tokens each client gets in a day (UTC): counted in memory, added to the database once a minute.

Two things are made of it: quotas, and the clients that fetch far more tokens than their lifetime requires. A worker
that is killed loses the counts of a minute.
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta

from sqlalchemy import ColumnElement, Integer, case, delete, exists, func, select
from sqlalchemy import cast as sql_cast
from sqlalchemy.engine import Connection, Engine

from app.database.engine import dialect_insert, reading_engine, writing_engine
from app.database.models import SERVED, ClientRow, ClientSecretRow, ClientSecretUseRow, ClientUsageRow
from app.types import Clock

FLUSH_SECONDS = 60.0
KEPT_FOR = timedelta(days=30)
DAY_SECONDS = 86400

WASTEFUL_FACTOR = 10
"""A client is wasteful if it got this many times as many tokens in a day as its callers need."""

WASTEFUL_TOKENS = 100
"""A client that got no more in a day is not wasteful: a job that starts often keeps no token."""

EXCESS_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 1000)

_ROWS_AT_ONCE = 200


class ClientUsage:
    """Counts the tokens of clients.

    :param keeps_totals: whether :meth:`tokens_today` includes what other processes counted.
    :ivar on_total: gets a client's id and its tokens of the day before and after a minute's tokens were added; called
        once for each number of tokens, by one of all workers.
    """

    def __init__(self, engine: Engine, clock: Clock, *, keeps_totals: bool = False) -> None:
        self._keeps_totals = keeps_totals
        self._engine = engine
        self._clock = clock
        self._lock = threading.Lock()
        self._counted: Counter[str] = Counter()
        self._day = clock().date()
        self._known: dict[str, int] = {}
        self.on_total: Callable[[str, int, int], None] = lambda _client_id, _before, _after: None

    def record_token(self, client_id: str) -> None:
        """Count a token, in memory."""
        with self._lock:
            self._counted[client_id] += 1

    def tokens_today(self, client_id: str) -> int:
        """Return how many tokens a client got today: of this process exactly, of others as of a minute ago."""
        known = self._known.get(client_id, 0) if self._day == self._clock().date() else 0
        return known + self._counted[client_id]

    def flush(self) -> None:
        """Add the counts to the database. If that fails, they are added later.

        :raises SQLAlchemyError: the database does not answer.
        """
        today = self._clock().date()
        with self._lock:
            counted, self._counted = self._counted, Counter()
            if self._day != today:
                self._day, self._known = today, {}
        try:
            # Sorted, so that no two workers deadlock.
            client_ids = sorted(client_id for client_id, tokens in counted.items() if tokens)
            for start in range(0, len(client_ids), _ROWS_AT_ONCE):
                added = {client_id: counted[client_id] for client_id in client_ids[start : start + _ROWS_AT_ONCE]}
                with writing_engine(self._engine).begin() as connection:
                    totals = self._add(connection, today, added)
                for client_id, tokens in added.items():
                    del counted[client_id]
                    if self._keeps_totals:
                        self._known[client_id] = totals[client_id]
                    self.on_total(client_id, totals[client_id] - tokens, totals[client_id])
        except BaseException:
            with self._lock:
                self._counted += counted
            raise

    def delete_old(self) -> None:
        """Delete counts of long ago.

        :raises SQLAlchemyError: the database does not answer.
        """
        with writing_engine(self._engine).begin() as connection:
            connection.execute(delete(ClientUsageRow).where(ClientUsageRow.day < self._clock().date() - KEPT_FOR))

    def read(self, client_id: str) -> Mapping[date, int]:
        """Return how many tokens a client got on each day on which it got any, the latest first.

        :raises SQLAlchemyError: the database does not answer.
        """
        found = select(ClientUsageRow.day, ClientUsageRow.tokens).where(ClientUsageRow.client_id == client_id)
        with reading_engine(self._engine).connect() as connection:
            return {row.day: row.tokens for row in connection.execute(found.order_by(ClientUsageRow.day.desc()))}

    def count_excess(self, default_lifetime: int) -> Sequence[int]:
        """Count yesterday's clients by how many times as many tokens they got as one caller needs.

        :param default_lifetime: the lifetime of tokens of clients without their own, in seconds.
        :returns: how many got at most as many times as each of :data:`EXCESS_BUCKETS` says, and how many there are.
        :raises SQLAlchemyError: the database does not answer.
        """
        seconds = ClientUsageRow.tokens * _lifetime(default_lifetime)
        within = [func.sum(case((seconds <= bucket * DAY_SECONDS, 1), else_=0)) for bucket in EXCESS_BUCKETS]
        counted = (
            select(*within, func.count())
            .select_from(ClientUsageRow)
            .join(ClientRow, ClientRow.client_id == ClientUsageRow.client_id)
            .where(ClientUsageRow.day == self._clock().date() - timedelta(days=1), SERVED)
        )
        with reading_engine(self._engine).connect() as connection:
            return [int(number or 0) for number in connection.execute(counted).one()]

    def _add(self, connection: Connection, day: date, added: Mapping[str, int]) -> Mapping[str, int]:
        """Add to the counts of a day; return the new ones. Nobody else changes them before the transaction ends."""
        row = dialect_insert(self._engine, ClientUsageRow)
        total = ClientUsageRow.tokens + row.excluded.tokens
        upsert = row.on_conflict_do_update(index_elements=["day", "client_id"], set_={"tokens": total})
        rows = [{"day": day, "client_id": client_id, "tokens": tokens} for client_id, tokens in added.items()]
        connection.execute(upsert, rows)
        found = select(ClientUsageRow.client_id, ClientUsageRow.tokens).where(
            ClientUsageRow.day == day, ClientUsageRow.client_id.in_(list(added))
        )
        return {row.client_id: row.tokens for row in connection.execute(found)}


def is_wasteful(today: date, default_lifetime: int) -> ColumnElement[bool]:
    """Return a condition on clients: today or yesterday it got far more tokens than its callers need.

    Each address that one of its secrets was used from within these days counts as a caller that needs a token for each
    lifetime.
    """
    since = today - timedelta(days=1)
    midnight = datetime.combine(since, time(), UTC)
    addresses = (
        select(func.count(func.distinct(ClientSecretUseRow.source_address)))
        .join(ClientSecretRow, ClientSecretRow.secret_id == ClientSecretUseRow.secret_id)
        .where(ClientSecretRow.client_id == ClientRow.client_id, ClientSecretUseRow.last_used_at >= midnight)
        .correlate(ClientRow)
        .scalar_subquery()
    )
    callers = case((addresses > 0, addresses), else_=1)
    return exists().where(
        ClientUsageRow.client_id == ClientRow.client_id,
        ClientUsageRow.day >= since,
        ClientUsageRow.tokens > WASTEFUL_TOKENS,
        ClientUsageRow.tokens * _lifetime(default_lifetime) > WASTEFUL_FACTOR * DAY_SECONDS * callers,
    )


def _lifetime(default_lifetime: int) -> ColumnElement[int]:
    return sql_cast(func.coalesce(ClientRow.access_token_lifetime, default_lifetime), Integer)
