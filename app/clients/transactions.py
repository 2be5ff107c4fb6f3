"""What management of clients and of their secrets have in common: one transaction for each call, one way to find."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import scoped_session

from app.clients.secret_digests import is_vschar
from app.database.engine import begin_writing
from app.database.models import ClientRow
from app.errors import ManagementError


@contextmanager
def writing(session: scoped_session[Any]) -> Iterator[scoped_session[Any]]:
    """One transaction: committed whole, or nothing of it."""
    begin_writing(session)
    try:
        yield session
        session.commit()
    except IntegrityError:
        session.rollback()
        raise ManagementError("somebody else has just made the same change: look, and try again") from None
    except BaseException:
        session.rollback()
        raise


def find_client(session: scoped_session[Any], client_id: str, *, for_change: bool = False) -> ClientRow:
    """Look up one client by its id.

    :param for_change: keep others from changing it, or its secrets, until the transaction ends.
    :raises ManagementError: there is none, or it was deleted.
    """
    row = None
    if is_vschar(client_id):
        row = session.get(ClientRow, client_id, with_for_update=for_change or None, populate_existing=for_change)
    if row is None or row.deleted_at is not None:
        raise ManagementError(f"there is no client {client_id!r}: `flask clients list` shows all")
    return row
