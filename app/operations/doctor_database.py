"""The doctor's checks of the database."""

import re

from sqlalchemy import func, inspect, select, text
from sqlalchemy.exc import SQLAlchemyError

from app.config.values import KEYRING_IN_DATABASE, PROJECT_FOLDER
from app.database.engine import describe, reading_engine
from app.database.models import db
from app.operations.findings import Finding, Found, NotResponding, Severity
from app.services import Services

CLOCKS_APART_SECONDS = 5

_OTHERS_READ = 0o077
_VERSIONS = PROJECT_FOLDER / "migrations" / "versions"


def find_other_schema(services: Services) -> Found:
    """Check that the database takes writes, and is at the migration that the code needs."""
    head = max(path.name[:4] for path in _VERSIONS.glob("[0-9]*.py"))
    try:
        with reading_engine(db.engine).connect() as connection:
            has_table = inspect(connection).has_table("alembic_version")
            there = connection.scalar(text("SELECT version_num FROM alembic_version")) if has_table else None
        takes_writes = services.clients.authenticator.takes_writes()
    except SQLAlchemyError as error:
        is_permanent = getattr(getattr(error, "orig", None), "is_permanent", False)
        yield (Finding if is_permanent else NotResponding)(
            "database",
            Severity.ERROR,
            f"it cannot be used: {describe(error)}" if is_permanent else f"it does not respond: {describe(error)}",
            "no client gets a token without it",
            "check TOKENHOUSE_DATABASE_URL, that the database runs, and that `flask db upgrade` has run",
        )
        return
    if not takes_writes:
        yield Finding(
            "database",
            Severity.ERROR,
            "it takes no writes",
            "nothing can be changed or revoked, and assertions are refused; if it is an old primary, clients that were "
            "disabled on the new one get tokens",
            "let TOKENHOUSE_DATABASE_URL lead to the primary; target_session_attrs=read-write finds it among hosts",
        )
    elif there == head:
        yield Finding("database", Severity.OK, f"at migration {head}, as the code needs it")
    elif there is None or (re.fullmatch("[0-9]{4}", there) and there < head):
        yield Finding(
            "database",
            Severity.ERROR,
            f"at migration {there or 'none'}, and the code needs {head}",
            "requests would fail at what is missing",
            "`flask db upgrade`",
        )
    else:
        yield Finding(
            "database",
            Severity.WARNING,
            f"at migration {there}, and the code is of {head}",
            "a newer release was here: fine during an update or after a rollback, but not for long",
            "update this machine too",
        )


def find_other_clock(services: Services) -> Found:
    """Compare this machine's clock with the database's."""
    if db.engine.dialect.name != "postgresql":
        return
    try:
        with reading_engine(db.engine).connect() as connection:
            theirs = connection.scalar(select(func.clock_timestamp()))
    except SQLAlchemyError:
        # The check of the database reports it.
        return
    apart = abs((services.clock() - theirs).total_seconds()) if theirs else 0
    if apart <= CLOCKS_APART_SECONDS:
        yield Finding("clock", Severity.OK, "agrees with the database's")
        return
    yield Finding(
        "clock",
        Severity.WARNING,
        f"{apart:.0f} s apart from the database's",
        "verifiers would reject tokens as not yet valid or expired, and keys would change their states at other times",
        "synchronize both machines with NTP",
    )


def find_lonely_database(services: Services) -> Found:
    """Find a SQLite file that several machines would need, or that other users may read."""
    settings = services.settings
    if db.engine.dialect.name != "sqlite":
        return
    shares = {
        "TOKENHOUSE_KEYRING=database": settings.keyring == KEYRING_IN_DATABASE,
        "TOKENHOUSE_REDIS_URL": settings.redis_url,
    }
    if message := [name for name, is_set in shares.items() if is_set]:
        yield Finding(
            "machines",
            Severity.WARNING,
            f"SQLite is a file of this machine, and there are several by {' and '.join(message)}",
            "each machine would have its own clients",
            "TOKENHOUSE_DATABASE_URL=postgresql+psycopg://…",
        )
    path = str(db.engine.url.database)
    try:
        mode = (PROJECT_FOLDER / path).stat().st_mode
    except OSError:
        return
    if mode & _OTHERS_READ:
        yield Finding(
            "database file",
            Severity.WARNING,
            f"{path} may be read or written by others (mode {mode & 0o777:04o})",
            "it decides who gets tokens",
            f"chmod 0600 {path}",
        )
