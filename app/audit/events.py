"""Typed facts, past tense, safe to log by construction: no field can hold a secret, an assertion, a token or a key.

Whoever wants to know subscribes: the audit log (``logs``), the metrics. An event of a request carries its facts
in ``request``; one that no request caused has no such field. An event never holds what an
unauthenticated caller wrote: a client's id stands in it only when there is such a client, since people paste secrets
into the wrong field.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from app.errors import ServiceUnavailable

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFacts:
    """What is known of every request.

    :param source_address: the TCP peer.
    :param duration_ms: from the complete request to the event.
    :param trace_id: of its trace, where requests are traced.
    """

    request_id: str
    source_address: str | None
    duration_ms: float
    trace_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIssued:
    """An access token was signed and is about to be sent."""

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
    outcome: str = field(default="issued", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRefused:
    """A request at the token endpoint got no token.

    :param client_id: the client, when there is one of the id that was sent.
    :param error: the code that the caller reads.
    :param reason: what was wrong in truth.
    :param detail: more of the reason, from values that have passed their grammar.
    :param auth_method: how the request has tried to authenticate, when it has.
    :param grant_type: what it has asked for, when that is a grant of ours.
    """

    request: RequestFacts
    client_id: str | None
    error: str
    status: int
    reason: str
    detail: str | None = None
    auth_method: str | None = None
    grant_type: str | None = None
    outcome: str = field(default="refused", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRefused:
    """A request at another endpoint than that for tokens was refused; fields as in :class:`TokenRefused`.

    :param endpoint: its name: ``introspection``, ``revocation``, ``revocation_feed``.
    """

    request: RequestFacts
    endpoint: str
    client_id: str | None
    error: str
    status: int
    reason: str
    detail: str | None = None
    outcome: str = field(default="refused", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIntrospected:
    """A client has asked whether a token is good.

    :param client_id: who asked.
    :param active: what it was told.
    :param reason: why it was told that the token is not good.
    :param jti: the token's, when it is one of ours.
    """

    request: RequestFacts
    client_id: str
    active: bool
    reason: str | None = None
    jti: str | None = None
    outcome: str = field(default="answered", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRevoked:
    """A client has taken a token back.

    :param was_live: false where there was nothing to take back: an unknown token, or another client's.
    :param reason: why not.
    """

    request: RequestFacts
    client_id: str
    was_live: bool
    reason: str | None = None
    jti: str | None = None
    outcome: str = field(default="answered", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRingLoaded:
    """A worker signs and publishes with another ring from now on.

    :param published: the ``kid`` of each key of the JWKS, oldest first.
    """

    signing: str
    published: tuple[str, ...]
    outcome: str = field(default="loaded", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRingRejected:
    """The ring was changed to one that a worker will not take; it goes on with the one that it has.

    :param fault: one line, without a word of what is in a private key.
    """

    fault: str
    outcome: str = field(default="rejected", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyStateChanged:
    """A key has come to another state, by the clock or by a change of the ring. Told once by all workers together.

    :param since: when it did.
    """

    kid: str
    state: str
    since: datetime
    outcome: str = field(default="changed", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockFellBehind:
    """The clock says a time that is over by what was seen: keys stay in the states that they had reached."""

    reached_at: datetime
    behind_seconds: int
    outcome: str = field(default="ignored", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretExpiring:
    """A secret that still works will not for long. Told once a day for each, in its last 30 days."""

    client_id: str
    secret_id: str
    expires_at: datetime
    last_used_at: datetime | None
    outcome: str = field(default="expiring", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientChanged:
    """Somebody made, changed or ended a client, or a secret of one.

    :param by: the system user.
    :param fields: what of it is another now, by name.
    """

    by: str
    client_id: str
    change: str
    fields: tuple[str, ...] = ()
    secret_ids: tuple[str, ...] = ()
    outcome: str = field(default="changed", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenChanged:
    """Somebody made a token for a client, or took one back.

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
    """Somebody changed the key ring.

    :param by: the system user.
    :param kids: the keys that were made or changed.
    """

    by: str
    change: str
    kids: tuple[str, ...] = ()
    outcome: str = field(default="changed", init=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditLinesLost:
    """So many lines found no room while the audit log took none."""

    lines: int
    outcome: str = field(default="lost", init=False)


Event = (
    TokenIssued
    | TokenRefused
    | RequestRefused
    | TokenIntrospected
    | TokenRevoked
    | KeyRingLoaded
    | KeyRingRejected
    | KeyStateChanged
    | ClockFellBehind
    | SecretExpiring
    | AuditLinesLost
)
Subscriber = Callable[[Event], None]


class Events:
    """Hands each event to every subscriber, in the order in which they subscribed."""

    def __init__(self) -> None:
        self._subscribers: list[Subscriber] = []

    def subscribe(self, subscriber: Subscriber) -> None:
        """Call ``subscriber`` with every event from now on."""
        self._subscribers.append(subscriber)

    def emit(self, event: Event) -> None:
        """Tell all subscribers. One that fails costs nobody a token; it is logged.

        :raises ServiceUnavailable: a subscriber says that without it there may be no token.
        """
        for subscriber in self._subscribers:
            try:
                subscriber(event)
            except ServiceUnavailable:
                raise
            except Exception:
                request: RequestFacts | None = getattr(event, "request", None)
                log.exception("%s was lost, request_id=%s", type(event).__name__, request and request.request_id)
