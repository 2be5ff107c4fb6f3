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
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError
from support.server import NewClient
from unit.house import House, open_house

from app.clients.last_used import MOST_ADDRESSES, UseMarks
from app.database.models import ClientSecretRow, db
from app.errors import InvalidClient
from app.types import Credentials

NOON = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


def worker(house: House, clock: SettableClock | None = None) -> UseMarks:
    """Marks as another process has them."""
    with house.app.app_context():
        return UseMarks(db.engine, clock or house.clock)


def secret_of(house: House, client_id: str) -> str:
    with house.app.app_context():
        return house.store.find(client_id).secrets[0].secret_id


def last_used(house: House, client_id: str) -> tuple[datetime | None, datetime | None]:
    """Of the client, and of its first secret."""
    with house.app.app_context():
        row = house.store.find(client_id)
        return row.last_used_at, row.secrets[0].last_used_at


def addresses(house: House, client_id: str) -> list[tuple[str, datetime, datetime]]:
    with house.app.app_context():
        (uses,) = house.services.clients.secrets.uses(client_id).values()
        return [(use.source_address, use.first_used_at, use.last_used_at) for use in uses]


@contextmanager
def writes(house: House) -> Iterator[list[str]]:
    """Every statement that changes something, as it reaches the driver."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.lstrip().upper().startswith(("SELECT", "PRAGMA", "BEGIN")):
            seen.append(statement)

    with house.app.app_context():
        event.listen(db.engine, "before_cursor_execute", note)
        try:
            yield seen
        finally:
            event.remove(db.engine, "before_cursor_execute", note)


def authenticate(house: House, client: NewClient, address: str = "192.0.2.1") -> None:
    house.verifier.verify_secret([Credentials(client.client_id, client.secret)], "client_secret_basic", address)


def marks_of(house: House) -> UseMarks:
    """Those of the house's own requests."""
    return house.verifier.marks


def test_a_use_is_told_to_the_minute_after_a_flush_and_not_before(any_house: House) -> None:
    client = any_house.register("a")
    any_house.clock.advance(minutes=5, seconds=59, microseconds=999_999)
    with writes(any_house) as written:
        authenticate(any_house, client)
    assert written == []
    assert last_used(any_house, "a") == (None, None)
    marks_of(any_house).flush()
    minute = NOON + timedelta(minutes=5)
    assert last_used(any_house, "a") == (minute, minute)
    assert addresses(any_house, "a") == [("192.0.2.1", minute, minute)]


def test_a_refused_request_is_no_use(any_house: House) -> None:
    client = any_house.register("a")
    with pytest.raises(InvalidClient):
        authenticate(any_house, NewClient("a", f"{client.secret}x"))
    marks_of(any_house).flush()
    assert last_used(any_house, "a") == (None, None)


def test_a_thousand_uses_in_a_minute_are_one_write(any_house: House) -> None:
    client = any_house.register("a")
    for _ in range(20):
        authenticate(any_house, client)
    with writes(any_house) as written:
        marks_of(any_house).flush()
    # The client, the secret, the address.
    assert len(written) == 3
    for _ in range(20):
        authenticate(any_house, client)
    with writes(any_house) as written:
        marks_of(any_house).flush()
    assert written == []
    any_house.clock.advance(minutes=1)
    authenticate(any_house, client)
    marks_of(any_house).flush()
    assert last_used(any_house, "a") == (NOON + timedelta(minutes=1),) * 2


def test_the_secret_that_was_used_is_marked_and_no_other(any_house: House) -> None:
    first = any_house.register("a")
    with any_house.app.app_context():
        any_house.services.clients.secrets.rotate("a", overlap=timedelta(days=1))
    any_house.clock.advance(hours=1)
    authenticate(any_house, first)
    marks_of(any_house).flush()
    with any_house.app.app_context():
        used = {secret.origin: secret.last_used_at for secret in any_house.store.find("a").secrets[:1]}
        assert used == {"generated": NOON + timedelta(hours=1)}
        assert any_house.store.find("a").secrets[1].last_used_at is None


def test_a_worker_that_tells_late_does_not_set_the_time_back(any_house: House) -> None:
    any_house.register("a")
    secret = secret_of(any_house, "a")
    late, early = worker(any_house), worker(any_house)
    late.note("a", secret, "192.0.2.1")
    any_house.clock.advance(minutes=10)
    early.note("a", secret, "192.0.2.1")
    early.flush()
    late.flush()
    assert last_used(any_house, "a") == (NOON + timedelta(minutes=10),) * 2
    assert addresses(any_house, "a") == [("192.0.2.1", NOON, NOON + timedelta(minutes=10))]


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
    house: House, steps: list[tuple[str, int, str | None]]
) -> None:
    with house.app.app_context():
        is_new = not house.store.list_all()
        db.session.rollback()
    if is_new:
        house.register("a")
    with house.app.app_context():
        db.session.execute(db.text("DELETE FROM client_secret_uses"))
        db.session.execute(db.text("UPDATE clients SET last_used_at = NULL"))
        db.session.execute(db.text("UPDATE client_secrets SET last_used_at = NULL"))
        db.session.commit()
    secret = secret_of(house, "a")
    workers = [worker(house) for _ in range(3)]
    noted: dict[str, list[datetime]] = {}
    for kind, number, address in steps:
        if kind == "note":
            workers[number].note("a", secret, address)
            noted.setdefault(address or "unknown", []).append(house.clock().replace(second=0, microsecond=0))
        elif kind == "flush":
            workers[number].flush()
        else:
            house.clock.advance(seconds=number)
    for one in workers:
        one.flush()
    every = [time for times in noted.values() for time in times]
    assert last_used(house, "a") == ((max(every),) * 2 if every else (None, None))
    expected = {(address, min(times), max(times)) for address, times in noted.items()}
    assert set(addresses(house, "a") if every else []) == expected


def test_many_workers_at_once_lose_nothing(any_house: House) -> None:
    ids = [any_house.register(f"c{number:02}").client_id for number in range(12)]
    secrets = {client_id: secret_of(any_house, client_id) for client_id in ids}
    clocks = [SettableClock() for _ in range(8)]
    workers = [worker(any_house, clock) for clock in clocks]
    ready = threading.Barrier(len(workers))

    def serve(number: int) -> None:
        ready.wait()
        for step in range(6):
            clocks[number].now = NOON + timedelta(minutes=10 * step + number)
            for client_id in ids[::-1] if number % 2 else ids:
                workers[number].note(client_id, secrets[client_id], f"192.0.2.{number}")
            workers[number].flush()

    with ThreadPoolExecutor(len(workers)) as pool:
        list(pool.map(serve, range(len(workers))))
    for client_id in ids:
        assert last_used(any_house, client_id) == (NOON + timedelta(minutes=57),) * 2
        assert sorted(addresses(any_house, client_id)) == [
            (f"192.0.2.{number}", NOON + timedelta(minutes=number), NOON + timedelta(minutes=50 + number))
            for number in range(8)
        ]


def test_marks_wait_while_the_database_is_away(any_house: House) -> None:
    client = any_house.register("a")
    authenticate(any_house, client)
    with any_house.app.app_context():
        db.session.execute(db.text("ALTER TABLE clients RENAME TO away"))
        db.session.commit()
        for _ in range(2):
            with pytest.raises(SQLAlchemyError):
                marks_of(any_house).flush()
        db.session.execute(db.text("ALTER TABLE away RENAME TO clients"))
        db.session.commit()
    any_house.clock.advance(minutes=1)
    authenticate(any_house, client, "192.0.2.2")
    marks_of(any_house).flush()
    assert last_used(any_house, "a") == (NOON + timedelta(minutes=1),) * 2
    assert {address for address, _, _ in addresses(any_house, "a")} == {"192.0.2.1", "192.0.2.2"}


def test_the_older_schema_has_no_marks_and_a_newer_one_gets_them(tmp_path: Path, clock: SettableClock) -> None:
    with open_house(tmp_path, clock) as house:
        client = house.register("a")
        with house.app.app_context():
            downgrade(revision="0001")
        marks = worker(house)
        marks.note("a", "s-x", "192.0.2.1")
        with pytest.raises(SQLAlchemyError):
            marks.flush()
        with house.app.app_context():
            upgrade()
        marks.flush()
        authenticate(house, client)
        assert last_used(house, "a")[0] == NOON


def test_a_flood_of_marks_is_bounded_and_told(
    house: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.clients.last_used.MOST_MARKS", 500)
    house.register("a")
    secret = secret_of(house, "a")
    marks = worker(house)
    for number in range(507):
        marks.note("a", secret, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    with caplog.at_level(logging.WARNING):
        marks.flush()
    assert [record.getMessage() for record in caplog.records] == ["7 marks of uses were dropped: more than 500 waited"]
    assert len(addresses(house, "a")) == MOST_ADDRESSES


def test_the_latest_addresses_are_kept(any_house: House) -> None:
    any_house.register("a")
    secret = secret_of(any_house, "a")
    marks = worker(any_house)
    for number in range(MOST_ADDRESSES + 5):
        any_house.clock.advance(minutes=1)
        marks.note("a", secret, f"192.0.2.{number}")
        marks.flush()
    kept = [address for address, _, _ in addresses(any_house, "a")]
    assert kept == [f"192.0.2.{number}" for number in range(MOST_ADDRESSES + 4, 4, -1)]


def test_a_secret_that_is_gone_is_no_trouble(any_house: House) -> None:
    client = any_house.register("a")
    authenticate(any_house, client)
    marks = worker(any_house)
    marks.note("nobody", "s-nothing", "192.0.2.1")
    with any_house.app.app_context():
        db.session.execute(db.delete(ClientSecretRow))
        db.session.commit()
    marks.flush()
    marks_of(any_house).flush()
    with any_house.app.app_context():
        assert any_house.store.find("a").last_used_at == NOON
        assert any_house.services.clients.secrets.uses("a") == {}


def test_a_use_without_a_secret_marks_the_client(any_house: House) -> None:
    any_house.register("a")
    marks = worker(any_house)
    marks.note("a", None, None)
    marks.flush()
    assert last_used(any_house, "a") == (NOON, None)


# Peppers


@contextmanager
def house_with_peppers(folder: Path, clock: SettableClock, url: str, peppers: str) -> Iterator[House]:
    with open_house(folder, clock, database_url=url, with_key=False, secret_peppers=peppers) as house:
        yield house


def peppers_of(house: House) -> Sequence[tuple[str, bytes]]:
    with house.app.app_context():
        return [(secret.pepper_id, secret.digest) for secret in house.store.find("a").secrets]


def test_a_successful_authentication_moves_a_digest_to_the_first_pepper(
    tmp_path: Path, clock: SettableClock, database_url: str
) -> None:
    old, new = f"p1:{'o' * 40}", f"p2:{'n' * 40}"
    with house_with_peppers(tmp_path, clock, database_url, old) as house:
        client = house.register("a")
        ((pepper, digest),) = peppers_of(house)
        assert pepper == "p1"
    with house_with_peppers(tmp_path, clock, database_url, f"{new},{old}") as house:
        with house.app.app_context():
            assert house.services.clients.secrets.count_by_pepper() == {"p2": 0, "p1": 1}
        with writes(house) as written:
            authenticate(house, client)
        assert written == []
        assert peppers_of(house) == [("p1", digest)]
        marks_of(house).flush()
        ((pepper, moved),) = peppers_of(house)
        assert pepper == "p2"
        assert moved != digest
        with house.app.app_context():
            assert house.services.clients.secrets.count_by_pepper() == {"p2": 1, "p1": 0}
        authenticate(house, client)
    with house_with_peppers(tmp_path, clock, database_url, new) as house:
        authenticate(house, client)


def test_a_digest_that_has_changed_meanwhile_is_left_alone(any_house: House) -> None:
    any_house.register("a")
    ((pepper, digest),) = peppers_of(any_house)
    marks = worker(any_house)
    marks.renew(secret_of(any_house, "a"), b"not what is there", "p9", b"new")
    marks.flush()
    assert peppers_of(any_house) == [(pepper, digest)]


def test_a_renewal_that_could_not_be_told_is_told_later(any_house: House) -> None:
    any_house.register("a")
    ((_, digest),) = peppers_of(any_house)
    marks = worker(any_house)
    marks.renew(secret_of(any_house, "a"), digest, "p9", b"n" * 32)
    with any_house.app.app_context():
        db.session.execute(db.text("ALTER TABLE client_secrets RENAME TO away"))
        db.session.commit()
        with pytest.raises(SQLAlchemyError):
            marks.flush()
        db.session.execute(db.text("ALTER TABLE away RENAME TO client_secrets"))
        db.session.commit()
    marks.flush()
    assert peppers_of(any_house) == [("p9", b"n" * 32)]


def test_a_renewal_shows_no_digest(house: House) -> None:
    marks = worker(house)
    marks.renew("s-1", b"old sum", "p1", b"new sum")
    assert "_Renewal(s-1)" in repr(vars(marks))
    assert " sum" not in repr(vars(marks))
