"""The metadata documents of APIs (RFC 9728 section 2), for APIs that cannot serve their own.

Each request reads the document from the database, so that all machines return the same. While the database is away,
the documents of the last poll are served.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import String, Text, bindparam, cast, select
from sqlalchemy.engine import Engine

from app.database.circuit_breaker import DatabaseCircuitBreaker
from app.database.engine import reading_engine
from app.database.models import ApiRow
from app.database.prepared_query import PreparedQuery, ThreadLocalConnections
from app.errors import ServiceUnavailable

POLL_SECONDS = 5.0
"""How often all documents are read, for the server's metadata and for an outage of the database."""

_COLUMNS: tuple[Any, ...] = (ApiRow.name, ApiRow.identifier, cast(ApiRow.scope, Text).label("scope"))
_PUBLISHED = select(*_COLUMNS).where(ApiRow.publishes_document).order_by(ApiRow.name)
_BY_NAME = _PUBLISHED.where(ApiRow.name == bindparam("name", type_=String))


class PublishedApi(NamedTuple):
    """An API with a document.

    :ivar scope: JSON text.
    """

    name: str
    identifier: str
    scope: str


class ApiDocuments:
    """The documents of APIs.

    :param issuer: the server that issues their tokens.
    :param publishes_scopes: whether documents list scopes.
    """

    def __init__(
        self,
        engine: Engine,
        connections: ThreadLocalConnections,
        circuit_breaker: DatabaseCircuitBreaker,
        issuer: str,
        *,
        publishes_scopes: bool,
    ) -> None:
        self._reading = reading_engine(engine)
        self._by_name = PreparedQuery(connections, _BY_NAME)
        self._circuit_breaker = circuit_breaker
        self._issuer = issuer
        self._publishes_scopes = publishes_scopes
        self._known: Mapping[str, PublishedApi] | None = None
        self._identifiers: tuple[str, ...] = ()

    def identifiers(self) -> tuple[str, ...]:
        """Return the identifiers of APIs with a document, as of the last poll; the same object until they change."""
        return self._identifiers

    def find(self, name: str) -> dict[str, Any] | None:
        """Return the document of an API; ``None`` if it has none.

        :raises ServiceUnavailable: the database does not answer, and no poll was successful.
        """
        try:
            found = self._by_name.execute_through(self._circuit_breaker, {"name": name})
        except ServiceUnavailable:
            if self._known is None:
                raise
            found = [self._known[name]] if name in self._known else []
        return self._describe(found[0]) if found else None

    def poll(self) -> None:
        """Read all documents.

        :raises SQLAlchemyError: the database does not answer; the documents of the last poll stay.
        """
        with self._reading.connect() as connection:
            self._known = {row.name: PublishedApi(*row) for row in connection.execute(_PUBLISHED)}
        identifiers = tuple(api.identifier for api in self._known.values())
        if identifiers != self._identifiers:
            self._identifiers = identifiers

    def _describe(self, api: Any) -> dict[str, Any]:
        scopes = json.loads(api.scope) if self._publishes_scopes else []
        return {
            "resource": api.identifier,
            "authorization_servers": [self._issuer],
            # RFC 9728 section 3.2 forbids empty members.
            **({"scopes_supported": scopes} if scopes else {}),
            "bearer_methods_supported": ["header"],
        }
