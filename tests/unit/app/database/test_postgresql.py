"""A connection that does not wait for ever, and lets others go on when it waits for long."""

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from app.blocking import on_blocking
from app.database.postgresql import BoundedConnection, DatabaseSilent


@pytest.fixture
def connection(postgres: Any) -> Iterator[BoundedConnection]:
    with BoundedConnection.connect(postgres.get_uri(), autocommit=True) as made:
        assert isinstance(made, BoundedConnection)
        yield made


def told_while(connection: BoundedConnection, *statements: bytes) -> list[str]:
    """What a thread that asks ``statements`` tells of its waiting."""
    told: list[str] = []

    def ask() -> None:
        on_blocking(lambda: told.append("leaves"), lambda: told.append("is back"))
        for statement in statements:
            connection.execute(statement).fetchall()
            told.append("answered")

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return told


def test_while_a_near_database_is_waited_for_nobody_else_goes_on(
    connection: BoundedConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long enough for a machine that is busy with other tests.
    monkeypatch.setattr("app.database.postgresql.PATIENCE_SECONDS", 20)
    for statement in (b"SELECT 1", b"SELECT 2"):
        connection._usual_seconds = 0.0001  # noqa: SLF001 - As it is after some quick answers.
        assert told_while(connection, statement) == ["answered"]


def test_a_long_answer_lets_others_go_on(connection: BoundedConnection) -> None:
    assert told_while(connection, b"SELECT pg_sleep(0.1)")[-3:] == ["leaves", "is back", "answered"]


def test_of_a_far_database_nothing_is_expected_at_once(connection: BoundedConnection) -> None:
    connection._usual_seconds = 0.01  # noqa: SLF001 - As it is after some answers.
    told = told_while(connection, b"SELECT pg_sleep(0.001)")
    assert told == ["leaves", "is back", "answered"]


def test_what_is_usual_follows_the_answers(connection: BoundedConnection) -> None:
    for _ in range(60):
        connection.execute("SELECT pg_sleep(0.002)")
    slow = connection._usual_seconds  # noqa: SLF001
    assert 0.002 <= slow < 1
    for _ in range(60):
        connection.execute("SELECT 1")
    assert connection._usual_seconds < slow  # noqa: SLF001


def test_silence_ends_and_closes_the_connection(connection: BoundedConnection) -> None:
    connection.answer_seconds = 0.2
    with pytest.raises(DatabaseSilent, match=r"no answer within 0\.2 s"):
        connection.execute("SELECT pg_sleep(30)")
    assert connection.closed


def test_large_answers_and_statements_are_read_and_sent_whole(connection: BoundedConnection) -> None:
    long = "é" * 3_000_000
    (row,) = connection.execute("SELECT %s::text, generate_series(1, 1)", (long,)).fetchall()
    assert row == (long, 1)
    assert len(connection.execute("SELECT generate_series(1, 200000)").fetchall()) == 200_000


def test_an_error_is_the_drivers(connection: BoundedConnection) -> None:
    with pytest.raises(psycopg.errors.UndefinedTable):
        connection.execute("SELECT * FROM nowhere")
    assert connection.execute("SELECT 1").fetchall() == [(1,)]


def test_a_cut_connection_is_found_at_once(connection: BoundedConnection, postgres: Any) -> None:
    with psycopg.connect(postgres.get_uri(), autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))
    with pytest.raises(psycopg.OperationalError):
        connection.execute("SELECT 1")
    assert connection.closed
