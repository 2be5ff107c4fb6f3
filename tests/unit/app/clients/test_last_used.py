"""Marks of uses: noted in memory, told in batches, right with many workers, on SQLite and PostgreSQL."""

import logging
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import SettableClock
from flask_migrate import downgrade, upgrade
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError
from support.server import NewClient
from unit.harness import Harness, open_harness

from app.clients import last_used
from app.clients.last_used import MOST_ADDRESSES, AssertionStyle, LastUsedTracker
from app.database.models import ClientSecretRow, db
from app.errors import InvalidClient
from app.types import Credentials

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def worker(harness: Harness, clock: SettableClock | None = None) -> LastUsedTracker:
    """Marks as another process has them."""
    with harness.app.app_context():
        return LastUsedTracker(db.engine, clock or harness.clock)


def secret_of(harness: Harness, client_id: str) -> str:
    with harness.app.app_context():
        return harness.store.find(client_id).secrets[0].secret_id


def last_used_of(harness: Harness, client_id: str) -> tuple[datetime | None, datetime | None]:
    """Of the client, and of its first secret."""
    with harness.app.app_context():
        row = harness.store.find(client_id)
        return row.last_used_at, row.secrets[0].last_used_at


def addresses(harness: Harness, client_id: str) -> list[tuple[str, datetime, datetime]]:
    with harness.app.app_context():
        (uses,) = harness.services.clients.secrets.uses(client_id).values()
        return [(use.source_address, use.first_used_at, use.last_used_at) for use in uses]


@contextmanager
def writes(harness: Harness) -> Iterator[list[str]]:
    """Every statement that changes something, as it reaches the driver."""
    seen: list[str] = []

    def record(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.lstrip().upper().startswith(("SELECT", "PRAGMA", "BEGIN")):
            seen.append(statement)

    with harness.app.app_context():
        event.listen(db.engine, "before_cursor_execute", record)
        try:
            yield seen
        finally:
            event.remove(db.engine, "before_cursor_execute", record)


def authenticate(harness: Harness, client: NewClient, address: str = "192.0.2.1") -> None:
    harness.verifier.verify_secret([Credentials(client.client_id, client.secret)], "client_secret_basic", address)


def marks_of(harness: Harness) -> LastUsedTracker:
    """Those of the house's own requests."""
    return harness.verifier.last_used


def test_a_use_is_told_to_the_minute_after_a_flush_and_not_before(any_harness: Harness) -> None:
    client = any_harness.register("a")
    any_harness.clock.advance(minutes=5, seconds=59, microseconds=999_999)
    with writes(any_harness) as written:
        authenticate(any_harness, client)
    assert written == []
    assert last_used_of(any_harness, "a") == (None, None)
    marks_of(any_harness).flush()
    minute = NOON + timedelta(minutes=5)
    assert last_used_of(any_harness, "a") == (minute, minute)
    assert addresses(any_harness, "a") == [("192.0.2.1", minute, minute)]


def test_a_refused_request_is_no_use(any_harness: Harness) -> None:
    client = any_harness.register("a")
    with pytest.raises(InvalidClient):
        authenticate(any_harness, NewClient("a", f"{client.secret}x"))
    marks_of(any_harness).flush()
    assert last_used_of(any_harness, "a") == (None, None)


def test_a_thousand_uses_in_a_minute_are_one_write(any_harness: Harness) -> None:
    client = any_harness.register("a")
    for _ in range(20):
        authenticate(any_harness, client)
    with writes(any_harness) as written:
        marks_of(any_harness).flush()
    # The client, the secret, the address.
    assert len(written) == 3
    for _ in range(20):
        authenticate(any_harness, client)
    with writes(any_harness) as written:
        marks_of(any_harness).flush()
    assert written == []
    any_harness.clock.advance(minutes=1)
    authenticate(any_harness, client)
    marks_of(any_harness).flush()
    assert last_used_of(any_harness, "a") == (NOON + timedelta(minutes=1),) * 2


def test_the_secret_that_was_used_is_marked_and_no_other(any_harness: Harness) -> None:
    first = any_harness.register("a")
    any_harness.clock.advance(minutes=1)
    with any_harness.app.app_context():
        any_harness.services.clients.secrets.rotate("a", overlap=timedelta(days=1))
    any_harness.clock.advance(minutes=59)
    authenticate(any_harness, first)
    marks_of(any_harness).flush()
    with any_harness.app.app_context():
        used = {secret.origin: secret.last_used_at for secret in any_harness.store.find("a").secrets[:1]}
        assert used == {"generated": NOON + timedelta(hours=1)}
        assert any_harness.store.find("a").secrets[1].last_used_at is None


def test_a_worker_that_tells_late_does_not_set_the_time_back(any_harness: Harness) -> None:
    any_harness.register("a")
    secret = secret_of(any_harness, "a")
    late, early = worker(any_harness), worker(any_harness)
    late.record("a", secret, "192.0.2.1")
    any_harness.clock.advance(minutes=10)
    early.record("a", secret, "192.0.2.1")
    early.flush()
    late.flush()
    assert last_used_of(any_harness, "a") == (NOON + timedelta(minutes=10),) * 2
    assert addresses(any_harness, "a") == [("192.0.2.1", NOON, NOON + timedelta(minutes=10))]


@example(steps=[("note", 0, "b"), ("wait", 60, None), ("note", 0, "a")])
@given(
    steps=st.lists(
        st.one_of(
            st.tuples(st.just("note"), st.integers(0, 2), st.sampled_from(["192.0.2.1", "2001:db8::1", None])),
            st.tuples(st.just("flush"), st.integers(0, 2), st.none()),
            st.tuples(st.just("wait"), st.integers(1, 200), st.none()),
        ),
        max_size=25,
    )
)
def test_whatever_workers_note_and_whenever_they_tell_the_latest_use_is_known(
    harness: Harness, steps: list[tuple[str, int, str | None]]
) -> None:
    with harness.app.app_context():
        is_new = not harness.store.list_all()
        db.session.rollback()
    if is_new:
        harness.register("a")
    with harness.app.app_context():
        db.session.execute(db.text("DELETE FROM client_secret_uses"))
        db.session.execute(db.text("UPDATE clients SET last_used_at = NULL"))
        db.session.execute(db.text("UPDATE client_secrets SET last_used_at = NULL"))
        db.session.commit()
    secret = secret_of(harness, "a")
    workers = [worker(harness) for _ in range(3)]
    recorded: dict[str, list[datetime]] = {}
    for kind, number, address in steps:
        if kind == "note":
            workers[number].record("a", secret, address)
            recorded.setdefault(address or "unknown", []).append(harness.clock().replace(second=0, microsecond=0))
        elif kind == "flush":
            workers[number].flush()
        else:
            harness.clock.advance(seconds=number)
    for one in workers:
        one.flush()
    every = [time for times in recorded.values() for time in times]
    assert last_used_of(harness, "a") == ((max(every),) * 2 if every else (None, None))
    expected = {(address, min(times), max(times)) for address, times in recorded.items()}
    assert set(addresses(harness, "a") if every else []) == expected


def test_many_workers_at_once_lose_nothing(any_harness: Harness) -> None:
    ids = [any_harness.register(f"c{number:02}").client_id for number in range(12)]
    secrets = {client_id: secret_of(any_harness, client_id) for client_id in ids}
    clocks = [SettableClock() for _ in range(8)]
    workers = [worker(any_harness, clock) for clock in clocks]
    ready = threading.Barrier(len(workers))

    def serve(number: int) -> None:
        ready.wait()
        for step in range(6):
            clocks[number].now = NOON + timedelta(minutes=10 * step + number)
            for client_id in ids[::-1] if number % 2 else ids:
                workers[number].record(client_id, secrets[client_id], f"192.0.2.{number}")
            workers[number].flush()

    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(serve, range(len(workers))))
    for client_id in ids:
        assert last_used_of(any_harness, client_id) == (NOON + timedelta(minutes=57),) * 2
        assert sorted(addresses(any_harness, client_id)) == [
            (f"192.0.2.{number}", NOON + timedelta(minutes=number), NOON + timedelta(minutes=50 + number))
            for number in range(8)
        ]


def test_marks_wait_while_the_database_is_away(any_harness: Harness) -> None:
    client = any_harness.register("a")
    authenticate(any_harness, client)
    with any_harness.app.app_context():
        db.session.execute(db.text("ALTER TABLE clients RENAME TO away"))
        db.session.commit()
        for _ in range(2):
            with pytest.raises(SQLAlchemyError):
                marks_of(any_harness).flush()
        db.session.execute(db.text("ALTER TABLE away RENAME TO clients"))
        db.session.commit()
    any_harness.clock.advance(minutes=1)
    authenticate(any_harness, client, "192.0.2.2")
    marks_of(any_harness).flush()
    assert last_used_of(any_harness, "a") == (NOON + timedelta(minutes=1),) * 2
    assert {address for address, _, _ in addresses(any_harness, "a")} == {"192.0.2.1", "192.0.2.2"}


def test_the_older_schema_has_no_marks_and_a_newer_one_gets_them(tmp_path: Path, clock: SettableClock) -> None:
    with open_harness(tmp_path, clock) as harness:
        client = harness.register("a")
        with harness.app.app_context():
            downgrade(revision="0001")
        last_used = worker(harness)
        last_used.record("a", "s-x", "192.0.2.1")
        with pytest.raises(SQLAlchemyError):
            last_used.flush()
        with harness.app.app_context():
            upgrade()
        last_used.flush()
        authenticate(harness, client)
        assert last_used_of(harness, "a")[0] == NOON


def test_a_flood_of_marks_is_bounded_and_told(
    harness: Harness, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.clients.last_used.MOST_RECORDS", 500)
    harness.register("a")
    secret = secret_of(harness, "a")
    last_used = worker(harness)
    for number in range(507):
        last_used.record("a", secret, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    with caplog.at_level(logging.WARNING):
        last_used.flush()
    assert [record.getMessage() for record in caplog.records] == [
        "7 records of last use were dropped: more than 500 were waiting"
    ]
    assert len(addresses(harness, "a")) == MOST_ADDRESSES


def test_the_latest_addresses_are_kept(any_harness: Harness) -> None:
    any_harness.register("a")
    secret = secret_of(any_harness, "a")
    last_used = worker(any_harness)
    for number in range(MOST_ADDRESSES + 5):
        any_harness.clock.advance(minutes=1)
        last_used.record("a", secret, f"192.0.2.{number}")
        last_used.flush()
    kept = [address for address, _, _ in addresses(any_harness, "a")]
    assert kept == [f"192.0.2.{number}" for number in range(MOST_ADDRESSES + 4, 4, -1)]


def test_a_secret_that_is_gone_is_no_trouble(any_harness: Harness) -> None:
    client = any_harness.register("a")
    authenticate(any_harness, client)
    last_used = worker(any_harness)
    last_used.record("nobody", "s-nothing", "192.0.2.1")
    with any_harness.app.app_context():
        db.session.execute(db.delete(ClientSecretRow))
        db.session.commit()
    last_used.flush()
    marks_of(any_harness).flush()
    with any_harness.app.app_context():
        assert any_harness.store.find("a").last_used_at == NOON
        assert any_harness.services.clients.secrets.uses("a") == {}


def test_a_use_without_a_secret_marks_the_client(any_harness: Harness) -> None:
    any_harness.register("a")
    last_used = worker(any_harness)
    last_used.record("a", None, None)
    last_used.flush()
    assert last_used_of(any_harness, "a") == (NOON, None)


# Peppers


@contextmanager
def house_with_peppers(folder: Path, clock: SettableClock, url: str, peppers: str) -> Iterator[Harness]:
    with open_harness(folder, clock, database_url=url, with_key=False, secret_peppers=peppers) as harness:
        yield harness


def peppers_of(harness: Harness) -> Sequence[tuple[str, bytes]]:
    with harness.app.app_context():
        return [(secret.pepper_id, secret.digest) for secret in harness.store.find("a").secrets]


def test_a_successful_authentication_moves_a_digest_to_the_first_pepper(
    tmp_path: Path, clock: SettableClock, migrated_url: str
) -> None:
    old, new = f"p1:{'o' * 40}", f"p2:{'n' * 40}"
    with house_with_peppers(tmp_path, clock, migrated_url, old) as harness:
        client = harness.register("a")
        ((pepper, digest),) = peppers_of(harness)
        assert pepper == "p1"
    with house_with_peppers(tmp_path, clock, migrated_url, f"{new},{old}") as harness:
        with harness.app.app_context():
            assert harness.services.clients.secrets.count_by_pepper() == {"p2": 0, "p1": 1}
        with writes(harness) as written:
            authenticate(harness, client)
        assert written == []
        assert peppers_of(harness) == [("p1", digest)]
        marks_of(harness).flush()
        ((pepper, moved),) = peppers_of(harness)
        assert pepper == "p2"
        assert moved != digest
        with harness.app.app_context():
            assert harness.services.clients.secrets.count_by_pepper() == {"p2": 1, "p1": 0}
        authenticate(harness, client)
    with house_with_peppers(tmp_path, clock, migrated_url, new) as harness:
        authenticate(harness, client)


def test_a_digest_that_has_changed_meanwhile_is_left_alone(any_harness: Harness) -> None:
    any_harness.register("a")
    ((pepper, digest),) = peppers_of(any_harness)
    last_used = worker(any_harness)
    last_used.rehash(secret_of(any_harness, "a"), b"not what is there", "p9", b"new")
    last_used.flush()
    assert peppers_of(any_harness) == [(pepper, digest)]


def test_a_renewal_that_could_not_be_told_is_told_later(any_harness: Harness) -> None:
    any_harness.register("a")
    ((_, digest),) = peppers_of(any_harness)
    last_used = worker(any_harness)
    last_used.rehash(secret_of(any_harness, "a"), digest, "p9", b"n" * 32)
    with any_harness.app.app_context():
        db.session.execute(db.text("ALTER TABLE client_secrets RENAME TO away"))
        db.session.commit()
        with pytest.raises(SQLAlchemyError):
            last_used.flush()
        db.session.execute(db.text("ALTER TABLE away RENAME TO client_secrets"))
        db.session.commit()
    last_used.flush()
    assert peppers_of(any_harness) == [("p9", b"n" * 32)]


def test_a_renewal_shows_no_digest(harness: Harness) -> None:
    last_used = worker(harness)
    last_used.rehash("s-1", b"old sum", "p1", b"new sum")
    assert "_Renewal(s-1)" in repr(vars(last_used))
    assert " sum" not in repr(vars(last_used))


def test_the_style_of_assertions_is_written_when_it_changes(any_harness: Harness) -> None:
    harness = any_harness
    for client_id in ("old", "new", "silent"):
        harness.register(client_id)

    def recorded(client_id: str) -> tuple[str | None, str | None, datetime | None]:
        with harness.app.app_context():
            row = harness.store.find(client_id)
            return row.assertion_aud, row.assertion_typ, row.legacy_assertion_at

    legacy, both, strict = (AssertionStyle(aud, "jwt") for aud in ("token_endpoint", "both", "issuer"))
    one = worker(harness)
    for _ in range(3):
        one.record_assertion("old", legacy)
    one.record_assertion("new", both)
    one.record_assertion("nobody", legacy)
    assert recorded("old") == (None, None, None)
    one.flush()
    assert recorded("old") == ("token_endpoint", "jwt", NOON)
    assert recorded("new") == ("both", "jwt", NOON)
    assert recorded("silent") == (None, None, None)
    one.record_assertion("old", legacy)
    with writes(harness) as seen:
        one.flush()
    assert seen == []
    harness.clock.advance(minutes=5)
    one.record_assertion("new", strict)
    one.flush()
    # When it last sent the old style stays known.
    assert recorded("new") == ("issuer", "jwt", NOON)


def test_styles_wait_while_the_database_is_away(any_harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    any_harness.register("a")
    one = worker(any_harness)
    one.record_assertion("a", AssertionStyle("both", "none"))
    with monkeypatch.context() as broken:
        broken.setattr(last_used, "_write_styles", _fail)
        with pytest.raises(SQLAlchemyError):
            one.flush()
    one.flush()
    with any_harness.app.app_context():
        row = any_harness.store.find("a")
        assert (row.assertion_aud, row.assertion_typ, row.legacy_assertion_at) == ("both", "none", NOON)


def _fail(*_: Any) -> None:
    raise SQLAlchemyError


def test_who_is_limited_is_written_to_the_minute(any_harness: Harness) -> None:
    harness = any_harness
    for client_id in ("a", "b", "c"):
        harness.register(client_id)

    def limited_at(client_id: str) -> datetime | None:
        with harness.app.app_context():
            return harness.store.find(client_id).limited_at

    one, two = worker(harness), worker(harness)
    harness.clock.advance(seconds=30)
    one.record_limited("a")
    one.record_limited("nobody")
    harness.clock.advance(minutes=2)
    for _ in range(3):
        two.record_limited("a")
    two.record_limited("b")
    two.flush()
    one.flush()
    assert [limited_at(client_id) for client_id in "abc"] == [NOON + timedelta(minutes=2)] * 2 + [None]
    assert sorted(one.limited_since(NOON + timedelta(minutes=1), 20)) == ["a", "b"]
    assert len(one.limited_since(NOON, 1)) == 1
    assert one.limited_since(NOON + timedelta(minutes=3), 20) == []
    with harness.app.app_context():
        harness.store.disable("a")
    assert one.limited_since(NOON, 20) == ["b"]
