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
from unit.harness import Harness, open_harness

from app.clients.fields import ClientFields
from app.clients.jwks_cache import COOL_DOWN, FETCHED_AT_ONCE, JwksCache
from app.crypto.key_set import read_key_set
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
def harness(any_harness: Harness, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harness]:
    # What is fetched when is what is tested: no job of its own.
    monkeypatch.setattr(any_harness.app.extensions["scheduler"], "start", lambda: None)
    return any_harness


def make(harness: Harness, uri: str, client_id: str = "c", **more: Any) -> str:
    with harness.app.app_context():
        fields = ClientFields(client_name="A", token_endpoint_auth_method=METHOD, auth_fields={"jwks_uri": uri, **more})
        found = harness.services.clients.jwks_cache.fetch(uri)
        harness.store.register(fields, client_id=client_id, with_secret=False, key_set=found)
    return client_id


def ask(harness: Harness, one: Signer, client_id: str = "c", **header: Any) -> int:
    now = int(harness.clock().timestamp())
    claims = {"iss": client_id, "sub": client_id, "aud": harness.settings.issuer, "jti": uuid.uuid4().hex}
    signed = one.sign(claims | {"iat": now, "exp": now + 60}, **header)
    return harness.app.test_client().post("/oauth/token", data=form(signed)).status_code


def poll(harness: Harness) -> None:
    with harness.app.app_context():
        harness.services.clients.jwks_cache.poll()


def kept(harness: Harness, client_id: str = "c") -> ClientKeySetRow:
    with harness.app.app_context():
        row = db.session.get(ClientKeySetRow, client_id)
        assert row is not None
        db.session.expunge(row)
        return row


def ready(harness: Harness) -> dict[str, str]:
    answer = harness.app.test_client().get("/readyz")
    assert answer.status_code == 200
    checks: dict[str, str] = answer.get_json()["checks"]
    return checks


def test_it_is_fetched_when_the_client_is_made_and_by_no_request(harness: Harness, publisher: Publisher) -> None:
    make(harness, publisher.url)
    assert [ask(harness, OLD), ask(harness, OLD, kid=None), ask(harness, NEW), ask(harness, NEW, kid="x")] == [
        200,
        200,
        401,
        401,
    ]
    assert len(publisher.asked) == 1
    assert publisher.asked[0][1]["accept"] == "application/jwk-set+json, application/json"


def test_a_publisher_that_is_away_costs_no_request_anything(harness: Harness) -> None:
    with publishing() as publisher:
        publisher.publish(jwk(OLD))
        make(harness, publisher.url)
    assert [ask(harness, OLD), ask(harness, NEW)] == [200, 401]
    harness.clock.advance(days=3)
    poll(harness)
    assert [ask(harness, OLD), ask(harness, NEW)] == [200, 401]


@pytest.mark.parametrize(
    ("max_age", "lifetime"),
    [(None, 3600), (0, 300), (60, 300), (300, 300), (7200, 7200), (10**8, 86400)],
)
def test_it_is_fetched_again_before_it_is_old(
    harness: Harness, publisher: Publisher, max_age: int | None, lifetime: int
) -> None:
    publisher.publish(jwk(OLD), max_age=max_age)
    make(harness, publisher.url)
    for _ in range(3):
        row = kept(harness)
        assert row.fetched_at == harness.clock()
        life = (row.refresh_at - row.fetched_at).total_seconds()
        assert 0.7 * lifetime <= life <= 0.8 * lifetime
        count = len(publisher.asked)
        harness.clock.now = row.refresh_at - timedelta(seconds=1)
        poll(harness)
        assert len(publisher.asked) == count
        harness.clock.now = row.refresh_at
        poll(harness)
        assert len(publisher.asked) == count + 1


def test_a_key_that_is_not_known_moves_the_next_fetch_nearer_and_not_too_near(
    harness: Harness, publisher: Publisher
) -> None:
    make(harness, publisher.url)
    publisher.publish(jwk(OLD), jwk(NEW))
    harness.clock.advance(seconds=10)
    for _ in range(5):
        assert ask(harness, NEW) == 401
        poll(harness)
    assert len(publisher.asked) == 1
    assert kept(harness).refresh_at == kept(harness).tried_at + COOL_DOWN
    harness.clock.advance(seconds=50)
    poll(harness)
    assert len(publisher.asked) == 2
    assert [ask(harness, NEW), ask(harness, OLD)] == [200, 200]
    # Long after a fetch the next may come at once.
    harness.clock.advance(seconds=600)
    publisher.publish(jwk(THIRD))
    assert ask(harness, THIRD) == 401
    assert len(publisher.asked) == 2
    poll(harness)
    assert len(publisher.asked) == 3
    assert [ask(harness, THIRD), ask(harness, OLD)] == [200, 401]


def test_who_asks_again_and_again_with_a_key_of_nobody_causes_one_fetch_a_minute(
    harness: Harness, publisher: Publisher
) -> None:
    make(harness, publisher.url)
    for _ in range(60):
        harness.clock.advance(seconds=10)
        ask(harness, NEW)
        ask(harness, NEW, kid="x")
        ask(harness, NEW, client_id="nobody")
        poll(harness)
    assert len(publisher.asked) == 1 + 10


def test_the_last_good_set_is_kept_and_told_of(
    harness: Harness, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    make(harness, publisher.url + "?token=a-secret-in-a-query")
    publisher.answer = lambda handler: send(handler, b"no", 500)
    waits = []
    for _ in range(7):
        row = kept(harness)
        waits.append((row.refresh_at - row.tried_at).total_seconds())
        harness.clock.now = row.refresh_at
        poll(harness)
        assert ask(harness, OLD) == 200
    assert waits[1:] == [60, 120, 240, 480, 900, 900]
    assert ready(harness) == {
        "database": "ok",
        "keyring": "ok",
        "settings": "ok",
        "audit_log": "ok",
        "client_keys": "degraded",
    }
    assert kept(harness).fault == "the answer has status 500"
    publisher.publish(jwk(NEW))
    harness.clock.now = kept(harness).refresh_at
    poll(harness)
    assert "client_keys" not in ready(harness)
    assert (kept(harness).fault, kept(harness).failures) == (None, 0)
    assert [ask(harness, OLD), ask(harness, NEW)] == [401, 200]
    fault = "the answer has status 500"
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert told == [
        f"the keys of 'c' cannot be fetched from {publisher.url}; the last good ones stay in use: {fault}",
        f"the keys of 'c' can be fetched again from {publisher.url}",
    ]


WRONG = {
    b"": "this is no JWK set, no JWK and no public key in PEM",
    b"\xff\xfe": "the key set is not UTF-8 text",
    b"[" * 30_000: "this is no JWK set, no JWK and no public key in PEM",
    b"[]": 'the key set must be a JSON object with "keys", a list of objects',
    b'{"keys": [1]}': "key 1 is no JSON object",
    b'{"keys": []}': "the key set must hold 1 to 100 keys",
    json.dumps({"keys": [{}] * 101}).encode(): "the key set must hold 1 to 100 keys",
    b'{"keys": [{"kty": "oct", "k": "AA"}]}': "key 1 is private (k): register its public half only",
    json.dumps({"keys": [jwk(OLD), OLD.key.as_dict(private=True)]}).encode(): "key 2 is private (d)",
    b'{"keys": [{"kty": "AKP"}]}': "key 1: kty must be RSA, EC, OKP",
    b'{"keys": [null, {"kty": "AKP"}]}': (
        "the key set holds no key that can be used: key 1 is no JSON object; key 2: kty must be RSA, EC, OKP"
    ),
}


@pytest.mark.parametrize("number", range(len(WRONG)))
def test_a_set_that_is_wrong_makes_no_client_and_replaces_none(
    harness: Harness, publisher: Publisher, number: int
) -> None:
    body, cause = list(WRONG.items())[number]
    make(harness, publisher.url)
    publisher.answer = lambda handler: send(handler, body)
    with pytest.raises(ManagementError) as caught:
        make(harness, publisher.url, "another")
    assert str(caught.value).startswith(f"the keys at {publisher.url} cannot be fetched: ")
    assert cause in str(caught.value)
    harness.clock.advance(days=1)
    poll(harness)
    assert cause in str(kept(harness).fault)
    assert ask(harness, OLD) == 200


def test_what_is_not_for_us_in_a_set_is_left_out(harness: Harness, publisher: Publisher) -> None:
    others = [
        {"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"},
        {"kty": "AKP", "pub": "AA"},
        jwk(NEW) | {"use": "enc"},
        {"kty": "RSA", "n": "AQAB", "e": "AQAB"},
    ]
    publisher.publish(*others, jwk(OLD))
    make(harness, publisher.url)
    assert [ask(harness, OLD), ask(harness, NEW)] == [200, 401]


def test_a_key_that_is_skipped_is_named_once_in_the_log_and_as_long_as_it_is_there(
    harness: Harness, publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    cache = harness.services.clients.jwks_cache
    make(harness, publisher.url)
    assert cache.find_skipped() == []
    publisher.publish(jwk(NEW) | {"use": "enc", "kid": "enc"}, jwk(OLD))
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        harness.clock.advance(days=1)
        poll(harness)
    said = "key 1 (enc) is not for signatures (use, key_ops)"
    assert cache.find_skipped() == [("c", said)]
    assert caplog.messages == [f"not all keys of 'c' at {publisher.url} can be used: {said}"]
    assert ask(harness, OLD) == 200
    # The set has no key for us any more: the last good one stays, and every reason is told.
    publisher.publish(jwk(NEW) | {"use": "enc", "kid": "enc"})
    harness.clock.advance(days=1)
    poll(harness)
    assert kept(harness).fault == said
    assert said in caplog.messages[-1]
    assert ask(harness, OLD) == 200
    publisher.publish(jwk(OLD))
    harness.clock.advance(days=1)
    poll(harness)
    assert cache.find_skipped() == []


def test_the_same_bytes_are_read_alike_from_a_url_and_from_a_file(
    harness: Harness, publisher: Publisher, tmp_path: Path
) -> None:
    for body in (
        json.dumps(jwk(OLD)).encode(),
        b"\xef\xbb\xbf" + json.dumps({"keys": [None, jwk(OLD), jwk(THIRD) | {"kid": OLD.kid}]}).encode(),
        OLD.key.as_pem(private=False) + THIRD.key.as_pem(private=False),
    ):
        publisher.answer = lambda handler, body=body: send(handler, body)
        (tmp_path / "keys").write_bytes(body)
        fetched = harness.services.clients.jwks_cache.fetch(publisher.url)
        assert (fetched.jwks, tuple(fetched.skipped)) == read_key_set((tmp_path / "keys").read_bytes())


def test_of_many_workers_one_fetches(harness: Harness, publisher: Publisher) -> None:
    make(harness, publisher.url)
    harness.clock.advance(days=1)
    with harness.app.app_context():
        engine = db.engine
        workers = [JwksCache(engine, Fetcher(), harness.clock, harness.services.audit.outbox) for _ in range(6)]
    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(lambda worker: worker.poll(), workers))
    assert len(publisher.asked) == 2


def test_a_worker_that_dies_over_it_is_followed_by_another(harness: Harness, publisher: Publisher) -> None:
    make(harness, publisher.url)
    harness.clock.advance(days=1)

    class Dying(Fetcher):
        def fetch(self, url: str, accept: str) -> Fetched:  # noqa: ARG002
            raise SystemExit

    with harness.app.app_context():
        dying = JwksCache(db.engine, Dying(), harness.clock, harness.services.audit.outbox)
    with pytest.raises(SystemExit):
        dying.poll()
    poll(harness)
    assert len(publisher.asked) == 1
    harness.clock.advance(seconds=60)
    poll(harness)
    assert len(publisher.asked) == 2


def test_one_that_is_slow_or_gone_holds_up_no_other(harness: Harness, publisher: Publisher) -> None:
    with publishing() as other:
        other.publish(jwk(NEW))
        make(harness, other.url, "gone")
        for number in range(FETCHED_AT_ONCE + 2):
            make(harness, publisher.url, f"c{number}")
    publisher.publish(jwk(THIRD))
    harness.clock.advance(days=1)
    poll(harness)
    poll(harness)
    assert {ask(harness, THIRD, f"c{number}") for number in range(FETCHED_AT_ONCE + 2)} == {200}
    assert ask(harness, NEW, "gone") == 200
    assert harness.services.clients.jwks_cache.failing == ["gone"]


def test_a_change_of_keys_leaves_a_trace_and_a_mere_fetch_does_not(
    harness: Harness, publisher: Publisher, capsys: pytest.CaptureFixture[str]
) -> None:
    make(harness, publisher.url)
    for keys in ((OLD,), (OLD, NEW)):
        publisher.publish(*map(jwk, keys))
        harness.clock.advance(days=1)
        poll(harness)
    with harness.app.app_context():
        harness.services.audit.outbox.drain(harness.services.audit.log.write_past)
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    changes = [
        (event["by"], event["change"], event.get("fields")) for event in told if event["event"] == "ClientChanged"
    ]
    assert changes[1:] == [("the fetch of keys", "keys_fetched", ["jwks"])]


def test_a_client_that_is_gone_or_shut_out_is_left_alone(harness: Harness, publisher: Publisher) -> None:
    for client_id in ("deleted", "disabled", "changed"):
        make(harness, publisher.url, client_id)
    with harness.app.app_context():
        harness.store.delete("deleted")
        harness.store.disable("disabled")
        harness.store.update("changed", lambda _: {"auth_fields": {"jwks": {"keys": [jwk(NEW)]}}})
        assert list(db.session.scalars(select(ClientKeySetRow.client_id))) == ["disabled"]
    count = len(publisher.asked)
    harness.clock.advance(days=1)
    poll(harness)
    assert len(publisher.asked) == count
    assert [ask(harness, OLD, "changed"), ask(harness, NEW, "changed")] == [401, 200]
    with harness.app.app_context():
        harness.store.enable("disabled")
    poll(harness)
    assert len(publisher.asked) == count + 1


@pytest.mark.parametrize("is_found", [True, False])
def test_a_fetch_that_ends_after_the_client_has_moved_changes_nothing(
    harness: Harness, publisher: Publisher, *, is_found: bool
) -> None:
    make(harness, publisher.url)
    elsewhere = publisher.url.replace("jwks.json", "others.json")

    class Slow(Fetcher):
        def fetch(self, url: str, accept: str) -> Fetched:
            found = super().fetch(url, accept)
            publisher.publish(jwk(NEW))
            with harness.app.app_context():
                new = harness.services.clients.jwks_cache.fetch(elsewhere)
                harness.store.update("c", lambda _: {"auth_fields": {"jwks_uri": elsewhere}}, new)
            if not is_found:
                raise FetchError("gone")
            return found

    harness.clock.advance(days=1)
    with harness.app.app_context():
        slow = JwksCache(db.engine, Slow(), harness.clock, harness.services.audit.outbox)
    slow.poll()
    assert (kept(harness).uri, kept(harness).fault) == (elsewhere, None)
    assert [ask(harness, OLD), ask(harness, NEW)] == [401, 200]


def test_nobody_can_be_made_whose_keys_were_not_fetched(harness: Harness, publisher: Publisher) -> None:
    with harness.app.app_context():
        fields = ClientFields(
            client_name="A", token_endpoint_auth_method=METHOD, auth_fields={"jwks_uri": publisher.url}
        )
        with pytest.raises(ManagementError, match="must be fetched before"):
            harness.store.register(fields, client_id="c", with_secret=False)
        other = harness.services.clients.jwks_cache.fetch(publisher.url + "?other")
        with pytest.raises(ManagementError, match="must be fetched before"):
            harness.store.register(fields, client_id="c", with_secret=False, key_set=other)


def test_a_name_that_leads_into_our_network_is_refused_at_once(tmp_path: Path, clock: SettableClock) -> None:
    with open_harness(tmp_path, clock) as harness, harness.app.app_context():
        with pytest.raises(ManagementError) as caught:
            harness.services.clients.jwks_cache.fetch("https://[::ffff:169.254.169.254]/latest")
        assert "leads to ::ffff:169.254.169.254, which is no public address" in str(caught.value)
    with open_harness(tmp_path / "b", clock, jwks_uri_networks="127.0.0.0/8") as harness, harness.app.app_context():
        with pytest.raises(ManagementError) as caught:
            harness.services.clients.jwks_cache.fetch("https://[::ffff:127.0.0.1]:1/")
        assert "Connection refused" in str(caught.value)
