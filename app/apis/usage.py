"""Records which APIs and scopes each client uses, in memory, and writes them to the database every few seconds.

A scope is used when a token with it is issued. A day is precise enough to find what was unused for 90 days, so each
worker writes once a day for each client and API. A worker that is killed loses at most :data:`FLUSH_SECONDS`.
"""

import threading
from collections.abc import Mapping, Sequence
from datetime import date, timedelta

from sqlalchemy import Connection, select, tuple_, update
from sqlalchemy.engine import Engine

from app.database.engine import batches, writing_engine
from app.database.models import ApiGrantRow
from app.types import Clock

FLUSH_SECONDS = 5.0
UNUSED_FOR = timedelta(days=90)

THE_API = ""
"""Stands for the API itself among the scopes of ``ApiGrantRow.used``."""

MOST_RECORDS = 10_000
"""Distinct requests that a worker remembers, and grants that wait to be written. While so many wait, further uses are
not recorded.
"""

_Grant = tuple[str, str]
"""Client id and name of the API."""


class ApiUsage:
    """Records the uses of grants."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._writing = writing_engine(engine)
        self._clock = clock
        self._lock = threading.Lock()
        self._day: date | None = None
        self._noted: set[tuple[str, tuple[str, ...], str]] = set()
        self._waiting: dict[_Grant, dict[str, str]] = {}

    def record(self, client_id: str, apis: tuple[str, ...], scope: str) -> None:
        """Record a token, in memory.

        :param apis: the names of its APIs.
        :param scope: its space-separated scope tokens.
        """
        today, use = self._clock().date(), (client_id, apis, scope)
        with self._lock:
            if self._day != today or len(self._noted) >= MOST_RECORDS:
                self._day, self._noted = today, set()
            if use in self._noted or len(self._waiting) >= MOST_RECORDS:
                return
            self._noted.add(use)
            days = dict.fromkeys([THE_API, *scope.split()], today.isoformat())
            for api in apis:
                self._waiting[client_id, api] = _later(self._waiting.get((client_id, api), {}), days)

    def flush(self) -> None:
        """Write the uses to the database. If that fails, they are written later.

        :raises SQLAlchemyError: the database does not answer.
        """
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        try:
            # Sorted, so that no two workers deadlock.
            for grants in batches(sorted(waiting)):
                with self._writing.begin() as connection:
                    _write(connection, {grant: waiting[grant] for grant in grants})
                for grant in grants:
                    del waiting[grant]
        except BaseException:
            with self._lock:
                for grant, days in waiting.items():
                    self._waiting[grant] = _later(days, self._waiting.get(grant, {}))
            raise


def unused_scopes(grant: ApiGrantRow, today: date) -> Sequence[str]:
    """Return the scopes of a grant with which no token was issued in :data:`UNUSED_FOR`."""
    since = (today - UNUSED_FOR).isoformat()
    return [token for token in grant.scope if grant.used.get(token, "") < since]


def is_unused(grant: ApiGrantRow, today: date) -> bool:
    """Return whether no token was issued for the API in :data:`UNUSED_FOR`."""
    return grant.used.get(THE_API, "") < (today - UNUSED_FOR).isoformat()


def _write(connection: Connection, uses: Mapping[_Grant, Mapping[str, str]]) -> None:
    """Merge the days into the rows: other workers write them too."""
    key = tuple_(ApiGrantRow.client_id, ApiGrantRow.api_name)
    locked = (
        select(ApiGrantRow.client_id, ApiGrantRow.api_name, ApiGrantRow.scope, ApiGrantRow.used)
        .where(key.in_(list(uses)))
        .order_by(ApiGrantRow.client_id, ApiGrantRow.api_name)
        .with_for_update()
    )
    for client_id, api_name, scope, used in connection.execute(locked).all():
        granted = {THE_API, *scope}
        merged = {name: day for name, day in _later(used, uses[client_id, api_name]).items() if name in granted}
        if merged != used:
            is_row = (ApiGrantRow.client_id == client_id) & (ApiGrantRow.api_name == api_name)
            connection.execute(update(ApiGrantRow).where(is_row).values(used=merged))


def _later(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, str]:
    return {name: max(one.get(name, ""), other.get(name, "")) for name in one.keys() | other.keys()}
