"""What management of clients and of their secrets share: one transaction per call, one way to find a client."""

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
    """Run one transaction: committed as a whole, or not at all."""
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
    """Find a client by its id.

    :param for_change: lock the client and its secrets until the transaction ends.
    :raises ManagementError: no such client exists, or it was deleted.
    """
    row = None
    if is_vschar(client_id):
        row = session.get(ClientRow, client_id, with_for_update=for_change or None, populate_existing=for_change)
    if row is None or row.deleted_at is not None:
        raise ManagementError(f"there is no client {client_id!r}: `flask clients list` shows all")
    return row
