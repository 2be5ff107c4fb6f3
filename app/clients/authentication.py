"""Authenticates clients on the request path: one query and no write, whichever method a client uses.

An unknown id, a wrong secret and a right one cost the same, and so do both readings of Basic credentials. An unknown id
gives a row of NULLs: handling rows takes time, which would reveal which ids exist. What an assertion must contain is
left to ``oauth.client_auth``, recording the use to ``last_used``, management to ``repository`` and ``secrets``.
"""

import hmac
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import compress
from typing import Any

from app.clients.last_used import LastUsedTracker
from app.clients.queries import BY_KEYS, BY_ONE_ID, BY_SECRETS_AS_KEYS, BY_TWO_IDS
from app.clients.secret_digests import SecretDigester
from app.database.circuit_breaker import DatabaseCircuitBreaker
from app.database.prepared_query import PreparedQuery, ThreadLocalConnections
from app.errors import InvalidClient
from app.reasons import RefusalReason
from app.types import SEVERAL_METHODS, Authentication, Client, Clock, Credentials

# Compared if there is no digest, so that an unknown client costs the same. Random, so that no secret matches it.
_DUMMY_DIGEST = secrets.token_bytes(32)

_CLIENTS_KEPT = 1024
"""Clients whose JSON columns are cached as parsed. The columns themselves are read for each request."""

_KEPT_CHARACTERS = 500
"""Larger clients are rare and would need much memory."""


class ClientAuthenticator:
    """Finds clients, verifies their secrets, and accepts those that are authentic.

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
        self._connections = connections
        self._by_one_id = PreparedQuery(connections, BY_ONE_ID)
        self._by_two_ids = PreparedQuery(connections, BY_TWO_IDS)
        self._by_keys = PreparedQuery(connections, BY_KEYS)
        self._by_secrets_as_keys = PreparedQuery(connections, BY_SECRETS_AS_KEYS)
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
            working = usable(matching, now)
            reason = refusal_reason(mine[0], method, matching, working, _WRONG_SECRET)
            if reason is None:
                right = working[0]
                proven = self.accept(right, method, source_address, right)
                self._rehash(right, digest_by_pepper)
            elif reason != RefusalReason.UNKNOWN_CLIENT:
                known_id, refused_for = candidate.client_id, reason
        if proven is None:
            raise InvalidClient(refused_for, client_id=known_id)
        return proven

    def query_client(self, client_id: str) -> Client | None:
        """Return the client, unless it does not exist or is disabled; Authlib's hook, for grants and extensions.

        :raises ServiceUnavailable: the database did not answer.
        """
        row = self.find(client_id)
        is_served = row.client_id is not None and row.deleted_at is None and row.disabled_at is None
        return to_client(row) if is_served else None

    def find(self, client_id: str) -> Any:
        """Return the row of ``client_id``, or a row of NULLs if no such client exists.

        ``auth_fields`` and ``published_jwks``, which was fetched from its ``jwks_uri``, are JSON text.

        :raises ServiceUnavailable: the database did not answer.
        """
        return self._by_keys.execute_through(self._circuit_breaker, {"one_id": client_id})[0]

    def find_with_secrets(self, client_id: str) -> Sequence[Any]:
        """Return the rows of :meth:`find`, one for each secret, or one if there is none.

        :raises ServiceUnavailable: the database did not answer.
        """
        return self._by_secrets_as_keys.execute_through(self._circuit_breaker, {"one_id": client_id})

    def accept(self, row: Any, method: str, source_address: str | None, secret: Any = None) -> Authentication:
        """Return the authentication of the client of ``row``, which :func:`refusal_reason` does not refuse.

        Records the use.

        :param secret: the row of the secret that was used, if the method has secrets.
        """
        secret_id = secret.secret_id if secret else None
        self.last_used.record(row.client_id, secret_id, source_address)
        return Authentication(to_client(row), method, secret_id, secret.expires_at if secret else None)

    def reencrypt(self, secret: Any, new_key_id: str, newly_encrypted: bytes) -> None:
        """Replace the ciphertext of an old key, later."""
        self.last_used.reencrypt(secret.secret_id, secret.encrypted, new_key_id, newly_encrypted)

    def answers(self) -> None:
        """Check that clients can be read.

        :raises ServiceUnavailable: they cannot.
        """
        self._fetch("", "")

    def takes_writes(self) -> bool:
        """Return whether the database takes writes. If not, revocations and assertions fail.

        :raises SQLAlchemyError: it cannot be reached.
        """
        return self._connections.takes_writes()

    def poll(self) -> None:
        """Probe the database while its circuit is open."""
        self._circuit_breaker.poll(lambda: self._by_one_id.execute_on_new_connection({"one_id": ""}))

    def _fetch(self, one_id: str, other_id: str) -> Sequence[Any]:
        query, ids = self._by_one_id, {"one_id": one_id}
        if other_id != one_id:
            query, ids = self._by_two_ids, {"one_id": one_id, "other_id": other_id}
        return query.execute_through(self._circuit_breaker, ids)

    def _rehash(self, secret: Any, digest_by_pepper: Mapping[str, bytes]) -> None:
        """Replace the digest of an old pepper by one of the first, later."""
        newest = self._digester.newest_pepper_id
        if secret.pepper_id != newest:
            self.last_used.rehash(secret.secret_id, secret.digest, newest, digest_by_pepper[newest])


_REFUSALS = (
    RefusalReason.UNKNOWN_CLIENT,
    RefusalReason.DELETED_CLIENT,
    RefusalReason.DISABLED_CLIENT,
    RefusalReason.OTHER_METHOD_REGISTERED,
)
_WRONG_SECRET = RefusalReason.WRONG_SECRET
_SECRET_REFUSALS = (RefusalReason.EXPIRED_SECRET, RefusalReason.REVOKED_SECRET)


def refusal_reason(
    client: Any,
    method: str,
    matching: Sequence[Any],
    working: Sequence[Any],
    otherwise: RefusalReason | None,
) -> RefusalReason | None:
    """Return why a client is refused; ``None`` if it is not. Everything is evaluated, whatever is wrong.

    :param client: its row.
    :param method: how it authenticated.
    :param matching: the rows of its secrets that are the presented one.
    :param working: those that are usable.
    :param otherwise: the reason if no secret matches; ``None`` for a client that needs no secret.
    """
    registered = client.token_endpoint_auth_method
    of_client = (
        client.client_id is None,
        client.deleted_at is not None,
        client.disabled_at is not None,
        method not in SEVERAL_METHODS.get(registered, (registered,)),
    )
    of_secrets = ([row for row in matching if row.revoked_at is None], matching)
    found = next(compress(_SECRET_REFUSALS, of_secrets), otherwise)
    return next(compress(_REFUSALS, of_client), None if working else found)


def usable(matching: Iterable[Any], now: datetime) -> list[Any]:
    """Return the rows of those secrets that are neither revoked nor expired."""
    return [row for row in matching if row.revoked_at is None and (row.expires_at is None or row.expires_at > now)]


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


def to_client(row: Any) -> Client:
    """Return the client of a row, whose JSON columns are text on the request path and lists elsewhere."""
    lists: tuple[Any, ...] = row.grant_types, row.scope, row.audiences, row.introspects or "[]"
    if not isinstance(row.scope, str):
        lists = tuple(json.dumps(column) for column in (*lists[:3], row.introspects or ()))
    grant_types, scope, audiences, introspects = lists
    is_short = len(row.client_name) + len(scope) + len(audiences) + len(introspects) <= _KEPT_CHARACTERS
    parse = _kept_client if is_short else _parsed
    return parse(
        row.client_id,
        row.client_name,
        row.token_endpoint_auth_method,
        grant_types,
        scope,
        audiences,
        row.access_token_lifetime,
        introspects,
        row.tokens_not_before,
    )


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
