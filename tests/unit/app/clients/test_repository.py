"""Clients are registered, changed, disabled and deleted, on each kind of database."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from conftest import SettableClock
from sqlalchemy import text
from support.postgres import new_database
from support.server import NewClient
from unit.authenticating import SECRET, credentials, refusal, verify
from unit.harness import Harness, open_harness, statements

from app.clients import repository
from app.clients.encrypted_secrets import EncryptedSecrets
from app.clients.fields import ClientFields
from app.clients.repository import ClientRepository, describe
from app.clients.secret_digests import SecretDigester
from app.clients.secrets import ClientSecrets
from app.clients.token_size import TokenSize
from app.config.values import parse_duration
from app.database.models import ClientRow, db
from app.errors import ManagementError
from app.types import Credentials


def test_a_new_client_has_an_id_of_its_name_and_a_secret(any_harness: Harness) -> None:
    with any_harness.app.app_context():
        row, secret = any_harness.store.register(ClientFields("Büro: Reports & Co."))
        assert secret is not None
        assert row.client_id.startswith("b-ro-reports-co-")
        assert len(row.client_id) == len("b-ro-reports-co-") + 20
        (stored,) = row.secrets
        assert (stored.secret_id, stored.last_four, stored.origin) == (
            secret.secret_id,
            secret.secret[-4:],
            "generated",
        )
        assert (stored.created_at, stored.expires_at, stored.last_used_at, stored.revoked_at) == (
            any_harness.clock(),
            None,
            None,
            None,
        )
        assert secret.secret.encode() not in stored.digest
        assert row.created_at == row.updated_at == any_harness.clock()


@pytest.mark.parametrize("name", ["名前", "!", "-", "x" * 1000])
def test_every_name_makes_an_id_of_unreserved_characters(any_harness: Harness, name: str) -> None:
    made = any_harness.register(client_name=name)
    assert set(made.client_id) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert len(made.client_id) <= 61
    assert verify(any_harness, credentials(made)).client.client_name == name


def test_nothing_stored_holds_a_secret(any_harness: Harness) -> None:
    made = any_harness.register("an-id", secret=SECRET)
    with any_harness.app.app_context():
        for table in ("clients", "client_secrets"):
            for row in db.session.execute(text(f"SELECT * FROM {table}")).all():  # noqa: S608
                assert made.secret not in str(row)
                assert made.secret[:8] not in str(row)


def test_an_imported_secret_is_told_from_a_generated_one(any_harness: Harness) -> None:
    any_harness.register("an-id", secret=SECRET, expires_after=timedelta(seconds=parse_duration("90d")))
    with any_harness.app.app_context():
        (stored,) = any_harness.store.find("an-id").secrets
        assert (stored.origin, stored.last_four) == ("imported", SECRET[-4:])
        assert stored.expires_at == any_harness.clock() + timedelta(days=90)


def test_a_client_without_a_secret_is_possible(any_harness: Harness) -> None:
    with any_harness.app.app_context():
        row, secret = any_harness.store.register(ClientFields("A service"), with_secret=False)
        assert secret is None
        assert row.secrets == []


@pytest.mark.parametrize("client_id", ["", "x" * 256, "é", "a\x00b", "\udcff"])
def test_a_bad_id_never_reaches_the_database(any_harness: Harness, client_id: str) -> None:
    with statements(any_harness) as seen, pytest.raises(ManagementError, match="client id must be"):
        any_harness.register(client_id)
    assert seen == []


@pytest.mark.parametrize("secret", ["short", "x" * 16 + "\x00", "é" * 16])
def test_a_bad_secret_never_reaches_the_database(any_harness: Harness, secret: str) -> None:
    with statements(any_harness) as seen, pytest.raises(ManagementError, match="the secret must be") as caught:
        any_harness.register("an-id", secret=secret)
    assert seen == []
    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    "client_id",
    ["x" * 255, " ", "a:b", "'; DROP TABLE clients; --", '"\\%_', "a%00b", "a%FFb", "%C3%A9", "%F0%9F%98%80"],
)
def test_every_id_of_printable_ascii_is_taken_over_as_it_is(any_harness: Harness, client_id: str) -> None:
    made = any_harness.register(client_id, secret=SECRET)
    assert verify(any_harness, credentials(made)).client.client_id == client_id
    with any_harness.app.app_context():
        assert any_harness.store.find(client_id).client_id == client_id


def test_a_taken_id_is_refused(any_harness: Harness) -> None:
    any_harness.register("an-id")
    with pytest.raises(ManagementError, match=r"^client id 'an-id' is taken, or was: ids are never reused$"):
        any_harness.register("an-id")


def test_the_id_of_a_deleted_client_stays_its_own(any_harness: Harness) -> None:
    any_harness.register("an-id", secret=SECRET, scope=("read",), description="d", contacts=("c",), labels={"k": "v"})
    any_harness.clock.advance(hours=1)
    with any_harness.app.app_context():
        any_harness.store.delete("an-id")
    with pytest.raises(ManagementError, match=r"^client id 'an-id' is taken, or was: ids are never reused$"):
        any_harness.register("an-id")
    with any_harness.app.app_context():
        row = db.session.get(ClientRow, "an-id")
        assert row is not None
        assert row.deleted_at == any_harness.clock()
        assert (row.client_name, row.description, row.contacts, row.labels) == ("deleted", "", [], {})
        assert (row.scope, row.audiences, row.grant_types, row.secrets) == ([], [], [], [])
        assert db.session.scalar(text("SELECT count(*) FROM client_secrets")) == 0


@pytest.mark.parametrize(
    ("first", "second"), [("a b", "a+b"), ("a b", "a%20b"), ("a+b", "a%2Bb"), ("a%2Bb", "a%252Bb"), ("a:b", "a%3ab")]
)
@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("deleted", [False, True])
def test_no_two_ids_meet_in_one_reading(
    any_harness: Harness, first: str, second: str, *, swapped: bool, deleted: bool
) -> None:
    first, second = (second, first) if swapped else (first, second)
    any_harness.register(first)
    if deleted:
        with any_harness.app.app_context():
            any_harness.store.delete(first)
    with pytest.raises(ManagementError) as caught:
        any_harness.register(second)
    assert str(caught.value) == (f"client id {second!r} reads like {first!r} when it is form-encoded: choose another")
    with any_harness.app.app_context():
        assert db.session.get(ClientRow, second) is None


def test_ids_that_only_look_alike_do_not_meet(any_harness: Harness) -> None:
    for client_id in ("a%20b", "a%2520c", "a%2bb", "a%2Bb", "a%zz", "a%ZZ"):
        any_harness.register(client_id)


def test_a_registration_waits_for_another_machines_and_not_for_ever(
    tmp_path: Path, clock: SettableClock, postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = new_database(postgres)
    with (
        open_harness(tmp_path, clock, database_url=url) as harness,
        psycopg.connect(url.replace("+psycopg", "")) as other,
    ):
        other.execute(f"SELECT pg_advisory_xact_lock({repository._REGISTRATION_LOCK})")  # type: ignore[arg-type]  # noqa: SLF001
        monkeypatch.setattr(repository, "LOCK_SECONDS", 0)
        with pytest.raises(ManagementError, match="other registrations have held the lock for 0 s: try again"):
            harness.register("a")
        monkeypatch.setattr(repository, "LOCK_SECONDS", 30)
        ended = SimpleNamespace(monotonic=time.monotonic, sleep=lambda _: other.rollback())
        monkeypatch.setattr(repository, "time", ended)
        assert harness.register("a").client_id == "a"


@pytest.mark.parametrize("ids", [("same", "same"), ("a b", "a+b"), ("a%2Bb", "a+b")])
def test_of_colliding_registrations_at_the_same_time_exactly_one_wins(
    any_harness: Harness, ids: tuple[str, str]
) -> None:
    start = threading.Barrier(8)
    won: list[str] = []
    refused: list[str] = []
    other: list[BaseException] = []

    def register(client_id: str) -> None:
        start.wait()
        try:
            any_harness.register(client_id)
            won.append(client_id)
        except ManagementError as error:
            refused.append(str(error))
        except BaseException as error:  # noqa: BLE001 - A thread must not swallow it.
            other.append(error)

    threads = [threading.Thread(target=register, args=(ids[number % 2],)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert other == []
    assert (len(won), len(refused)) == (1, 7)
    with any_harness.app.app_context():
        assert [row.client_id for row in any_harness.store.list_all()] == won


def test_many_registrations_at_the_same_time_all_succeed(any_harness: Harness) -> None:
    start = threading.Barrier(8)
    made: list[NewClient] = []
    failed: list[BaseException] = []

    def register(number: int) -> None:
        start.wait()
        try:
            made.extend(any_harness.register(f"client-{number}-{round_}") for round_ in range(3))
        except BaseException as error:  # noqa: BLE001 - A thread must not swallow it.
            failed.append(error)

    threads = [threading.Thread(target=register, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    with any_harness.app.app_context():
        assert {row.client_id for row in any_harness.store.list_all()} == {client.client_id for client in made}
    assert len(made) == 24


def test_a_registration_that_fails_leaves_nothing(any_harness: Harness) -> None:
    class Broken(SecretDigester):
        def digest(self, credentials: Credentials) -> tuple[str, bytes]:  # noqa: ARG002
            raise RuntimeError("the power went")

    with any_harness.app.app_context():
        broken = Broken(any_harness.settings.secret_peppers)
        outbox = any_harness.services.audit.outbox
        client_secrets = ClientSecrets(
            db.engine, db.session, broken, any_harness.clock, outbox, EncryptedSecrets(()), ()
        )
        token_size = TokenSize.of(any_harness.settings)
        store = ClientRepository(db.engine, db.session, client_secrets, any_harness.clock, token_size)
        with pytest.raises(RuntimeError, match="the power went"):
            store.register(ClientFields("A service"), client_id="an-id")
        assert any_harness.store.list_all() == []
    any_harness.register("an-id")


def test_a_client_is_changed_field_by_field(any_harness: Harness) -> None:
    any_harness.register("an-id", scope=("read",), description="before", labels={"team": "a"})
    any_harness.clock.advance(hours=1)
    with any_harness.app.app_context():
        any_harness.store.update("an-id", description="after", access_token_lifetime=60)
    with any_harness.app.app_context():
        row = any_harness.store.find("an-id")
        fields = describe(row)
        assert (fields.description, fields.access_token_lifetime, fields.scope) == ("after", 60, ("read",))
        assert fields.labels == {"team": "a"}
        assert row.updated_at == row.created_at + timedelta(hours=1) == any_harness.clock()


def test_a_change_that_is_not_allowed_leaves_everything(any_harness: Harness) -> None:
    any_harness.register("an-id", scope=("read",))
    with any_harness.app.app_context():
        before = describe(any_harness.store.find("an-id"))
        with pytest.raises(ManagementError):
            any_harness.store.update("an-id", description="after", access_token_lifetime=0)
    with any_harness.app.app_context():
        assert describe(any_harness.store.find("an-id")) == before


def test_disabling_twice_keeps_the_first_time(any_harness: Harness) -> None:
    any_harness.register("an-id")
    first = any_harness.clock()
    with any_harness.app.app_context():
        any_harness.store.disable("an-id")
        any_harness.clock.advance(hours=1)
        assert any_harness.store.disable("an-id").disabled_at == first
        assert any_harness.store.enable("an-id").disabled_at is None
        assert any_harness.store.enable("an-id").disabled_at is None


@pytest.mark.parametrize("act", ["find", "update", "disable", "enable", "delete"])
@pytest.mark.parametrize("gone", [True, False])
def test_there_is_nothing_to_do_with_a_client_that_is_not_there(any_harness: Harness, act: str, *, gone: bool) -> None:
    any_harness.register("an-id")
    with any_harness.app.app_context():
        if gone:
            any_harness.store.delete("an-id")
        client_id = "an-id" if gone else "AN-ID"
        with pytest.raises(ManagementError) as caught:
            getattr(any_harness.store, act)(client_id)
    assert str(caught.value) == f"there is no client {client_id!r}: `flask clients list` shows all"


@pytest.mark.parametrize("client_id", ["a\x00b", "\udcff", "é"])
def test_an_id_that_nobody_can_have_is_just_not_there(any_harness: Harness, client_id: str) -> None:
    with any_harness.app.app_context(), pytest.raises(ManagementError, match=r"^there is no client "):
        any_harness.store.find(client_id)


def test_clients_are_listed_oldest_first_without_the_deleted(any_harness: Harness) -> None:
    for client_id in ("c", "a", "b"):
        any_harness.register(client_id)
        any_harness.clock.advance(seconds=1)
    any_harness.register("z")
    any_harness.register("y")
    with any_harness.app.app_context():
        any_harness.store.delete("a")
        assert [row.client_id for row in any_harness.store.list_all()] == ["c", "b", "y", "z"]


def test_another_worker_sees_a_change_at_once(tmp_path: Path, clock: SettableClock, migrated_url: str) -> None:
    peppers = "p1:" + "x" * 32
    with (
        open_harness(tmp_path, clock, database_url=migrated_url, secret_peppers=peppers) as one,
        open_harness(tmp_path, clock, database_url=migrated_url, secret_peppers=peppers) as other,
    ):
        made = one.register()
        assert verify(other, credentials(made)).client.client_id == made.client_id
        with one.app.app_context():
            one.store.disable(made.client_id)
        assert refusal(other, credentials(made)) == ("disabled_client", made.client_id)
        with one.app.app_context():
            one.store.delete(made.client_id)
        assert refusal(other, credentials(made)) == ("deleted_client", made.client_id)


def test_changes_that_are_made_at_once_are_all_made(any_harness: Harness) -> None:
    any_harness.register("an-id")

    def add(number: int) -> None:
        with any_harness.app.app_context():
            any_harness.store.update(
                "an-id", lambda before: {"labels": {**before.labels, str(number): "made"}, "description": "after"}
            )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    with any_harness.app.app_context():
        assert any_harness.store.find("an-id").labels == {str(number): "made" for number in range(8)}
