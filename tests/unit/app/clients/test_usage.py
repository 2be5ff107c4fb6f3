"""How many tokens clients get: counted by all workers, told once, and compared with what they need."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import SQLAlchemyError
from unit.harness import Harness, statements

from app.audit.events import RequestFacts, TokenIssued
from app.clients.usage import EXCESS_BUCKETS, WASTEFUL_FACTOR, ClientUsage
from app.database.models import ClientUsageRow, db

TODAY = date(2026, 1, 31)
YESTERDAY = TODAY - timedelta(days=1)


def worker(harness: Harness, *, keeps_totals: bool = True) -> ClientUsage:
    with harness.app.app_context():
        return ClientUsage(db.engine, harness.clock, keeps_totals=keeps_totals)


def record(usage: ClientUsage, client_id: str, tokens: int) -> None:
    for _ in range(tokens):
        usage(issued(client_id))


def issued(client_id: str) -> TokenIssued:
    return TokenIssued(
        request=RequestFacts(request_id="r", source_address=None, duration_ms=1.0),
        client_id=client_id,
        auth_method="client_secret_basic",
        secret_id="s-1",
        grant_type="client_credentials",
        scope="",
        audience=("x",),
        jti="j",
        kid="k",
        expires_in=60,
    )


def store(harness: Harness, client_id: str, tokens: int, day: date = YESTERDAY) -> None:
    with harness.app.app_context():
        db.session.add(ClientUsageRow(client_id=client_id, day=day, tokens=tokens))
        db.session.commit()


def test_workers_add_up_and_a_day_ends_at_midnight_in_utc(any_harness: Harness) -> None:
    one, two = worker(any_harness), worker(any_harness)
    record(one, "a", 3)
    record(two, "a", 4)
    record(two, "b", 1)
    assert (one.tokens_today("a"), two.tokens_today("a")) == (3, 4)
    one.flush()
    two.flush()
    # Each knows what the others had added before it did so the last time.
    assert (one.tokens_today("a"), two.tokens_today("a")) == (3, 7)
    record(one, "a", 1)
    one.flush()
    assert (one.tokens_today("a"), one.tokens_today("b"), two.tokens_today("b")) == (8, 0, 1)
    any_harness.clock.now = datetime(2026, 1, 31, 23, 59, 59, tzinfo=UTC)
    assert one.tokens_today("a") == 8
    record(one, "a", 1)
    any_harness.clock.advance(seconds=1)
    # What was not written before midnight counts for the day on which it was issued.
    assert one.tokens_today("a") == 0
    record(one, "a", 2)
    assert one.tokens_today("a") == 2
    one.flush()
    assert one.tokens_today("a") == 2
    assert dict(one.read("a")) == {TODAY + timedelta(days=1): 2, TODAY: 9}
    assert list(one.read("a")) == [TODAY + timedelta(days=1), TODAY]
    assert one.read("nobody") == {}


def test_each_total_is_told_once_however_many_workers_add(any_harness: Harness) -> None:
    told: list[tuple[date, str, int, int]] = []
    workers = [worker(any_harness, keeps_totals=False) for _ in range(4)]
    for one in workers:
        one.on_total = lambda *total: told.append(total)

    def work(one: ClientUsage) -> None:
        for _ in range(5):
            record(one, "a", 2)
            one.flush()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, workers))
    told.sort()
    assert told == [(TODAY, "a", before, before + 2) for before in range(0, 40, 2)]


def test_a_flush_that_fails_loses_nothing(any_harness: Harness) -> None:
    usage = worker(any_harness)
    record(usage, "a", 2)
    with any_harness.app.app_context():
        db.session.execute(text("ALTER TABLE client_usage RENAME TO away"))
        db.session.commit()
        with pytest.raises(SQLAlchemyError):
            usage.flush()
        record(usage, "a", 1)
        db.session.execute(text("ALTER TABLE away RENAME TO client_usage"))
        db.session.commit()
    usage.flush()
    assert dict(usage.read("a")) == {TODAY: 3}


def test_counts_of_long_ago_are_deleted(any_harness: Harness) -> None:
    for days in (29, 30, 31):
        store(any_harness, "a", 1, TODAY - timedelta(days=days))
    usage = worker(any_harness)
    usage.delete_old()
    assert list(usage.read("a")) == [TODAY - timedelta(days=29), TODAY - timedelta(days=30)]


def test_no_transaction_deletes_more_than_a_thousand_counts(any_harness: Harness) -> None:
    with any_harness.app.app_context():
        many = [{"client_id": f"{n}", "day": date(2025, 1, 1 + n % 2), "tokens": 1} for n in range(2001)]
        db.session.execute(insert(ClientUsageRow), many)
        db.session.commit()
    with statements(any_harness) as seen:
        worker(any_harness).delete_old()
    deletions = [parameters for statement, parameters in seen if statement.startswith("DELETE")]
    assert [len(keys) for keys in deletions] == [2000, 2000, 2]
    with any_harness.app.app_context():
        assert db.session.scalar(select(func.count()).select_from(ClientUsageRow)) == 0


def wasteful(harness: Harness) -> list[str]:
    with harness.app.app_context():
        return [row.client_id for row in harness.store.list_all(wasteful=3600)]


def test_a_client_that_gets_far_more_tokens_than_it_needs_is_wasteful(any_harness: Harness) -> None:
    needed = 24 * WASTEFUL_FACTOR
    for client_id, tokens, fields in (
        ("enough", needed, {}),
        ("too many", needed + 1, {}),
        ("few", 100, {"access_token_lifetime": 86400}),
        ("long-lived", 101, {"access_token_lifetime": 86400}),
        ("short-lived", needed + 1, {"access_token_lifetime": 60}),
    ):
        any_harness.register(client_id, **fields)
        store(any_harness, client_id, tokens)
    any_harness.register("of today")
    store(any_harness, "of today", needed + 1, TODAY)
    any_harness.register("of long ago")
    store(any_harness, "of long ago", needed + 1, YESTERDAY - timedelta(days=1))
    assert sorted(wasteful(any_harness)) == ["long-lived", "of today", "too many"]


def test_each_address_is_a_caller_that_needs_its_own_tokens(any_harness: Harness) -> None:
    made = any_harness.register("a")
    store(any_harness, "a", 2 * 24 * WASTEFUL_FACTOR)
    tracker = any_harness.services.clients.last_used
    with any_harness.app.app_context():
        secret_id = any_harness.store.find(made.client_id).secrets[0].secret_id
    tracker.record("a", secret_id, "192.0.2.1")
    tracker.flush()
    assert wasteful(any_harness) == ["a"]
    tracker.record("a", secret_id, "192.0.2.2")
    tracker.flush()
    assert wasteful(any_harness) == []


def test_the_histogram_counts_clients_by_their_excess(any_harness: Harness) -> None:
    usage = worker(any_harness)
    assert usage.count_excess(3600) == [0] * (len(EXCESS_BUCKETS) + 1)
    for client_id, tokens in (("a", 1), ("b", 24), ("c", 25), ("d", 24_000), ("e", 24_001)):
        any_harness.register(client_id)
        store(any_harness, client_id, tokens)
    any_harness.register("long-lived", access_token_lifetime=86400)
    store(any_harness, "long-lived", 10)
    any_harness.register("disabled")
    store(any_harness, "disabled", 1)
    with any_harness.app.app_context():
        any_harness.store.disable("disabled")
    store(any_harness, "a", 9, TODAY)
    #                                       1  2  5  10 20 50 100 1000 all
    assert usage.count_excess(3600) == [2, 3, 3, 4, 4, 4, 4, 5, 6]
