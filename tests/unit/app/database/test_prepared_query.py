"""A question is answered as SQLAlchemy would, on a connection that each thread keeps for as long as it is good."""

import gc
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Engine, Select, String, bindparam, event, literal_column, select
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError
from unit.harness import Harness

from app.database.engine import MAX_AGE_SECONDS, is_stale_connection, write
from app.database.models import ClientRow, ClientSecretRow, db
from app.database.prepared_query import PreparedQuery, ThreadLocalConnections

SECRETS_OF = (
    select(
        ClientRow.client_id,
        ClientRow.access_token_lifetime,
        ClientSecretRow.digest,
        ClientSecretRow.created_at,
        ClientSecretRow.revoked_at,
    )
    .join(ClientSecretRow, ClientSecretRow.client_id == ClientRow.client_id)
    .where(ClientRow.client_id.in_([bindparam("one", type_=String), bindparam("other", type_=String)]))
    .order_by(ClientRow.client_id)
)
ANY = {"one": "a", "other": "b"}


def question(harness: Harness, statement: Select[Any] = SECRETS_OF) -> PreparedQuery:
    with harness.app.app_context():
        return PreparedQuery(ThreadLocalConnections(db.engine), statement)


def connections_made(harness: Harness) -> list[object]:
    """Every connection that the pool opens from now on."""
    made: list[object] = []
    with harness.app.app_context():
        event.listen(db.engine, "connect", lambda connection, _: made.append(connection))
    return made


def dispose(harness: Harness) -> None:
    with harness.app.app_context():
        db.engine.dispose()


def in_a_thread(run: Callable[[], object]) -> None:
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def test_it_answers_as_sqlalchemy_does(any_harness: Harness) -> None:
    any_harness.register("a", access_token_lifetime=90)
    any_harness.register("b")
    asked = question(any_harness)
    rows = asked.execute(ANY)
    assert [tuple(row) for row in rows] == [tuple(row) for row in asked.execute_on_new_connection(ANY)]
    assert [(row.client_id, row.access_token_lifetime, len(row.digest)) for row in rows] == [
        ("a", 90, 32),
        ("b", None, 32),
    ]
    assert [(row.created_at, row.created_at.tzinfo, row.revoked_at) for row in rows] == 2 * [
        (datetime(2026, 1, 31, 12, tzinfo=UTC), UTC, None)
    ]
    assert asked.execute({"one": "x", "other": "y"}) == []


@pytest.mark.parametrize("target", ["the engine", "all engines"])
@pytest.mark.parametrize("name", ["before_cursor_execute", "after_cursor_execute"])
def test_a_listener_to_sqlalchemys_execution_is_called(any_harness: Harness, name: str, target: str) -> None:
    any_harness.register("a")
    asked = question(any_harness)
    before = asked.execute(ANY)
    with any_harness.app.app_context():
        listened_to = db.engine if target == "the engine" else Engine
    seen: list[tuple[str, Any]] = []

    def listener(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_more: Any) -> None:
        seen.append((statement, parameters))

    event.listen(listened_to, name, listener)
    try:
        assert asked.execute(ANY) == before
        assert seen == [(asked.text, asked.arrange(ANY))]
    finally:
        event.remove(listened_to, name, listener)
    assert asked.execute(ANY) == before
    assert len(seen) == 1


def test_a_listener_may_change_the_statement(any_harness: Harness) -> None:
    asked = question(any_harness, select(literal_column("'as written'", String).label("said")))

    def changed(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_more: Any) -> tuple[str, Any]:
        return statement.replace("as written", "as changed"), parameters

    with any_harness.app.app_context():
        event.listen(db.engine, "before_cursor_execute", changed, retval=True)
    assert [row.said for row in asked.execute({})] == ["as changed"]


@pytest.mark.parametrize("text", ["", "a'b", '"', "%", "%s", "%(one)s", ":one", "?", "é😀", "\\", "a" * 10_000])
def test_parameters_are_never_part_of_the_statement(any_harness: Harness, text: str) -> None:
    asked = question(
        any_harness, select(literal_column("'50 % of'", String).label("said"), bindparam("one", type_=String))
    )
    assert [tuple(row) for row in asked.execute({"one": text})] == [("50 % of", text)]


def test_each_thread_keeps_one_connection(any_harness: Harness) -> None:
    asked, made = question(any_harness), connections_made(any_harness)
    dispose(any_harness)
    for _ in range(3):
        asked.execute(ANY)
    assert len(made) == 1
    in_a_thread(lambda: [asked.execute(ANY) for _ in range(3)])
    assert len(made) == 2


def test_several_questions_share_it(any_harness: Harness) -> None:
    with any_harness.app.app_context():
        connections = ThreadLocalConnections(db.engine)
    made = connections_made(any_harness)
    dispose(any_harness)
    for statement in (SECRETS_OF, SECRETS_OF.distinct()):
        PreparedQuery(connections, statement).execute(ANY)
    assert len(made) == 1


def test_a_thread_that_ends_leaves_its_connection_to_others(any_harness: Harness) -> None:
    asked, made = question(any_harness), connections_made(any_harness)
    dispose(any_harness)
    for _ in range(3):
        in_a_thread(lambda: asked.execute(ANY))
        gc.collect()
    assert len(made) == 1
    with any_harness.app.app_context():
        assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def test_reading_leaves_no_transaction_open(any_harness: Harness) -> None:
    asked = question(any_harness)
    asked.execute(ANY)
    any_harness.register("a")
    # A snapshot of before would not show it.
    assert [row.client_id for row in asked.execute(ANY)] == ["a"]
    with any_harness.app.app_context():
        db.drop_all()


def test_who_disposes_of_the_engine_closes_what_threads_keep(any_harness: Harness) -> None:
    asked, made = question(any_harness), connections_made(any_harness)
    dispose(any_harness)
    asked.execute(ANY)
    dispose(any_harness)
    (connection,) = made
    with pytest.raises((psycopg.OperationalError, sqlite3.ProgrammingError), match="closed"):
        connection.execute("SELECT 1")  # type: ignore[attr-defined]
    asked.execute(ANY)
    assert len(made) == 2


def test_a_fault_of_the_statement_is_sqlalchemys_and_quotes_no_value(any_harness: Harness) -> None:
    asked = question(any_harness)
    with any_harness.app.app_context():
        db.drop_all()
    with pytest.raises(DBAPIError) as caught:
        asked.execute({"one": "ths_pasted-secret", "other": ""})
    assert not caught.value.connection_invalidated
    assert type(caught.value.orig).__name__ in {"OperationalError", "UndefinedTable"}
    assert "ths_" not in f"{caught.value} {caught.value!r}"
    with any_harness.app.app_context():
        db.create_all()
    assert asked.execute(ANY) == []


@pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)
def test_a_connection_that_was_cut_is_used_no_more(any_harness: Harness) -> None:
    asked, made = question(any_harness), connections_made(any_harness)
    dispose(any_harness)
    asked.execute(ANY)
    with any_harness.app.app_context(), db.engine.connect() as other:
        # The other one was opened before the cut, too: asking anew finds it, and drops all of that age.
        other.exec_driver_sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    with pytest.raises(OperationalError) as caught:
        asked.execute(ANY)
    assert caught.value.connection_invalidated
    assert is_stale_connection(caught.value)
    assert asked.execute_on_new_connection(ANY) == []
    assert asked.execute(ANY) == []
    assert made[0].closed  # type: ignore[attr-defined]


@pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)
def test_no_request_fails_when_all_connections_were_cut(any_harness: Harness) -> None:
    threads = 4
    barrier = threading.Barrier(threads)
    asked, failures = any_harness.verifier, []

    def execute() -> None:
        for _ in range(2):
            barrier.wait()
            try:
                asked.answers()
            except Exception as error:  # noqa: BLE001 - Seen below.
                failures.append(error)
            barrier.wait()
            if barrier.wait() == 0:
                url = any_harness.settings.database_url.get_secret_value().replace("+psycopg", "")
                with psycopg.connect(url, autocommit=True) as other:
                    other.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    )
            barrier.wait()

    workers = [threading.Thread(target=execute) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert failures == []


def test_a_file_that_was_replaced_is_opened_anew(harness: Harness) -> None:
    harness.register("a")
    asked = question(harness)
    assert [row.client_id for row in asked.execute(ANY)] == ["a"]
    dispose(harness)
    asked.execute(ANY)
    file = harness.folder / "tokenhouse.db"
    copy = Path(shutil.copy(file, harness.folder / "copy.db"))
    with harness.app.app_context():
        harness.store.delete("a")
        harness.register("b")
        db.session.remove()
    os.replace(copy, file)  # noqa: PTH105 - Atomic, as a restored backup comes.
    for name in ("tokenhouse.db-wal", "tokenhouse.db-shm"):
        (harness.folder / name).unlink(missing_ok=True)
    assert [row.client_id for row in asked.execute(ANY)] == ["a"]


def test_a_file_that_was_taken_away_is_missed_and_found_again(harness: Harness) -> None:
    asked = question(harness)
    asked.execute(ANY)
    file = harness.folder / "tokenhouse.db"
    file.rename(harness.folder / "away.db")
    with pytest.raises(SQLAlchemyError, match="unable to open database file"):
        asked.execute(ANY)
    (harness.folder / "away.db").rename(file)
    assert asked.execute(ANY) == []


def test_all_who_ask_share_the_connection_of_their_thread(harness: Harness) -> None:
    client = harness.register(introspects=("*",))
    made: list[Any] = []
    with harness.app.app_context():
        db.engine.dispose()
        event.listen(db.engine, "connect", lambda *found: made.append(found))
        for _ in range(3):
            harness.services.clients.authenticator.answers()
            harness.services.tokens.revocations.reason_against(client.client_id, "j", harness.clock())
    assert len(made) == 1


@pytest.mark.parametrize("sqlstate", ["25006", "26000", "42P05", "0A000", "08P01"])
@pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)
def test_a_fault_of_the_connection_costs_one_more_question_and_no_answer(any_harness: Harness, sqlstate: str) -> None:
    any_harness.register("a")
    asked = question(any_harness)
    asked.execute(ANY)
    kept = asked._connections.current()  # noqa: SLF001
    driver = kept.driver

    class Faulty:
        """A driver's connection that refuses the next statement."""

        def __getattr__(self, name: str) -> Any:
            return getattr(driver, name)

        def execute(self, *_: object) -> None:
            raise psycopg.errors.lookup(sqlstate)

    kept.driver = Faulty()
    breaker = any_harness.services.clients.authenticator._circuit_breaker  # noqa: SLF001
    assert [row.client_id for row in asked.execute_through(breaker, ANY)] == ["a"]
    assert not breaker.is_failing
    assert driver.closed
    assert asked._connections.current() is not kept  # noqa: SLF001


@pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)
def test_a_write_that_the_connection_refuses_is_tried_once_more(any_harness: Harness) -> None:
    attempts: list[int] = []

    def act(connection: Connection, refusals: int) -> int:
        attempts.append(1)
        if len(attempts) <= refusals:
            connection.exec_driver_sql("SET TRANSACTION READ ONLY")
            connection.exec_driver_sql("CREATE TABLE t (a int)")
        return int(connection.exec_driver_sql("SELECT 7").scalar_one())

    with any_harness.app.app_context():
        assert write(db.engine, lambda connection: act(connection, 1)) == 7
        assert len(attempts) == 2
        attempts.clear()
        with pytest.raises(DBAPIError, match="read-only transaction"):
            write(db.engine, lambda connection: act(connection, 9))
        assert len(attempts) == 2
        attempts.clear()
        with pytest.raises(DBAPIError, match="nowhere"):
            write(db.engine, lambda connection: attempts.append(1) or connection.exec_driver_sql("SELECT nowhere"))  # type: ignore[func-returns-value]
        assert len(attempts) == 1


def test_a_connection_ends_after_some_minutes(any_harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = question(any_harness)
    kept = [asked._connections.current()]  # noqa: SLF001
    began = time.monotonic()
    for share in (0.79, 1.01, 1.02):
        monkeypatch.setattr(time, "monotonic", lambda share=share: began + share * MAX_AGE_SECONDS)
        asked.execute(ANY)
        kept.append(asked._connections.current())  # noqa: SLF001
    assert kept[0] is kept[1]
    assert kept[0].driver is not kept[2].driver
    assert kept[2] is kept[3]
