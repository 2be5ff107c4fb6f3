"""Each thing that can be wrong is found, with why it matters and how to mend it; where nothing is, nothing is found."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import SettableClock
from sqlalchemy import text, update
from support.assertions import signer
from support.keys import add_key
from support.platforms import open_platform
from support.publisher import publishing
from support.redis import running_redis
from unit.harness import Harness, open_harness

from app.apis.fields import ApiFields
from app.clients.fields import ClientFields
from app.clients.last_used import AssertionStyle
from app.clients.trust_rules import Trust
from app.database.models import ClientKeySetRow, ClientSecretRow, IssuerKeySetRow, db
from app.operations.doctor import examine, examine_start
from app.operations.findings import Finding, Severity

STRONG = "p1:abcdefghijklmnopqrstuvwxyz0123456789"


@pytest.fixture
def harness(tmp_path: Path, clock: SettableClock) -> Iterator[Harness]:
    with open_harness(tmp_path, clock) as made:
        yield made


def found(harness: Harness) -> list[Finding]:
    with harness.app.app_context():
        return [one for one in examine(harness.services) if one.severity is not Severity.OK]


def found_in(tmp_path: Path, clock: SettableClock, **settings: str) -> list[tuple[str, str]]:
    """What is wrong beside the ring, with these settings."""
    with open_harness(tmp_path, clock, **settings) as harness:
        return [(str(one.severity), f"{one.check}: {one.what}") for one in found(harness) if one.check != "key ring"]


def test_where_nothing_is_wrong_nothing_is_found(any_harness: Harness) -> None:
    any_harness.services.keys.manager.backend.read()
    with any_harness.app.app_context():
        add_key(
            any_harness.services.keys.manager.backend,
            published_at=any_harness.clock(),
            signs_from=any_harness.clock() + timedelta(days=9),
        )
        path = db.engine.url.database
        if db.engine.dialect.name == "sqlite":
            Path(str(path)).chmod(0o600)
    # The clock of the tests stands still, the database's does not.
    assert {one.check for one in found(any_harness)} <= {"clock"}
    with any_harness.app.app_context():
        well = {one.check for one in examine(any_harness.services) if one.severity is Severity.OK}
    assert {"issuer", "keys", "database", "demo client", "key ring"} <= well


def test_every_finding_says_why_and_how(tmp_path: Path, clock: SettableClock) -> None:
    settings = {
        "issuer": "http://localhost:8080",
        "secret_peppers": f"p1:{'x' * 40}",
        "encryption_keys": f"k1:{'x' * 40}",
        "trusted_proxies": "0.0.0.0/0",
        "metrics_address": "0.0.0.0:9464",
        "redis_url": "redis://127.0.0.1:1",
    }
    with open_harness(tmp_path, clock, migrated=False, with_key=False, **settings) as harness:
        message = found(harness)
    assert len(message) >= 8
    for one in message:
        assert one.what, one
        assert one.why, one
        assert one.how, one
        assert "x" * 40 not in f"{one}"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"issuer": "http://[::1]"},
            ("warning", "issuer: http://[::1] is plain http, which is for this machine alone"),
        ),
        (
            {"secret_peppers": f"p1:{'ab' * 20}"},
            ("warning", "keys: 'p1' of TOKENHOUSE_SECRET_PEPPERS can be guessed: it has few different characters"),
        ),
        (
            {"secret_peppers": STRONG, "encryption_keys": STRONG.replace("p1", "k1")},
            (
                "warning",
                "keys: 'k1' of TOKENHOUSE_ENCRYPTION_KEYS has the same value as 'p1' of TOKENHOUSE_SECRET_PEPPERS",
            ),
        ),
        ({"trusted_proxies": "10.0.0.0/8, ::/0"}, ("error", "trusted proxies: ::/0 is everybody")),
        ({"trusted_proxies": "8.0.0.0/8"}, ("warning", "trusted proxies: 8.0.0.0/8 is a large public network")),
        ({"trusted_proxies": "10.0.0.0/15"}, ("warning", "trusted proxies: 10.0.0.0/15 is a large private network")),
        ({"trusted_proxies": "fd00::/47"}, ("warning", "trusted proxies: fd00::/47 is a large private network")),
        (
            {"metrics_address": "0.0.0.0:1"},
            ("warning", "metrics: they are served at 0.0.0.0 to anybody who reaches it"),
        ),
        (
            {"metrics_address": "[2606:4700::1]:1"},
            ("warning", "metrics: they are served at 2606:4700::1 to anybody who reaches it"),
        ),
    ],
)  # fmt: skip
def test_settings_that_will_hurt(
    tmp_path: Path, clock: SettableClock, settings: dict[str, str], expected: tuple[str, str]
) -> None:
    assert expected in found_in(tmp_path, clock, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"trusted_proxies": "10.1.0.0/16, unix, fd00:1:1::/48, 93.184.216.0/24"},
        {"metrics_address": "10.1.2.3:9464"},
        {"metrics_address": "localhost:9464"},
        {"metrics_address": "metrics.internal:9464"},
        {"secret_peppers": STRONG, "encryption_keys": f"k1:{STRONG[3:][::-1]}"},
    ],
)
def test_settings_that_will_not(tmp_path: Path, clock: SettableClock, settings: dict[str, str]) -> None:
    assert not [one for one in found_in(tmp_path, clock, **settings) if "database file" not in one[1]]


def test_plain_http_is_what_development_is_for(tmp_path: Path, clock: SettableClock) -> None:
    message = found_in(tmp_path, clock, config="development", issuer="http://localhost:8080")
    assert not [one for one in message if one[1].startswith("issuer")]


def test_a_database_that_is_behind_or_ahead(any_harness: Harness) -> None:
    for there, severity, what in (
        ("0003", Severity.ERROR, "at migration 0003, and the code needs "),
        ("9999", Severity.WARNING, "at migration 9999, and the code is of "),
        ("abcd", Severity.WARNING, "at migration abcd, and the code is of "),
    ):
        with any_harness.app.app_context(), db.engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = :there"), {"there": there})
        (message,) = [one for one in found(any_harness) if one.check == "database"]
        assert (message.severity, message.what[: len(what)]) == (severity, what)
    with any_harness.app.app_context(), db.engine.begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    (message,) = [one for one in found(any_harness) if one.check == "database"]
    assert (message.severity, message.how) == (Severity.ERROR, "`flask db upgrade`")
    assert "at migration none" in message.what


def test_a_database_that_is_away_is_an_error_and_stops_no_start(harness: Harness, tmp_path: Path) -> None:
    (tmp_path / "tokenhouse.db").rename(tmp_path / "moved")
    (message,) = [one for one in found(harness) if one.check == "database"]
    assert message.severity is Severity.ERROR
    with harness.app.app_context():
        (message,) = [one for one in examine_start(harness.services) if one.check == "database"]
        assert "demo client" not in {one.check for one in examine(harness.services)}, "nobody can know"
    assert message.severity is Severity.WARNING


def test_a_clock_that_is_not_the_databases(any_harness: Harness) -> None:
    message = [one for one in found(any_harness) if one.check == "clock"]
    with any_harness.app.app_context():
        is_postgresql = db.engine.dialect.name == "postgresql"
    assert len(message) == is_postgresql
    assert all("s apart from the database's" in one.what for one in message)


def test_a_demo_client_is_found_where_it_gets_tokens(harness: Harness) -> None:
    harness.register("demo")
    assert [one.what for one in found(harness) if one.check == "demo client"] == ["the client 'demo' gets tokens here"]
    with harness.app.app_context():
        harness.store.disable("demo")
    assert not [one for one in found(harness) if one.check == "demo client"]


def test_sqlite_with_what_is_for_several_machines_and_a_file_for_all(tmp_path: Path, clock: SettableClock) -> None:
    settings = {"keyring": "database", "encryption_keys": f"k1:{STRONG[3:]}"}
    with open_harness(tmp_path, clock, with_key=False, **settings) as harness:
        (tmp_path / "tokenhouse.db").chmod(0o644)
        message = {one.check: one.what for one in found(harness)}
    assert message["machines"] == (
        "SQLite is a file of this machine, and there are several by TOKENHOUSE_KEYRING=database"
    )
    assert message["database file"].endswith("may be read or written by others (mode 0644)")


def test_a_redis_that_evicts_and_one_that_is_away(tmp_path: Path, clock: SettableClock) -> None:
    with running_redis("--maxmemory", "10mb", "--maxmemory-policy", "allkeys-lru") as redis:
        message = found_in(tmp_path / "a", clock, redis_url=redis.url)
        assert ("error", "redis: it evicts keys when it is full (maxmemory-policy allkeys-lru)") in message
        with redis.client() as client:
            client.config_set("maxmemory-policy", "noeviction")
        assert not [one for one in found_in(tmp_path / "b", clock, redis_url=redis.url) if one[1].startswith("redis")]
    with open_harness(tmp_path / "c", clock, redis_url=redis.url) as harness, harness.app.app_context():
        (away,) = [one for one in examine(harness.services) if one.check == "redis"]
        assert (away.severity, away.what[:22]) == (Severity.ERROR, "it does not respond: C")
        (away,) = [one for one in examine_start(harness.services) if one.check == "redis"]
        assert away.severity is Severity.WARNING


def test_secrets_whose_key_is_missing(harness: Harness) -> None:
    harness.register("c")
    with harness.app.app_context(), db.engine.begin() as connection:
        connection.execute(update(ClientSecretRow).values(pepper_id="lost"))
    (message,) = [one for one in found(harness) if one.check == "secrets"]
    assert message.what == "1 secrets are refused: their pepper 'lost' is not in TOKENHOUSE_SECRET_PEPPERS"


def test_a_ring_that_is_unsafe_broken_or_without_a_standby(harness: Harness) -> None:
    assert [one.what for one in found(harness) if one.check == "key ring"] == [
        "no standby is announced: `flask keys rotate --if-due` announces one"
    ]
    add_key(
        harness.services.keys.manager.backend,
        published_at=harness.clock(),
        signs_from=harness.clock() + timedelta(seconds=5),
    )
    assert Severity.ERROR in {one.severity for one in found(harness) if one.check == "key ring"}
    Path(str(harness.settings.keyring)).write_text("x")
    (message,) = [one for one in found(harness) if one.check == "key ring"]
    assert (message.severity, message.why) == (Severity.ERROR, "without it no server starts")


def test_an_api_whose_algorithm_has_no_key(harness: Harness) -> None:
    def said() -> list[str]:
        return [each.what for each in found(harness) if each.check == "APIs"]

    with harness.app.app_context():
        for name, alg in (("a", None), ("b", "RS256"), ("c", "ES256")):
            harness.services.apis.repository.create(ApiFields(name, name, signing_alg=alg))
    assert said() == ["the key ring has no ES256 key that may sign now: `flask keys generate --alg ES256`"]
    assert harness.run("keys", "generate", "--alg", "ES256").exit_code == 0
    later = "the first may sign from 2026-02-07T12:00:00+00:00 on"
    assert said() == [f"the key ring has no ES256 key that may sign now: {later}"]
    harness.clock.advance(days=8)
    assert said() == []


def test_a_client_whose_keys_cannot_be_fetched(harness: Harness) -> None:
    one = signer("ES256")
    with publishing() as publisher, harness.app.app_context():
        publisher.publish(one.jwk | {"kid": one.kid})
        auth_fields = {"jwks_uri": publisher.url}
        fields = ClientFields(client_name="A", token_endpoint_auth_method="private_key_jwt", auth_fields=auth_fields)
        found_set = harness.services.clients.jwks_cache.fetch(publisher.url)
        harness.store.register(fields, client_id="c", with_secret=False, key_set=found_set)
        with db.engine.begin() as connection:
            connection.execute(update(ClientKeySetRow).values(fault="gone"))
    (message,) = [one for one in found(harness) if one.check == "client keys"]
    assert message.what == "the published keys of 'c' cannot be fetched"


def test_a_platform_whose_keys_cannot_be_fetched(harness: Harness) -> None:
    with open_platform() as platform, harness.app.app_context():
        fields = ClientFields(client_name="A", token_endpoint_auth_method="federated_jwt")
        harness.store.register(fields, client_id="c", with_secret=False)
        trusts = harness.services.clients.trusts
        trust = Trust(platform.issuer, "a:b", {}, harness.settings.issuer)
        trust_id = trusts.add("c", trust).row.trust_id
        with db.engine.begin() as connection:
            connection.execute(update(IssuerKeySetRow).values(fault="gone"))
        (message,) = [one for one in examine(harness.services) if one.check == "client keys"]
        assert message.what == f"the published keys of {platform.issuer!r} cannot be fetched"
        # An issuer that nobody trusts is no concern.
        trusts.remove("c", trust_id)
        assert not [one for one in examine(harness.services) if one.check == "client keys"]


def test_the_command_shows_the_worst_last_and_fails_for_errors(harness: Harness) -> None:
    done = harness.run("doctor", "--offline")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0].startswith("ok       ")
    assert "warning  key ring: no standby is announced" in done.stdout
    assert "           fix: " in done.stdout
    with harness.app.app_context(), db.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    done = harness.run("doctor", "--offline", "--json")
    assert done.exit_code == 1
    message: list[dict[str, Any]] = json.loads(done.stdout)
    assert {"check", "severity", "what", "why", "how"} == set(message[0])
    assert [one["check"] for one in message if one["severity"] == "error"] == ["database"]


def test_the_command_reads_what_verifiers_read(tmp_path: Path, clock: SettableClock) -> None:
    with publishing() as publisher:
        issuer = publisher.url.removesuffix("/jwks.json")
        with open_harness(tmp_path, clock, issuer=issuer) as harness:
            for body, severity, what in (
                ({"issuer": issuer}, "ok", "is this installation's"),
                ({"issuer": f"{issuer}/"}, "error", f'says that the issuer is "{issuer}/"'),
                ([], "error", "says that the issuer is null"),
            ):
                publisher.answer = _answering(json.dumps(body).encode())
                message = json.loads(harness.run("doctor", "--json").stdout)[-1]
                assert (message["check"], message["severity"]) == ("metadata", severity)
                assert message["what"].endswith(what)
            publisher.answer = _answering(b"x")
            assert json.loads(harness.run("doctor", "--json").stdout)[-1]["severity"] == "warning"
    with open_harness(tmp_path / "b", clock, issuer=issuer) as harness:
        message = json.loads(harness.run("doctor", "--json").stdout)[-1]
    assert (message["severity"], "Connection refused" in message["what"]) == ("warning", True)


def _answering(body: bytes) -> Any:
    from support.publisher import send  # noqa: PLC0415 - Here alone.

    return lambda handler: send(handler, body)


def test_traces_that_cannot_be_sent_are_found(
    tmp_path: Path, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    message = ("error", "traces: OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf, which is what the extra otel sends")
    (tmp_path / "on").mkdir()
    (tmp_path / "off").mkdir()
    assert message in found_in(tmp_path / "on", clock, secret_peppers=STRONG, traces="true")
    assert message not in found_in(tmp_path / "off", clock, secret_peppers=STRONG)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318")
    (tmp_path / "asked").mkdir()
    assert ("warning", message[1]) in found_in(tmp_path / "asked", clock, secret_peppers=STRONG)


def test_clients_whose_assertions_name_the_token_endpoint_are_counted(any_harness: Harness) -> None:
    def said() -> list[str]:
        with any_harness.app.app_context():
            return [f"{one.severity}: {one.what}" for one in examine(any_harness.services) if one.check == "assertions"]

    assert said() == ["ok: none named the token endpoint in the last 30 days"]
    for client_id in ("a", "b", "c"):
        any_harness.register(client_id)
        style = AssertionStyle("issuer" if client_id == "c" else "token_endpoint", "jwt")
        any_harness.services.clients.last_used.record_assertion(client_id, style)
    any_harness.services.clients.last_used.flush()
    assert said() == ["warning: clients whose assertions named the token endpoint in the last 30 days: 2"]
    any_harness.clock.advance(days=30, seconds=1)
    assert said() == ["ok: none named the token endpoint in the last 30 days"]


def test_stored_keys_that_are_not_fit_are_named(any_harness: Harness) -> None:
    key = signer("ES256").jwk | {"kid": "k-1"}
    fields = {"token_endpoint_auth_method": "private_key_jwt", "auth_fields": {"jwks": {"keys": [key]}}}
    with any_harness.app.app_context():
        for client_id in ("fit", "unfit"):
            any_harness.store.register(ClientFields("Signs", **fields), client_id=client_id, with_secret=False)
        row = any_harness.store.find("unfit")
        # As a release that did not look has stored it.
        row.auth_fields = {"jwks": {"keys": [key | {"x": "A" * 44}]}}
        db.session.commit()
    assert "client keys: key 'k-1' of 'unfit' has a x that is not 32 bytes long" in [
        f"{one.check}: {one.what}" for one in found(any_harness)
    ]
    assert not [one for one in found(any_harness) if "'fit'" in one.what]
