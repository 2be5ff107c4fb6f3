"""Fixtures for all tests. Whatever can run for real does: PostgreSQL, gunicorn, clients in their own languages."""

import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.postgres import new_database, start, stop
from support.server import RunningServer, running_server


class SettableClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **duration: float) -> None:
        """Move on by ``timedelta(**duration)``."""
        self.now += timedelta(**duration)


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture(scope="session")
def postgres() -> Iterator[object]:
    # Not in pytest's own folder: as root PostgreSQL is another user, whom the next run of pytest would shut out.
    with tempfile.TemporaryDirectory(prefix="tokenhouse-", ignore_cleanup_errors=True) as folder:
        server = start(Path(folder) / "postgres")
        yield server
        stop(server)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/tokenhouse.db"
    return new_database(request.getfixturevalue("postgres"))


SHARED = {
    # Scopes of clients that come and go would make the metadata another one within a test.
    "TOKENHOUSE_PUBLISH_SCOPES": "false",
    "TOKENHOUSE_ENCRYPTION_KEYS": f"k1:{'e' * 40}",
}


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A served installation that tests share; each makes clients of its own."""
    with running_server(tmp_path_factory.mktemp("server"), **SHARED) as running:
        yield running
