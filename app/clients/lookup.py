"""The request path for clients without a shared secret: one statement finds a client with what its method registered.

An id that nobody has gives a row too, of nothing, so that an unknown client costs what a known one does. Whether a
client is who it says is settled by the method.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import String, Text, bindparam, cast, select

from app.clients.authentication import CLIENT_COLUMNS, to_client
from app.clients.last_used import LastUsedTracker
from app.database.circuit_breaker import DatabaseCircuitBreaker
from app.database.models import ClientKeySetRow, ClientRow, ClientSecretRow
from app.database.prepared_query import PreparedQuery, ThreadLocalConnections
from app.types import Authentication

_ASKED = select(bindparam("client_id", type_=String).label("asked_id")).subquery("asked").c.asked_id
_FOUND: Any = (
    select(
        _ASKED,
        *CLIENT_COLUMNS,
        cast(ClientRow.auth_fields, Text).label("auth_fields"),
        cast(ClientKeySetRow.jwks, Text).label("published_jwks"),
    )
    .select_from(_ASKED.table)
    .outerjoin(ClientRow, ClientRow.client_id == _ASKED)
    .outerjoin(ClientKeySetRow, ClientKeySetRow.client_id == ClientRow.client_id)
)
_FOUND_WITH_SECRETS: Any = (
    _FOUND.add_columns(
        ClientSecretRow.secret_id,
        ClientSecretRow.encrypted,
        ClientSecretRow.encryption_key_id,
        ClientSecretRow.expires_at,
        ClientSecretRow.revoked_at,
    )
    .outerjoin(ClientSecretRow, ClientSecretRow.client_id == ClientRow.client_id)
    # Those that work come first, whatever the time is.
    .order_by(
        ClientSecretRow.revoked_at.is_not(None),
        ClientSecretRow.expires_at.is_not(None),
        ClientSecretRow.expires_at.desc(),
    )
)


class ClientLookup:
    """Finds clients, and lets in those that have proven who they are.

    :param marks: where uses are noted.
    :param gate: the way to the database.
    """

    def __init__(
        self, connections: ThreadLocalConnections, last_used: LastUsedTracker, circuit_breaker: DatabaseCircuitBreaker
    ) -> None:
        self._question = PreparedQuery(connections, _FOUND)
        self._with_secrets = PreparedQuery(connections, _FOUND_WITH_SECRETS)
        self._marks = last_used
        self._circuit_breaker = circuit_breaker

    def find(self, client_id: str) -> Any:
        """The row of ``client_id``; of nothing where there is no such client.

        ``auth_fields`` and ``published_jwks``, what was fetched from its ``jwks_uri``, are JSON text.

        :raises ServiceUnavailable: the database did not answer.
        """
        rows: Sequence[Any] = self._question.execute_through(self._circuit_breaker, {"client_id": client_id})
        return rows[0]

    def find_with_secrets(self, client_id: str) -> Sequence[Any]:
        """:meth:`find`, with one row for each secret, or one row where there is none.

        :raises ServiceUnavailable: the database did not answer.
        """
        return self._with_secrets.execute_through(self._circuit_breaker, {"client_id": client_id})

    def accept(self, row: Any, method: str, source_address: str | None, secret: Any = None) -> Authentication:
        """Who has proven to be the client of ``row``, which :func:`refusal_reason` does not refuse. A use is noted.

        :param secret: the row of the secret that it was proven with, where the method has secrets.
        """
        secret_id = secret.secret_id if secret else None
        self._marks.record(row.client_id, secret_id, source_address)
        return Authentication(to_client(row), method, secret_id, secret.expires_at if secret else None)

    def reencrypt(self, secret: Any, new_key_id: str, newly_encrypted: bytes) -> None:
        """Have what an old key has encrypted replaced."""
        self._marks.reencrypt(secret.secret_id, secret.encrypted, new_key_id, newly_encrypted)


def refusal_reason(row: Any, method: str) -> str | None:
    """Why the client of ``row`` is refused, whatever it proves; ``None`` when it is not."""
    reasons = {
        "unknown_client": row.client_id is None,
        "deleted_client": row.deleted_at is not None,
        "disabled_client": row.disabled_at is not None,
        "other_method_registered": row.token_endpoint_auth_method != method,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)
