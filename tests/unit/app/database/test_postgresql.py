"""A connection that does not wait for ever, and lets others go on when it waits for long."""

import contextlib
import gc
import secrets
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from psycopg.waiting import Wait
from sqlalchemy.engine import make_url
from support.postgres import new_database

from app.blocking import on_blocking
from app.database.postgresql import BoundedConnection, ConnectionFault, DatabaseSilent


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


def test_silence_amid_many_statements_leaves_nothing_to_report(connection: BoundedConnection) -> None:
    """The end of the pipeline waits for a connection that the first wait has closed."""
    connection.answer_seconds = 0.2
    with pytest.raises(DatabaseSilent):
        connection.cursor().executemany("SELECT pg_sleep(%s)", [(30,)] * 200)
    assert connection.closed
    gc.collect()


def test_silence_at_the_end_of_a_pipeline_leaves_nothing_to_report(connection: BoundedConnection) -> None:
    """As psycopg's end of a pipeline: it waits once more, whatever ended the first wait."""

    def end_of_pipeline() -> Iterator[Wait]:
        try:
            yield Wait.R
        finally:
            yield Wait.R

    connection.answer_seconds = 0.05
    with pytest.raises(DatabaseSilent):
        connection.wait(end_of_pipeline())
    # What Python prints of a generator that does not end is an error here.
    gc.collect()


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


@pytest.fixture
def begun(postgres: Any) -> Iterator[Callable[..., BoundedConnection]]:
    """Connections whose session has begun, to a database with these settings."""
    with contextlib.ExitStack() as stack:

        def begin(options: str = "", **settings: str) -> BoundedConnection:
            url = make_url(new_database(postgres))
            with psycopg.connect(postgres.get_uri(), autocommit=True) as admin:
                for name, value in settings.items():
                    admin.execute(f"ALTER DATABASE {url.database} SET {name} = {value}")
            uri = postgres.get_uri(database=url.database)
            made = stack.enter_context(BoundedConnection.connect(uri, options=options))
            assert isinstance(made, BoundedConnection)
            made.begin_session(options)
            return made

        yield begin


def shown(connection: BoundedConnection, *names: str) -> list[str]:
    return [connection.execute(f"SHOW {name}").fetchall()[0][0] for name in names]


def test_a_session_is_ours_whatever_the_database_says(begun: Callable[..., BoundedConnection]) -> None:
    names = ("DateStyle", "TimeZone", "client_encoding", "search_path", "statement_timeout")
    foreign = begun(
        DateStyle="'SQL, DMY'", TimeZone="'Asia/Kathmandu'", search_path="pg_catalog", statement_timeout="'9s'"
    )
    assert shown(foreign, *names) == ["ISO, MDY", "UTC", "UTF8", '"$user", public', "3s"]
    assert foreign.execute("SELECT timestamptz '2026-01-31 12:00+00'").fetchall()[0][0] == datetime(
        2026, 1, 31, 12, tzinfo=UTC
    )
    assert (foreign.is_pooled, foreign.was_writable, foreign.autocommit) == (False, True, False)
    own = begun("-c statement_timeout=7s -c search_path=pg_catalog")
    assert shown(own, "search_path", "statement_timeout") == ["pg_catalog", "7s"]


def test_a_database_of_another_encoding_is_refused_in_one_sentence(postgres: Any) -> None:
    name = f"latin{secrets.token_hex(4)}"
    with psycopg.connect(postgres.get_uri(), autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    with (
        BoundedConnection.connect(postgres.get_uri(database=name)) as connection,
        pytest.raises(psycopg.OperationalError, match="has the encoding SQL_ASCII, and must have UTF8"),
    ):
        connection.begin_session("")


def test_a_server_that_becomes_read_only_is_noticed_with_the_next_answer(
    begun: Callable[..., BoundedConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = begun()
    cursor = connection.execute("SELECT 1 AS one")
    connection.check(cursor, ["one"])
    assert not connection.is_read_only()
    connection.commit()
    # Reported as when a server becomes a standby, or is set so for all.
    connection.execute("SET default_transaction_read_only = on")
    assert connection.is_read_only()
    with pytest.raises(ConnectionFault, match="takes no writes any more"):
        connection.check(cursor, ["one"])
    connection.was_writable = False
    connection.check(cursor, ["one"])
    connection.commit()
    # Through a pooler it is asked, once a second.
    connection.is_pooled = True
    assert not connection.is_read_only()
    monkeypatch.setattr(connection, "_probed_at", 0.0)
    assert connection.is_read_only()
    assert not connection.autocommit


def test_rows_of_another_statement_are_refused_where_a_pooler_may_mix_them(
    begun: Callable[..., BoundedConnection],
) -> None:
    connection = begun()
    connection.check(connection.execute("SELECT 1 AS one"), ["another"])
    connection.is_pooled = True
    connection.check(connection.execute("SELECT 1 AS one"), ["one"])
    with pytest.raises(ConnectionFault, match="rows of another statement"):
        connection.check(connection.execute("SELECT 1 AS one"), ["another"])
