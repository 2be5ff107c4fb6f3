"""How many tokens keys have signed: counted by all workers, on SQLite and PostgreSQL."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from unit.house import House

from app.audit.events import KeyRingRejected, RequestFacts, TokenIssued
from app.database.models import db
from app.keyring.usage_counters import KeyUse, KeyUses


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


def worker(house: House) -> KeyUses:
    with house.app.app_context():
        return KeyUses(db.engine, house.clock)


def test_tokens_are_counted_by_key_and_added_up(any_house: House) -> None:
    one, other = worker(any_house), worker(any_house)
    first = any_house.clock()
    for kid in ("k1", "k1", "k2"):
        one(issued(kid))
    one(KeyRingRejected(fault="x"))
    one.flush()
    any_house.clock.advance(minutes=1)
    other(issued("k1"))
    other.flush()
    one.flush()
    assert one.read() == {
        "k1": KeyUse(3, first, any_house.clock()),
        "k2": KeyUse(1, first, first),
    }


def test_a_flush_that_fails_loses_nothing(any_house: House) -> None:
    uses = worker(any_house)
    uses(issued("k1"))
    with any_house.app.app_context():
        db.session.execute(text("ALTER TABLE signing_key_uses RENAME TO away"))
        db.session.commit()
        with pytest.raises(SQLAlchemyError):
            uses.flush()
        uses(issued("k1"))
        db.session.execute(text("ALTER TABLE away RENAME TO signing_key_uses"))
        db.session.commit()
    uses.flush()
    assert uses.read()["k1"].tokens == 2


def test_many_workers_at_once_count_every_token(any_house: House) -> None:
    workers = [worker(any_house) for _ in range(6)]
    ready = threading.Barrier(len(workers))

    def serve(uses: KeyUses) -> None:
        ready.wait()
        for _ in range(10):
            for kid in ("k1", "k2", "k3"):
                uses(issued(kid))
            uses.flush()

    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(serve, workers))
    assert {kid: use.tokens for kid, use in workers[0].read().items()} == {"k1": 60, "k2": 60, "k3": 60}


def test_a_token_counts_for_the_key_that_signed_it(house: House) -> None:
    client = house.register("a")
    form = {"grant_type": "client_credentials", "client_id": "a", "client_secret": client.secret}
    for _ in range(3):
        assert house.app.test_client().post("/oauth/token", data=form).status_code == 200
    house.services.keys.usage.flush()
    (key,) = house.services.keys.active().keys
    assert {kid: use.tokens for kid, use in house.services.keys.usage.read().items()} == {key.kid: 3}
