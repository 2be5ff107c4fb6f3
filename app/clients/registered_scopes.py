"""The scopes of all registered clients and APIs, for the metadata (RFC 8414 section 2), collected from time to time."""

import json
import time

from sqlalchemy import Text, cast, select
from sqlalchemy.engine import Engine

from app.clients.scopes import RESERVED_SCOPE_PREFIX
from app.database.engine import reading_engine
from app.database.models import SERVED, ApiRow, ClientRow

POLL_SECONDS = 60.0

_REST = 100
"""Wait 100 times as long as the last scan took before scanning again: a million clients take seconds."""


_OF_CLIENTS = select(cast(ClientRow.scope, Text)).where(SERVED).distinct()
_OF_APIS = select(cast(ApiRow.scope, Text))


class RegisteredScopes:
    """Holds the scopes of the last scan.

    :param published: whether the metadata lists scopes; if not, nothing is scanned.
    """

    def __init__(self, engine: Engine, *, published: bool) -> None:
        self._engine = engine
        self._published = published
        self._not_before = 0.0
        self._known: tuple[str, ...] = ()

    def __call__(self) -> tuple[str, ...]:
        """Return all scopes, sorted; the same object while they are the same."""
        return self._known

    def poll(self) -> None:
        """Scan all clients and APIs.

        :raises SQLAlchemyError: the database does not answer; the scopes of the last scan stay.
        """
        began = time.monotonic()
        if not self._published or began < self._not_before:
            return
        with reading_engine(self._engine).connect() as connection:
            found = [*connection.scalars(_OF_CLIENTS), *connection.scalars(_OF_APIS)]
        scopes = sorted({token for text in found for token in json.loads(text)})
        known = tuple(token for token in scopes if not token.startswith(RESERVED_SCOPE_PREFIX))
        if known != self._known:
            self._known = known
        self._not_before = time.monotonic() + _REST * (time.monotonic() - began)
