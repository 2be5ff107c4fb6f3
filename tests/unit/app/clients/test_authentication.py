"""Clients authenticate by a secret, in one query that costs the same whoever asks, on each kind of database."""

import hmac
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from conftest import SettableClock
from sqlalchemy import event, select, text
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError
from support.postgres import new_database
from unit.authenticating import BASIC, OTHER_SECRET, POST, SECRET, credentials, refusal, verify
from unit.harness import Harness, open_harness, statements

from app.clients.authentication import ClientAuthenticator, _kept_client, _kept_large_client, to_client
from app.clients.last_used import LastUsedTracker
from app.clients.outage_memory import OutageMemory
from app.clients.queries import digest_names
from app.clients.secret_digests import SecretDigester, generate_secret
from app.database.circuit_breaker import DatabaseCircuitBreaker
from app.database.models import ClientRow, ClientSecretRow, db
from app.database.prepared_query import ThreadLocalConnections
from app.errors import InvalidClient, ServiceUnavailable
from app.types import Client, Credentials


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


def test_clients_of_any_size_are_read_and_large_ones_take_little_memory(any_harness: Harness) -> None:
    scope = tuple(f"scope-{number}" for number in range(400))
    large, small = any_harness.register(scope=scope), any_harness.register(scope=scope[:3])
    huge = any_harness.register(introspects=tuple(f"https://{'x' * 90}/{number}" for number in range(900)))
    kept, kept_large = _kept_client.cache_info().currsize, _kept_large_client.cache_info().currsize
    assert [verify(any_harness, credentials(large)).client.scope for _ in range(2)] == [scope, scope]
    assert len(verify(any_harness, credentials(huge)).client.introspects) == 900
    assert _kept_client.cache_info().currsize == kept
    assert _kept_large_client.cache_info().currsize == min(kept_large + 1, 32)
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
        breaker = DatabaseCircuitBreaker()
        memory = OutageMemory(db.engine, breaker, 0)
        verifier = ClientAuthenticator(
            ThreadLocalConnections(db.engine), digester, harness.clock, last_used, breaker, memory
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


@pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)
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
            index = "ix_client_secrets_client_id_digest (client_id=? AND digest=?)"
            assert f"SEARCH client_secrets USING INDEX {index}" in plan
            assert "SCAN client" not in plan
        else:
            assert "Seq Scan" not in plan
            assert "pk_clients" in plan
            assert "ix_client_secrets_client_id_digest" in plan


def test_however_many_secrets_a_client_had_one_row_is_read(crowded: Harness) -> None:
    made = crowded.register("old", secret=SECRET)
    now = crowded.clock()
    with crowded.app.app_context():
        retired = {
            "client_id": "old",
            "pepper_id": "p1",
            "last_four": "abcd",
            "origin": "generated",
            "created_at": now,
            "revoked_at": now,
        }
        rows = [{**retired, "secret_id": f"s-{number}", "digest": number.to_bytes(32)} for number in range(1, 422)]
        db.session.execute(ClientSecretRow.__table__.insert(), rows)
        db.session.commit()
    digester = crowded.verifier._digester  # noqa: SLF001
    with crowded.app.app_context():
        for secret, found_secret in ((SECRET, True), (OTHER_SECRET, False)):
            digests = list(digester.digest_with_all(Credentials("old", secret)).values())
            query = crowded.verifier._by_digests[1, 1]  # noqa: SLF001
            (row,) = query.execute({"one_id": "old", **dict(zip(digest_names(1), digests, strict=True))})
            assert (row.client_id, row.secret_id is not None) == ("old", found_secret)
    assert verify(crowded, credentials(made)).client.client_id == "old"


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


def test_peppers_rotate(tmp_path: Path, clock: SettableClock, migrated_url: str) -> None:
    with house_with(tmp_path, clock, migrated_url, "p1") as before:
        old = before.register("old", secret=SECRET)
    with house_with(tmp_path, clock, migrated_url, "p2", "p1") as between:
        new = between.register("new", secret=SECRET)
        assert verify(between, credentials(old)).client.client_id == "old"
        assert verify(between, credentials(new)).client.client_id == "new"
        with between.app.app_context():
            stored = {row.client_id: row.secrets[0].pepper_id for row in between.store.list_all()}
        assert stored == {"old": "p1", "new": "p2"}
    with house_with(tmp_path, clock, migrated_url, "p2") as after:
        assert verify(after, credentials(new)).client.client_id == "new"
        assert refusal(after, credentials(old)) == ("wrong_secret", "old")


def test_a_pepper_of_the_same_id_and_another_value_verifies_nothing(
    tmp_path: Path, clock: SettableClock, migrated_url: str
) -> None:
    with open_harness(tmp_path, clock, database_url=migrated_url, secret_peppers="p1:" + "a" * 32) as harness:
        made = harness.register()
    with open_harness(tmp_path, clock, database_url=migrated_url, secret_peppers="p1:" + "b" * 32) as other:
        assert refusal(other, credentials(made)) == ("wrong_secret", made.client_id)


# Management


def test_a_use_is_recorded_with_its_secret_and_its_address(harness: Harness) -> None:
    client = harness.register("a")
    with harness.app.app_context():
        found = harness.verifier.verify_secret([Credentials("a", client.secret)], BASIC, "192.0.2.7")
    assert list(harness.services.clients.last_used._waiting) == [("a", found.secret_id, "192.0.2.7")]  # noqa: SLF001


def test_a_digest_of_an_old_pepper_is_replaced_and_one_of_the_newest_is_not(
    tmp_path: Path, clock: SettableClock
) -> None:
    url = f"sqlite:///{tmp_path}/peppers.db"
    with house_with(tmp_path, clock, url, "p1") as before:
        client = before.register("a")
        before.verifier.verify_secret([Credentials("a", client.secret)], BASIC)
        assert before.services.clients.last_used._renewals == {}  # noqa: SLF001
    with house_with(tmp_path, clock, url, "p2", "p1") as after:
        credentials = Credentials("a", client.secret)
        found = after.verifier.verify_secret([credentials], BASIC)
        (renewal,) = after.services.clients.last_used._renewals.values()  # noqa: SLF001
        digest = SecretDigester(after.settings.secret_peppers).digest_with_all(credentials)["p2"]
        assert (renewal.secret_id, renewal.values) == (found.secret_id, {"digest": digest, "pepper_id": "p2"})
        after.services.clients.last_used.flush()
        with after.app.app_context():
            assert db.session.scalar(select(ClientSecretRow.pepper_id)) == "p2"


def test_a_row_is_a_client_whether_its_lists_are_text_or_lists(harness: Harness) -> None:
    harness.register("a", scope=("x", "y"), audiences=("urn:a",), introspects=("urn:b",), access_token_lifetime=60)
    harness.register("b")
    with harness.app.app_context():
        harness.store.revoke_tokens("a")
        for client_id in ("a", "b"):
            managed = to_client(harness.store.find(client_id))
            assert (
                managed
                == to_client(harness.verifier.find(client_id).rows[0])
                == harness.verifier.query_client(client_id)
            )
        full = to_client(harness.store.find("a"))
    assert (full.scope, full.audiences, full.introspects) == (("x", "y"), ("urn:a",), ("urn:b",))
    assert (full.access_token_lifetime, full.tokens_not_before) == (60, harness.clock().replace(microsecond=0))
    assert managed.introspects == ()


def test_a_silent_database_is_probed_until_it_answers(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.register("a")
    breaker = harness.verifier._circuit_breaker  # noqa: SLF001
    breaker.record_failure(OperationalError("", {}, Exception("silence")), 9.0)
    with pytest.raises(ServiceUnavailable):
        harness.verifier.answers()
    query = harness.verifier._by_keys  # noqa: SLF001
    with monkeypatch.context() as patch:
        patch.setattr(query, "execute_on_new_connection", lambda _: _raise())
        harness.verifier.poll()
    assert breaker.is_failing
    harness.verifier.poll()
    assert not breaker.is_failing
    harness.verifier.answers()


def _raise() -> None:
    raise OperationalError("", {}, Exception("silence"))
