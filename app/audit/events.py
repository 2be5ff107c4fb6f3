"""Events: what happened, in the past tense. Safe to log: no field can hold a secret, an assertion, a token or a key.

The audit log (``audit.log``), metrics and traces subscribe. An event of a request has its facts in ``request``;
other events have no such field. An event never holds what an unauthenticated caller wrote: it names a client only if
that client exists, since people paste secrets into the wrong field.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from app.errors import ServiceUnavailable

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFacts:
    """What is known of every request.

    :param source_address: the caller's address.
    :param duration_ms: from the complete request to the event.
    :param trace_id: the id of its trace, if requests are traced.
    """

    request_id: str
    source_address: str | None
    duration_ms: float
    trace_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIssued:
    """An access token was signed and is about to be sent.

    :param from_memory: true if the database was away, and the client is known from before.
    :param cnf: what the token is bound to, if it is.
    :param trust_id: the trust by which a platform's token authenticated the client.
    :param assertion_issuer: that platform.
    :param assertion_subject: the workload, as the platform names it.
    """

    request: RequestFacts
    client_id: str
    auth_method: str
    secret_id: str | None
    grant_type: str
    scope: str
    audience: tuple[str, ...]
    jti: str
    kid: str
    expires_in: int
    from_memory: bool | None = None
    cnf: Mapping[str, str] | None = None
    trust_id: str | None = None
    assertion_issuer: str | None = None
    assertion_subject: str | None = None
    outcome: str = field(default="issued", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRefused:
    """A token request was refused.

    :param client_id: the client, if one with the id that was sent exists.
    :param error: the code that the caller reads.
    :param reason: the true cause.
    :param detail: more about the cause, from values that have passed their grammar.
    :param auth_method: how the request tried to authenticate, if it did.
    :param grant_type: the requested grant, if it is registered.
    :param trust_id: the trust that a platform's token came closest to, if its signature is valid.
    :param assertion_issuer: that platform.
    :param assertion_subject: the workload, as the platform names it.
    """

    request: RequestFacts
    client_id: str | None
    error: str
    status: int
    reason: str
    detail: str | None = None
    auth_method: str | None = None
    grant_type: str | None = None
    trust_id: str | None = None
    assertion_issuer: str | None = None
    assertion_subject: str | None = None
    outcome: str = field(default="refused", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRefused:
    """A request at another endpoint than the token endpoint was refused; fields as in :class:`TokenRefused`.

    :param endpoint: the endpoint: ``introspection``, ``revocation`` or ``revocation_feed``.
    """

    request: RequestFacts
    endpoint: str
    client_id: str | None
    error: str
    status: int
    reason: str
    detail: str | None = None
    trust_id: str | None = None
    assertion_issuer: str | None = None
    assertion_subject: str | None = None
    outcome: str = field(default="refused", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalCounted:
    """A request was refused beyond a rate limit. It is not logged; a :class:`RefusalsSummarized` counts it.

    :param sent_id_hash: a hash of the client id that was sent; ``None`` if the client has authenticated.
    :param cause: the reason; for a failed authentication why it failed.
    """

    refusal: TokenRefused | RequestRefused
    sent_id_hash: int | None
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalsSummarized:
    """Requests of one address, or of one authenticated client, were refused beyond a rate limit within a minute.

    :param source_address: the address. ``None`` for a client, and in the line for all addresses beyond the first 100.
    :param client_id: the authenticated client.
    :param requests: how many requests were refused.
    :param causes: how many for each reason.
    :param client_ids_sent: how many different client ids the requests named, at most 1000.
    :param known_client_ids: those among them that exist, at most 10.
    """

    source_address: str | None
    client_id: str | None
    since: datetime
    requests: int
    causes: Mapping[str, int]
    client_ids_sent: int | None
    known_client_ids: tuple[str, ...]
    outcome: str = field(default="refused", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIntrospected:
    """A client has introspected a token.

    :param client_id: the client.
    :param active: the answer.
    :param reason: why the answer was not ``active``.
    :param jti: the token's id, if it is one of ours.
    """

    request: RequestFacts
    client_id: str
    active: bool
    reason: str | None = None
    jti: str | None = None
    outcome: str = field(default="answered", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRevoked:
    """A client has revoked a token.

    :param was_live: false if there was nothing to revoke: an unknown token, or another client's.
    :param reason: why not.
    """

    request: RequestFacts
    client_id: str
    was_live: bool
    reason: str | None = None
    jti: str | None = None
    outcome: str = field(default="answered", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenQuotaExceeded:
    """A client has got more tokens in a day than the quota allows. Emitted once a day for each client.

    :param day: the day, in UTC.
    """

    client_id: str
    day: str
    quota: int
    tokens: int
    outcome: str = field(default="exceeded", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRingLoaded:
    """A worker signs and publishes with a changed ring from now on.

    :param published: the ``kid`` of each key in the JWKS, oldest first.
    """

    signing: str
    published: tuple[str, ...]
    outcome: str = field(default="loaded", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRingRejected:
    """A worker has rejected a changed ring and continues with its own.

    :param fault: one line that quotes nothing of a private key.
    """

    fault: str
    outcome: str = field(default="rejected", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStateChanged:
    """A key has changed its state, by the clock or by a change of the ring. Emitted once per server.

    :param since: when the state changed.
    """

    kid: str
    state: str
    since: datetime
    outcome: str = field(default="changed", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockFellBehind:
    """The clock shows an earlier time than before: keys stay in the states that they had reached."""

    reached_at: datetime
    behind_seconds: int
    outcome: str = field(default="ignored", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretExpiring:
    """A valid secret will expire within 30 days. Emitted once a day for each secret."""

    client_id: str
    secret_id: str
    expires_at: datetime
    last_used_at: datetime | None
    outcome: str = field(default="expiring", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientChanged:
    """A client or one of its secrets was created, changed or deleted.

    :param by: the system user.
    :param fields: the names of the changed fields.
    """

    by: str
    client_id: str
    change: str
    fields: tuple[str, ...] = ()
    secret_ids: tuple[str, ...] = ()
    outcome: str = field(default="changed", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiChanged:
    """An API was created, changed or deleted, or a client was granted it or lost it.

    :param by: the system user.
    :param fields: the names of the changed fields.
    """

    by: str
    api: str
    change: str
    client_id: str | None = None
    fields: tuple[str, ...] = ()
    outcome: str = field(default="changed", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerChanged:
    """The keys of a platform whose tokens authenticate clients changed.

    :param by: the system user, or the fetch of keys.
    """

    by: str
    issuer: str
    change: str
    outcome: str = field(default="changed", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenChanged:
    """A token was issued or revoked by a command.

    :param by: the system user.
    """

    by: str
    change: str
    client_id: str
    jti: str
    scope: str | None = None
    audience: tuple[str, ...] = ()
    expires_in: int | None = None
    outcome: str = field(default="changed", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRingChanged:
    """The key ring was changed.

    :param by: the system user.
    :param kids: the keys that were created or changed.
    """

    by: str
    change: str
    kids: tuple[str, ...] = ()
    outcome: str = field(default="changed", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditLinesLost:
    """Lines were dropped while the audit log took none."""

    lines: int
    outcome: str = field(default="lost", init=False)


Event = (
    TokenIssued
    | TokenRefused
    | RequestRefused
    | RefusalCounted
    | RefusalsSummarized
    | TokenIntrospected
    | TokenRevoked
    | TokenQuotaExceeded
    | KeyRingLoaded
    | KeyRingRejected
    | KeyStateChanged
    | ClockFellBehind
    | SecretExpiring
    | AuditLinesLost
)
Subscriber = Callable[[Event], None]


class Events:
    """Hands each event to every subscriber, in the order of subscription."""

    def __init__(self) -> None:
        self._subscribers: list[Subscriber] = []

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call ``subscriber`` with every event from now on."""
        self._subscribers.append(subscriber)

    def emit(self, event: Event) -> None:
        """Call all subscribers. A failing subscriber is logged and prevents no token.

        :raises ServiceUnavailable: a subscriber requires that no token is issued without it.
        """
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except ServiceUnavailable:
                raise
            except Exception:
                request: RequestFacts | None = getattr(event, "request", None)
                log.exception("%s was lost, request_id=%s", type(event).__name__, request and request.request_id)
