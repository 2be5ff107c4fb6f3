"""A document of the feed names what concerns its reader, is made anew when that changes, and no more often."""

import json
from base64 import urlsafe_b64decode
from datetime import timedelta
from typing import Any

import pytest
from unit.harness import Harness, statements

from app.database.models import RevokedTokenRow, db
from app.tokens import revocation_feed as feed_module
from app.tokens.revocation_feed import MOST_TOKENS_OF_CLIENT, FeedDocument
from app.tokens.revocations import LEEWAY, RevokedToken

A, B = "https://a.example", "https://b.example"


@pytest.fixture
def harness(any_harness: Harness) -> Harness:
    return any_harness


def document(harness: Harness, *resources: str, client_id: str = "reader") -> FeedDocument:
    with harness.app.app_context():
        return harness.services.tokens.revocation_feed.document_for(client_id, resources)


def payload(harness: Harness, *resources: str) -> dict[str, Any]:
    _, claims, _ = document(harness, *resources).content.split(b".")
    found: dict[str, Any] = json.loads(urlsafe_b64decode(claims + b"=="))
    return found


def named(harness: Harness, *resources: str) -> tuple[set[str], set[str]]:
    found = payload(harness, *resources)
    return set(found["revoked_tokens"]), set(found["clients_revoked_until"])


def revoke(harness: Harness, jti: str, *audiences: str, seconds: int = 3600) -> None:
    with harness.app.app_context():
        token = RevokedToken(jti, "c", audiences, int(harness.clock().timestamp()) + seconds)
        harness.services.tokens.revocations.revoke(token)


def test_a_document_says_exactly_this(harness: Harness) -> None:
    client = harness.register(audiences=(A,))
    revoke(harness, "j", A)
    with harness.app.app_context():
        harness.store.revoke_tokens(client.client_id)
    now = int(harness.clock().timestamp())
    assert payload(harness, A) == {
        "iss": harness.settings.issuer,
        "aud": "reader",
        "iat": now - now % 300,
        "exp": now - now % 300 + 3600,
        "revoked_tokens": {"j": now + 3600},
        "clients_revoked_until": {client.client_id: now},
        "introspect_clients": [],
    }


def revoke_many(harness: Harness, client_id: str, number: int, *audiences: str) -> None:
    now = harness.clock()
    row = {"client_id": client_id, "audiences": list(audiences), "exp": int(now.timestamp()) + 3600, "revoked_at": now}
    rows = [{**row, "jti": f"{client_id}-{audiences}-{place}"} for place in range(number)]
    with harness.app.app_context():
        db.session.execute(RevokedTokenRow.__table__.insert(), rows)
        db.session.commit()


def test_a_client_with_very_many_revoked_tokens_is_named_in_their_place(harness: Harness) -> None:
    revoke_many(harness, "few", MOST_TOKENS_OF_CLIENT, A)
    revoke_many(harness, "many", MOST_TOKENS_OF_CLIENT, A)
    assert payload(harness, A)["introspect_clients"] == []
    revoke_many(harness, "many", 1, B)
    for resource, tokens in ((A, MOST_TOKENS_OF_CLIENT), (B, 0), ("*", MOST_TOKENS_OF_CLIENT)):
        found = payload(harness, resource)
        assert (len(found["revoked_tokens"]), found["introspect_clients"]) == (tokens, ["many"])
    assert payload(harness, "https://c.example")["introspect_clients"] == []
    with harness.app.app_context():
        assert harness.services.tokens.revocations.count_live() == 2 * MOST_TOKENS_OF_CLIENT + 1
    harness.clock.advance(seconds=3600 + LEEWAY.total_seconds())
    assert payload(harness, "*")["introspect_clients"] == []
    with harness.app.app_context():
        assert harness.services.tokens.revocations.count_live() == 0


def since(harness: Harness, iat: int) -> dict[str, Any]:
    with harness.app.app_context():
        made = harness.services.tokens.revocation_feed.document_for("reader", (A,), iat)
    found: dict[str, Any] = json.loads(urlsafe_b64decode(made.content.split(b".")[1] + b"=="))
    return found


def test_changes_and_what_was_known_make_the_whole(harness: Harness) -> None:
    client = harness.register(audiences=(A,))
    revoke(harness, "old", A)
    harness.clock.advance(minutes=30)
    known = payload(harness, A)
    harness.clock.advance(seconds=299)
    revoke(harness, "before the next document", A)
    harness.clock.advance(minutes=20)
    revoke(harness, "new", A)
    with harness.app.app_context():
        # A command may say that a client's tokens were revoked at an earlier time.
        harness.store.revoke_tokens(client.client_id, harness.clock() - timedelta(hours=2))
    changes = since(harness, known["iat"])
    assert changes["since"] == known["iat"]
    assert set(changes["revoked_tokens"]) == {"before the next document", "new"}
    whole = payload(harness, A)
    assert known["revoked_tokens"] | changes["revoked_tokens"] == whole["revoked_tokens"]
    for name in ("iat", "exp", "clients_revoked_until", "introspect_clients"):
        assert changes[name] == whole[name]
    assert list(whole["clients_revoked_until"]) == [client.client_id]


def test_changes_since_too_long_ago_or_the_future_are_the_whole(harness: Harness) -> None:
    revoke(harness, "j", A, seconds=20_000)
    now = int(harness.clock().timestamp())
    harness.clock.advance(hours=1)
    for asked in (0, now - 1, now, now + 3601, 10**12):
        assert "since" not in since(harness, asked)
        assert set(since(harness, asked)["revoked_tokens"]) == {"j"}
    assert since(harness, now + 1)["since"] == now - now % 300
    assert since(harness, now + 3600)["since"] == (now + 3600) // 300 * 300


def test_it_names_what_concerns_its_reader(harness: Harness) -> None:
    for jti, audiences in (
        ("for a", (A,)),
        ("for b", (B,)),
        ("for both", (A, B)),
        ("default", (harness.settings.issuer,)),
    ):
        revoke(harness, jti, *audiences)
    for client_id, audiences in (("a", (A,)), ("b", (B,)), ("none", ()), ("untouched", (A,))):
        harness.register(client_id, audiences=audiences)
    with harness.app.app_context():
        for client_id in ("a", "b", "none"):
            harness.store.revoke_tokens(client_id)
    assert named(harness, A) == ({"for a", "for both"}, {"a"})
    assert named(harness, B) == ({"for b", "for both"}, {"b"})
    assert named(harness, A, B) == ({"for a", "for b", "for both"}, {"a", "b"})
    assert named(harness, harness.settings.issuer) == ({"default"}, {"none"})
    assert named(harness, "https://c.example") == (set(), set())
    assert named(harness, "*") == ({"for a", "for b", "for both", "default"}, {"a", "b", "none"})


@pytest.mark.parametrize("verb", ["disable", "delete", "revoke_tokens"])
def test_an_audience_that_was_taken_from_a_client_still_learns_of_its_tokens(harness: Harness, verb: str) -> None:
    harness.register("c", audiences=(A,))
    harness.register("d")
    with harness.app.app_context():
        for client_id in ("c", "d"):
            harness.store.update(client_id, audiences=(B,))
            getattr(harness.store, verb)(client_id)
    assert named(harness, A) == (set(), {"c"})
    assert named(harness, B) == (set(), {"c", "d"})
    assert named(harness, harness.settings.issuer) == (set(), {"d"})


def test_what_has_expired_is_named_no_more(harness: Harness) -> None:
    harness.register("c", audiences=(A,))
    revoke(harness, "j", A, seconds=60)
    with harness.app.app_context():
        harness.store.revoke_tokens("c")
    harness.clock.now += timedelta(seconds=59) + LEEWAY
    assert named(harness, A) == ({"j"}, {"c"})
    harness.clock.now += timedelta(minutes=5)
    assert named(harness, A) == (set(), {"c"})
    harness.clock.now += timedelta(days=1)
    assert named(harness, A) == (set(), set())


def test_a_document_stays_until_something_was_taken_back_or_it_grows_old(harness: Harness) -> None:
    harness.clock.now = harness.clock.now.replace(minute=0, second=1)
    harness.register("c", audiences=(A,))
    first = document(harness, A)
    with statements(harness) as seen:
        assert document(harness, A) is first
    assert len(seen) == 1
    revoke(harness, "for somebody else", B)
    same = document(harness, A)
    assert same.etag == first.etag
    revoke(harness, "j", A)
    assert document(harness, A).etag != first.etag
    second = document(harness, A)
    harness.clock.now += timedelta(seconds=298)
    assert document(harness, A) is second
    harness.clock.now += timedelta(seconds=1)
    assert document(harness, A).etag != second.etag


@pytest.mark.parametrize("verb", ["disable", "delete", "revoke_tokens"])
def test_the_next_document_knows(harness: Harness, verb: str) -> None:
    harness.register("c", audiences=(A,))
    harness.register("d", audiences=(A,))
    with harness.app.app_context():
        harness.store.revoke_tokens("d")
    document(harness, A)
    with harness.app.app_context():
        getattr(harness.store, verb)("c")
    assert named(harness, A)[1] == {"c", "d"}


def test_documents_are_kept_within_bounds(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(document(harness, A, client_id="reader 0").content)
    monkeypatch.setattr(feed_module, "KEPT_BYTES", 3 * size + size // 2)
    made = [document(harness, A, client_id=f"reader {n}") for n in range(5)]
    with statements(harness) as seen:
        assert document(harness, A, client_id="reader 4") is made[4]
        assert len(seen) == 1
        document(harness, A, client_id="reader 0")
    assert len(seen) > 2
