"""Known clients are served while the database is away: those that it would have served the last time it answered."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError
from unit.harness import Harness, open_harness

from app.clients import outage_memory
from app.clients.authentication import Lookup
from app.clients.outage_memory import CONFIRM_SECONDS, OutageMemory, ReadClients
from app.clients.queries import digest_names
from app.database.circuit_breaker import DatabaseCircuitBreaker
from app.database.models import ClientKeySetRow, ClientRow, db
from app.errors import ServiceUnavailable
from app.reasons import RefusalReason
from app.types import Credentials

GRACE_SECONDS = 900
OUTAGE = ServiceUnavailable(RefusalReason.DATABASE_SILENT)


class Monotonic:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Remembering:
    """A memory with its clock, and a database that can be away."""

    def __init__(self, harness: Harness, grace_seconds: int = GRACE_SECONDS) -> None:
        self.harness, self.clock = harness, Monotonic()
        self.breaker = DatabaseCircuitBreaker()
        self.memory = OutageMemory(db.engine, self.breaker, grace_seconds, self.clock)

    def use(self, *client_ids: str) -> None:
        """What authentication does."""
        self.memory.used.update(client_ids)

    def poll(self, seconds: float = 1.0) -> None:
        self.clock.seconds += seconds
        self.memory.poll()

    def served(self, *client_ids: str) -> list[str]:
        """Those of the clients that are known."""
        return [row.client_id for row in self.memory.rows_of(client_ids, OUTAGE) if row.client_id]


@pytest.fixture
def remembering(any_harness: Harness) -> Iterator[Remembering]:
    with any_harness.app.app_context():
        yield Remembering(any_harness)


def change(statement: str) -> None:
    db.session.execute(text(statement))
    db.session.commit()


def test_known_clients_are_served_until_the_grace_ends(
    remembering: Remembering, caplog: pytest.LogCaptureFixture
) -> None:
    remembering.harness.register("a")
    remembering.use("a")
    remembering.poll()
    assert remembering.served("a", "nobody") == ["a"]
    assert [row.asked_id for row in remembering.memory.rows_of(["nobody"], OUTAGE)] == ["nobody"]
    assert "1 known clients are served without the database for 900 s" in caplog.text
    remembering.clock.seconds += GRACE_SECONDS - 1
    assert remembering.memory.can_serve()
    remembering.clock.seconds += 1
    assert not remembering.memory.can_serve()
    with pytest.raises(ServiceUnavailable) as caught:
        remembering.served("a")
    assert caught.value is OUTAGE


def test_the_grace_begins_with_the_last_answer_of_the_database(remembering: Remembering) -> None:
    remembering.harness.register("a")
    remembering.use("a")
    remembering.poll()
    for _ in range(20):
        remembering.poll(60)
    remembering.clock.seconds += GRACE_SECONDS - 1
    assert remembering.served("a") == ["a"]


def test_a_flapping_database_is_logged_once_a_minute(
    remembering: Remembering, caplog: pytest.LogCaptureFixture
) -> None:
    remembering.harness.register("a")
    remembering.use("a")
    for _ in range(90):
        remembering.poll()
        remembering.served("a")
    assert caplog.text.count("are served without the database") == 2


def test_nobody_is_served_without_grace(any_harness: Harness) -> None:
    with any_harness.app.app_context():
        remembering = Remembering(any_harness, 0)
        any_harness.register("a")
        remembering.use("a")
        remembering.poll()
        assert not remembering.memory.used
        assert not remembering.memory.can_serve()
        with pytest.raises(ServiceUnavailable):
            remembering.served("a")


def test_a_client_that_has_not_authenticated_is_not_known(remembering: Remembering) -> None:
    remembering.harness.register("a")
    remembering.poll()
    assert remembering.served("a") == []


@pytest.mark.parametrize(
    "how", ["UPDATE clients SET disabled_at = created_at", "UPDATE clients SET deleted_at = created_at"]
)
def test_a_client_that_gets_no_tokens_any_more_is_forgotten(remembering: Remembering, how: str) -> None:
    remembering.harness.register("a")
    remembering.use("a")
    remembering.poll()
    change(how)
    remembering.poll()
    assert remembering.served("a") == []


def test_what_is_changed_is_read_again(remembering: Remembering) -> None:
    remembering.harness.register("a")
    remembering.use("a")
    remembering.poll()
    change("UPDATE clients SET access_token_lifetime = 77")
    remembering.poll()
    (row,) = remembering.memory.rows_of(["a"], OUTAGE)
    assert row.access_token_lifetime == 77


def test_every_client_is_read_again_in_time(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage_memory, "CONFIRMED_AT_ONCE", 2)
    with harness.app.app_context():
        remembering = Remembering(harness)
        for number in range(4 * CONFIRM_SECONDS):
            harness.register(f"c-{number}")
        remembering.use(*(f"c-{number}" for number in range(4 * CONFIRM_SECONDS)))
        remembering.poll()
        begun = remembering.clock.seconds
        for _ in range(CONFIRM_SECONDS - 1):
            remembering.poll()
            assert any(client.read_at == begun for client in remembering.memory._known.values())  # noqa: SLF001
        remembering.poll()
        assert all(client.read_at > begun for client in remembering.memory._known.values())  # noqa: SLF001


def test_those_that_were_used_longest_ago_make_room(remembering: Remembering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outage_memory, "MOST_CLIENTS", 2)
    for client_id in ("a", "b", "c"):
        remembering.harness.register(client_id)
    remembering.use("a")
    remembering.poll()
    remembering.use("b")
    remembering.poll()
    remembering.use("a", "c")
    remembering.poll()
    assert remembering.served("a", "b", "c") == ["a", "c"]


def test_long_key_sets_make_room_too(remembering: Remembering, monkeypatch: pytest.MonkeyPatch) -> None:
    for client_id in ("a", "b"):
        remembering.harness.register(client_id)
        remembering.use(client_id)
        remembering.poll()
    assert remembering.served("a", "b") == ["a", "b"]
    whole = sum(client.characters for client in remembering.memory._known.values())  # noqa: SLF001
    monkeypatch.setattr(outage_memory, "MOST_CHARACTERS", whole - 1)
    remembering.use("b")
    remembering.poll()
    assert remembering.served("a", "b") == ["b"]


def test_a_client_with_a_scope_of_the_server_is_never_known(remembering: Remembering) -> None:
    remembering.harness.register("a", scope=("read",))
    change("""UPDATE clients SET scope = '["read", "tokenhouse:read"]'""")
    remembering.use("a")
    remembering.poll()
    assert remembering.served("a") == []


def test_a_client_that_was_not_read_for_long_is_not_served(remembering: Remembering) -> None:
    remembering.harness.register("a")
    remembering.use("a")
    remembering.poll()
    # As when reading fails, and requests go well.
    remembering.memory._known["a"].read_at -= outage_memory.STALE_SECONDS + 1  # noqa: SLF001
    assert remembering.served("a") == []


def test_the_rows_are_those_of_the_request_path(any_harness: Harness) -> None:
    client = any_harness.register("a", scope=("read",), audiences=("urn:a",), introspects=("*",))
    other = any_harness.register("b", expires_after=timedelta(days=3))
    now = any_harness.clock()
    with any_harness.app.app_context():
        db.session.get_one(ClientRow, "a").auth_fields = {"jwks_uri": "https://a.example.com/"}
        row = {"uri": "x", "jwks": {"keys": []}, "fetched_at": now, "tried_at": now, "refresh_at": now, "failures": 0}
        db.session.add(ClientKeySetRow(client_id="a", **row))
        db.session.commit()
        remembering = Remembering(any_harness)
        remembering.use("a", "b")
        remembering.poll()
        clients = any_harness.verifier
        for made in (client, other):
            client_id = made.client_id
            digests = clients._digester.digest_with_all(Credentials(client_id, made.secret))  # noqa: SLF001
            (known,) = remembering.memory.rows_of([client_id], OUTAGE)
            asked_for = {"one_id": client_id, **dict(zip(digest_names(1), digests.values(), strict=True))}
            by_secret = clients._by_digests[1, 1].execute(asked_for)  # noqa: SLF001
            found: list[Lookup] = [clients.find(client_id), clients.find_with_secrets(client_id)]
            for (asked,) in (by_secret, *(lookup.rows for lookup in found)):
                wanted: Mapping[str, Any] = asked._asdict()
                assert {name: getattr(known, name) for name in wanted} == wanted


def test_clients_of_elsewhere_replace_those_that_were_read_before(remembering: Remembering) -> None:
    for client_id in ("old", "both", "new", "elsewhere"):
        remembering.harness.register(client_id)
        remembering.use(client_id)
    remembering.poll()
    kept = {client_id: client.rows for client_id, client in remembering.memory._known.items()}  # noqa: SLF001
    remembering.memory._known["new"].read_at += 6  # noqa: SLF001
    del remembering.memory._known["elsewhere"]  # noqa: SLF001
    remembering.clock.seconds += 10
    elsewhere = {client_id: kept[client_id] for client_id in ("both", "elsewhere")}
    remembering.memory.restore = lambda: ReadClients(5, elsewhere)
    assert remembering.served("old", "both", "new", "elsewhere") == ["both", "new", "elsewhere"]
    # The grace begins when they were read.
    remembering.clock.seconds += GRACE_SECONDS - 6
    assert remembering.memory.can_serve()
    remembering.clock.seconds += 1
    assert not remembering.memory.can_serve()


def test_a_failed_read_forgets_nothing(remembering: Remembering, monkeypatch: pytest.MonkeyPatch) -> None:
    remembering.harness.register("a")
    remembering.use("a")
    remembering.poll()

    def fail(_ids: object) -> Mapping[str, Any]:
        raise OperationalError("", {}, Exception())

    monkeypatch.setattr(remembering.memory, "_read", fail)
    remembering.poll(GRACE_SECONDS - 1)
    assert remembering.served("a") == ["a"]
    remembering.poll()
    assert not remembering.memory.can_serve()


def test_only_the_token_endpoint_uses_the_memory(tmp_path: Any, clock: Any) -> None:
    with open_harness(tmp_path, clock) as harness:
        client = harness.register("a", introspects=("*",))
        caller, header = harness.app.test_client(), {"Authorization": client.basic}
        token = caller.post("/oauth/token", data={"grant_type": "client_credentials"}, headers=header).json
        assert token is not None
        harness.services.clients.outage_memory.poll()
        (harness.folder / "tokenhouse.db").rename(harness.folder / "away")
        statuses = {
            path: caller.post(path, data=form, headers=header).status_code
            for path, form in (
                ("/oauth/token", {"grant_type": "client_credentials"}),
                ("/oauth/introspect", {"token": token["access_token"]}),
                ("/oauth/revoke", {"token": token["access_token"]}),
            )
        }
        assert statuses == {"/oauth/token": 200, "/oauth/introspect": 503, "/oauth/revoke": 503}
        assert caller.get("/oauth/revocations", headers=header).status_code == 503
        assert caller.get("/readyz").json == {
            "status": "degraded",
            "checks": {"database": "degraded", "keyring": "ok", "settings": "ok", "audit_log": "ok"},
        }
