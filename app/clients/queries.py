"""The statements that read clients on the request path.

JSON columns are returned as text. An id of no client gives a row of NULLs: handling rows takes time, which would
reveal which ids exist.
"""

from typing import Any

from sqlalchemy import CompoundSelect, Select, String, Text, bindparam, cast, select, union

from app.database.models import ClientKeySetRow, ClientRow, ClientSecretRow

_CLIENT_COLUMNS = (
    ClientRow.client_id,
    ClientRow.client_name,
    ClientRow.token_endpoint_auth_method,
    # As text, parsed only for an authenticated client: the time to parse would reveal which ids exist.
    cast(ClientRow.grant_types, Text).label("grant_types"),
    cast(ClientRow.scope, Text).label("scope"),
    cast(ClientRow.audiences, Text).label("audiences"),
    cast(ClientRow.introspects, Text).label("introspects"),
    ClientRow.access_token_lifetime,
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


def _with_secrets(found: Select[Any]) -> Select[Any]:
    return found.outerjoin(ClientSecretRow, ClientSecretRow.client_id == ClientRow.client_id)


BY_KEYS = _find_clients(
    _ONE,
    cast(ClientRow.auth_fields, Text).label("auth_fields"),
    cast(ClientKeySetRow.jwks, Text).label("published_jwks"),
).outerjoin(ClientKeySetRow, ClientKeySetRow.client_id == ClientRow.client_id)
BY_SECRETS_AS_KEYS = _with_secrets(
    BY_KEYS.add_columns(
        ClientSecretRow.secret_id,
        ClientSecretRow.encrypted,
        ClientSecretRow.encryption_key_id,
        ClientSecretRow.expires_at,
        ClientSecretRow.revoked_at,
    )
    # Usable secrets first, whatever the time is.
).order_by(
    ClientSecretRow.revoked_at.is_not(None),
    ClientSecretRow.expires_at.is_not(None),
    ClientSecretRow.expires_at.desc(),
)

BY_ONE_ID = _with_secrets(_find_clients(_ONE, *_SECRET_COLUMNS))
BY_TWO_IDS = _with_secrets(_find_clients(union(_ONE, _OTHER), *_SECRET_COLUMNS))
