"""Finds clients without a shared secret, on the request path: one query for a client and what its method registered.

An unknown id gives a row of NULLs, so that it costs what a known one does. The authentication method decides whether
the client is authentic.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import String, Text, bindparam, cast, select

from app.clients.authentication import CLIENT_COLUMNS, to_client
from app.clients.last_used import LastUsedTracker
from app.database.circuit_breaker import DatabaseCircuitBreaker
from app.database.models import ClientKeySetRow, ClientRow, ClientSecretRow
from app.database.prepared_query import PreparedQuery, ThreadLocalConnections
from app.reasons import RefusalReason
from app.types import Authentication, Client

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
    # Usable secrets first, whatever the time is.
    .order_by(
        ClientSecretRow.revoked_at.is_not(None),
        ClientSecretRow.expires_at.is_not(None),
        ClientSecretRow.expires_at.desc(),
    )
)


class ClientLookup:
    """Finds clients, and accepts those that have authenticated.

    :param last_used: where uses are recorded.
    :param circuit_breaker: guards the database.
    """

    def __init__(
        self, connections: ThreadLocalConnections, last_used: LastUsedTracker, circuit_breaker: DatabaseCircuitBreaker
    ) -> None:
        self._question = PreparedQuery(connections, _FOUND)
        self._with_secrets = PreparedQuery(connections, _FOUND_WITH_SECRETS)
        self._marks = last_used
        self._circuit_breaker = circuit_breaker

    def find(self, client_id: str) -> Any:
        """Return the row of ``client_id``, or a row of NULLs if no such client exists.

        ``auth_fields`` and ``published_jwks``, which was fetched from its ``jwks_uri``, are JSON text.

        :raises ServiceUnavailable: the database did not answer.
        """
        rows: Sequence[Any] = self._question.execute_through(self._circuit_breaker, {"client_id": client_id})
        return rows[0]

    def query_client(self, client_id: str) -> Client | None:
        """Return the client, unless it does not exist or is disabled; Authlib's hook, for grants and extensions.

        :raises ServiceUnavailable: the database did not answer.
        """
        row = self.find(client_id)
        is_served = row.client_id is not None and row.deleted_at is None and row.disabled_at is None
        return to_client(row) if is_served else None

    def find_with_secrets(self, client_id: str) -> Sequence[Any]:
        """Return the rows of :meth:`find`, one for each secret, or one if there is none.

        :raises ServiceUnavailable: the database did not answer.
        """
        return self._with_secrets.execute_through(self._circuit_breaker, {"client_id": client_id})

    def accept(self, row: Any, method: str, source_address: str | None, secret: Any = None) -> Authentication:
        """Return the authentication of the client of ``row``, which :func:`refusal_reason` does not refuse.

        Records the use.

        :param secret: the row of the secret that was used, if the method has secrets.
        """
        secret_id = secret.secret_id if secret else None
        self._marks.record(row.client_id, secret_id, source_address)
        return Authentication(to_client(row), method, secret_id, secret.expires_at if secret else None)

    def reencrypt(self, secret: Any, new_key_id: str, newly_encrypted: bytes) -> None:
        """Replace the ciphertext of an old key, later."""
        self._marks.reencrypt(secret.secret_id, secret.encrypted, new_key_id, newly_encrypted)


def refusal_reason(row: Any, method: str) -> RefusalReason | None:
    """Return why the client of ``row`` is refused, however it authenticates; ``None`` if it is not."""
    reasons = {
        RefusalReason.UNKNOWN_CLIENT: row.client_id is None,
        RefusalReason.DELETED_CLIENT: row.deleted_at is not None,
        RefusalReason.DISABLED_CLIENT: row.disabled_at is not None,
        RefusalReason.OTHER_METHOD_REGISTERED: row.token_endpoint_auth_method != method,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)
