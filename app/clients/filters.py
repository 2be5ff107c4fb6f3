"""The filters of ``flask clients list``, as conditions of a statement."""

from collections.abc import Mapping
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, exists, func

from app.clients.secrets import usable_at
from app.clients.usage import is_wasteful
from app.database.models import ClientRow, ClientSecretRow

LEGACY_FOR = timedelta(days=30)
"""How long an assertion of the legacy style counts: a monthly job may be behind it."""


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
    wasteful: int | None = None,
    assertion_style: str | None = None,
) -> list[ColumnElement[bool]]:
    """Return the conditions for clients that were not deleted and pass all filters.

    :param name: a part of the name, in any case.
    :param unused_for: not used for so long; a client that was never used counts from its creation.
    :param secrets_older_than: has a usable secret that was created so long ago.
    :param expiring_in: has a usable secret, or a registered certificate, that expires within this time.
    :param assertion_style: ``legacy``: sent an assertion in the last 30 days that RFC 10070 does not allow.
    :param wasteful: got far more tokens than it needs; the lifetime of tokens of clients without their own, in seconds.
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
        ends = exists().where(is_usable, ClientSecretRow.expires_at <= now + expiring_in)
        found.append(ends | (ClientRow.certificate_expires_at <= now + expiring_in))
    if wasteful is not None:
        found.append(is_wasteful(now.date(), wasteful))
    if assertion_style is not None:
        found.append(ClientRow.legacy_assertion_at >= now - LEGACY_FOR)
    return found
