"""How many tokens keys have signed: counted by all workers, on SQLite and PostgreSQL."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from unit.harness import Harness

from app.audit.events import KeyRingRejected, RequestFacts, TokenIssued
from app.database.models import db
from app.keyring.usage_counters import KeyUsage, KeyUsageCounters


def issued(kid: str) -> TokenIssued:
    return TokenIssued(
        request=RequestFacts(request_id="r", source_address=None, duration_ms=1.0),
        client_id="a",
        auth_method="client_secret_basic",
        secret_id="s-1",
        grant_type="client_credentials",
        scope="",
        audience=("x",),
        jti="j",
        kid=kid,
        expires_in=60,
    )


def worker(harness: Harness) -> KeyUsageCounters:
    with harness.app.app_context():
        return KeyUsageCounters(db.engine, harness.clock)


def test_tokens_are_counted_by_key_and_added_up(any_harness: Harness) -> None:
    one, other = worker(any_harness), worker(any_harness)
    first = any_harness.clock()
    for kid in ("k1", "k1", "k2"):
        one(issued(kid))
    one(KeyRingRejected(fault="x"))
    one.flush()
    any_harness.clock.advance(minutes=1)
    other(issued("k1"))
    other.flush()
    one.flush()
    assert one.read() == {
        "k1": KeyUsage(3, first, any_harness.clock()),
        "k2": KeyUsage(1, first, first),
    }


def test_a_flush_that_fails_loses_nothing(any_harness: Harness) -> None:
    uses = worker(any_harness)
    uses(issued("k1"))
    with any_harness.app.app_context():
        db.session.execute(text("ALTER TABLE signing_key_uses RENAME TO away"))
        db.session.commit()
        with pytest.raises(SQLAlchemyError):
            uses.flush()
        uses(issued("k1"))
        db.session.execute(text("ALTER TABLE away RENAME TO signing_key_uses"))
        db.session.commit()
    uses.flush()
    assert uses.read()["k1"].tokens == 2


def test_many_workers_at_once_count_every_token(any_harness: Harness) -> None:
    workers = [worker(any_harness) for _ in range(6)]
    ready = threading.Barrier(len(workers))

    def serve(uses: KeyUsageCounters) -> None:
        ready.wait()
        for _ in range(10):
            for kid in ("k1", "k2", "k3"):
                uses(issued(kid))
            uses.flush()

    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(serve, workers))
    assert {kid: use.tokens for kid, use in workers[0].read().items()} == {"k1": 60, "k2": 60, "k3": 60}


def test_a_token_counts_for_the_key_that_signed_it(harness: Harness) -> None:
    client = harness.register("a")
    form = {"grant_type": "client_credentials", "client_id": "a", "client_secret": client.secret}
    for _ in range(3):
        assert harness.app.test_client().post("/oauth/token", data=form).status_code == 200
    harness.services.keys.usage.flush()
    (key,) = harness.services.keys.active().keys
    assert {kid: use.tokens for kid, use in harness.services.keys.usage.read().items()} == {key.kid: 3}
