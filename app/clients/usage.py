"""Counts the tokens of each client and day (UTC), in memory, and adds them to the database once a minute.

Quotas use the counts, and so does ``flask clients list --wasteful``: clients that fetch far more tokens than their
lifetime requires. A worker that is killed loses the counts of a minute.
"""

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from itertools import groupby

from sqlalchemy import ColumnElement, Integer, case, exists, func, select
from sqlalchemy import cast as sql_cast
from sqlalchemy.engine import Engine

from app.audit.events import Event, TokenIssued
from app.database.engine import batches, delete_in_batches, dialect_insert, reading_engine, writing_engine
from app.database.models import SERVED, ClientRow, ClientSecretRow, ClientSecretUseRow, ClientUsageRow
from app.types import Clock

FLUSH_SECONDS = 60.0
KEPT_FOR = timedelta(days=30)
DAY_SECONDS = 86400

WASTEFUL_FACTOR = 10
"""A client is wasteful if it got more than this many times the tokens that its callers need in a day."""

WASTEFUL_TOKENS = 100
"""A client with this many tokens in a day, or fewer, is not wasteful: a job that starts often keeps no token."""

EXCESS_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 1000)

_Key = tuple[date, str]
"""Day and client id."""


class ClientUsage:
    """Counts issued tokens by day and client; a subscriber of the events.

    :param keeps_totals: whether :meth:`tokens_today` includes what other processes have counted.
    :ivar on_total: gets a day, a client's id, and its tokens of that day before and after new ones were added. For a
        given number of tokens it is called by one worker only.
    """

    def __init__(self, engine: Engine, clock: Clock, *, keeps_totals: bool = False) -> None:
        self._keeps_totals = keeps_totals
        self._engine = engine
        self._clock = clock
        self._lock = threading.Lock()
        self._counted: Counter[_Key] = Counter()
        self._totals: dict[_Key, int] = {}
        self.on_total: Callable[[date, str, int, int], None] = lambda *_: None

    def __call__(self, event: Event) -> None:
        """Count a token, in memory."""
        if isinstance(event, TokenIssued):
            key = self._clock().date(), event.client_id
            with self._lock:
                self._counted[key] += 1

    def tokens_today(self, client_id: str) -> int:
        """Return how many tokens a client got today: those of other processes as of a minute ago."""
        key = self._clock().date(), client_id
        return self._totals.get(key, 0) + self._counted[key]

    def flush(self) -> None:
        """Add the counts to the database. If that fails, they are added later.

        :raises SQLAlchemyError: the database does not answer.
        """
        with self._lock:
            counted, self._counted = self._counted, Counter()
        today = self._clock().date()
        self._totals = {key: total for key, total in self._totals.items() if key[0] == today}
        try:
            # Sorted, so that no two workers deadlock.
            for day, keys in groupby(sorted(counted), key=lambda key: key[0]):
                for batch in batches([client_id for _, client_id in keys]):
                    self._add(day, {client_id: counted[day, client_id] for client_id in batch})
                    for client_id in batch:
                        del counted[day, client_id]
        except BaseException:
            with self._lock:
                self._counted += counted
            raise

    def delete_old(self) -> None:
        """Delete counts of long ago.

        :raises SQLAlchemyError: the database does not answer.
        """
        delete_in_batches(self._engine, ClientUsageRow, ClientUsageRow.day < self._clock().date() - KEPT_FOR)

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

    def _add(self, day: date, added: Mapping[str, int]) -> None:
        row = dialect_insert(self._engine, ClientUsageRow)
        total = ClientUsageRow.tokens + row.excluded.tokens
        upsert = row.on_conflict_do_update(index_elements=["day", "client_id"], set_={"tokens": total})
        found = select(ClientUsageRow.client_id, ClientUsageRow.tokens).where(
            ClientUsageRow.day == day, ClientUsageRow.client_id.in_(list(added))
        )
        with writing_engine(self._engine).begin() as connection:
            connection.execute(
                upsert, [{"day": day, "client_id": client_id, "tokens": tokens} for client_id, tokens in added.items()]
            )
            # No other worker changes these rows before the transaction ends.
            totals = {row.client_id: row.tokens for row in connection.execute(found)}
        for client_id, tokens in added.items():
            if self._keeps_totals:
                self._totals[day, client_id] = totals[client_id]
            self.on_total(day, client_id, totals[client_id] - tokens, totals[client_id])


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
