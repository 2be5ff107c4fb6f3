"""The one door to client rows, on SQLite and PostgreSQL: who is let in, what it costs, what management leaves."""

import hmac
import json
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import SettableClock
from sqlalchemy import event, text
from sqlalchemy.engine import Engine
from support.postgres import new_database
from support.server import NewClient
from unit.harness import Harness, open_harness, statements

from app.clients.authentication import SecretVerifier, _kept_client
from app.clients.encrypted_secrets import EncryptedSecrets
from app.clients.fields import ClientFields
from app.clients.last_used import LastUsedTracker
from app.clients.repository import ClientRepository, describe
from app.clients.secret_digests import SecretDigester, generate_secret
from app.clients.secrets import ClientSecrets
from app.config.values import parse_duration
from app.database.circuit_breaker import DatabaseCircuitBreaker
from app.database.models import ClientRow, ClientSecretRow, db
from app.database.prepared_query import ThreadLocalConnections
from app.errors import InvalidClient, ManagementError, ServiceUnavailable
from app.types import Authentication, Client, Credentials

BASIC, POST = "client_secret_basic", "client_secret_post"
SECRET = "an-imported-secret-of-some-length"
OTHER_SECRET = "another-imported-secret-of-a-length"


def credentials(client: NewClient) -> Credentials:
    return Credentials(client.client_id, client.secret)


def verify(harness: Harness, *candidates: Credentials, method: str = BASIC) -> Authentication:
    with harness.app.app_context():
        return harness.verifier.verify_secret(candidates, method)


def refusal(harness: Harness, *candidates: Credentials, method: str = BASIC) -> tuple[str, str | None]:
    """The reason for the log, and the client that is named there."""
    with pytest.raises(InvalidClient) as caught:
        verify(harness, *candidates, method=method)
    assert caught.value.description == "Client authentication failed."
    return caught.value.reason, caught.value.client_id


def add_secret(harness: Harness, client_id: str, secret: str, secret_id: str, **fields: Any) -> None:
    """Give a client a further secret, as rotation will."""
    digester = SecretDigester(harness.settings.secret_peppers)
    pepper_id, digest = digester.digest(Credentials(client_id, secret))
    with harness.app.app_context():
        columns = {"pepper_id": pepper_id, "digest": digest, "created_at": harness.clock(), **fields}
        row = ClientSecretRow(
            secret_id=secret_id, client_id=client_id, last_four=secret[-4:], origin="generated", **columns
        )
        db.session.add(row)
        db.session.commit()


def change_secrets(harness: Harness, client_id: str, **values: Any) -> None:
    with harness.app.app_context():
        for row in harness.store.find(client_id).secrets:
            for name, value in values.items():
                setattr(row, name, value)
        db.session.commit()


# Who is let in


def test_the_right_secret_proves_a_client(any_harness: Harness) -> None:
    made = any_harness.register(scope=("read", "write"), audiences=("urn:a", "urn:b"), access_token_lifetime=90)
    found = verify(any_harness, credentials(made))
    assert found.client == Client(
        client_id=made.client_id,
        client_name="A service",
        token_endpoint_auth_method="client_secret",
        grant_types=("client_credentials",),
        scope=("read", "write"),
        audiences=("urn:a", "urn:b"),
        access_token_lifetime=90,
    )
    with any_harness.app.app_context():
        (secret,) = any_harness.store.find(made.client_id).secrets
        assert (found.method, found.secret_id) == (BASIC, secret.secret_id)


def test_clients_of_any_size_are_read_and_large_ones_take_no_memory(any_harness: Harness) -> None:
    scope = tuple(f"scope-{number}" for number in range(400))
    large, small = any_harness.register(scope=scope), any_harness.register(scope=scope[:3])
    kept = _kept_client.cache_info().currsize
    assert [verify(any_harness, credentials(large)).client.scope for _ in range(2)] == [scope, scope]
    assert _kept_client.cache_info().currsize == kept
    for _ in range(2):
        assert verify(any_harness, credentials(small)).client.scope == scope[:3]
    assert _kept_client.cache_info().currsize == min(kept + 1, 1024)


def test_an_unknown_client_is_refused_without_a_name(any_harness: Harness) -> None:
    any_harness.register("known", secret=SECRET)
    assert refusal(any_harness, Credentials("unknown", SECRET)) == ("unknown_client", None)
    assert refusal(any_harness, Credentials("", SECRET)) == ("unknown_client", None)


def test_a_wrong_secret_is_refused(any_harness: Harness) -> None:
    made = any_harness.register()
    for wrong in (
        made.secret[:-1],
        made.secret + "x",
        made.secret.swapcase(),
        "",
        " " + made.secret,
        generate_secret(),
    ):
        assert refusal(any_harness, Credentials(made.client_id, wrong)) == ("wrong_secret", made.client_id)


def test_a_client_without_secrets_is_refused(any_harness: Harness) -> None:
    made = any_harness.register()
    with any_harness.app.app_context():
        row = any_harness.store.find(made.client_id)
        row.secrets.clear()
        db.session.commit()
    assert refusal(any_harness, credentials(made)) == ("wrong_secret", made.client_id)


def test_a_disabled_client_is_refused_at_once_and_let_in_again(any_harness: Harness) -> None:
    made = any_harness.register()
    with any_harness.app.app_context():
        any_harness.store.disable(made.client_id)
    assert refusal(any_harness, credentials(made)) == ("disabled_client", made.client_id)
    assert refusal(any_harness, Credentials(made.client_id, "wrong")) == ("disabled_client", made.client_id)
    with any_harness.app.app_context():
        any_harness.store.enable(made.client_id)
    assert verify(any_harness, credentials(made)).client.client_id == made.client_id


def test_a_deleted_client_is_refused(any_harness: Harness) -> None:
    made = any_harness.register()
    with any_harness.app.app_context():
        any_harness.store.delete(made.client_id)
    assert refusal(any_harness, credentials(made)) == ("deleted_client", made.client_id)


def test_a_revoked_secret_is_refused(any_harness: Harness) -> None:
    made = any_harness.register()
    change_secrets(any_harness, made.client_id, revoked_at=any_harness.clock())
    assert refusal(any_harness, credentials(made)) == ("revoked_secret", made.client_id)
    assert refusal(any_harness, Credentials(made.client_id, "wrong")) == ("wrong_secret", made.client_id)


def test_a_secret_expires_exactly_at_its_moment(any_harness: Harness) -> None:
    made = any_harness.register(expires_after=timedelta(days=1))
    any_harness.clock.advance(days=1, microseconds=-1)
    assert verify(any_harness, credentials(made)).client.client_id == made.client_id
    any_harness.clock.advance(microseconds=1)
    assert refusal(any_harness, credentials(made)) == ("expired_secret", made.client_id)


@pytest.mark.parametrize(
    ("registered", "basic", "post"),
    [("client_secret", True, True), (BASIC, True, False), (POST, False, True), ("private_key_jwt", False, False)],
)
def test_a_secret_works_by_the_registered_method_only(
    any_harness: Harness, registered: str, *, basic: bool, post: bool
) -> None:
    made = any_harness.register(token_endpoint_auth_method=registered)
    for method, is_usable in ((BASIC, basic), (POST, post)):
        if is_usable:
            assert verify(any_harness, credentials(made), method=method).method == method
        else:
            assert refusal(any_harness, credentials(made), method=method) == ("other_method_registered", made.client_id)


def test_several_secrets_work_at_once(any_harness: Harness) -> None:
    made = any_harness.register()
    add_secret(any_harness, made.client_id, OTHER_SECRET, "s-other")
    assert verify(any_harness, Credentials(made.client_id, OTHER_SECRET)).secret_id == "s-other"
    assert verify(any_harness, credentials(made)).secret_id != "s-other"
    change_secrets(any_harness, made.client_id, revoked_at=any_harness.clock())
    add_secret(any_harness, made.client_id, SECRET, "s-third")
    assert verify(any_harness, Credentials(made.client_id, SECRET)).secret_id == "s-third"
    assert refusal(any_harness, Credentials(made.client_id, OTHER_SECRET)) == ("revoked_secret", made.client_id)


@pytest.mark.parametrize(
    "bad", [{"revoked_at": datetime(2026, 1, 1, tzinfo=UTC)}, {"expires_at": datetime(2026, 1, 1, tzinfo=UTC)}]
)
@pytest.mark.parametrize("good_first", [True, False])
def test_of_equal_secrets_the_one_that_works_counts(
    any_harness: Harness, bad: dict[str, Any], *, good_first: bool
) -> None:
    made = any_harness.register("c", secret=OTHER_SECRET)
    for secret_id, fields in [("s-1", {}), ("s-2", bad)] if good_first else [("s-1", bad), ("s-2", {})]:
        add_secret(any_harness, made.client_id, SECRET, secret_id, **fields)
    assert verify(any_harness, Credentials("c", SECRET)).secret_id == ("s-1" if good_first else "s-2")


def test_one_clients_digest_is_worth_nothing_to_another(any_harness: Harness) -> None:
    any_harness.register("one", secret=SECRET)
    any_harness.register("other", secret=OTHER_SECRET)
    with any_harness.app.app_context():
        stolen = any_harness.store.find("one").secrets[0].digest
        any_harness.store.find("other").secrets[0].digest = stolen
        db.session.commit()
    assert refusal(any_harness, Credentials("other", SECRET)) == ("wrong_secret", "other")


def test_ids_are_told_apart_by_case_and_blanks(any_harness: Harness) -> None:
    for client_id in ("Service", "service", " service", "service "):
        any_harness.register(client_id, secret=f"{client_id}{SECRET}")
    for client_id in ("Service", "service", " service", "service "):
        found = verify(any_harness, Credentials(client_id, f"{client_id}{SECRET}"))
        assert found.client.client_id == client_id
    assert refusal(any_harness, Credentials("SERVICE", f"SERVICE{SECRET}")) == ("unknown_client", None)


def test_a_wildcard_is_an_ordinary_character(any_harness: Harness) -> None:
    any_harness.register("abc", secret=SECRET)
    for client_id in ("%", "a%", "a_c", "*", "abc'--", "abc' OR '1'='1"):
        assert refusal(any_harness, Credentials(client_id, SECRET)) == ("unknown_client", None)


# Two readings


def test_either_of_two_readings_may_be_right(any_harness: Harness) -> None:
    any_harness.register("a b", secret=SECRET)
    right, wrong = Credentials("a b", SECRET), Credentials("a+b", SECRET)
    assert verify(any_harness, wrong, right).client.client_id == "a b"
    assert verify(any_harness, right, wrong).client.client_id == "a b"
    assert verify(any_harness, right, right).client.client_id == "a b"


def test_readings_are_never_mixed(any_harness: Harness) -> None:
    any_harness.register("raw", secret=SECRET)
    any_harness.register("decoded", secret=OTHER_SECRET)
    mixed = (Credentials("raw", OTHER_SECRET), Credentials("decoded", SECRET))
    assert refusal(any_harness, *mixed)[0] == "wrong_secret"
    assert refusal(any_harness, *reversed(mixed))[0] == "wrong_secret"
    assert refusal(any_harness, Credentials("raw", OTHER_SECRET), Credentials("nobody", SECRET)) == (
        "wrong_secret",
        "raw",
    )
    assert refusal(any_harness, Credentials("nobody", SECRET), Credentials("raw", OTHER_SECRET)) == (
        "wrong_secret",
        "raw",
    )


class CountingDigester(SecretDigester):
    """Notes what is digested, and digests it."""

    digested: list[tuple[str, str]]

    def digest_with_all(self, credentials: Credentials) -> Any:
        self.digested.append((credentials.client_id, credentials.secret))
        return super().digest_with_all(credentials)


@pytest.mark.parametrize(
    "candidates",
    [
        (Credentials("known", SECRET), Credentials("unknown", SECRET)),
        (Credentials("unknown", SECRET), Credentials("known", SECRET)),
        (Credentials("known", SECRET), Credentials("known", SECRET)),
        (Credentials("known", "wrong"), Credentials("known", SECRET)),
        (Credentials("unknown", "wrong"), Credentials("nobody", "wrong")),
        (Credentials("disabled", SECRET), Credentials("deleted", SECRET)),
    ],
)
def test_both_readings_are_digested_and_compared_whatever_they_are(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, candidates: Sequence[Credentials]
) -> None:
    for client_id in ("known", "disabled", "deleted"):
        harness.register(client_id, secret=SECRET)
    with harness.app.app_context():
        harness.store.disable("disabled")
        harness.store.delete("deleted")
        digester = CountingDigester(harness.settings.secret_peppers)
        digester.digested = []
        compared: list[tuple[int, int]] = []
        compare = hmac.compare_digest

        def recorded(one: bytes, other: bytes) -> bool:
            compared.append((len(one), len(other)))
            return compare(one, other)

        monkeypatch.setattr("app.clients.authentication.hmac.compare_digest", recorded)
        last_used = LastUsedTracker(db.engine, harness.clock)
        verifier = SecretVerifier(
            ThreadLocalConnections(db.engine), digester, harness.clock, last_used, DatabaseCircuitBreaker()
        )
        try:
            verifier.verify_secret(candidates, BASIC)
        except InvalidClient:
            assert "unknown" in str(candidates) or all(
                found.secret != SECRET or found.client_id != "known" for found in candidates
            )
    assert digester.digested == [(candidate.client_id, candidate.secret) for candidate in candidates]
    assert compared == [(32, 32)] * 2


# What it costs


def test_a_verification_is_one_statement_and_no_write(any_harness: Harness) -> None:
    made = any_harness.register()
    attempts = [
        (credentials(made),),
        (Credentials("unknown", SECRET),),
        (Credentials(made.client_id, "wrong"), credentials(made)),
        (Credentials("unknown", "x"), Credentials("nobody", "y")),
    ]
    for candidates in attempts:
        with statements(any_harness) as seen:
            try:
                any_harness.verifier.verify_secret(candidates, BASIC)
            except InvalidClient:
                assert credentials(made) not in candidates
        assert len(seen) == 1
        assert seen[0][0].startswith("SELECT ")
    with any_harness.app.app_context():
        assert any_harness.store.find(made.client_id).secrets[0].last_used_at is None


def test_sqlite_hears_one_statement_of_a_verification(harness: Harness) -> None:
    made = harness.register()
    heard: list[str] = []
    with harness.app.app_context():
        db.engine.dispose()
        event.listen(db.engine, "connect", lambda connection, _: connection.set_trace_callback(heard.append))
    verify(harness, credentials(made))
    heard.clear()
    harness.verifier.verify_secret([credentials(made)], BASIC)
    assert [statement.split()[0] for statement in heard] == ["SELECT"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_postgresql_hears_one_statement_of_a_verification(any_harness: Harness, postgres: Any) -> None:
    made = any_harness.register()
    url = any_harness.settings.database_url.get_secret_value().replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        setting = f"ALTER DATABASE {connection.info.dbname} SET log_statement = 'all'"
        connection.execute(setting.encode())
    with any_harness.app.app_context():
        db.engine.dispose()
    log = Path(postgres.log)
    verify(any_harness, credentials(made))
    before = len(log.read_bytes())
    verify(any_harness, credentials(made))
    heard = re.findall(rb"LOG:  (?:statement|execute [^:]*): *(\S+)", log.read_bytes()[before:])
    assert heard == [b"SELECT"]


@pytest.fixture
def crowded(any_harness: Harness) -> Harness:
    """So many clients that a planner chooses an index only because there is one."""
    digest = b"\0" * 32
    now = datetime(2026, 1, 1, tzinfo=UTC)
    row = {
        "client_name": "A service",
        "description": "",
        "contacts": [],
        "labels": {},
        "token_endpoint_auth_method": "client_secret",
        "grant_types": ["client_credentials"],
        "scope": ["read"],
        "audiences": [],
        "created_at": now,
        "updated_at": now,
    }
    secret = {"digest": digest, "pepper_id": "p1", "last_four": "abcd", "origin": "generated", "created_at": now}
    ids = [f"client-{number:05}" for number in range(3000)]
    with any_harness.app.app_context():
        db.session.execute(
            ClientRow.__table__.insert(), [{**row, "client_id": name, "form_decoded_id": name} for name in ids]
        )
        db.session.execute(
            ClientSecretRow.__table__.insert(),
            [{**secret, "client_id": name, "secret_id": f"s-{name}"} for name in ids],
        )
        db.session.execute(text("ANALYZE"))
        db.session.commit()
    return any_harness


def explain(engine: Engine, statement: str, parameters: Any) -> str:
    kind = "QUERY PLAN" if engine.dialect.name == "sqlite" else "(FORMAT JSON)"
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(f"EXPLAIN {kind} {statement}", parameters).all()
    return "\n".join(str(row[-1]) for row in rows) if engine.dialect.name == "sqlite" else json.dumps(rows[0][0])


def test_a_verification_uses_indexes_and_scans_no_table(crowded: Harness) -> None:
    with statements(crowded) as seen, pytest.raises(InvalidClient):
        crowded.verifier.verify_secret([Credentials("client-00042", "x"), Credentials("client-02042", "y")], BASIC)
    with crowded.app.app_context():
        plan = explain(db.engine, *seen[0])
        if db.engine.dialect.name == "sqlite":
            assert "SEARCH clients USING INDEX sqlite_autoindex_clients_1 (client_id=?)" in plan
            assert "SEARCH client_secrets USING INDEX ix_client_secrets_client_id (client_id=?)" in plan
            assert "SCAN client" not in plan
        else:
            assert "Seq Scan" not in plan
            assert "pk_clients" in plan
            assert "ix_client_secrets_client_id" in plan


def test_a_registration_finds_collisions_by_index(crowded: Harness) -> None:
    with statements(crowded) as seen:
        crowded.register("a+b", secret=SECRET)
    search = next(found for found in seen if found[0].startswith("SELECT clients.client_id"))
    with crowded.app.app_context():
        plan = explain(db.engine, *search)
        assert "ix_clients_form_decoded_id" in plan
        assert ("SCAN" if db.engine.dialect.name == "sqlite" else "Seq Scan") not in plan


def test_a_database_that_is_away_makes_the_service_unavailable(any_harness: Harness) -> None:
    made = any_harness.register()
    with any_harness.app.app_context():
        db.drop_all()
    with pytest.raises(ServiceUnavailable) as caught:
        verify(any_harness, credentials(made))
    assert caught.value.reason in {"database_OperationalError", "database_UndefinedTable"}
    with any_harness.app.app_context(), pytest.raises(ServiceUnavailable):
        any_harness.verifier.answers()


def test_a_database_that_answers_says_so(any_harness: Harness) -> None:
    with any_harness.app.app_context():
        any_harness.verifier.answers()


def test_a_connection_that_was_cut_does_not_fail_the_next_request(
    postgres: Any, tmp_path: Path, clock: SettableClock
) -> None:
    with open_harness(tmp_path, clock, database_url=new_database(postgres)) as harness:
        made = harness.register()
        verify(harness, credentials(made))
        with psycopg.connect(postgres.get_uri(), autocommit=True) as connection:
            name = harness.settings.database_url.get_secret_value().split("?")[0].rpartition("/")[2]
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        assert verify(harness, credentials(made)).client.client_id == made.client_id


# Peppers


def house_with(folder: Path, clock: SettableClock, url: str, *pepper_ids: str) -> Any:
    peppers = ",".join(f"{pepper_id}:{pepper_id * 20}" for pepper_id in pepper_ids)
    return open_harness(folder, clock, database_url=url, secret_peppers=peppers, with_key=False)


def test_peppers_rotate(tmp_path: Path, clock: SettableClock, database_url: str) -> None:
    with house_with(tmp_path, clock, database_url, "p1") as before:
        old = before.register("old", secret=SECRET)
    with house_with(tmp_path, clock, database_url, "p2", "p1") as between:
        new = between.register("new", secret=SECRET)
        assert verify(between, credentials(old)).client.client_id == "old"
        assert verify(between, credentials(new)).client.client_id == "new"
        with between.app.app_context():
            stored = {row.client_id: row.secrets[0].pepper_id for row in between.store.list_all()}
        assert stored == {"old": "p1", "new": "p2"}
    with house_with(tmp_path, clock, database_url, "p2") as after:
        assert verify(after, credentials(new)).client.client_id == "new"
        assert refusal(after, credentials(old)) == ("wrong_secret", "old")


def test_a_pepper_of_the_same_id_and_another_value_verifies_nothing(
    tmp_path: Path, clock: SettableClock, database_url: str
) -> None:
    with open_harness(tmp_path, clock, database_url=database_url, secret_peppers="p1:" + "a" * 32) as harness:
        made = harness.register()
    with open_harness(tmp_path, clock, database_url=database_url, secret_peppers="p1:" + "b" * 32) as other:
        assert refusal(other, credentials(made)) == ("wrong_secret", made.client_id)


# Management


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
        client_secrets = ClientSecrets(
            db.engine, db.session, broken, any_harness.clock, any_harness.services.outbox, EncryptedSecrets(()), ()
        )
        store = ClientRepository(db.session, client_secrets, any_harness.clock)
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


def test_another_worker_sees_a_change_at_once(tmp_path: Path, clock: SettableClock, database_url: str) -> None:
    peppers = "p1:" + "x" * 32
    with (
        open_harness(tmp_path, clock, database_url=database_url, secret_peppers=peppers) as one,
        open_harness(tmp_path, clock, database_url=database_url, secret_peppers=peppers) as other,
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
