"""Authenticates a client by its secret, on the request path: one query and no write.

An unknown id, a wrong secret and a right one cost the same, and so do both readings of the credentials. Recording
the use is left to ``last_used``, management to ``repository`` and ``secrets``.
"""

import hmac
import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import CompoundSelect, Select, String, Text, bindparam, cast, select, union

from app.clients.last_used import LastUsedTracker
from app.clients.secret_digests import SecretDigester
from app.database.circuit_breaker import DatabaseCircuitBreaker
from app.database.models import ClientRow, ClientSecretRow
from app.database.prepared_query import PreparedQuery, ThreadLocalConnections
from app.errors import InvalidClient
from app.reasons import RefusalReason
from app.types import ANY_SECRET_METHOD, Authentication, Client, Clock, Credentials

CLIENT_COLUMNS = (
    ClientRow.client_id,
    ClientRow.client_name,
    ClientRow.token_endpoint_auth_method,
    # As text, parsed only for an authenticated client: the time to parse would reveal which ids exist.
    cast(ClientRow.grant_types, Text).label("grant_types"),
    cast(ClientRow.scope, Text).label("scope"),
    cast(ClientRow.audiences, Text).label("audiences"),
    cast(ClientRow.introspects, Text).label("introspects"),
    ClientRow.access_token_lifetime,
    ClientRow.tokens_not_before,
    ClientRow.disabled_at,
    ClientRow.deleted_at,
)
"""The columns of a client that the request path reads."""

_SECRET_COLUMNS = (
    ClientSecretRow.secret_id,
    ClientSecretRow.digest,
    ClientSecretRow.pepper_id,
    ClientSecretRow.expires_at,
    ClientSecretRow.revoked_at,
)

# If the two readings of Basic credentials differ, both are looked up at once, so that both cost the same. An unknown
# id gives a row of NULLs: handling rows takes time, which would reveal which ids exist.
_ONE = select(bindparam("one_id", type_=String).label("asked_id"))
_OTHER = select(bindparam("other_id", type_=String).label("asked_id"))


def _find_with_secrets(ids: Select[Any] | CompoundSelect[Any]) -> Select[Any]:
    asked = ids.subquery("asked").c.asked_id
    return (
        select(asked, *CLIENT_COLUMNS, *_SECRET_COLUMNS)
        .select_from(asked.table)
        .outerjoin(ClientRow, ClientRow.client_id == asked)
        .outerjoin(ClientSecretRow, ClientSecretRow.client_id == ClientRow.client_id)
    )


# Compared if there is no digest, so that an unknown client costs the same. Random, so that no secret matches it.
_DUMMY_DIGEST = secrets.token_bytes(32)


_CLIENTS_KEPT = 1024
"""Clients whose JSON columns are cached as parsed. The columns themselves are read for each request."""

_KEPT_CHARACTERS = 500
"""Larger clients are rare and would need much memory."""


class SecretVerifier:
    """Verifies client secrets.

    :param last_used: where uses are recorded.
    :param circuit_breaker: guards the database.
    """

    def __init__(
        self,
        connections: ThreadLocalConnections,
        digester: SecretDigester,
        clock: Clock,
        last_used: LastUsedTracker,
        circuit_breaker: DatabaseCircuitBreaker,
    ) -> None:
        self._circuit_breaker = circuit_breaker
        self._about_one = PreparedQuery(connections, _find_with_secrets(_ONE))
        self._about_two = PreparedQuery(connections, _find_with_secrets(union(_ONE, _OTHER)))
        self._digester = digester
        self._clock = clock
        self.last_used = last_used

    def verify_secret(
        self, candidates: Sequence[Credentials], method: str, source_address: str | None = None
    ) -> Authentication:
        """Find the client that one of ``candidates`` authenticates.

        Every candidate is digested and compared, whatever the others gave; an unknown id is compared with a dummy
        digest.

        :param candidates: one or two readings of the credentials.
        :param method: how they were presented: ``client_secret_basic`` or ``client_secret_post``.
        :param source_address: the caller's address, recorded as a use of the secret.
        :raises InvalidClient: no candidate is right; the reason is for the log.
        :raises ServiceUnavailable: the database did not answer.
        """
        digests = [self._digester.digest_with_all(candidate) for candidate in candidates]
        rows = self._fetch(candidates[0].client_id, candidates[-1].client_id)
        now = self._clock()
        known_id: str | None = None
        refused_for, proven = RefusalReason.UNKNOWN_CLIENT, None
        for candidate, digest_by_pepper in zip(candidates, digests, strict=True):
            mine = [row for row in rows if row.asked_id == candidate.client_id]
            matching = _matching_secrets(mine, digest_by_pepper)
            working = [row for row in matching if _is_usable(row, now)]
            reason = _refusal_reason(mine[0], matching, working, method)
            if reason is None:
                right = working[0]
                proven = Authentication(to_client(right), method, right.secret_id, right.expires_at)
                self._record_use(right, digest_by_pepper, source_address)
            elif reason != RefusalReason.UNKNOWN_CLIENT:
                known_id, refused_for = candidate.client_id, reason
        if proven is None:
            raise InvalidClient(refused_for, client_id=known_id)
        return proven

    def answers(self) -> None:
        """Check that clients can be read.

        :raises ServiceUnavailable: they cannot.
        """
        self._fetch("", "")

    def poll(self) -> None:
        """Probe the database while its circuit is open."""
        self._circuit_breaker.poll(lambda: self._about_one.execute_on_new_connection({"one_id": ""}))

    def _fetch(self, one_id: str, other_id: str) -> Sequence[Any]:
        question, ids = self._about_one, {"one_id": one_id}
        if other_id != one_id:
            question, ids = self._about_two, {"one_id": one_id, "other_id": other_id}
        return question.execute_through(self._circuit_breaker, ids)

    def _record_use(self, secret: Any, digest_by_pepper: Mapping[str, bytes], source_address: str | None) -> None:
        """Record the use, in memory. A digest of an old pepper will be replaced by one of the first."""
        self.last_used.record(secret.client_id, secret.secret_id, source_address)
        newest = self._digester.newest_pepper_id
        if secret.pepper_id != newest:
            self.last_used.rehash(secret.secret_id, secret.digest, newest, digest_by_pepper[newest])


def _refusal_reason(client: Any, matching: Sequence[Any], working: Sequence[Any], method: str) -> RefusalReason | None:
    """Return why the client of a row is refused with the secrets that match; ``None`` if it is not."""
    reasons = {
        RefusalReason.UNKNOWN_CLIENT: client.client_id is None,
        RefusalReason.DELETED_CLIENT: client.deleted_at is not None,
        RefusalReason.DISABLED_CLIENT: client.disabled_at is not None,
        RefusalReason.OTHER_METHOD_REGISTERED: client.token_endpoint_auth_method not in {ANY_SECRET_METHOD, method},
        RefusalReason.WRONG_SECRET: not matching,
        RefusalReason.REVOKED_SECRET: not [row for row in matching if row.revoked_at is None],
        RefusalReason.EXPIRED_SECRET: not working,
    }
    for reason, applies in reasons.items():
        if applies:
            return reason
    return None


def _matching_secrets(rows: Sequence[Any], digest_by_pepper: Mapping[str, bytes]) -> list[Any]:
    """Compare all secrets: a dummy if there is no digest, and another pepper's digest if its own is missing."""
    newest = next(iter(digest_by_pepper.values()))
    matching = []
    for row in rows:
        computed = digest_by_pepper.get(row.pepper_id, newest)
        is_equal = hmac.compare_digest(computed, row.digest or _DUMMY_DIGEST)
        if is_equal and row.pepper_id in digest_by_pepper:
            matching.append(row)
    return matching


def _is_usable(secret: Any, now: datetime) -> bool:
    return secret.revoked_at is None and (secret.expires_at is None or secret.expires_at > now)


def to_client(row: Any) -> Client:
    """Return the client of a row with :data:`CLIENT_COLUMNS`."""
    facts = (
        row.client_id,
        row.client_name,
        row.token_endpoint_auth_method,
        row.grant_types,
        row.scope,
        row.audiences,
        row.access_token_lifetime,
        row.introspects or "[]",
        row.tokens_not_before,
    )
    length = len(row.scope) + len(row.audiences) + len(row.client_name) + len(row.introspects or "")
    is_short = length <= _KEPT_CHARACTERS
    return _kept_client(*facts) if is_short else _parsed(*facts)


def _parsed(  # noqa: PLR0913, PLR0917 - As the row has them.
    client_id: str,
    name: str,
    method: str,
    grant_types: str,
    scope: str,
    audiences: str,
    lifetime: int | None,
    introspects: str,
    tokens_not_before: datetime | None,
) -> Client:
    return Client(
        client_id=client_id,
        client_name=name,
        token_endpoint_auth_method=method,
        grant_types=tuple(json.loads(grant_types)),
        scope=tuple(json.loads(scope)),
        audiences=tuple(json.loads(audiences)),
        access_token_lifetime=lifetime,
        introspects=tuple(json.loads(introspects)),
        tokens_not_before=tokens_not_before,
    )


_kept_client = lru_cache(maxsize=_CLIENTS_KEPT)(_parsed)
