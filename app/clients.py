"""The one door to client rows: verify a secret, and find, register, update, disable, delete a client.

The request path (:meth:`ClientStore.verify_secret`) is one Core statement and no write. Management goes through the
ORM, one transaction for each call. Which authentication methods and grants exist is left to the registries.
"""

import hmac
import json
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import String, Text, bindparam, cast, select, text, union
from sqlalchemy.engine import Engine
from sqlalchemy.exc import DBAPIError, IntegrityError, SQLAlchemyError
from sqlalchemy.orm import scoped_session

from app.client_fields import ClientFields, check_client_id, check_imported_secret, form_decode
from app.client_secrets import SecretDigester, generate_secret, is_vschar
from app.contracts import Authentication, Client, Clock, Credentials
from app.database import reading_engine
from app.errors import InvalidClient, ManagementError, ServiceUnavailable
from app.models import ClientRow, ClientSecretRow

ANY_SECRET_METHOD = "client_secret"  # noqa: S105 - A method's name.
"""Our own value of ``token_endpoint_auth_method``: Basic and body are both accepted."""

_CLIENT_COLUMNS = (
    ClientRow.client_id,
    ClientRow.client_name,
    ClientRow.token_endpoint_auth_method,
    # As text, parsed only for a client that has proven who it is: parsing would tell by its time which ids exist.
    cast(ClientRow.grant_types, Text).label("grant_types"),
    cast(ClientRow.scope, Text).label("scope"),
    cast(ClientRow.audiences, Text).label("audiences"),
    ClientRow.access_token_lifetime,
    ClientRow.disabled_at,
    ClientRow.deleted_at,
)
_SECRET_COLUMNS = (
    ClientSecretRow.secret_id,
    ClientSecretRow.digest,
    ClientSecretRow.pepper_id,
    ClientSecretRow.expires_at,
    ClientSecretRow.revoked_at,
)

# Both readings of Basic credentials are looked up at once, so that both cost the same. An id that nobody has gives a
# row too, of nothing: what is done with rows takes time, and would tell which ids exist.
_ASKED = union(
    select(bindparam("one_id", type_=String).label("asked_id")), select(bindparam("other_id", type_=String))
).subquery("asked")
_FIND_WITH_SECRETS = (
    select(_ASKED.c.asked_id, *_CLIENT_COLUMNS, *_SECRET_COLUMNS)
    .select_from(_ASKED)
    .outerjoin(ClientRow, ClientRow.client_id == _ASKED.c.asked_id)
    .outerjoin(ClientSecretRow, ClientSecretRow.client_id == ClientRow.client_id)
)

# Compared where there is no digest, so that an unknown client costs what a known one does. Random, so that no secret
# has it.
_DUMMY_DIGEST = secrets.token_bytes(32)

# Registrations stand in line on PostgreSQL, since two ids can collide in a reading that no constraint covers. Any
# number that nothing else in the database uses. SQLite has one writer anyway.
_REGISTRATION_LOCK = 0x746F6B656E

_GENERATED_ID_CHARACTERS = "abcdefghijklmnopqrstuvwxyz234567"
_GENERATED_ID_LENGTH = 20


@dataclass(frozen=True, slots=True)
class NewSecret:
    """A secret at its creation: the only moment at which it is known in clear."""

    secret: str
    secret_id: str
    expires_at: datetime | None

    def __repr__(self) -> str:
        """Keep the secret out of every traceback and log."""
        return f"NewSecret({self.secret_id})"


class ClientStore:
    """Clients in the database.

    :param engine: for the request path.
    :param session: for management; each call commits or rolls back.
    """

    def __init__(self, engine: Engine, session: scoped_session[Any], digester: SecretDigester, clock: Clock) -> None:
        self._reading = reading_engine(engine)
        self._session = session
        self._digester = digester
        self._clock = clock

    def verify_secret(self, candidates: Sequence[Credentials], method: str) -> Authentication:
        """Find the client that one of ``candidates`` proves to be.

        Every candidate is digested and compared, whatever the others gave, and an unknown id with a dummy digest.

        :param candidates: one or two readings of what the request presented.
        :param method: how it was presented: ``client_secret_basic`` or ``client_secret_post``.
        :raises InvalidClient: none is right; the reason is for the log.
        :raises ServiceUnavailable: the database did not answer.
        """
        digests = [self._digester.digest_with_all(candidate) for candidate in candidates]
        rows = self._fetch(candidates[0].client_id, candidates[-1].client_id)
        known_id, refused_for, proven = None, "unknown_client", None
        for candidate, digest_by_pepper in zip(candidates, digests, strict=True):
            mine = [row for row in rows if row.asked_id == candidate.client_id]
            matching = _matching_secrets(mine, digest_by_pepper)
            reason = self._refusal_reason(mine[0], matching, method)
            if reason is None:
                right = next(row for row in matching if self._still_works(row))
                proven = Authentication(_frozen(right), method, right.secret_id)
            elif reason != "unknown_client":
                known_id, refused_for = candidate.client_id, reason
        if proven is None:
            raise InvalidClient(refused_for, client_id=known_id)
        return proven

    def answers(self) -> None:
        """Make sure that clients can be read.

        :raises ServiceUnavailable: they cannot.
        """
        self._fetch("", "")

    def _fetch(self, one_id: str, other_id: str) -> Sequence[Any]:
        ids = {"one_id": one_id, "other_id": other_id}
        try:
            try:
                return self._execute(ids)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
                # The connection was from before a restart of the database, and the pool has dropped all of that age.
                # Asking again is cheaper than a ping before each statement.
                return self._execute(ids)
        except SQLAlchemyError as error:
            raise ServiceUnavailable(f"database_{type(error).__name__}") from error

    def _execute(self, ids: dict[str, str]) -> Sequence[Any]:
        with self._reading.connect() as connection:
            return connection.execute(_FIND_WITH_SECRETS, ids).all()

    def _refusal_reason(self, client: Any, matching: Sequence[Any], method: str) -> str | None:
        """Say why ``client``, a row, is refused with the secrets that match; ``None`` when it is not."""
        reasons = {
            "unknown_client": client.client_id is None,
            "deleted_client": client.deleted_at is not None,
            "disabled_client": client.disabled_at is not None,
            "other_method_registered": client.token_endpoint_auth_method not in {ANY_SECRET_METHOD, method},
            "wrong_secret": not matching,
            "revoked_secret": all(row.revoked_at is not None for row in matching),
            "expired_secret": not any(self._still_works(row) for row in matching),
        }
        return next((reason for reason, applies in reasons.items() if applies), None)

    def _still_works(self, secret: Any) -> bool:
        return secret.revoked_at is None and (secret.expires_at is None or secret.expires_at > self._clock())

    def find(self, client_id: str) -> ClientRow:
        """Look up one client by its id.

        :raises ManagementError: there is none, or it was deleted.
        """
        row = self._session.get(ClientRow, client_id) if is_vschar(client_id) else None
        if row is None or row.deleted_at is not None:
            raise ManagementError(f"there is no client {client_id!r}: `flask clients list` shows all")
        return row

    def list_all(self) -> Sequence[ClientRow]:
        """Every client that was not deleted, oldest first."""
        found = select(ClientRow).where(ClientRow.deleted_at.is_(None))
        return self._session.scalars(found.order_by(ClientRow.created_at, ClientRow.client_id)).all()

    def register(
        self,
        fields: ClientFields,
        *,
        client_id: str | None = None,
        with_secret: bool = True,
        secret: str | None = None,
        secret_expires_after: timedelta | None = None,
    ) -> tuple[ClientRow, NewSecret | None]:
        """Make a client, with its first secret.

        :param client_id: an id that is taken over from elsewhere; generated otherwise.
        :param with_secret: false for an authentication method that has no secrets.
        :param secret: likewise taken over, or generated.
        :raises ManagementError: the id or the secret is not allowed, or the id is taken or was once.
        """
        if client_id is not None:
            check_client_id(client_id)
        if secret is not None:
            check_imported_secret(secret)
        new_id = client_id or _generate_client_id(fields.client_name)
        now = self._clock()
        with self._writing() as session:
            self._stand_in_line(session)
            self._refuse_taken_id(session, new_id)
            row = ClientRow(client_id=new_id, form_decoded_id=_other_reading(new_id), created_at=now, updated_at=now)
            _apply(row, fields)
            session.add(row)
            return row, self._add_secret(row, secret, secret_expires_after) if with_secret else None

    def update(self, client_id: str, **changes: Any) -> ClientRow:
        """Change some of a client's fields.

        :param changes: fields of :class:`ClientFields` by name.
        :raises ManagementError: a value that is not allowed, or no such client.
        """
        with self._writing():
            row = self.find(client_id)
            _apply(row, replace(describe(row), **changes))
            row.updated_at = self._clock()
            return row

    def disable(self, client_id: str) -> ClientRow:
        """Refuse the client from the next request on, whichever worker gets it. Twice is once."""
        with self._writing():
            row = self.find(client_id)
            row.disabled_at = row.disabled_at or self._clock()
            return row

    def enable(self, client_id: str) -> ClientRow:
        """Take :meth:`disable` back."""
        with self._writing():
            row = self.find(client_id)
            row.disabled_at = None
            return row

    def delete(self, client_id: str) -> None:
        """Forget all of a client but its id and the time: an id is never reused."""
        with self._writing():
            row = self.find(client_id)
            _apply(row, ClientFields(client_name="deleted", grant_types=()))
            row.secrets.clear()
            row.deleted_at = row.updated_at = self._clock()

    def _add_secret(self, row: ClientRow, imported: str | None, expires_after: timedelta | None) -> NewSecret:
        now = self._clock()
        secret = imported or generate_secret()
        pepper_id, digest = self._digester.digest(Credentials(row.client_id, secret))
        stored = ClientSecretRow(
            secret_id=f"s-{_random_name(12)}",
            digest=digest,
            pepper_id=pepper_id,
            last_four=secret[-4:],
            origin="imported" if imported else "generated",
            created_at=now,
            expires_at=now + expires_after if expires_after else None,
        )
        row.secrets.append(stored)
        return NewSecret(secret, stored.secret_id, stored.expires_at)

    @contextmanager
    def _writing(self) -> Iterator[scoped_session[Any]]:
        """One transaction: committed whole, or nothing of it."""
        try:
            yield self._session
            self._session.commit()
        except IntegrityError:
            self._session.rollback()
            raise ManagementError("somebody else has just made the same change: look, and try again") from None
        except BaseException:
            self._session.rollback()
            raise

    def _stand_in_line(self, session: scoped_session[Any]) -> None:
        if session.get_bind().dialect.name == "postgresql":
            session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _REGISTRATION_LOCK})

    def _refuse_taken_id(self, session: scoped_session[Any], client_id: str) -> None:
        """Refuse an id that is or was in use, and one that a form-encoding client would send as another's."""
        taken = select(ClientRow.client_id).where(
            ClientRow.client_id.in_([client_id, _other_reading(client_id)]) | (ClientRow.form_decoded_id == client_id)
        )
        other = session.scalars(taken.limit(1)).first()
        if other == client_id:
            raise ManagementError(f"client id {client_id!r} is taken, or was: ids are never reused")
        if other is not None:
            raise ManagementError(
                f"client id {client_id!r} reads like {other!r} when it is form-encoded: choose another"
            )


def describe(row: ClientRow) -> ClientFields:
    """Read a row as the fields that it was made of."""
    return ClientFields(
        client_name=row.client_name,
        scope=tuple(row.scope),
        audiences=tuple(row.audiences),
        access_token_lifetime=row.access_token_lifetime,
        token_endpoint_auth_method=row.token_endpoint_auth_method,
        grant_types=tuple(row.grant_types),
        contacts=tuple(row.contacts),
        description=row.description,
        labels=dict(row.labels),
    )


def _apply(row: ClientRow, fields: ClientFields) -> None:
    row.client_name = fields.client_name
    row.description = fields.description
    row.contacts = list(fields.contacts)
    row.labels = dict(fields.labels)
    row.token_endpoint_auth_method = fields.token_endpoint_auth_method
    row.grant_types = list(fields.grant_types)
    row.scope = list(fields.scope)
    row.audiences = list(fields.audiences)
    row.access_token_lifetime = fields.access_token_lifetime


def _matching_secrets(rows: Sequence[Any], digest_by_pepper: Mapping[str, bytes]) -> list[Any]:
    """Compare all, a dummy where there is no digest, and one of another pepper where its own is gone."""
    newest = next(iter(digest_by_pepper.values()))
    matching = []
    for row in rows:
        computed = digest_by_pepper.get(row.pepper_id, newest)
        is_equal = hmac.compare_digest(computed, row.digest or _DUMMY_DIGEST)
        if is_equal and row.pepper_id in digest_by_pepper:
            matching.append(row)
    return matching


def _frozen(row: Any) -> Client:
    return Client(
        client_id=row.client_id,
        client_name=row.client_name,
        token_endpoint_auth_method=row.token_endpoint_auth_method,
        grant_types=tuple(json.loads(row.grant_types)),
        scope=tuple(json.loads(row.scope)),
        audiences=tuple(json.loads(row.audiences)),
        access_token_lifetime=row.access_token_lifetime,
    )


def _other_reading(client_id: str) -> str:
    """Give the id as a form-encoding client's Basic header would be read; the id itself where it has no other reading.

    What no id may hold (beyond %x20-7E) cannot be another client's either, and does not fit its column.
    """
    try:
        decoded = form_decode(client_id)
    except UnicodeDecodeError:
        return client_id
    return decoded if decoded and is_vschar(decoded) else client_id


def _generate_client_id(client_name: str) -> str:
    """Make an id of unreserved characters that says whose it is: the name, and 100 random bits."""
    slug = re.sub(r"[^a-z0-9]+", "-", client_name.lower()).strip("-")[:40].strip("-")
    return f"{slug or 'client'}-{_random_name(_GENERATED_ID_LENGTH)}"


def _random_name(length: int) -> str:
    return "".join(secrets.choice(_GENERATED_ID_CHARACTERS) for _ in range(length))
