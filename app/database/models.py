"""The tables: clients, their secrets, revoked tokens, used assertions, a key ring. How rows are used is left to others.

Times are aware datetimes in UTC. Values that are never searched for (scopes, audiences, labels) are JSON columns: a
client is always read whole.
"""

from datetime import UTC, date, datetime
from typing import Any

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import (
    JSON,
    BigInteger,
    Date,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    select,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from app.types import DEFAULT_AUDIENCE

CLIENT_ID_MAX_CHARACTERS = 255
ISSUER_MAX_CHARACTERS = 500

DEFAULT_AUDIENCES_EVER = [DEFAULT_AUDIENCE]
"""``audiences_ever`` of a client without audiences."""


class UTCDateTime(TypeDecorator[datetime]):
    """An aware datetime in UTC: SQLite would lose the time zone, and PostgreSQL would return the session's."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Convert to UTC; refuse a naive datetime."""
        if value is not None and value.tzinfo is None:
            raise ValueError("a stored time must be aware")
        return value and value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Restore the time zone."""
        return value and (value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC))


class Base(DeclarativeBase):
    """The base of all tables. Constraints have names, so that a migration can drop them on every database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


db = SQLAlchemy(model_class=Base)


class ClientRow(Base):
    """A client, with RFC 7591's names where it has one.

    A deleted client keeps its id and ``deleted_at``: an id is never reused, so old tokens stay invalid.

    ``form_decoded_id`` is the id decoded as a form, since Basic credentials may be form-encoded (RFC 6749 appendix
    B). No two clients may share a reading.

    ``auth_fields`` is what the client's authentication method stores, such as public keys.

    ``introspects`` lists the resources whose tokens the client may introspect, or ``*`` for all. ``audiences_ever``
    are all audiences that its tokens may have, including removed ones; an empty string stands for the server's
    default. Both are NULL in rows of the previous release.

    ``rate_limit`` is its own limit of token requests, such as ``100/minute``. ``limited_at`` is when a request of it
    was last refused for a limit, to the minute. Tokens issued at ``tokens_not_before``, a whole second, or
    earlier are revoked.

    ``sender_constraints`` are what its tokens must be bound to, such as ``dpop``; NULL for nothing. ``claims`` are
    added to its tokens.

    ``apis`` is what its token requests need of ``api_grants`` and ``apis``: written with each change of these.

    ``certificate_expires_at`` is when the first of its registered certificates expires.

    ``assertion_aud`` and ``assertion_typ`` are the style of its last assertion; ``legacy_assertion_at`` is when it
    last sent one that RFC 10070 does not allow, to the minute.
    """

    __tablename__ = "clients"

    client_id: Mapped[str] = mapped_column(String(CLIENT_ID_MAX_CHARACTERS), primary_key=True)
    form_decoded_id: Mapped[str] = mapped_column(String(CLIENT_ID_MAX_CHARACTERS), index=True)
    client_name: Mapped[str] = mapped_column(Text)
    description: Mapped[str] = mapped_column(Text)
    contacts: Mapped[list[str]] = mapped_column(JSON)
    labels: Mapped[dict[str, str]] = mapped_column(JSON)
    token_endpoint_auth_method: Mapped[str] = mapped_column(String(64))
    grant_types: Mapped[list[str]] = mapped_column(JSON)
    scope: Mapped[list[str]] = mapped_column(JSON)
    audiences: Mapped[list[str]] = mapped_column(JSON)
    auth_fields: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    audiences_ever: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    introspects: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    access_token_lifetime: Mapped[int | None]
    tokens_not_before: Mapped[datetime | None] = mapped_column(UTCDateTime, index=True)
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    rate_limit: Mapped[str | None] = mapped_column(String(32))
    sender_constraints: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    claims: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    apis: Mapped[list[dict[str, Any]] | None] = mapped_column(JSON(none_as_null=True))
    certificate_expires_at: Mapped[datetime | None] = mapped_column(UTCDateTime, index=True)
    limited_at: Mapped[datetime | None] = mapped_column(UTCDateTime, index=True)
    assertion_aud: Mapped[str | None] = mapped_column(String(16))
    assertion_typ: Mapped[str | None] = mapped_column(String(32))
    legacy_assertion_at: Mapped[datetime | None] = mapped_column(UTCDateTime, index=True)
    disabled_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    deleted_at: Mapped[datetime | None] = mapped_column(UTCDateTime)

    secrets: Mapped[list["ClientSecretRow"]] = relationship(
        order_by="ClientSecretRow.created_at", cascade="all, delete-orphan", passive_deletes=True
    )


SERVED = ClientRow.disabled_at.is_(None) & ClientRow.deleted_at.is_(None)
"""Condition: the client may get tokens."""
SERVED_IDS = select(ClientRow.client_id).where(SERVED)


class ClientSecretRow(Base):
    """One secret of a client, as a keyed digest; several may be valid at once.

    ``pepper_id`` names the key of the digest.

    A secret that verifies a MAC is ``encrypted`` instead, with an empty digest and pepper id.

    ``expiry_told_at`` is when its coming expiry was last reported.
    """

    __tablename__ = "client_secrets"
    __table_args__ = (Index("ix_client_secrets_client_id_digest", "client_id", "digest"),)

    secret_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    client_id: Mapped[str] = mapped_column(ForeignKey(ClientRow.client_id, ondelete="CASCADE"))
    digest: Mapped[bytes] = mapped_column(LargeBinary(32))
    pepper_id: Mapped[str] = mapped_column(String(16))
    encrypted: Mapped[bytes | None] = mapped_column(LargeBinary)
    encryption_key_id: Mapped[str | None] = mapped_column(String(16))
    last_four: Mapped[str] = mapped_column(String(4))
    origin: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    expiry_told_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class ClientSecretUseRow(Base):
    """An address that a secret was used from, to the minute: its callers must change before the secret is retired."""

    __tablename__ = "client_secret_uses"

    secret_id: Mapped[str] = mapped_column(ForeignKey(ClientSecretRow.secret_id, ondelete="CASCADE"), primary_key=True)
    source_address: Mapped[str] = mapped_column(String(64), primary_key=True)
    first_used_at: Mapped[datetime] = mapped_column(UTCDateTime)
    last_used_at: Mapped[datetime] = mapped_column(UTCDateTime)


class ClientUsageRow(Base):
    """How many tokens a client got on a day, in UTC. All workers add to it, a minute late."""

    __tablename__ = "client_usage"

    day: Mapped[date] = mapped_column(Date, primary_key=True)
    client_id: Mapped[str] = mapped_column(String(CLIENT_ID_MAX_CHARACTERS), primary_key=True)
    tokens: Mapped[int] = mapped_column(BigInteger)


class _PublishedKeys:
    """Columns of keys that somebody publishes at ``uri``, as of the last successful fetch.

    ``skipped`` are the published keys that cannot be used, each with the reason. ``refresh_at`` is when to fetch
    again, ``tried_at`` when the last attempt was made. ``fault`` is why it failed, ``failures`` how many failed in a
    row.
    """

    jwks: Mapped[dict[str, Any]] = mapped_column(JSON)
    skipped: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    fetched_at: Mapped[datetime] = mapped_column(UTCDateTime)
    tried_at: Mapped[datetime] = mapped_column(UTCDateTime)
    fault: Mapped[str | None] = mapped_column(Text)
    failures: Mapped[int]


class ClientKeySetRow(_PublishedKeys, Base):
    """The keys that a client publishes."""

    __tablename__ = "client_key_sets"

    client_id: Mapped[str] = mapped_column(ForeignKey(ClientRow.client_id, ondelete="CASCADE"), primary_key=True)
    uri: Mapped[str] = mapped_column(Text)
    refresh_at: Mapped[datetime] = mapped_column(UTCDateTime, index=True)


class IssuerKeySetRow(_PublishedKeys, Base):
    """The keys of a platform whose tokens authenticate clients.

    ``uri`` is its discovery document, or its key set; empty for keys from a file, which are never fetched
    (``refresh_at`` is NULL).
    """

    __tablename__ = "issuer_key_sets"

    issuer: Mapped[str] = mapped_column(String(ISSUER_MAX_CHARACTERS), primary_key=True)
    uri: Mapped[str] = mapped_column(Text)
    refresh_at: Mapped[datetime | None] = mapped_column(UTCDateTime, index=True)


class ClientTrustRow(Base):
    """A platform's workload as which a client authenticates: see ``clients.trust_rules``."""

    __tablename__ = "client_trusts"

    trust_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    client_id: Mapped[str] = mapped_column(ForeignKey(ClientRow.client_id, ondelete="CASCADE"), index=True)
    issuer: Mapped[str] = mapped_column(String(ISSUER_MAX_CHARACTERS), index=True)
    subject: Mapped[str] = mapped_column(Text)
    claims: Mapped[dict[str, str]] = mapped_column(JSON)
    audience: Mapped[str] = mapped_column(Text)
    once: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)


TRUSTED_ISSUERS = select(ClientTrustRow.issuer).where(ClientTrustRow.client_id.in_(SERVED_IDS))


class ApiRow(Base):
    """An API: see ``apis.fields``. Of equivalent identifiers one exists: ``normalized_identifier`` is unique."""

    __tablename__ = "apis"

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    identifier: Mapped[str] = mapped_column(String(2000))
    normalized_identifier: Mapped[str] = mapped_column(String(2000), unique=True, index=True)
    scope: Mapped[list[str]] = mapped_column(JSON)
    access_token_lifetime: Mapped[int | None]
    signing_alg: Mapped[str | None] = mapped_column(String(16))
    owner: Mapped[str] = mapped_column(Text)
    claims: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    publishes_document: Mapped[bool]
    created_at: Mapped[datetime] = mapped_column(UTCDateTime)
    updated_at: Mapped[datetime] = mapped_column(UTCDateTime)


class ApiGrantRow(Base):
    """A client that may call an API, and with which scopes.

    ``used`` has the day on which a token with each scope was last issued, and under an empty name the day of the last
    token for the API.
    """

    __tablename__ = "api_grants"

    client_id: Mapped[str] = mapped_column(ForeignKey(ClientRow.client_id, ondelete="CASCADE"), primary_key=True)
    api_name: Mapped[str] = mapped_column(ForeignKey(ApiRow.name, ondelete="CASCADE"), primary_key=True, index=True)
    scope: Mapped[list[str]] = mapped_column(JSON)
    granted_at: Mapped[datetime] = mapped_column(UTCDateTime)
    used: Mapped[dict[str, str]] = mapped_column(JSON)


class RevokedTokenRow(Base):
    """A token that was revoked before it expired. Deleted after it would have expired. ``exp`` is the token's own."""

    __tablename__ = "revoked_tokens"

    jti: Mapped[str] = mapped_column(String(64), primary_key=True)
    client_id: Mapped[str] = mapped_column(String(CLIENT_ID_MAX_CHARACTERS))
    audiences: Mapped[list[str]] = mapped_column(JSON)
    exp: Mapped[int] = mapped_column(BigInteger, index=True)
    revoked_at: Mapped[datetime] = mapped_column(UTCDateTime, index=True)


class UsedAssertionRow(Base):
    """An assertion that was used: a hash of its issuer and id. Deleted after the assertion has expired."""

    __tablename__ = "used_assertions"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    exp: Mapped[int] = mapped_column(BigInteger, index=True)


class KeyRingRow(Base):
    """The key ring in the database: one row. Workers notice a change by its ``version``."""

    __tablename__ = "key_ring"

    ring_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    version: Mapped[int]
    written_at: Mapped[datetime] = mapped_column(UTCDateTime)


class SigningKeyRow(Base):
    """A signing key with its times. ``private_key`` is encrypted with the key ``encryption_key_id``."""

    __tablename__ = "signing_keys"

    kid: Mapped[str] = mapped_column(String(128), primary_key=True)
    alg: Mapped[str] = mapped_column(String(16))
    private_key: Mapped[bytes] = mapped_column(LargeBinary)
    encryption_key_id: Mapped[str] = mapped_column(String(16))
    published_at: Mapped[datetime] = mapped_column(UTCDateTime)
    signs_from: Mapped[datetime] = mapped_column(UTCDateTime)
    signs_until: Mapped[datetime | None] = mapped_column(UTCDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UTCDateTime)
    jwks_max_age: Mapped[int]
    unsafe: Mapped[bool | None]


class SigningKeyUseRow(Base):
    """How many tokens a key has signed, whichever backend its ring is in. All workers add to it, a few seconds late."""

    __tablename__ = "signing_key_uses"

    kid: Mapped[str] = mapped_column(String(128), primary_key=True)
    tokens: Mapped[int] = mapped_column(BigInteger)
    first_used_at: Mapped[datetime] = mapped_column(UTCDateTime)
    last_used_at: Mapped[datetime] = mapped_column(UTCDateTime)


class OutboxRow(Base):
    """An event of a command, until a server has written it to the audit log."""

    __tablename__ = "audit_outbox"

    outbox_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    happened_at: Mapped[datetime] = mapped_column(UTCDateTime)
    event: Mapped[str] = mapped_column(String(64))
    facts: Mapped[str] = mapped_column(Text)


class ServerRow(Base):
    """A server that runs or ran, as it has recorded itself.

    ``ring`` is a fingerprint of its key ring, ``settings`` one of each setting by name. No value can be read from
    them. ``went_back_to`` is the time of the database's newest entry, if a backup was restored; ``checked_at`` is when
    the database was last compared with the audit log.
    """

    __tablename__ = "servers"

    server_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    host: Mapped[str] = mapped_column(String(255))
    port: Mapped[str] = mapped_column(String(16))
    version: Mapped[str] = mapped_column(String(64))
    started_at: Mapped[datetime] = mapped_column(UTCDateTime)
    seen_at: Mapped[datetime] = mapped_column(UTCDateTime)
    ring: Mapped[str | None] = mapped_column(String(64))
    settings: Mapped[dict[str, str]] = mapped_column(JSON)
    went_back_to: Mapped[datetime | None] = mapped_column(UTCDateTime)
    checked_at: Mapped[datetime | None] = mapped_column(UTCDateTime)


class KeyFingerprintRow(Base):
    """The fingerprint of a pepper or an encryption key, from the first server that used its id."""

    __tablename__ = "key_fingerprints"

    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    key_id: Mapped[str] = mapped_column(String(16), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
