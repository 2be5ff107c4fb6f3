"""Serves known clients while the database is away: the clients that this worker has authenticated, as last read.

Nothing is served from here while the database answers. The rows are read again all the time, so a client that was
disabled is forgotten within seconds, or within :data:`CONFIRM_SECONDS` in a worker with thousands of clients. When
the database has been away for ``TOKENHOUSE_OUTAGE_GRACE``, nobody is served any more.

Only token requests are served from here. A client with one of the server's own scopes is never kept.
"""

import json
import logging
import math
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from typing import Any

from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError

from app.blocking import blocking
from app.clients.queries import SERVED_CLIENTS
from app.clients.scopes import RESERVED_SCOPE_PREFIX
from app.database.circuit_breaker import DatabaseCircuitBreaker
from app.database.engine import reading_engine
from app.database.failure_log import REPEAT_SECONDS
from app.database.models import ClientRow
from app.errors import ServiceUnavailable

log = logging.getLogger(__name__)

MOST_CLIENTS = 10_000
"""Clients that one worker keeps: those that were used last."""

MOST_CHARACTERS = 16 * 1024 * 1024
"""The text of all rows that one worker keeps. Key sets can be long."""

POLL_SECONDS = 1.0
"""How often clients are read again."""

CONFIRM_SECONDS = 30
"""Within this time every client is read again, however many there are."""

CONFIRMED_AT_ONCE = 100
"""If there are no more than these, each is read again in every poll."""

STALE_SECONDS = 90.0
"""A client that was read longer before the outage is not served: it may have been disabled since."""

_row_type: Any = namedtuple  # noqa: PYI024 - Its fields are the statement's.
Row = _row_type("Row", SERVED_CLIENTS.selected_columns.keys())
"""A client with one of its secrets, with the columns of every statement of the request path."""

Rows = Sequence[Any]
"""The rows of one client."""


@dataclass(slots=True)
class KnownClient:
    """A client as it was last read.

    :param read_at: when, by the monotonic clock.
    :param used_at: when it last authenticated, by the same clock.
    """

    rows: Rows
    read_at: float
    used_at: float
    characters: int = field(init=False)
    """The length of its text."""

    def __post_init__(self) -> None:
        """Measure it once: all are added up in each poll."""
        self.characters = sum(len(value) for row in self.rows for value in row if isinstance(value, str))


@dataclass(frozen=True, slots=True)
class ReadClients:
    """Clients that were read by another process, some time ago.

    :param age_seconds: how long ago.
    :param clients: their rows, by client id.
    """

    age_seconds: float
    clients: Mapping[str, Rows]


class OutageMemory:
    """Clients of one worker.

    :param grace_seconds: how long after the last answer of the database clients are served; zero: never.
    :param monotonic: the clock.
    """

    def __init__(
        self,
        engine: Engine,
        circuit_breaker: DatabaseCircuitBreaker,
        grace_seconds: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reading = reading_engine(engine)
        self._circuit_breaker = circuit_breaker
        self._grace_seconds = grace_seconds
        self._monotonic = monotonic
        self._lock = threading.Lock()
        # In the order in which they were read: the first is the next to be read again.
        self._known: dict[str, KnownClient] = {}
        self._answered_at = -math.inf
        self._is_away = False
        self._log_not_before = -math.inf
        self.restore: Callable[[], ReadClients | None] = lambda: None
        """Returns clients that were kept elsewhere; called once when an outage begins."""
        self.used: set[str] = set()
        """The ids of clients that have authenticated since the last poll."""

    def poll(self) -> None:
        """Read again the clients that were used since the last poll, and those that were read longest ago."""
        used, self.used = self.used, set()
        if not self._grace_seconds:
            return
        # A copy, made in one step: a request that began before may still add to the set.
        ids = used.copy()
        ids.update(islice(list(self._known), max(CONFIRMED_AT_ONCE, len(self._known) // CONFIRM_SECONDS)))
        try:
            self._keep(ids, self._read(sorted(ids)), used)
        except (SQLAlchemyError, ServiceUnavailable):
            # The circuit breaker has logged it.
            return

    def can_serve(self) -> bool:
        """Return whether known clients get tokens while the database is away, which it is."""
        self._begin_outage()
        return bool(self._known) and self._seconds_left() > 0

    def rows_of(self, ids: Iterable[str], outage: ServiceUnavailable) -> Rows:
        """Return the rows of known clients, and a row of NULLs for every other id.

        :param outage: why the database did not answer.
        :raises ServiceUnavailable: ``outage``, if no client is served now.
        """
        self._begin_outage()
        if self._seconds_left() <= 0:
            raise outage
        rows: list[Any] = []
        for client_id in ids:
            known = self._known.get(client_id)
            rows += known.rows if known else [_row_of_nulls(client_id)]
        return rows

    def _seconds_left(self) -> float:
        return self._answered_at + self._grace_seconds - self._monotonic()

    def _begin_outage(self) -> None:
        if self._is_away:
            return
        with self._lock:
            if self._is_away:
                return
            self._restore()
            fresh = self._answered_at - STALE_SECONDS
            self._known = {client_id: client for client_id, client in self._known.items() if client.read_at >= fresh}
            self._is_away = True
            now, left = self._monotonic(), self._seconds_left()
            if self._known and left > 0 and now >= self._log_not_before:
                self._log_not_before = now + REPEAT_SECONDS
                log.warning("%d known clients are served without the database for %d s", len(self._known), left)

    def _restore(self) -> None:
        restored = self.restore() if self._grace_seconds else None
        if restored is None:
            return
        read_at = self._monotonic() - restored.age_seconds
        # Whoever is missing there was disabled since this worker has read it.
        newer = {client_id: client for client_id, client in self._known.items() if client.read_at > read_at}
        kept = {client_id: KnownClient(rows, read_at, read_at) for client_id, rows in restored.clients.items()}
        self._known = kept | newer
        self._answered_at = max(self._answered_at, read_at)

    def _read(self, ids: Sequence[str]) -> Mapping[str, Rows]:
        """Return the rows of those clients that may get tokens. Without ids it checks whether the database answers."""
        with self._circuit_breaker.allow(), blocking, self._reading.connect() as connection:
            return by_client(connection.execute(SERVED_CLIENTS.where(ClientRow.client_id.in_(ids))))

    def _keep(self, asked: Collection[str], found: Mapping[str, Rows], used: Collection[str]) -> None:
        now = self._monotonic()
        with self._lock:
            self._is_away, self._answered_at = False, now
            for client_id in asked:
                before = self._known.pop(client_id, None)
                if client_id in found:
                    used_at = before.used_at if before and client_id not in used else now
                    self._known[client_id] = KnownClient(found[client_id], now, used_at)
            self._forget_least_used()

    def _forget_least_used(self) -> None:
        characters = sum(client.characters for client in self._known.values())
        if len(self._known) <= MOST_CLIENTS and characters <= MOST_CHARACTERS:
            return
        for client_id in sorted(self._known, key=lambda client_id: self._known[client_id].used_at):
            if len(self._known) <= MOST_CLIENTS and characters <= MOST_CHARACTERS:
                break
            characters -= self._known.pop(client_id).characters


def _row_of_nulls(client_id: str) -> Any:
    return Row(client_id, *[None] * (len(Row._fields) - 1))


def by_client(rows: Iterable[Any]) -> dict[str, Rows]:
    """Group ``rows`` by client. Clients with one of the server's own scopes are left out."""
    grouped = groupby((Row(*row) for row in rows), key=lambda row: row.client_id)
    found = {client_id: list(group) for client_id, group in grouped}
    return {client_id: group for client_id, group in found.items() if not _is_privileged(group[0])}


def _is_privileged(row: Any) -> bool:
    return any(scope.startswith(RESERVED_SCOPE_PREFIX) for scope in json.loads(row.scope))
