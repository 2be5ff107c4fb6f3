"""Authenticates clients on the request path: one query and no write, whichever method a client uses.

While the database is away, known clients are authenticated with the rows of ``outage_memory``. Any other client or
secret gets 503 with ``Retry-After``: only the database can tell whether it is wrong.

An unknown id, a wrong secret and a right one cost the same, however many secrets a client has or had, and so do both
readings of Basic credentials. An unknown id gives a row of NULLs: handling rows takes time, which would reveal which
ids exist. What an assertion must contain is left to ``oauth.client_auth``, recording the use to ``last_used``,
management to ``repository`` and ``secrets``.
"""

import hmac
import json
import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import compress
from types import MappingProxyType
from typing import Any, NamedTuple

from app.clients.last_used import LastUsedTracker
from app.clients.outage_memory import OutageMemory
from app.clients.queries import BY_KEYS, BY_SECRETS_AS_KEYS, BY_TRUSTS, by_digests, digest_names
from app.clients.secret_digests import SecretDigester
from app.config.values import parse_rate
from app.database.circuit_breaker import DatabaseCircuitBreaker
from app.database.prepared_query import PreparedQuery, ThreadLocalConnections
from app.errors import InvalidClient, OAuthError, ServiceUnavailable
from app.reasons import RefusalReason
from app.types import SEVERAL_METHODS, Authentication, Client, Clock, Credentials, GrantedApi

# Compared if there is no digest, so that an unknown client costs the same. Random, so that no secret matches it.
_DUMMY_DIGEST = secrets.token_bytes(32)

_CLIENTS_KEPT = 1024
"""Clients whose JSON columns are cached as parsed. The columns themselves are read for each request."""

_KEPT_CHARACTERS = 2000
_LARGE_CLIENTS_KEPT, _KEPT_LARGE_CHARACTERS = 32, 64 * 1024
"""Larger clients, such as those with a hundred APIs, are rare and need much memory: fewer of them are cached."""


class Lookup(NamedTuple):
    """What was found of the clients of a request.

    :ivar rows: one for each secret of a client that was looked for, or one if there is none; a row of NULLs for an
        unknown client.
    :ivar outage: why the rows are from the memory; ``None`` if they are from the database.
    """

    rows: Sequence[Any]
    outage: ServiceUnavailable | None = None

    def refusal(self, reason: RefusalReason, client_id: str | None, detail: str | None = None) -> OAuthError:
        """Return the error that refuses the client."""
        return self.outage or InvalidClient(reason, client_id=client_id, detail=detail)


class ClientAuthenticator:
    """Finds clients, verifies their secrets, and accepts those that are authentic.

    :param last_used: where uses are recorded.
    :param circuit_breaker: guards the database.
    :param memory: known clients, for an outage of the database.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - What each request needs.
        self,
        connections: ThreadLocalConnections,
        digester: SecretDigester,
        clock: Clock,
        last_used: LastUsedTracker,
        circuit_breaker: DatabaseCircuitBreaker,
        memory: OutageMemory,
    ) -> None:
        self._memory = memory
        self._circuit_breaker = circuit_breaker
        self._connections = connections
        peppers = len(digester.pepper_ids)
        self._digest_names = digest_names(2 * peppers)
        # By the number of ids, and of the secrets that are sent with them.
        self._by_digests = {
            (ids, secrets_sent): PreparedQuery(connections, by_digests(ids, secrets_sent * peppers))
            for ids, secrets_sent in ((1, 1), (1, 2), (2, 2))
        }
        self._by_keys = PreparedQuery(connections, BY_KEYS)
        self._by_secrets_as_keys = PreparedQuery(connections, BY_SECRETS_AS_KEYS)
        self._by_trusts = PreparedQuery(connections, BY_TRUSTS)
        self._digester = digester
        self._clock = clock
        self.last_used = last_used

    def verify_secret(
        self,
        candidates: Sequence[Credentials],
        method: str,
        source_address: str | None = None,
        *,
        allows_memory: bool = False,
    ) -> Authentication:
        """Find the client that one of ``candidates`` authenticates.

        Every candidate is digested and compared, whatever the others gave; an unknown id is compared with a dummy
        digest.

        :param candidates: one or two readings of the credentials.
        :param method: how they were presented: ``client_secret_basic`` or ``client_secret_post``.
        :param source_address: the caller's address, recorded as a use of the secret.
        :param allows_memory: whether a known client may be served while the database is away.
        :raises InvalidClient: no candidate is right; the reason is for the log.
        :raises ServiceUnavailable: the database did not answer, and the memory did not help.
        """
        digests = [self._digester.digest_with_all(candidate) for candidate in candidates]
        ids = {"one_id": candidates[0].client_id}
        if candidates[-1].client_id != candidates[0].client_id:
            ids["other_id"] = candidates[-1].client_id
        query = self._by_digests[len(ids), len(candidates)]
        all_digests = [digest for by_pepper in digests for digest in by_pepper.values()]
        sent = dict(zip(self._digest_names, all_digests, strict=False))
        found = self._look_up(query, ids, sent, allows_memory=allows_memory)
        now = self._clock()
        known_id: str | None = None
        refused_for, proven = RefusalReason.UNKNOWN_CLIENT, None
        for candidate, digest_by_pepper in zip(candidates, digests, strict=True):
            mine = [row for row in found.rows if row.asked_id == candidate.client_id]
            matching = _matching_secrets(mine, digest_by_pepper)
            working = usable(matching, now)
            reason = refusal_reason(mine[0], method, matching, working, _WRONG_SECRET)
            if reason is None:
                right = working[0]
                proven = self.accept(found, right, method, source_address, right)
                self._rehash(right, digest_by_pepper)
            elif reason != RefusalReason.UNKNOWN_CLIENT:
                known_id, refused_for = candidate.client_id, reason
        if proven is None:
            raise found.refusal(refused_for, known_id)
        return proven

    def query_client(self, client_id: str) -> Client | None:
        """Return the client, unless it does not exist or is disabled; Authlib's hook, for grants and extensions.

        :raises ServiceUnavailable: the database did not answer.
        """
        row = self.find(client_id).rows[0]
        is_served = row.client_id is not None and row.deleted_at is None and row.disabled_at is None
        return to_client(row) if is_served else None

    def find(self, client_id: str, *, allows_memory: bool = False) -> Lookup:
        """Find a client: one row.

        ``auth_fields`` and ``published_jwks``, which was fetched from its ``jwks_uri``, are JSON text.

        :raises ServiceUnavailable: as :meth:`verify_secret`.
        """
        return self._look_up(self._by_keys, {"one_id": client_id}, allows_memory=allows_memory)

    def find_with_secrets(self, client_id: str, *, allows_memory: bool = False) -> Lookup:
        """Find a client as :meth:`find`, with one row for each of its secrets, at most :data:`.queries.MOST_SECRETS`.

        :raises ServiceUnavailable: as :meth:`verify_secret`.
        """
        return self._look_up(self._by_secrets_as_keys, {"one_id": client_id}, allows_memory=allows_memory)

    def find_with_trusts(self, client_id: str, issuer: str) -> Lookup:
        """Find a client as :meth:`find`, with one row for each of its trusts in ``issuer``.

        ``trust_claims`` are JSON text, and so is ``issuer_jwks``, which the first row alone has. Not from the memory:
        an outage ends such authentication.

        :param issuer: for a SPIFFE token without one ``spiffe://``, the trust domain, and a slash.
        :raises ServiceUnavailable: as :meth:`verify_secret`.
        """
        return self._look_up(self._by_trusts, {"one_id": client_id}, {"issuer": issuer}, allows_memory=False)

    def accept(
        self, found: Lookup, row: Any, method: str, source_address: str | None, secret: Any = None
    ) -> Authentication:
        """Return the authentication of the client of ``row``, which :func:`refusal_reason` does not refuse.

        Records the use.

        :param secret: the row of the secret that was used, if the method has secrets.
        """
        secret_id = secret.secret_id if secret else None
        self.last_used.record(row.client_id, secret_id, source_address)
        self._memory.used.add(row.client_id)
        expires_at = secret.expires_at if secret else None
        return Authentication(to_client(row), method, secret_id, expires_at, found.outage is not None)

    def reencrypt(self, secret: Any, new_key_id: str, newly_encrypted: bytes) -> None:
        """Replace the ciphertext of an old key, later."""
        self.last_used.reencrypt(secret.secret_id, secret.encrypted, new_key_id, newly_encrypted)

    def answers(self) -> None:
        """Check that clients can be read.

        :raises ServiceUnavailable: they cannot.
        """
        self.find("")

    def serves_known_clients(self) -> bool:
        """Return whether known clients get tokens while the database is away, which it is."""
        return self._memory.can_serve()

    def takes_writes(self) -> bool:
        """Return whether the database takes writes. If not, revocations and assertions fail.

        :raises SQLAlchemyError: it cannot be reached.
        """
        return self._connections.takes_writes()

    def poll(self) -> None:
        """Probe the database while its circuit is open."""
        self._circuit_breaker.poll(lambda: self._by_keys.execute_on_new_connection({"one_id": ""}))

    def _look_up(
        self,
        query: PreparedQuery,
        ids: Mapping[str, str],
        others: Mapping[str, bytes | str] = MappingProxyType({}),
        *,
        allows_memory: bool,
    ) -> Lookup:
        try:
            return Lookup(query.execute_through(self._circuit_breaker, {**ids, **others}))
        except ServiceUnavailable as outage:
            if not allows_memory:
                raise
            return Lookup(self._memory.rows_of(ids.values(), outage), outage)

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
    columns: tuple[Any, ...] = (
        row.grant_types,
        row.scope,
        row.audiences,
        row.introspects,
        row.sender_constraints,
        row.claims,
        row.apis,
    )
    if not isinstance(row.scope, str):
        columns = tuple(json.dumps(column or ()) for column in columns)
    grant_types, scope, audiences, introspects, sender_constraints, claims, apis = columns
    characters = len(row.client_name) + len(scope) + len(audiences) + len(introspects or "") + len(claims or "")
    if apis:
        characters += len(apis)
    parse: Callable[..., Client] = _kept_client if characters <= _KEPT_CHARACTERS else _kept_large_client
    if characters > _KEPT_LARGE_CHARACTERS:
        parse = _parsed
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
        row.rate_limit,
        sender_constraints,
        claims,
        apis,
    )


def _parsed(  # noqa: PLR0913, PLR0917 - As the row has them.
    client_id: str,
    name: str,
    method: str,
    grant_types: str,
    scope: str,
    audiences: str,
    lifetime: int | None,
    introspects: str | None,
    tokens_not_before: datetime | None,
    rate_limit: str | None,
    sender_constraints: str | None,
    claims: str | None,
    apis: str | None,
) -> Client:
    return Client(
        client_id=client_id,
        client_name=name,
        token_endpoint_auth_method=method,
        grant_types=tuple(json.loads(grant_types)),
        scope=tuple(json.loads(scope)),
        audiences=tuple(json.loads(audiences)),
        access_token_lifetime=lifetime,
        introspects=tuple(json.loads(introspects or "[]")),
        tokens_not_before=tokens_not_before,
        rate_limit=parse_rate(rate_limit) if rate_limit else None,
        sender_constraints=tuple(json.loads(sender_constraints or "[]")),
        claims=dict(json.loads(claims or "[]")),
        apis=tuple(map(_granted_api, json.loads(apis or "[]"))),
    )


def _granted_api(api: Mapping[str, Any]) -> GrantedApi:
    """Return an API of ``ClientRow.apis``, also if another release wrote it, with fewer or more members."""
    return GrantedApi(
        api["name"],
        api["identifier"],
        tuple(api["scope"]),
        api.get("access_token_lifetime"),
        api.get("claims", {}),
        api.get("signing_alg"),
    )


_kept_client = lru_cache(maxsize=_CLIENTS_KEPT)(_parsed)
_kept_large_client = lru_cache(maxsize=_LARGE_CLIENTS_KEPT)(_parsed)
