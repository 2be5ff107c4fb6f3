"""Management of clients: find, register, update, disable, delete. Through the ORM, one transaction per call.

Secrets are left to ``clients.secrets``; which authentication methods and grants exist, to the registries.
"""

import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields as fields_of
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import groupby
from types import SimpleNamespace
from typing import Any

from sqlalchemy import delete, func, select, text
from sqlalchemy.engine import Engine
from sqlalchemy.orm import scoped_session, selectinload

from app.blocking import blocking
from app.clients.fields import ClientFields, check_client_id, check_imported_secret, form_decode
from app.clients.filters import conditions
from app.clients.jwks_cache import FetchedJwks, store_jwks
from app.clients.secret_digests import is_vschar
from app.clients.secrets import EXPIRY_REPORTED_BEFORE, ClientSecrets, NewSecret
from app.clients.token_size import TokenSize
from app.clients.transactions import find_client, writing
from app.config.values import format_rate, parse_rate
from app.database.engine import reading_engine
from app.database.models import (
    DEFAULT_AUDIENCES_EVER,
    SERVED,
    ApiGrantRow,
    ClientKeySetRow,
    ClientRow,
    ClientSecretRow,
    ClientTrustRow,
)
from app.errors import ManagementError
from app.types import Clock

# Serializes registrations on PostgreSQL: two ids can collide in a reading that no constraint covers. Any number that
# nothing else in the database uses. SQLite has one writer anyway.
_REGISTRATION_LOCK = 0x746F6B656E

_GENERATED_ID_CHARACTERS = "abcdefghijklmnopqrstuvwxyz234567"
_GENERATED_ID_LENGTH = 20


LOCK_SECONDS = 30
LOCK_POLL_SECONDS = 0.05
"""How long a registration waits for the lock, and how often it tries."""

ListedClient = SimpleNamespace
"""A client with the columns of :class:`ClientRow`, and ``secrets`` with those of :class:`ClientSecretRow`."""

_OLDEST_FIRST = (ClientRow.created_at, ClientRow.client_id)
_ROWS_AT_ONCE = 1000


class ClientRepository:
    """Clients in the database.

    :param session: each call commits or rolls back.
    :param token_size: limits the tokens that clients get by default.
    """

    def __init__(
        self,
        engine: Engine,
        session: scoped_session[Any],
        client_secrets: ClientSecrets,
        clock: Clock,
        token_size: TokenSize,
    ) -> None:
        self._token_size = token_size
        self._engine = engine
        self._session = session
        self._secrets = client_secrets
        self._clock = clock

    def find(self, client_id: str) -> ClientRow:
        """Find a client by its id.

        :raises ManagementError: no such client exists, or it was deleted.
        """
        return find_client(self._session, client_id)

    def cached_jwks_of(self, row: ClientRow) -> ClientKeySetRow | None:
        """Return the fetched keys of a client that publishes them."""
        found: ClientKeySetRow | None = self._session.get(ClientKeySetRow, row.client_id)
        return found

    def list_all(self, limit: int | None = None, **filters: Any) -> Sequence[ClientRow]:
        """Return every client that was not deleted and passes all filters, oldest first.

        :param filters: those of :func:`conditions`.
        """
        found = select(ClientRow).where(*conditions(self._clock(), **filters)).options(selectinload(ClientRow.secrets))
        return self._session.scalars(found.order_by(*_OLDEST_FIRST).limit(limit)).all()

    def stream(self, limit: int | None = None, **filters: Any) -> Iterator[ListedClient]:
        """Yield the clients of :meth:`list_all` one by one, for very many: they are never all in memory."""
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

    def count(self, **filters: Any) -> int:
        """Return how many clients :meth:`list_all` would return."""
        counted = select(func.count()).select_from(ClientRow).where(*conditions(self._clock(), **filters))
        return int(self._session.scalar(counted) or 0)

    def count_expiring_certificates(self) -> int:
        """Count the enabled clients of which a registered certificate expires soon, or has expired.

        :raises SQLAlchemyError: the database does not answer.
        """
        ends = ClientRow.certificate_expires_at <= self._clock() + EXPIRY_REPORTED_BEFORE
        with reading_engine(self._engine).connect() as connection:
            return connection.scalar(select(func.count()).where(SERVED, ends)) or 0

    def end_reading(self) -> None:
        """End the transaction of the rows that were read, before a person is asked.

        The rows cannot be used afterwards.
        """
        self._session.rollback()

    def longest_lifetime(self) -> int | None:
        """Return the longest lifetime that is set for a client, in seconds, if one is set."""
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
        """Register a client with its first secret.

        Both are committed when the block ends: if the secret cannot be handed over, no client is registered.

        :param client_id: an imported id; by default one is generated.
        :param with_secret: false for an authentication method without secrets.
        :param secret: an imported secret; by default one is generated.
        :param key_set: what was fetched from its ``jwks_uri``.
        :raises ManagementError: the id or the secret is not allowed, the id is or was in use, or the client's tokens
            would be too long.
        """
        if client_id is not None:
            check_client_id(client_id)
        if secret is not None:
            check_imported_secret(secret)
        new_id = client_id or _generate_client_id(fields.client_name)
        self._token_size.check(new_id, fields)
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
        """Register a client and commit at once; see :meth:`registering`."""
        with self.registering(fields, **options) as made:
            return made

    def update(
        self,
        client_id: str,
        decide_changes: Callable[[ClientFields], Mapping[str, Any]] = lambda _before: {},
        key_set: FetchedJwks | None = None,
        **changes: Any,
    ) -> ClientRow:
        """Change fields of a client.

        :param decide_changes: returns further changes for the current fields; nobody else changes them meanwhile.
        :param key_set: what was fetched from its new ``jwks_uri``.
        :param changes: fields of :class:`ClientFields` by name.
        :raises ManagementError: a value is not allowed, or no such client exists.
        """
        with writing(self._session) as session:
            row = find_client(session, client_id, for_change=True)
            before = describe(row)
            after = replace(before, **changes, **decide_changes(before))
            if (before.scope, before.audiences, before.claims) != (after.scope, after.audiences, after.claims):
                self._token_size.check(client_id, after)
                self._token_size.check_apis(client_id, after.claims, row.apis or [])
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
        """Refuse the client from the next request on, whichever worker gets it. Disabling twice changes nothing."""
        with writing(self._session):
            row = self.find(client_id)
            if row.disabled_at is None:
                row.disabled_at = self._clock()
                self._end_tokens(row)
                self._secrets.record_change(client_id, "disabled")
            return row

    def enable(self, client_id: str) -> ClientRow:
        """Serve a disabled client again. Tokens that it had stay revoked."""
        with writing(self._session):
            row = self.find(client_id)
            if row.disabled_at is not None:
                row.disabled_at = None
                self._secrets.record_change(client_id, "enabled")
            return row

    def delete(self, client_id: str) -> None:
        """Delete all of a client except its id and the time: an id is never reused."""
        with writing(self._session) as session:
            row = self.find(client_id)
            _add_to_audiences_ever(row)
            _apply(row, ClientFields(client_name="deleted", grant_types=()))
            row.secrets.clear()
            session.execute(delete(ClientTrustRow).where(ClientTrustRow.client_id == client_id))
            session.execute(delete(ApiGrantRow).where(ApiGrantRow.client_id == client_id))
            row.apis = None
            row.deleted_at = row.updated_at = self._clock()
            store_jwks(session, row, None, row.deleted_at)
            self._end_tokens(row)
            self._secrets.record_change(client_id, "deleted")

    def revoke_tokens(self, client_id: str, until: datetime | None = None) -> ClientRow:
        """Revoke all tokens that the client has; it gets new ones from the next second on.

        :param until: revoke only those that were issued until this whole second.
        """
        with writing(self._session):
            row = self.find(client_id)
            self._end_tokens(row, until)
            self._secrets.record_change(client_id, "tokens_revoked")
            return row

    def _end_tokens(self, row: ClientRow, until: datetime | None = None) -> None:
        last = (until or self._clock()).replace(microsecond=0)
        row.tokens_not_before = max(last, row.tokens_not_before or last)

    def _lock_registrations(self, session: scoped_session[Any]) -> None:
        """Take the lock that allows one registration at a time.

        :raises ManagementError: another process holds it for too long.
        """
        if session.get_bind().dialect.name != "postgresql":
            return
        # A statement that waits for the lock would end at statement_timeout, after 3 s.
        give_up_at = time.monotonic() + LOCK_SECONDS
        while not session.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _REGISTRATION_LOCK}):
            if time.monotonic() > give_up_at:
                raise ManagementError(f"other registrations have held the lock for {LOCK_SECONDS} s: try again")
            with blocking:
                time.sleep(LOCK_POLL_SECONDS)

    def _refuse_taken_id(self, session: scoped_session[Any], client_id: str) -> None:
        """Refuse an id that is or was in use, or that a form-encoding client would send as another client's."""
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


def _listed(rows: Sequence[Any]) -> ListedClient:
    """Build one client from its rows, one for each secret."""
    names = [column.name for column in ClientSecretRow.__table__.c]
    secrets_ = [
        SimpleNamespace(**{name: getattr(row, f"secret_{name}") for name in names})
        for row in rows
        if row.secret_secret_id is not None
    ]
    return SimpleNamespace(**rows[0]._mapping, secrets=secrets_)  # noqa: SLF001 - A public name of SQLAlchemy's.


def describe(row: ClientRow) -> ClientFields:
    """Return the fields of a row."""
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
        rate_limit=parse_rate(row.rate_limit) if row.rate_limit else None,
        sender_constraints=tuple(row.sender_constraints or ()),
        claims=dict(row.claims or {}),
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
    ends = [one["not_after"] for one in fields.auth_fields.get("certificates", ())]
    row.certificate_expires_at = datetime.fromtimestamp(min(ends), UTC) if ends else None
    row.access_token_lifetime = fields.access_token_lifetime
    row.rate_limit = format_rate(fields.rate_limit) if fields.rate_limit else None
    row.sender_constraints = list(fields.sender_constraints) or None
    row.claims = dict(fields.claims) or None


def _add_to_audiences_ever(row: ClientRow) -> None:
    """Remember all audiences: tokens for a removed one live on, and its verifiers must learn of revocations."""
    row.audiences_ever = list(dict.fromkeys([*(row.audiences_ever or ()), *(row.audiences or DEFAULT_AUDIENCES_EVER)]))


def _form_decoded(client_id: str) -> str:
    """Return the id as it reads form-decoded, or the id itself if it has no other reading.

    A reading with characters beyond %x20-7E cannot be another client's id, and does not fit its column.
    """
    try:
        decoded = form_decode(client_id)
    except UnicodeDecodeError:
        return client_id
    return decoded if decoded and is_vschar(decoded) else client_id


def _generate_client_id(client_name: str) -> str:
    """Generate an id of unreserved characters: the client's name and 100 random bits."""
    slug = re.sub(r"[^a-z0-9]+", "-", client_name.lower()).strip("-")[:40].strip("-")
    return f"{slug or 'client'}-{_random_name(_GENERATED_ID_LENGTH)}"


def _random_name(length: int) -> str:
    return "".join(secrets.choice(_GENERATED_ID_CHARACTERS) for _ in range(length))
