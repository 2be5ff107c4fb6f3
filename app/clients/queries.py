"""The statements that read clients: on the request path, and for an outage of the database.

JSON columns are returned as text. An id of no client gives a row of NULLs: handling rows takes time, which would
reveal which ids exist.
"""

from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    LargeBinary,
    Select,
    String,
    Text,
    and_,
    bindparam,
    case,
    cast,
    func,
    literal_column,
    or_,
    select,
    union,
)

from app.clients.trust_rules import MOST_TRUSTS, SPIFFE
from app.database.models import (
    SERVED,
    ClientKeySetRow,
    ClientRow,
    ClientSecretRow,
    ClientTrustRow,
    IssuerKeySetRow,
)

_CLIENT_COLUMNS = (
    ClientRow.client_id,
    ClientRow.client_name,
    ClientRow.token_endpoint_auth_method,
    # As text, parsed only for an authenticated client: the time to parse would reveal which ids exist.
    cast(ClientRow.grant_types, Text).label("grant_types"),
    cast(ClientRow.scope, Text).label("scope"),
    cast(ClientRow.audiences, Text).label("audiences"),
    cast(ClientRow.introspects, Text).label("introspects"),
    cast(ClientRow.sender_constraints, Text).label("sender_constraints"),
    cast(ClientRow.claims, Text).label("claims"),
    cast(ClientRow.apis, Text).label("apis"),
    ClientRow.access_token_lifetime,
    ClientRow.rate_limit,
    ClientRow.tokens_not_before,
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

# If the two readings of Basic credentials differ, both are looked up at once, so that both cost the same.
_ONE = select(bindparam("one_id", type_=String).label("asked_id"))
_OTHER = select(bindparam("other_id", type_=String).label("asked_id"))


def _find_clients(ids: Select[Any] | CompoundSelect[Any], *columns: Any) -> Select[Any]:
    asked = ids.subquery("asked").c.asked_id
    return (
        select(asked, *_CLIENT_COLUMNS, *columns)
        .select_from(asked.table)
        .outerjoin(ClientRow, ClientRow.client_id == asked)
    )


def _with_secrets(found: Select[Any], *conditions: ColumnElement[bool]) -> Select[Any]:
    return found.outerjoin(ClientSecretRow, and_(ClientSecretRow.client_id == ClientRow.client_id, *conditions))


_KEY_COLUMNS = (
    cast(ClientRow.auth_fields, Text).label("auth_fields"),
    cast(ClientKeySetRow.jwks, Text).label("published_jwks"),
)
_SECRET_AS_KEY_COLUMNS = (
    ClientSecretRow.secret_id,
    ClientSecretRow.encrypted,
    ClientSecretRow.encryption_key_id,
    ClientSecretRow.expires_at,
    ClientSecretRow.revoked_at,
)
MOST_SECRETS = 10
"""Usable secrets of one client."""

_USABLE_FIRST = (
    ClientSecretRow.revoked_at.is_not(None),
    ClientSecretRow.expires_at.is_not(None),
    ClientSecretRow.expires_at.desc(),
)
"""Usable secrets first, whatever the time is."""


_TRUST_ORDER = (ClientTrustRow.created_at, ClientTrustRow.trust_id)
_IS_FIRST = func.row_number().over(order_by=_TRUST_ORDER) == literal_column("1")
_TRUST_COLUMNS = (
    ClientTrustRow.trust_id,
    ClientTrustRow.issuer,
    ClientTrustRow.subject,
    cast(ClientTrustRow.claims, Text).label("trust_claims"),
    ClientTrustRow.audience,
    ClientTrustRow.once,
    # Once, however many trusts there are: the time would reveal which ids exist.
    case((_IS_FIRST, cast(IssuerKeySetRow.jwks, Text))).label("issuer_jwks"),
)
_ASKED = _ONE.add_columns(bindparam("issuer", type_=String).label("asked_issuer")).subquery("asked")
_ISSUER = _ASKED.c.asked_issuer
# A SPIFFE token may lack iss: the trust domain of its subject stands for it.
_FIRST: ColumnElement[int] = literal_column("1")
_LENGTH: ColumnElement[int] = literal_column(str(len(SPIFFE)))
_IS_DOMAIN = func.substr(_ISSUER, _FIRST, _LENGTH) == literal_column(f"'{SPIFFE}'")
_IN_DOMAIN = func.substr(ClientTrustRow.subject, _FIRST, func.length(_ISSUER)) == _ISSUER
_IS_TRUSTED = or_(ClientTrustRow.issuer == _ISSUER, and_(_IS_DOMAIN, _IN_DOMAIN))
BY_TRUSTS = (
    select(_ASKED.c.asked_id, *_CLIENT_COLUMNS, *_TRUST_COLUMNS)
    .select_from(_ASKED)
    .outerjoin(ClientRow, ClientRow.client_id == _ASKED.c.asked_id)
    .outerjoin(ClientTrustRow, and_(ClientTrustRow.client_id == ClientRow.client_id, _IS_TRUSTED))
    .outerjoin(IssuerKeySetRow, IssuerKeySetRow.issuer == ClientTrustRow.issuer)
    .order_by(*_TRUST_ORDER)
    .limit(literal_column(str(MOST_TRUSTS)))
    .offset(literal_column("0"))
)


def _with_key_set(found: Select[Any]) -> Select[Any]:
    return found.outerjoin(ClientKeySetRow, ClientKeySetRow.client_id == ClientRow.client_id)


def digest_names(digests: int) -> list[str]:
    """Return the names of the parameters of :func:`by_digests`, for the digests of the secret that was sent."""
    return [f"digest_{place}" for place in range(digests)]


def by_digests(ids: int, digests: int) -> Select[Any]:
    """Find one or two clients, and those of their secrets that have one of the digests.

    One row is read for each id, however many secrets a client has or had: an index leads to the digest. A digest is
    keyed, so no caller can choose one and learn from the time how much of it is right.
    """
    asked = _ONE if ids == 1 else union(_ONE, _OTHER)
    sent = [bindparam(name, type_=LargeBinary) for name in digest_names(digests)]
    return _with_secrets(_find_clients(asked, *_SECRET_COLUMNS), ClientSecretRow.digest.in_(sent))


BY_KEYS = _with_key_set(_find_clients(_ONE, *_KEY_COLUMNS))
BY_SECRETS_AS_KEYS = (
    _with_secrets(BY_KEYS.add_columns(*_SECRET_AS_KEY_COLUMNS))
    .order_by(*_USABLE_FIRST)
    .limit(literal_column(str(MOST_SECRETS)))
    .offset(literal_column("0"))
)

_ALL_COLUMNS: tuple[Any, ...] = (
    ClientRow.client_id.label("asked_id"),
    *_CLIENT_COLUMNS,
    *_KEY_COLUMNS,
    *_SECRET_COLUMNS,
    ClientSecretRow.encrypted,
    ClientSecretRow.encryption_key_id,
)
SERVED_CLIENTS = (
    _with_secrets(_with_key_set(select(*_ALL_COLUMNS).select_from(ClientRow)), ClientSecretRow.revoked_at.is_(None))
    .where(SERVED)
    .order_by(ClientRow.client_id, *_USABLE_FIRST)
)
"""Every client that may get tokens, one row for each secret that was not revoked, with the columns of all statements
above.
"""


def most_used(limit: int) -> Select[Any]:
    """Return the ``limit`` clients of :data:`SERVED_CLIENTS` that were used last."""
    latest = select(ClientRow.client_id).where(SERVED).order_by(ClientRow.last_used_at.desc().nulls_last()).limit(limit)
    return SERVED_CLIENTS.where(ClientRow.client_id.in_(latest))
