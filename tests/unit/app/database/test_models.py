"""Tables and the database's settings: aware times, migrations that agree, SQLite set up for many writers."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from conftest import SettableClock
from flask_migrate import downgrade, upgrade
from sqlalchemy import func, inspect, select, text
from sqlalchemy.exc import IntegrityError, OperationalError, StatementError
from unit.harness import Harness, open_harness

from app.database.engine import is_locked, migrating, reading_engine, writing_engine
from app.database.models import ClientRow, ClientSecretRow, db
from app.database.postgresql import BoundedConnection, DatabaseSilent

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture
def session(any_harness: Harness) -> Iterator[Any]:
    with any_harness.app.app_context():
        yield db.session


def client_row(client_id: str = "c", **fields: Any) -> ClientRow:
    columns: dict[str, Any] = {
        "client_id": client_id,
        "form_decoded_id": client_id,
        "client_name": "Größe 名前",
        "description": "",
        "contacts": ["ops@example.com"],
        "labels": {"team": "a"},
        "token_endpoint_auth_method": "client_secret",
        "grant_types": ["client_credentials"],
        "scope": ["b", "a"],
        "audiences": [],
        "created_at": NOON,
        "updated_at": NOON,
    }
    return ClientRow(**{**columns, **fields})


def secret_row(secret_id: str = "s-1", client_id: str = "c", **fields: Any) -> ClientSecretRow:
    columns: dict[str, Any] = {"digest": b"\0\xff" * 16, "pepper_id": "p1", "last_four": "abcd", "origin": "generated"}
    return ClientSecretRow(**{"secret_id": secret_id, "client_id": client_id, "created_at": NOON, **columns, **fields})


@pytest.mark.usefixtures("session")
def test_models_and_migrations_agree() -> None:
    with db.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, db.metadata) == []


@pytest.mark.usefixtures("session")
def test_constraints_and_indexes_have_the_same_names_as_in_the_models() -> None:
    with db.engine.connect() as connection:
        found = inspect(connection)
        assert found.get_pk_constraint("clients")["name"] == "pk_clients"
        assert [index["name"] for index in found.get_indexes("clients")] == [
            "ix_clients_certificate_expires_at",
            "ix_clients_form_decoded_id",
            "ix_clients_legacy_assertion_at",
            "ix_clients_limited_at",
            "ix_clients_tokens_not_before",
        ]
        assert [index["name"] for index in found.get_indexes("client_secrets")] == [
            "ix_client_secrets_client_id_digest"
        ]
        (foreign,) = found.get_foreign_keys("client_secrets")
        assert (foreign["name"], foreign["options"]) == ("fk_client_secrets_client_id_clients", {"ondelete": "CASCADE"})


def test_there_is_a_way_down_and_up_again_with_rows_in_it(session: Any) -> None:
    session.add(client_row())
    session.add(secret_row())
    session.commit()
    session.remove()
    for revision in ("0002", "0001", "base"):
        downgrade(revision=revision)
    with db.engine.connect() as connection:
        assert inspect(connection).get_table_names() == ["alembic_version"]
    upgrade()
    upgrade()
    session.add(client_row())
    session.commit()
    with db.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), db.metadata) == []


def test_a_second_upgrade_keeps_the_rows(session: Any) -> None:
    session.add(client_row())
    session.commit()
    session.remove()
    upgrade()
    assert session.get(ClientRow, "c").client_name == "Größe 名前"


def test_what_is_stored_comes_back_as_it_was(session: Any) -> None:
    east = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
    session.add(client_row(created_at=east, updated_at=NOON + timedelta(microseconds=1), access_token_lifetime=90))
    session.add(secret_row(expires_at=NOON + timedelta(days=1)))
    session.commit()
    session.remove()
    row = session.get(ClientRow, "c")
    assert (row.created_at, row.created_at.tzinfo) == (NOON, UTC)
    assert (row.updated_at, row.disabled_at, row.deleted_at) == (NOON + timedelta(microseconds=1), None, None)
    assert (row.client_name, row.contacts, row.labels) == ("Größe 名前", ["ops@example.com"], {"team": "a"})
    assert (row.grant_types, row.scope, row.audiences, row.access_token_lifetime) == (
        ["client_credentials"],
        ["b", "a"],
        [],
        90,
    )
    (secret,) = row.secrets
    assert (secret.digest, secret.expires_at) == (b"\0\xff" * 16, NOON + timedelta(days=1))


def test_a_time_without_a_zone_is_refused(session: Any) -> None:
    session.add(client_row(created_at=NOON.replace(tzinfo=None)))
    with pytest.raises(StatementError, match="a stored time must be aware"):
        session.commit()


def test_an_id_stands_once(session: Any) -> None:
    session.add(client_row())
    session.commit()
    session.remove()
    session.add(client_row())
    with pytest.raises(IntegrityError):
        session.commit()


def test_a_secret_needs_its_client(session: Any) -> None:
    session.add(secret_row(client_id="nobody"))
    with pytest.raises(IntegrityError):
        session.commit()


def test_secrets_go_with_their_client(session: Any) -> None:
    session.add(client_row())
    session.flush()
    session.add_all([secret_row("s-1"), secret_row("s-2")])
    session.commit()
    session.execute(text("DELETE FROM clients"))
    session.commit()
    assert session.scalar(text("SELECT count(*) FROM client_secrets")) == 0


def test_an_error_of_the_database_quotes_no_value(session: Any) -> None:
    session.add(secret_row("hidden-id", client_id="hidden-client"))
    with pytest.raises(IntegrityError) as caught:
        session.commit()
    assert "[SQL parameters hidden due to hide_parameters=True]" in str(caught.value)


def test_sqlite_is_in_wal_with_a_busy_timeout_and_foreign_keys(harness: Harness) -> None:
    with harness.app.app_context():
        for engine in (db.engine, db.engine.execution_options(tokenhouse_read_only=True)):
            with engine.connect() as connection:
                pragmas = {
                    name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
                    for name in ("journal_mode", "busy_timeout", "foreign_keys", "cache_size")
                }
            assert pragmas == {"journal_mode": "wal", "busy_timeout": 5000, "foreign_keys": 1, "cache_size": -256}


def test_a_reader_does_not_wait_for_a_writer_on_sqlite(harness: Harness) -> None:
    made = harness.register()
    with harness.app.app_context(), db.engine.connect() as writer:
        writer.exec_driver_sql("UPDATE clients SET client_name = 'x'")
        assert (
            harness.app.test_client()
            .post(
                "/oauth/token",
                data={"grant_type": "client_credentials"},
                headers={"Authorization": made.basic},
            )
            .status_code
            == 200
        )
        writer.rollback()


def test_reading_takes_no_lock_on_sqlite_and_writing_does(harness: Harness) -> None:
    with harness.app.app_context():
        assert db.session.scalar(select(func.count()).select_from(ClientRow)) == 0
        with writing_engine(db.engine).begin() as writer:
            writer.exec_driver_sql("UPDATE clients SET client_name = 'x'")
            with reading_engine(db.engine).connect() as impatient:
                impatient.exec_driver_sql("PRAGMA busy_timeout = 0")
            with pytest.raises(OperationalError) as caught, writing_engine(db.engine).begin() as other:
                other.exec_driver_sql("SELECT 1")
        db.session.rollback()
    assert is_locked(caught.value)


def test_a_snapshot_that_was_read_does_not_keep_anybody_from_writing(harness: Harness) -> None:
    """A transaction that has read an older snapshot could never write on SQLite."""
    harness.register("a")
    with harness.app.app_context():
        harness.store.find("a")
        with writing_engine(db.engine).begin() as writer:
            writer.exec_driver_sql("UPDATE clients SET description = 'newer'")
        assert harness.store.disable("a").description == "newer"


@pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)
def test_postgresql_gives_up_on_a_statement_that_hangs(any_harness: Harness) -> None:
    with any_harness.app.app_context(), db.engine.connect() as connection:
        assert connection.exec_driver_sql("SHOW statement_timeout").scalar() == "3s"


@pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    ("query", "found"),
    [
        (
            "options=-csearch_path%3Dpg_catalog&application_name=mine&connect_timeout=20",
            {"search_path": "pg_catalog", "statement_timeout": "3s", "application_name": "mine"},
        ),
        ("options=-cstatement_timeout%3D9s", {"statement_timeout": "9s", "application_name": "tokenhouse"}),
        (
            "options=-cstatement_timeout%3D9s&options=-csearch_path%3Dpg_catalog",
            {"statement_timeout": "9s", "search_path": "pg_catalog"},
        ),
    ],
)
def test_the_urls_own_options_count_beside_ours(
    tmp_path: Path, clock: SettableClock, migrated_url: str, query: str, found: dict[str, str]
) -> None:
    url = f"{migrated_url}{'&' if '?' in migrated_url else '?'}{query}"
    with (
        open_harness(tmp_path, clock, migrated=False, with_key=False, database_url=url) as harness,
        harness.app.app_context(),
        db.engine.connect() as connection,
    ):
        assert {name: connection.exec_driver_sql(f"SHOW {name}").scalar() for name in found} == found
        told: Any = connection.connection.driver_connection
        assert told.info.get_parameters()["connect_timeout"] == ("20" if "connect_timeout" in query else "3")


@pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)
def test_a_migration_may_take_its_time_and_a_request_may_not(
    any_harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(BoundedConnection, "answer_seconds", 0.2)
    with any_harness.app.app_context():
        with migrating(db.engine) as connection:
            assert connection.exec_driver_sql("SHOW statement_timeout").scalar() == "0"
            assert connection.exec_driver_sql("SELECT 1 FROM pg_sleep(0.5)").scalar() == 1
        with pytest.raises(OperationalError) as caught, db.engine.connect() as connection:
            connection.exec_driver_sql("SELECT 1 FROM pg_sleep(5)")
    assert isinstance(caught.value.orig, DatabaseSilent)
    assert str(caught.value.orig) == "no answer within 0.2 s"
