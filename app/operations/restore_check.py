"""Compares a restored database with the audit log, and does again what the backup has undone.

A backup knows nothing of what came after it: a revoked key would sign again, a disabled client would get tokens, an
ended secret would work, and a revoked token would be accepted. Only restrictions are repeated. What was created since
is lost, and is named.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import select

from app.audit.lines import lines_with
from app.config.values import LONGEST_LIFETIME_SECONDS, format_time
from app.database.models import ClientRow, RevokedTokenRow, db
from app.errors import ManagementError
from app.services import Services
from app.tokens.revocations import RevokedToken
from app.types import DEFAULT_AUDIENCE

_CHANGES = (b"ClientChanged", b"KeyRingChanged", b"KeyStateChanged", b"TokenChanged", b"TokenRevoked")
_STATES = {"disabled", "enabled", "deleted"}


@dataclass(slots=True)
class ClientTrail:
    """What the log says of a client.

    :param state: ``disabled``, ``enabled`` or ``deleted``, whichever came last, and when.
    :param tokens_revoked_at: when all its tokens were last revoked.
    :param ended: the secrets that were revoked or retired.
    :param added: the secrets that were created, and when.
    """

    created_at: datetime | None = None
    state: tuple[str, datetime] | None = None
    tokens_revoked_at: datetime | None = None
    ended: dict[str, datetime] = field(default_factory=dict)
    added: dict[str, datetime] = field(default_factory=dict)
    updated: dict[str, datetime] = field(default_factory=dict)


@dataclass(slots=True)
class Trail:
    """What the log says that a backup may have undone.

    :param revoked_tokens: client and time, by ``jti``.
    :param issued: line of ``TokenIssued`` of a revoked token, by ``jti``.
    """

    clients: dict[str, ClientTrail] = field(default_factory=dict)
    revoked_keys: dict[str, datetime] = field(default_factory=dict)
    created_keys: dict[str, datetime] = field(default_factory=dict)
    pruned_keys: set[str] = field(default_factory=set)
    revoked_tokens: dict[str, tuple[str, datetime]] = field(default_factory=dict)
    issued: dict[str, dict[str, Any]] = field(default_factory=dict)

    def client(self, client_id: str) -> ClientTrail:
        """Return what is known of a client."""
        return self.clients.setdefault(client_id, ClientTrail())


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that the log says and the database does not.

    :param what: one line.
    :param repeat: does it again; ``None`` for what is lost.
    """

    what: str
    repeat: Callable[[], object] | None = None


def read_trail(paths: Sequence[Path]) -> Trail:
    """Read audit logs, in any order.

    :raises ManagementError: one cannot be read, or none has a line of the audit log.
    """
    if not any("event" in facts and _time_of(facts) for path in paths for facts in _lines(path, b"")):
        names = ", ".join(map(str, paths))
        raise ManagementError(f"no line of the audit log in {names}: give the files that the servers wrote it to")
    found = ((_time_of(facts), facts) for path in paths for facts in _lines(path, *_CHANGES))
    events = [(time, facts) for time, facts in found if time is not None]
    trail = Trail()
    for time, facts in sorted(events, key=lambda event: event[0]):
        _note(trail, time, facts)
    words = [jti.encode() for jti in trail.revoked_tokens]
    for path in paths if words else ():
        for facts in _lines(path, *words):
            if facts.get("event") == "TokenIssued" or facts.get("change") == "issued":
                trail.issued[str(facts.get("jti"))] = facts
    return trail


def _lines(path: Path, *words: bytes) -> Iterator[dict[str, Any]]:
    try:
        yield from lines_with(path, *words)
    except (OSError, EOFError) as error:
        raise ManagementError(f"the log {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def _note(trail: Trail, time: datetime, facts: dict[str, Any]) -> None:
    event, change, client_id = facts.get("event"), str(facts.get("change", "")), facts.get("client_id")
    kids = [str(kid) for kid in facts.get("kids") or ()]
    if event == "ClientChanged" and isinstance(client_id, str):
        _note_client(trail.client(client_id), time, change, facts)
    elif event == "KeyRingChanged" and change == "revoked":
        trail.revoked_keys |= dict.fromkeys(kids, time)
    elif event == "KeyRingChanged" and change in {"generated", "rotated"}:
        trail.created_keys |= {kid: time for kid in kids if kid not in trail.created_keys}
    elif event == "KeyRingChanged" and change == "pruned":
        trail.pruned_keys |= set(kids)
    elif event == "KeyStateChanged" and facts.get("state") == "revoked":
        trail.revoked_keys.setdefault(str(facts.get("kid")), time)
    elif (event == "TokenRevoked" and facts.get("was_live")) or (event == "TokenChanged" and change == "revoked"):
        trail.revoked_tokens[str(facts.get("jti"))] = str(client_id), time


def _note_client(client: ClientTrail, time: datetime, change: str, facts: dict[str, Any]) -> None:
    secret_ids = [str(secret_id) for secret_id in facts.get("secret_ids") or ()]
    if change == "created":
        client.created_at = time
        client.added |= dict.fromkeys(secret_ids, time)
    elif change in _STATES:
        client.state = change, time
        if change == "disabled":
            client.tokens_revoked_at = time
    elif change == "tokens_revoked":
        client.tokens_revoked_at = time
    elif change in {"secret_revoked", "secrets_retired"}:
        client.ended |= dict.fromkeys(secret_ids, time)
    elif change == "secret_added":
        client.added |= dict.fromkeys(secret_ids, time)
    elif change == "updated":
        client.updated |= {str(name): time for name in facts.get("fields") or ()}


def find_differences(services: Services, trail: Trail) -> Iterator[Difference]:
    """Compare the log with the database and the key ring. Needs an application context.

    :raises StartError: the ring cannot be read.
    """
    yield from _compare_keys(services, trail)
    for client_id in sorted(trail.clients):
        yield from _compare_client(services, client_id, trail.clients[client_id])
    yield from _compare_tokens(services, trail)


def _compare_keys(services: Services, trail: Trail) -> Iterator[Difference]:
    manager = services.keys.manager
    ring = {key.kid: key for key in manager.backend.read().keys}
    for kid, time in trail.revoked_keys.items():
        if kid in ring and ring[kid].revoked_at is None:
            what = f"key {kid} was revoked at {format_time(time)}"
            yield Difference(what, lambda kid=kid: manager.revoke(kid))  # type: ignore[misc]
    for kid, time in trail.created_keys.items():
        if kid not in ring and kid not in trail.pruned_keys:
            yield Difference(
                f"key {kid} was created at {format_time(time)} and is lost: tokens that it signed are refused"
            )


def _compare_client(services: Services, client_id: str, log: ClientTrail) -> Iterator[Difference]:
    repository = services.clients.repository
    row = db.session.get(ClientRow, client_id)
    state, time = log.state or ("enabled", datetime.min.replace(tzinfo=UTC))
    if row is None:
        if log.created_at and state != "deleted":
            yield Difference(f"client {client_id} was created at {format_time(log.created_at)} and is lost")
    elif row.deleted_at is None and state == "deleted":
        what = f"client {client_id} was deleted at {format_time(time)}"
        yield Difference(what, lambda: repository.delete(client_id))
    elif row.deleted_at is None:
        if row.disabled_at is None and state == "disabled":
            what = f"client {client_id} was disabled at {format_time(time)}"
            yield Difference(what, lambda: repository.disable(client_id))
            # That ends all its tokens.
            log = replace(log, tokens_revoked_at=None)
        yield from _compare_row(services, row, log)


def _compare_row(services: Services, row: ClientRow, log: ClientTrail) -> Iterator[Difference]:
    client_id, known = row.client_id, {secret.secret_id: secret for secret in row.secrets}
    repository, secrets = services.clients.repository, services.clients.secrets
    revoked = log.tokens_revoked_at and log.tokens_revoked_at.replace(microsecond=0)
    if revoked and (row.tokens_not_before is None or row.tokens_not_before < revoked):
        what = f"all tokens of client {client_id} were revoked at {format_time(revoked)}"
        yield Difference(what, lambda: repository.revoke_tokens(client_id, until=revoked))
    for secret_id, ended_at in log.ended.items():
        if secret_id in known and known[secret_id].revoked_at is None:
            what = f"secret {secret_id} of client {client_id} was ended at {format_time(ended_at)}"
            yield Difference(what, lambda one=secret_id: secrets.revoke(client_id, one))  # type: ignore[misc]
    for secret_id, added_at in log.added.items():
        if secret_id not in known and secret_id not in log.ended:
            what = f"secret {secret_id} of client {client_id} was created at {format_time(added_at)} and is lost"
            yield Difference(f"{what}: its callers are refused")
    later = {name: time for name, time in log.updated.items() if time > row.updated_at + timedelta(seconds=1)}
    if later:
        when = format_time(max(later.values()))
        yield Difference(f"client {client_id} was updated at {when}, and has the former {', '.join(sorted(later))}")


def _compare_tokens(services: Services, trail: Trail) -> Iterator[Difference]:
    known = set(db.session.scalars(select(RevokedTokenRow.jti)))
    now = int(services.clock().timestamp())
    for jti, (client_id, time) in trail.revoked_tokens.items():
        token = _revoked_token(services, jti, client_id, time, trail.issued.get(jti))
        if jti not in known and token.exp > now:
            what = f"token {jti} of client {client_id} was revoked at {format_time(time)}"
            yield Difference(what, lambda token=token: services.tokens.revocations.revoke(token))  # type: ignore[misc]


def _revoked_token(
    services: Services, jti: str, client_id: str, revoked_at: datetime, issued: dict[str, Any] | None
) -> RevokedToken:
    """Return the token, with what the log says of its issue; without that it may live as long as any token."""
    issued_at = _time_of(issued) if issued else None
    if issued and issued_at and isinstance(issued.get("expires_in"), int):
        audiences = tuple(map(str, issued.get("audience") or ()))
        return RevokedToken(jti, client_id, audiences, int(issued_at.timestamp()) + 1 + issued["expires_in"])
    row = db.session.get(ClientRow, client_id)
    ever = (row.audiences_ever if row else None) or [DEFAULT_AUDIENCE]
    audiences = tuple(services.settings.default_audience if one == DEFAULT_AUDIENCE else one for one in ever)
    return RevokedToken(jti, client_id, audiences, int(revoked_at.timestamp()) + LONGEST_LIFETIME_SECONDS)


def _time_of(facts: dict[str, Any]) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(facts.get("time")))
    except ValueError:
        return None
    return found if found.tzinfo else None
