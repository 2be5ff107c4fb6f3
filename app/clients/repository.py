"""Management of clients: find, register, update, disable, delete. Through the ORM, one transaction for each call.

Their secrets are left to ``clients.secrets``; which authentication methods and grants exist, to the registries.
"""

import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields as fields_of
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import groupby
from types import SimpleNamespace
from typing import Any

from sqlalchemy import ColumnElement, exists, func, select, text
from sqlalchemy.orm import scoped_session, selectinload

from app.clients.fields import ClientFields, check_client_id, check_imported_secret, form_decode
from app.clients.jwks_cache import FetchedJwks, store_jwks
from app.clients.secret_digests import is_vschar
from app.clients.secrets import ClientSecrets, NewSecret, usable_at
from app.clients.transactions import find_client, writing
from app.database.models import ClientKeySetRow, ClientRow, ClientSecretRow
from app.errors import ManagementError
from app.types import DEFAULT_AUDIENCE, Client, Clock

# Registrations stand in line on PostgreSQL, since two ids can collide in a reading that no constraint covers. Any
# number that nothing else in the database uses. SQLite has one writer anyway.
_REGISTRATION_LOCK = 0x746F6B656E

_GENERATED_ID_CHARACTERS = "abcdefghijklmnopqrstuvwxyz234567"
_GENERATED_ID_LENGTH = 20


ListedClient = SimpleNamespace
"""A client with the columns of :class:`ClientRow`, and ``secrets`` with those of :class:`ClientSecretRow`."""

_OLDEST_FIRST = (ClientRow.created_at, ClientRow.client_id)
_ROWS_AT_ONCE = 1000


class ClientRepository:
    """Clients in the database.

    :param session: each call commits or rolls back.
    """

    def __init__(self, session: scoped_session[Any], client_secrets: ClientSecrets, clock: Clock) -> None:
        self._session = session
        self._secrets = client_secrets
        self._clock = clock

    def find(self, client_id: str) -> ClientRow:
        """Look up one client by its id.

        :raises ManagementError: there is none, or it was deleted.
        """
        return find_client(self._session, client_id)

    def cached_jwks_of(self, row: ClientRow) -> ClientKeySetRow | None:
        """What was fetched for a client that publishes its keys."""
        found: ClientKeySetRow | None = self._session.get(ClientKeySetRow, row.client_id)
        return found

    def list_all(self, limit: int | None = None, **filters: Any) -> Sequence[ClientRow]:
        """Every client that was not deleted, oldest first; of several filters, those that pass all.

        :param filters: those of :func:`conditions`.
        """
        found = select(ClientRow).where(*conditions(self._clock(), **filters)).options(selectinload(ClientRow.secrets))
        return self._session.scalars(found.order_by(*_OLDEST_FIRST).limit(limit)).all()

    def stream(self, limit: int | None = None, **filters: Any) -> Iterator[ListedClient]:
        """:meth:`list_all` for very many: one after the other, never all in memory."""
        chosen = select(ClientRow).where(*conditions(self._clock(), **filters))
        clients = chosen.order_by(*_OLDEST_FIRST).limit(limit).subquery()
        found = (
            select(*clients.c, *(column.label(f"secret_{column.name}") for column in ClientSecretRow.__table__.c))
            .outerjoin(ClientSecretRow, ClientSecretRow.client_id == clients.c.client_id)
            .order_by(clients.c.created_at, clients.c.client_id, ClientSecretRow.created_at)
        )
        rows = self._session.connection().execute(found, execution_options={"yield_per": _ROWS_AT_ONCE})
        for _, group in groupby(rows, key=lambda row: row.client_id):
            yield _listed(list(group))

    def end_reading(self) -> None:
        """End the transaction that reading has begun, before a person is asked; its rows are worth nothing then."""
        self._session.rollback()

    def longest_lifetime(self) -> int | None:
        """The longest lifetime of a client's own, in seconds, if any has one."""
        longest: int | None = self._session.scalar(select(func.max(ClientRow.access_token_lifetime)))
        return longest

    @contextmanager
    def registering(  # noqa: PLR0913 - All that is given with a client when it is made.
        self,
        fields: ClientFields,
        *,
        client_id: str | None = None,
        with_secret: bool = True,
        secret: str | None = None,
        secret_expires_after: timedelta | None = None,
        key_set: FetchedJwks | None = None,
    ) -> Iterator[tuple[ClientRow, NewSecret | None]]:
        """Make a client, with its first secret.

        Both count when the block ends, so that no secret is ever lost: if it cannot be handed over, there is no client.

        :param client_id: an id that is taken over from elsewhere; generated otherwise.
        :param with_secret: false for an authentication method that has no secrets.
        :param secret: likewise taken over, or generated.
        :param key_set: what was fetched from its ``jwks_uri``.
        :raises ManagementError: the id or the secret is not allowed, or the id is taken or was once.
        """
        if client_id is not None:
            check_client_id(client_id)
        if secret is not None:
            check_imported_secret(secret)
        new_id = client_id or _generate_client_id(fields.client_name)
        now = self._clock()
        with writing(self._session) as session:
            self._lock_registrations(session)
            self._refuse_taken_id(session, new_id)
            row = ClientRow(client_id=new_id, form_decoded_id=_form_decoded(new_id), created_at=now, updated_at=now)
            _apply(row, fields)
            _add_to_audiences_ever(row)
            session.add(row)
            store_jwks(session, row, key_set, now)
            made = self._secrets.add(row, secret, secret_expires_after) if with_secret else None
            session.flush()
            self._secrets.record_change(new_id, "created", secret_ids=[made.secret_id] if made else [])
            yield row, made

    def register(self, fields: ClientFields, **options: Any) -> tuple[ClientRow, NewSecret | None]:
        """:meth:`registering` for who has the secret in hand at once."""
        with self.registering(fields, **options) as made:
            return made

    def update(
        self,
        client_id: str,
        decide_changes: Callable[[ClientFields], Mapping[str, Any]] = lambda _before: {},
        key_set: FetchedJwks | None = None,
        **changes: Any,
    ) -> ClientRow:
        """Change some of a client's fields.

        :param decide: says what else is to be changed, by what the client is now; nobody else changes it meanwhile.
        :param key_set: what was fetched from the ``jwks_uri`` that it has then.
        :param changes: fields of :class:`ClientFields` by name.
        :raises ManagementError: a value that is not allowed, or no such client.
        """
        with writing(self._session) as session:
            row = find_client(session, client_id, for_change=True)
            before = describe(row)
            after = replace(before, **changes, **decide_changes(before))
            _add_to_audiences_ever(row)
            _apply(row, after)
            _add_to_audiences_ever(row)
            self._secrets.match_storage_to_method(row)
            row.updated_at = self._clock()
            store_jwks(session, row, key_set, row.updated_at)
            others = [
                field.name for field in fields_of(after) if getattr(before, field.name) != getattr(after, field.name)
            ]
            if others:
                self._secrets.record_change(client_id, "updated", fields=others)
            return row

    def disable(self, client_id: str) -> ClientRow:
        """Refuse the client from the next request on, whichever worker gets it. Twice is once."""
        with writing(self._session):
            row = self.find(client_id)
            if row.disabled_at is None:
                row.disabled_at = self._clock()
                self._end_tokens(row)
                self._secrets.record_change(client_id, "disabled")
            return row

    def enable(self, client_id: str) -> ClientRow:
        """Take :meth:`disable` back, but for the tokens that it had: they stay dead."""
        with writing(self._session):
            row = self.find(client_id)
            if row.disabled_at is not None:
                row.disabled_at = None
                self._secrets.record_change(client_id, "enabled")
            return row

    def delete(self, client_id: str) -> None:
        """Forget all of a client but its id and the time: an id is never reused."""
        with writing(self._session) as session:
            row = self.find(client_id)
            _add_to_audiences_ever(row)
            _apply(row, ClientFields(client_name="deleted", grant_types=()))
            row.secrets.clear()
            row.deleted_at = row.updated_at = self._clock()
            store_jwks(session, row, None, row.deleted_at)
            self._end_tokens(row)
            self._secrets.record_change(client_id, "deleted")

    def revoke_tokens(self, client_id: str) -> ClientRow:
        """Take back all tokens that the client has until now; it gets new ones from the next second on."""
        with writing(self._session):
            row = self.find(client_id)
            self._end_tokens(row)
            self._secrets.record_change(client_id, "tokens_revoked")
            return row

    def _end_tokens(self, row: ClientRow) -> None:
        now = self._clock().replace(microsecond=0)
        row.tokens_not_before = max(now, row.tokens_not_before or now)

    def _lock_registrations(self, session: scoped_session[Any]) -> None:
        if session.get_bind().dialect.name == "postgresql":
            session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _REGISTRATION_LOCK})

    def _refuse_taken_id(self, session: scoped_session[Any], client_id: str) -> None:
        """Refuse an id that is or was in use, and one that a form-encoding client would send as another's."""
        taken = select(ClientRow.client_id).where(
            ClientRow.client_id.in_([client_id, _form_decoded(client_id)]) | (ClientRow.form_decoded_id == client_id)
        )
        other = session.scalars(taken.limit(1)).first()
        if other == client_id:
            raise ManagementError(f"client id {client_id!r} is taken, or was: ids are never reused")
        if other is not None:
            raise ManagementError(
                f"client id {client_id!r} reads like {other!r} when it is form-encoded: choose another"
            )


def conditions(  # noqa: PLR0913 - The filters of `flask clients list`.
    now: datetime,
    *,
    name: str | None = None,
    labels: Mapping[str, str] | None = None,
    disabled: bool | None = None,
    auth_method: str | None = None,
    unused_for: timedelta | None = None,
    secrets_older_than: timedelta | None = None,
    expiring_in: timedelta | None = None,
) -> list[ColumnElement[bool]]:
    """Which clients are meant, of those that were not deleted.

    :param name: a part of the name, in any case.
    :param unused_for: no use for so long; a client that never was used counts from its creation.
    :param secrets_older_than: with a secret that works and was made so long ago.
    :param expiring_in: with a secret that works and ends within this time.
    """
    is_usable = usable_at(now) & (ClientSecretRow.client_id == ClientRow.client_id)
    found: list[ColumnElement[bool]] = [ClientRow.deleted_at.is_(None)]
    if name is not None:
        found.append(ClientRow.client_name.icontains(name, autoescape=True))
    found += [ClientRow.labels[key].as_string() == value for key, value in (labels or {}).items()]
    if disabled is not None:
        found.append(ClientRow.disabled_at.is_not(None) if disabled else ClientRow.disabled_at.is_(None))
    if auth_method is not None:
        found.append(ClientRow.token_endpoint_auth_method == auth_method)
    if unused_for is not None:
        found.append(func.coalesce(ClientRow.last_used_at, ClientRow.created_at) <= now - unused_for)
    if secrets_older_than is not None:
        found.append(exists().where(is_usable, ClientSecretRow.created_at <= now - secrets_older_than))
    if expiring_in is not None:
        found.append(exists().where(is_usable, ClientSecretRow.expires_at <= now + expiring_in))
    return found


def _listed(rows: Sequence[Any]) -> ListedClient:
    """One client of its rows, one for each secret."""
    names = [column.name for column in ClientSecretRow.__table__.c]
    secrets_ = [
        SimpleNamespace(**{name: getattr(row, f"secret_{name}") for name in names})
        for row in rows
        if row.secret_secret_id is not None
    ]
    return SimpleNamespace(**rows[0]._mapping, secrets=secrets_)  # noqa: SLF001 - A public name of SQLAlchemy's.


def as_client(row: ClientRow) -> Client:
    """A row as the request path sees it."""
    return Client(
        client_id=row.client_id,
        client_name=row.client_name,
        token_endpoint_auth_method=row.token_endpoint_auth_method,
        grant_types=tuple(row.grant_types),
        scope=tuple(row.scope),
        audiences=tuple(row.audiences),
        access_token_lifetime=row.access_token_lifetime,
        introspects=tuple(row.introspects or ()),
        tokens_not_before=row.tokens_not_before,
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
        introspects=tuple(row.introspects or ()),
        auth_fields=dict(row.auth_fields or {}),
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
    row.introspects = list(fields.introspects)
    row.auth_fields = dict(fields.auth_fields) or None
    row.access_token_lifetime = fields.access_token_lifetime


def _add_to_audiences_ever(row: ClientRow) -> None:
    """Tokens for an audience that is taken from a client live on, and who verifies them is told of their end."""
    row.audiences_ever = list(dict.fromkeys([*(row.audiences_ever or ()), *(row.audiences or [DEFAULT_AUDIENCE])]))


def _form_decoded(client_id: str) -> str:
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
