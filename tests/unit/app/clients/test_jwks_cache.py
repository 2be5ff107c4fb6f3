"""Keys that a client publishes: fetched when it is made, fresh ahead of need, by one worker, for no request."""

import json
import logging
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import SettableClock
from sqlalchemy import select
from support.assertions import Signer, form, signer
from support.publisher import Publisher, publishing, send
from unit.house import House, open_house

from app.clients.fields import ClientFields
from app.clients.jwks_cache import COOL_DOWN, FETCHED_AT_ONCE, ClientKeySets
from app.database.models import ClientKeySetRow, db
from app.errors import ManagementError
from app.http.safe_fetch import Fetched, Fetcher, FetchError

METHOD = "private_key_jwt"
OLD, NEW, THIRD = signer("ES256"), signer("ES256"), signer("EdDSA")


def jwk(one: Signer) -> dict[str, Any]:
    return one.jwk | {"kid": one.kid}


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with publishing() as server:
        server.publish(jwk(OLD))
        yield server


@pytest.fixture
def house(any_house: House) -> Iterator[House]:
    # What is fetched when is what is tested: no job of its own.
    any_house.app.before_request_funcs.clear()
    return any_house


def make(house: House, uri: str, client_id: str = "c", **more: Any) -> str:
    with house.app.app_context():
        fields = ClientFields(client_name="A", token_endpoint_auth_method=METHOD, auth_fields={"jwks_uri": uri, **more})
        found = house.services.clients.jwks_cache.fetch(uri)
        house.store.register(fields, client_id=client_id, with_secret=False, key_set=found)
    return client_id


def ask(house: House, one: Signer, client_id: str = "c", **header: Any) -> int:
    now = int(house.clock().timestamp())
    claims = {"iss": client_id, "sub": client_id, "aud": house.settings.issuer, "jti": uuid.uuid4().hex}
    signed = one.sign(claims | {"iat": now, "exp": now + 60}, **header)
    return house.app.test_client().post("/oauth/token", data=form(signed)).status_code


def look(house: House) -> None:
    with house.app.app_context():
        house.services.clients.jwks_cache.look()


def kept(house: House, client_id: str = "c") -> ClientKeySetRow:
    with house.app.app_context():
        row = db.session.get(ClientKeySetRow, client_id)
        assert row is not None
        db.session.expunge(row)
        return row


def ready(house: House) -> dict[str, str]:
    answer = house.app.test_client().get("/readyz")
    assert answer.status_code == 200
    checks: dict[str, str] = answer.get_json()["checks"]
    return checks


def test_it_is_fetched_when_the_client_is_made_and_by_no_request(house: House, publisher: Publisher) -> None:
    make(house, publisher.url)
    assert [ask(house, OLD), ask(house, OLD, kid=None), ask(house, NEW), ask(house, NEW, kid="x")] == [
        200,
        200,
        401,
        401,
    ]
    assert len(publisher.asked) == 1
    assert publisher.asked[0][1]["accept"] == "application/jwk-set+json, application/json"


def test_a_publisher_that_is_away_costs_no_request_anything(house: House) -> None:
    with publishing() as publisher:
        publisher.publish(jwk(OLD))
        make(house, publisher.url)
    assert [ask(house, OLD), ask(house, NEW)] == [200, 401]
    house.clock.advance(days=3)
    look(house)
    assert [ask(house, OLD), ask(house, NEW)] == [200, 401]


@pytest.mark.parametrize(
    ("max_age", "lifetime"),
    [(None, 3600), (0, 300), (60, 300), (300, 300), (7200, 7200), (10**8, 86400)],
)
def test_it_is_fetched_again_before_it_is_old(
    house: House, publisher: Publisher, max_age: int | None, lifetime: int
) -> None:
    publisher.publish(jwk(OLD), max_age=max_age)
    make(house, publisher.url)
    for _ in range(3):
        row = kept(house)
        assert row.fetched_at == house.clock()
        life = (row.refresh_at - row.fetched_at).total_seconds()
        assert 0.7 * lifetime <= life <= 0.8 * lifetime
        count = len(publisher.asked)
        house.clock.now = row.refresh_at - timedelta(seconds=1)
        look(house)
        assert len(publisher.asked) == count
        house.clock.now = row.refresh_at
        look(house)
        assert len(publisher.asked) == count + 1


def test_a_key_that_is_not_known_moves_the_next_fetch_nearer_and_not_too_near(
    house: House, publisher: Publisher
) -> None:
    make(house, publisher.url)
    publisher.publish(jwk(OLD), jwk(NEW))
    house.clock.advance(seconds=10)
    for _ in range(5):
        assert ask(house, NEW) == 401
        look(house)
    assert len(publisher.asked) == 1
    assert kept(house).refresh_at == kept(house).tried_at + COOL_DOWN
    house.clock.advance(seconds=50)
    look(house)
    assert len(publisher.asked) == 2
    assert [ask(house, NEW), ask(house, OLD)] == [200, 200]
    # Long after a fetch the next may come at once.
    house.clock.advance(seconds=600)
    publisher.publish(jwk(THIRD))
    assert ask(house, THIRD) == 401
    assert len(publisher.asked) == 2
    look(house)
    assert len(publisher.asked) == 3
    assert [ask(house, THIRD), ask(house, OLD)] == [200, 401]


def test_who_asks_again_and_again_with_a_key_of_nobody_causes_one_fetch_a_minute(
    house: House, publisher: Publisher
) -> None:
    make(house, publisher.url)
    for _ in range(60):
        house.clock.advance(seconds=10)
        ask(house, NEW)
        ask(house, NEW, kid="x")
        ask(house, NEW, client_id="nobody")
        look(house)
    assert len(publisher.asked) == 1 + 10


def test_the_last_good_set_is_kept_and_told_of(
    house: House, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    make(house, publisher.url + "?token=a-secret-in-a-query")
    publisher.answer = lambda handler: send(handler, b"no", 500)
    waits = []
    for _ in range(7):
        row = kept(house)
        waits.append((row.refresh_at - row.tried_at).total_seconds())
        house.clock.now = row.refresh_at
        look(house)
        assert ask(house, OLD) == 200
    assert waits[1:] == [60, 120, 240, 480, 900, 900]
    assert ready(house) == {
        "database": "ok",
        "keyring": "ok",
        "settings": "ok",
        "audit_log": "ok",
        "client_keys:c": "degraded",
    }
    assert kept(house).fault == "the answer has status 500"
    publisher.publish(jwk(NEW))
    house.clock.now = kept(house).refresh_at
    look(house)
    assert "client_keys:c" not in ready(house)
    assert (kept(house).fault, kept(house).failures) == (None, 0)
    assert [ask(house, OLD), ask(house, NEW)] == [401, 200]
    fault = "the answer has status 500"
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == [
        f"the keys of 'c' cannot be fetched from {publisher.url}, and are those of the last time: {fault}",
        f"the keys of 'c' can be fetched again from {publisher.url}",
    ]


WRONG = {
    b"": "the answer is no JSON",
    b"\xff\xfe": "the answer is no JSON",
    b"[" * 30_000: "the answer is no JSON",
    b"[]": 'the key set must be a JSON object with "keys", a list of objects',
    b'{"keys": [1]}': 'the key set must be a JSON object with "keys", a list of objects',
    b'{"keys": []}': "the key set must hold 1 to 100 keys",
    json.dumps({"keys": [{}] * 101}).encode(): "the key set must hold 1 to 100 keys",
    b'{"keys": [{"kty": "oct", "k": "AA"}]}': "key 1 is private (k): register its public half only",
    json.dumps({"keys": [jwk(OLD), OLD.key.as_dict(private=True)]}).encode(): "key 2 is private (d)",
    b'{"keys": [{"kty": "AKP"}]}': "the key set holds no key that is known here: key 1: kty must be RSA, EC, OKP",
    json.dumps({"keys": [jwk(OLD), jwk(NEW) | {"kid": OLD.kid}]}).encode(): "twice: each key needs a kid of its own",
}


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_a_set_that_is_wrong_makes_no_client_and_replaces_none(house: House, publisher: Publisher, number: int) -> None:
    body, cause = list(WRONG.items())[number]
    make(house, publisher.url)
    publisher.answer = lambda handler: send(handler, body)
    with pytest.raises(ManagementError) as caught:
        make(house, publisher.url, "another")
    assert str(caught.value).startswith(f"the keys at {publisher.url} cannot be fetched: ")
    assert cause in str(caught.value)
    house.clock.advance(days=1)
    look(house)
    assert cause in str(kept(house).fault)
    assert ask(house, OLD) == 200


def test_what_is_not_for_us_in_a_set_is_left_out(house: House, publisher: Publisher) -> None:
    others = [
        {"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"},
        {"kty": "AKP", "pub": "AA"},
        jwk(NEW) | {"use": "enc"},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
    ]
    publisher.publish(*others, jwk(OLD))
    make(house, publisher.url)
    assert [ask(house, OLD), ask(house, NEW)] == [200, 401]


def test_of_many_workers_one_fetches(house: House, publisher: Publisher) -> None:
    make(house, publisher.url)
    house.clock.advance(days=1)
    with house.app.app_context():
        engine = db.engine
        workers = [ClientKeySets(engine, Fetcher(), house.clock, house.services.outbox) for _ in range(6)]
    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(lambda worker: worker.look(), workers))
    assert len(publisher.asked) == 2


def test_a_worker_that_dies_over_it_is_followed_by_another(house: House, publisher: Publisher) -> None:
    make(house, publisher.url)
    house.clock.advance(days=1)

    class Dying(Fetcher):
        def fetch(self, url: str, accept: str) -> Fetched:  # noqa: ARG002
            raise SystemExit

    with house.app.app_context():
        dying = ClientKeySets(db.engine, Dying(), house.clock, house.services.outbox)
    with pytest.raises(SystemExit):
        dying.look()
    look(house)
    assert len(publisher.asked) == 1
    house.clock.advance(seconds=60)
    look(house)
    assert len(publisher.asked) == 2


def test_one_that_is_slow_or_gone_holds_up_no_other(house: House, publisher: Publisher) -> None:
    with publishing() as other:
        other.publish(jwk(NEW))
        make(house, other.url, "gone")
        for number in range(FETCHED_AT_ONCE + 2):
            make(house, publisher.url, f"c{number}")
    publisher.publish(jwk(THIRD))
    house.clock.advance(days=1)
    look(house)
    look(house)
    assert {ask(house, THIRD, f"c{number}") for number in range(FETCHED_AT_ONCE + 2)} == {200}
    assert ask(house, NEW, "gone") == 200
    assert house.services.clients.jwks_cache.failing == ["gone"]


def test_a_change_of_keys_leaves_a_trace_and_a_mere_fetch_does_not(
    house: House, publisher: Publisher, capsys: pytest.CaptureFixture[str]
) -> None:
    make(house, publisher.url)
    for keys in ((OLD,), (OLD, NEW)):
        publisher.publish(*map(jwk, keys))
        house.clock.advance(days=1)
        look(house)
    with house.app.app_context():
        house.services.outbox.drain(house.services.audit_log.tell_past)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    changes = [
        (event["by"], event["change"], event.get("fields")) for event in told if event["event"] == "ClientChanged"
    ]
    assert changes[1:] == [("the fetch of keys", "keys_fetched", ["jwks"])]


def test_a_client_that_is_gone_or_shut_out_is_left_alone(house: House, publisher: Publisher) -> None:
    for client_id in ("deleted", "disabled", "changed"):
        make(house, publisher.url, client_id)
    with house.app.app_context():
        house.store.delete("deleted")
        house.store.disable("disabled")
        house.store.update("changed", lambda _: {"auth_fields": {"jwks": {"keys": [jwk(NEW)]}}})
        assert list(db.session.scalars(select(ClientKeySetRow.client_id))) == ["disabled"]
    count = len(publisher.asked)
    house.clock.advance(days=1)
    look(house)
    assert len(publisher.asked) == count
    assert [ask(house, OLD, "changed"), ask(house, NEW, "changed")] == [401, 200]
    with house.app.app_context():
        house.store.enable("disabled")
    look(house)
    assert len(publisher.asked) == count + 1


@pytest.mark.parametrize("is_found", [True, False])
def test_a_fetch_that_ends_after_the_client_has_moved_changes_nothing(
    house: House, publisher: Publisher, *, is_found: bool
) -> None:
    make(house, publisher.url)
    elsewhere = publisher.url.replace("jwks.json", "others.json")

    class Slow(Fetcher):
        def fetch(self, url: str, accept: str) -> Fetched:
            found = super().fetch(url, accept)
            publisher.publish(jwk(NEW))
            with house.app.app_context():
                new = house.services.clients.jwks_cache.fetch(elsewhere)
                house.store.update("c", lambda _: {"auth_fields": {"jwks_uri": elsewhere}}, new)
            if not is_found:
                raise FetchError("gone")
            return found

    house.clock.advance(days=1)
    with house.app.app_context():
        slow = ClientKeySets(db.engine, Slow(), house.clock, house.services.outbox)
    slow.look()
    assert (kept(house).uri, kept(house).fault) == (elsewhere, None)
    assert [ask(house, OLD), ask(house, NEW)] == [401, 200]


def test_nobody_can_be_made_whose_keys_were_not_fetched(house: House, publisher: Publisher) -> None:
    with house.app.app_context():
        fields = ClientFields(
            client_name="A", token_endpoint_auth_method=METHOD, auth_fields={"jwks_uri": publisher.url}
        )
        with pytest.raises(ManagementError, match="must be fetched before"):
            house.store.register(fields, client_id="c", with_secret=False)
        other = house.services.clients.jwks_cache.fetch(publisher.url + "?other")
        with pytest.raises(ManagementError, match="must be fetched before"):
            house.store.register(fields, client_id="c", with_secret=False, key_set=other)


def test_a_name_that_leads_into_our_network_is_refused_at_once(tmp_path: Path, clock: SettableClock) -> None:
    with open_house(tmp_path, clock) as house, house.app.app_context():
        with pytest.raises(ManagementError) as caught:
            house.services.clients.jwks_cache.fetch("https://[::ffff:169.254.169.254]/latest")
        assert "leads to ::ffff:169.254.169.254, which is no public address" in str(caught.value)
    with open_house(tmp_path / "b", clock, jwks_uri_networks="127.0.0.0/8") as house, house.app.app_context():
        with pytest.raises(ManagementError) as caught:
            house.services.clients.jwks_cache.fetch("https://[::ffff:127.0.0.1]:1/")
        assert "Connection refused" in str(caught.value)
