"""A document of the feed names what concerns its reader, is made anew when that changes, and no more often."""

import json
from base64 import urlsafe_b64decode
from datetime import timedelta
from typing import Any

import pytest
from unit.house import House, statements

from app.tokens import revocation_feed as feed_module
from app.tokens.revocation_feed import FeedDocument
from app.tokens.revocations import LEEWAY, RevokedToken

A, B = "https://a.example", "https://b.example"


@pytest.fixture
def house(any_house: House) -> House:
    return any_house


def document(house: House, *resources: str, client_id: str = "reader") -> FeedDocument:
    with house.app.app_context():
        return house.services.oauth.revocation_feed.document_for(client_id, resources)


def payload(house: House, *resources: str) -> dict[str, Any]:
    _, claims, _ = document(house, *resources).content.split(b".")
    found: dict[str, Any] = json.loads(urlsafe_b64decode(claims + b"=="))
    return found


def named(house: House, *resources: str) -> tuple[set[str], set[str]]:
    found = payload(house, *resources)
    return set(found["revoked_tokens"]), set(found["clients_revoked_until"])


def revoke(house: House, jti: str, *audiences: str, seconds: int = 3600) -> None:
    with house.app.app_context():
        token = RevokedToken(jti, "c", audiences, int(house.clock().timestamp()) + seconds)
        house.services.oauth.revocations.revoke(token)


def test_a_document_says_exactly_this(house: House) -> None:
    client = house.register(audiences=(A,))
    revoke(house, "j", A)
    with house.app.app_context():
        house.store.revoke_tokens(client.client_id)
    now = int(house.clock().timestamp())
    assert payload(house, A) == {
        "iss": house.settings.issuer,
        "aud": "reader",
        "iat": now - now % 300,
        "exp": now - now % 300 + 3600,
        "revoked_tokens": {"j": now + 3600},
        "clients_revoked_until": {client.client_id: now},
    }


def test_it_names_what_concerns_its_reader(house: House) -> None:
    for jti, audiences in (
        ("for a", (A,)),
        ("for b", (B,)),
        ("for both", (A, B)),
        ("default", (house.settings.issuer,)),
    ):
        revoke(house, jti, *audiences)
    for client_id, audiences in (("a", (A,)), ("b", (B,)), ("none", ()), ("untouched", (A,))):
        house.register(client_id, audiences=audiences)
    with house.app.app_context():
        for client_id in ("a", "b", "none"):
            house.store.revoke_tokens(client_id)
    assert named(house, A) == ({"for a", "for both"}, {"a"})
    assert named(house, B) == ({"for b", "for both"}, {"b"})
    assert named(house, A, B) == ({"for a", "for b", "for both"}, {"a", "b"})
    assert named(house, house.settings.issuer) == ({"default"}, {"none"})
    assert named(house, "https://c.example") == (set(), set())
    assert named(house, "*") == ({"for a", "for b", "for both", "default"}, {"a", "b", "none"})


@pytest.mark.parametrize("verb", ["disable", "delete", "revoke_tokens"])
def test_an_audience_that_was_taken_from_a_client_still_learns_of_its_tokens(house: House, verb: str) -> None:
    house.register("c", audiences=(A,))
    house.register("d")
    with house.app.app_context():
        for client_id in ("c", "d"):
            house.store.update(client_id, audiences=(B,))
            getattr(house.store, verb)(client_id)
    assert named(house, A) == (set(), {"c"})
    assert named(house, B) == (set(), {"c", "d"})
    assert named(house, house.settings.issuer) == (set(), {"d"})


def test_what_has_expired_is_named_no_more(house: House) -> None:
    house.register("c", audiences=(A,))
    revoke(house, "j", A, seconds=60)
    with house.app.app_context():
        house.store.revoke_tokens("c")
    house.clock.now += timedelta(seconds=59) + LEEWAY
    assert named(house, A) == ({"j"}, {"c"})
    house.clock.now += timedelta(minutes=5)
    assert named(house, A) == (set(), {"c"})
    house.clock.now += timedelta(days=1)
    assert named(house, A) == (set(), set())


def test_a_document_stays_until_something_was_taken_back_or_it_grows_old(house: House) -> None:
    house.clock.now = house.clock.now.replace(minute=0, second=1)
    house.register("c", audiences=(A,))
    first = document(house, A)
    with statements(house) as seen:
        assert document(house, A) is first
    assert len(seen) == 1
    revoke(house, "for somebody else", B)
    same = document(house, A)
    assert same.etag == first.etag
    revoke(house, "j", A)
    assert document(house, A).etag != first.etag
    second = document(house, A)
    house.clock.now += timedelta(seconds=298)
    assert document(house, A) is second
    house.clock.now += timedelta(seconds=1)
    assert document(house, A).etag != second.etag


@pytest.mark.parametrize("verb", ["disable", "delete", "revoke_tokens"])
def test_the_next_document_knows(house: House, verb: str) -> None:
    house.register("c", audiences=(A,))
    house.register("d", audiences=(A,))
    with house.app.app_context():
        house.store.revoke_tokens("d")
    document(house, A)
    with house.app.app_context():
        getattr(house.store, verb)("c")
    assert named(house, A)[1] == {"c", "d"}


def test_documents_are_kept_within_bounds(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(document(house, A, client_id="reader 0").content)
    monkeypatch.setattr(feed_module, "_KEPT_BYTES", 3 * size + size // 2)
    made = [document(house, A, client_id=f"reader {n}") for n in range(5)]
    with statements(house) as seen:
        assert document(house, A, client_id="reader 4") is made[4]
        assert len(seen) == 1
        document(house, A, client_id="reader 0")
    assert len(seen) > 2
