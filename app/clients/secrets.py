"""Management of client secrets over time: add, rotate with an overlap, retire unused ones, revoke, count.

Several secrets of a client are usable at once, so that its callers can change one by one. Verifying a secret is left
to ``authentication``, recording its uses to ``last_used``.
"""

import secrets
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, func, or_, select, update
from sqlalchemy.engine import Engine
from sqlalchemy.orm import scoped_session

from app.audit.events import ClientChanged, SecretExpiring
from app.audit.outbox import Outbox, system_user
from app.clients.encrypted_secrets import EncryptedSecrets
from app.clients.fields import check_imported_secret
from app.clients.last_used import RECORD_DELAY
from app.clients.queries import MOST_SECRETS
from app.clients.secret_digests import SecretDigester, generate_secret
from app.clients.transactions import find_client, writing
from app.config.values import format_time
from app.crypto.encryption import DecryptionError
from app.database.engine import delete_in_batches, reading_engine, writing_engine
from app.database.models import SERVED_IDS, ClientRow, ClientSecretRow, ClientSecretUseRow
from app.errors import ManagementError, StillInUse
from app.types import Clock, Credentials

EXPIRY_REPORTED_BEFORE = timedelta(days=30)
"""How long before its expiry a secret or certificate is reported to operators."""

RETIRED_KEPT_FOR = timedelta(days=30)
"""How long an expired or revoked secret is kept, so that the log can tell it from a wrong one."""

_REPORT_AGAIN_AFTER = timedelta(hours=23, minutes=59)
_ID_CHARACTERS = "abcdefghijklmnopqrstuvwxyz234567"
_ID_LENGTH = 12


class SecretState(StrEnum):
    """The state of a secret at a moment."""

    VALID = "valid"
    EXPIRING = "expiring"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True)
class NewSecret:
    """A new secret: the only moment at which it is known in clear text."""

    secret: str
    secret_id: str
    expires_at: datetime | None

    def __repr__(self) -> str:
        """Keep the secret out of tracebacks and logs."""
        return f"NewSecret({self.secret_id})"


def state_of(secret: ClientSecretRow, now: datetime) -> SecretState:
    """Return the state of ``secret`` at ``now``."""
    if secret.revoked_at is not None:
        return SecretState.REVOKED
    if secret.expires_at is None:
        return SecretState.VALID
    return SecretState.EXPIRING if secret.expires_at > now else SecretState.EXPIRED


def is_usable(secret: ClientSecretRow, now: datetime) -> bool:
    """Return whether ``secret`` authenticates its client at ``now``."""
    return state_of(secret, now) in {SecretState.VALID, SecretState.EXPIRING}


def usable_at(now: datetime) -> ColumnElement[bool]:
    """Return :func:`is_usable` as a condition on rows of secrets."""
    ends_later = or_(ClientSecretRow.expires_at.is_(None), ClientSecretRow.expires_at > now)
    return ClientSecretRow.revoked_at.is_(None) & ends_later


class ClientSecrets:
    """Secrets in the database.

    :param engine: for background tasks.
    :param session: for management; each call commits or rolls back.
    :param outbox: records each change.
    :param encrypted_secrets: stores the secrets that verify a MAC.
    :param read_by: the authentication methods that verify a MAC.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - All that management of secrets touches.
        self,
        engine: Engine,
        session: scoped_session[Any],
        digester: SecretDigester,
        clock: Clock,
        outbox: Outbox,
        encrypted_secrets: EncryptedSecrets,
        read_by: Collection[str],
    ) -> None:
        self._engine = engine
        self._encrypted_secrets = encrypted_secrets
        self._read_by = read_by
        self._outbox = outbox
        self._session = session
        self._digester = digester
        self._clock = clock

    def record_change(
        self, client_id: str, change: str, *, fields: Sequence[str] = (), secret_ids: Sequence[str] = ()
    ) -> None:
        """Record a change in the outbox, within the caller's transaction."""
        event = ClientChanged(
            by=system_user(), client_id=client_id, change=change, fields=tuple(fields), secret_ids=tuple(secret_ids)
        )
        self._outbox.put(self._session.connection(), event)

    def add(self, row: ClientRow, imported: str | None, expires_after: timedelta | None) -> NewSecret:
        """Add a secret to ``row``, within the caller's transaction.

        :raises ManagementError: a secret that verifies a MAC is too short, or cannot be encrypted.
        """
        now = self._clock()
        secret = imported or generate_secret()
        stored = ClientSecretRow(
            secret_id=f"s-{''.join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH))}",
            last_four=secret[-4:],
            origin="imported" if imported else "generated",
            created_at=now,
            expires_at=now + expires_after if expires_after else None,
        )
        self._keep(row, stored, secret)
        row.secrets.append(stored)
        return NewSecret(secret, stored.secret_id, stored.expires_at)

    def match_storage_to_method(self, row: ClientRow) -> None:
        """Store the secrets of ``row`` as its authentication method needs them, within the caller's transaction.

        A digest cannot be turned back into a secret: with a method that verifies a MAC, digests become useless.

        :raises ManagementError: an encrypted secret cannot be decrypted.
        """
        if row.token_endpoint_auth_method in self._read_by:
            return
        for kept in row.secrets:
            if kept.encrypted is not None:
                try:
                    self._keep(row, kept, self._encrypted_secrets.decrypt(row.client_id, kept))
                except DecryptionError as error:
                    raise ManagementError(f"the secret {kept.secret_id} cannot be read: {error}") from None

    def has_usable_secret(self, row: ClientRow) -> bool:
        """Return whether ``row`` has a usable secret for its authentication method."""
        reads = row.token_endpoint_auth_method in self._read_by
        return any(is_usable(kept, self._clock()) and reads == (kept.encrypted is not None) for kept in row.secrets)

    def _keep(self, row: ClientRow, stored: ClientSecretRow, secret: str) -> None:
        if row.token_endpoint_auth_method in self._read_by:
            stored.digest, stored.pepper_id = b"", ""
            stored.encryption_key_id, stored.encrypted = self._encrypted_secrets.encrypt(
                row.client_id, stored.secret_id, secret
            )
        else:
            stored.pepper_id, stored.digest = self._digester.digest(Credentials(row.client_id, secret))
            stored.encryption_key_id = stored.encrypted = None

    @contextmanager
    def rotating(
        self, client_id: str, *, overlap: timedelta, secret: str | None = None, expires_after: timedelta | None = None
    ) -> Iterator[tuple[NewSecret, Sequence[ClientSecretRow]]]:
        """Add a secret; the usable ones expire after ``overlap``, or earlier if they would have.

        It is committed when the block ends: if the secret cannot be handed over, nothing is changed.

        :param secret: an imported secret; by default one is generated.
        :returns: the new secret, and the older ones that stay usable for a while.
        :raises ManagementError: no such client, a secret that is not allowed, or too many usable ones.
        """
        if secret is not None:
            check_imported_secret(secret)
        with writing(self._session):
            row = find_client(self._session, client_id, for_change=True)
            now = self._clock()
            end = now + overlap
            older = [old for old in row.secrets if is_usable(old, now)]
            for old in older:
                old.expires_at = min(old.expires_at or end, end)
            overlapping = [old for old in older if is_usable(old, now)]
            if len(overlapping) >= MOST_SECRETS:
                raise ManagementError(
                    f"{client_id!r} has {len(overlapping)} secrets that work, and {MOST_SECRETS} is the most: end some "
                    "with `flask clients revoke-secret` or `rotate-secret --finish`"
                )
            new = self.add(row, secret, expires_after)
            row.updated_at = now
            self._session.flush()
            self.record_change(client_id, "secret_added", secret_ids=[new.secret_id])
            yield new, overlapping

    def rotate(self, client_id: str, **options: Any) -> tuple[NewSecret, Sequence[ClientSecretRow]]:
        """Rotate and commit at once; see :meth:`rotating`."""
        with self.rotating(client_id, **options) as made:
            return made

    def finish(self, client_id: str, silent_for: timedelta) -> Sequence[ClientSecretRow]:
        """Revoke all usable secrets but the newest, if none of them was used for ``silent_for``.

        :returns: the revoked secrets; none if there is only one.
        :raises StillInUse: one is in use: from where, since when.
        """
        with writing(self._session):
            row = find_client(self._session, client_id, for_change=True)
            now = self._clock()
            working = sorted((old for old in row.secrets if is_usable(old, now)), key=lambda old: old.created_at)
            older = working[:-1]
            # A use is known to the minute, and is written a little later.
            heard = now - silent_for - RECORD_DELAY
            noisy = [old for old in older if (old.last_used_at or old.created_at) > heard]
            if noisy:
                used_by = "; ".join(self._who_uses(old, heard) for old in noisy)
                raise StillInUse(f"{client_id!r} may still use {used_by}. Nothing was retired")
            for old in older:
                old.revoked_at = now
            if older:
                self.record_change(client_id, "secrets_retired", secret_ids=[old.secret_id for old in older])
            return older

    def revoke(self, client_id: str, secret_id: str) -> tuple[ClientSecretRow, int]:
        """Revoke one secret. Revoking twice changes nothing.

        :returns: the secret, and how many usable ones the client has left.
        :raises ManagementError: the client has no such secret.
        """
        with writing(self._session):
            row = find_client(self._session, client_id, for_change=True)
            found = next((secret for secret in row.secrets if secret.secret_id == secret_id), None)
            if found is None:
                raise ManagementError(
                    f"{client_id!r} has no secret {secret_id!r}: `flask clients secrets {client_id}` shows all"
                )
            if found.revoked_at is None:
                found.revoked_at = self._clock()
                self.record_change(client_id, "secret_revoked", secret_ids=[secret_id])
            return found, sum(is_usable(secret, self._clock()) for secret in row.secrets)

    def uses(self, client_id: str) -> dict[str, Sequence[ClientSecretUseRow]]:
        """Return the addresses that each secret of a client was used from, by its id, the latest first."""
        found = (
            select(ClientSecretUseRow)
            .join(ClientSecretRow, ClientSecretRow.secret_id == ClientSecretUseRow.secret_id)
            .where(ClientSecretRow.client_id == client_id)
            .order_by(ClientSecretUseRow.last_used_at.desc(), ClientSecretUseRow.source_address)
        )
        by_secret: dict[str, list[ClientSecretUseRow]] = {}
        for use in self._session.scalars(found):
            by_secret.setdefault(use.secret_id, []).append(use)
        return dict(by_secret)

    def count_by_pepper(self, client_id: str | None = None) -> dict[str, int]:
        """Count the usable secrets by the pepper of their digest; the peppers of the settings are always included."""
        digested = ClientSecretRow.encrypted.is_(None)
        return self._count(ClientSecretRow.pepper_id, digested, self._digester.pepper_ids, client_id)

    def count_by_encryption_key(self, client_id: str | None = None) -> dict[str, int]:
        """Count the usable secrets by their encryption key; the keys of the settings are always included."""
        encrypted = ClientSecretRow.encrypted.is_not(None)
        return self._count(ClientSecretRow.encryption_key_id, encrypted, self._encrypted_secrets.key_ids, client_id)

    def _count(
        self, key_id: Any, condition: ColumnElement[bool], known: Sequence[str], client_id: str | None
    ) -> dict[str, int]:
        counted = select(key_id, func.count()).where(usable_at(self._clock()), condition)
        if client_id is not None:
            counted = counted.where(ClientSecretRow.client_id == find_client(self._session, client_id).client_id)
        rows = self._session.execute(counted.group_by(key_id)).all()
        return dict.fromkeys(known, 0) | {row[0]: row[1] for row in rows}

    def count_expiring(self) -> int:
        """Count the usable secrets that expire within :data:`EXPIRY_REPORTED_BEFORE`, of enabled clients.

        :raises SQLAlchemyError: the database does not answer.
        """
        now = self._clock()
        ends = ClientSecretRow.expires_at <= now + EXPIRY_REPORTED_BEFORE
        counted = select(func.count()).where(usable_at(now), ends, ClientSecretRow.client_id.in_(SERVED_IDS))
        with reading_engine(self._engine).connect() as connection:
            return connection.scalar(counted) or 0

    def claim_expiring(self) -> Sequence[SecretExpiring]:
        """Return the secrets whose expiry is to be reported now: each once a day, by one of all workers.

        :raises SQLAlchemyError: the database does not answer.
        """
        now = self._clock()
        not_reported = or_(
            ClientSecretRow.expiry_told_at.is_(None), ClientSecretRow.expiry_told_at <= now - _REPORT_AGAIN_AFTER
        )
        claim = (
            update(ClientSecretRow)
            .where(usable_at(now), ClientSecretRow.expires_at <= now + EXPIRY_REPORTED_BEFORE, not_reported)
            .where(ClientSecretRow.client_id.in_(SERVED_IDS))
            .values(expiry_told_at=now)
            .returning(
                ClientSecretRow.client_id,
                ClientSecretRow.secret_id,
                ClientSecretRow.expires_at,
                ClientSecretRow.last_used_at,
            )
        )
        with writing_engine(self._engine).begin() as connection:
            rows = connection.execute(claim).all()
        return [
            SecretExpiring(
                client_id=row.client_id,
                secret_id=row.secret_id,
                expires_at=row.expires_at,
                last_used_at=row.last_used_at,
            )
            for row in sorted(rows, key=lambda row: (row.expires_at, row.client_id, row.secret_id))
        ]

    def delete_retired(self) -> None:
        """Delete the secrets that expired or were revoked long ago.

        :raises SQLAlchemyError: the database does not answer.
        """
        last = self._clock() - RETIRED_KEPT_FOR
        ended = or_(ClientSecretRow.revoked_at < last, ClientSecretRow.expires_at < last)
        delete_in_batches(self._engine, ClientSecretRow, ended)

    def _who_uses(self, secret: ClientSecretRow, since: datetime) -> str:
        uses = self.uses(secret.client_id).get(secret.secret_id, [])
        addresses = ", ".join(
            f"from {use.source_address} since {format_time(use.first_used_at)} until {format_time(use.last_used_at)}"
            for use in uses
            if use.last_used_at > since
        )
        made = f"made at {format_time(secret.created_at)} and not used yet"
        last = f"until {format_time(secret.last_used_at)}" if secret.last_used_at else made
        return f"{secret.secret_id} (…{secret.last_four}) {addresses or last}"
