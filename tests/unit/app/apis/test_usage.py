"""Which APIs and scopes clients use: recorded in memory, merged in the database by all workers."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from unit.harness import Harness, statements

from app.apis import usage as usage_module
from app.apis.fields import ApiFields
from app.apis.usage import ApiUsage
from app.database.models import ApiGrantRow, db


@pytest.fixture
def granted(any_harness: Harness) -> Harness:
    """Two clients with two APIs."""
    for client_id in ("a", "b"):
        any_harness.register(client_id)
    with any_harness.app.app_context():
        for name in ("x", "y"):
            any_harness.services.apis.repository.create(ApiFields(name, name, ("read", "write")))
            for client_id in ("a", "b"):
                any_harness.services.apis.repository.grant(name, client_id, None)
    return any_harness


def tracker(harness: Harness) -> ApiUsage:
    with harness.app.app_context():
        return ApiUsage(db.engine, harness.clock)


def used(harness: Harness, client_id: str = "a", api: str = "x") -> dict[str, str]:
    with harness.app.app_context():
        row = db.session.get(ApiGrantRow, (client_id, api))
        assert row is not None
        return row.used


def test_a_use_has_the_day_of_each_scope_and_of_the_api(granted: Harness) -> None:
    usage = tracker(granted)
    usage.record("a", ("x", "y"), "read other")
    usage.flush()
    assert used(granted) == used(granted, api="y") == {"": "2026-01-31", "read": "2026-01-31"}
    assert used(granted, "b") == {}
    granted.clock.advance(days=1)
    usage.record("a", ("x",), "write")
    usage.flush()
    assert used(granted) == {"": "2026-02-01", "read": "2026-01-31", "write": "2026-02-01"}
    assert used(granted, api="y") == {"": "2026-01-31", "read": "2026-01-31"}


def test_workers_whose_clocks_differ_keep_the_latest_day(granted: Harness) -> None:
    late, early = tracker(granted), tracker(granted)
    early.record("a", ("x",), "read")
    granted.clock.advance(days=1)
    late.record("a", ("x",), "write")
    late.flush()
    early.flush()
    assert used(granted) == {"": "2026-02-01", "read": "2026-01-31", "write": "2026-02-01"}


def test_a_second_token_of_the_day_writes_nothing(granted: Harness) -> None:
    usage = tracker(granted)
    for _ in range(2):
        usage.record("a", ("x",), "read")
    usage.flush()
    usage.record("a", ("x",), "read")
    with statements(granted) as seen:
        usage.flush()
    assert seen == []


def test_a_use_of_a_grant_that_has_gone_is_forgotten(granted: Harness) -> None:
    usage = tracker(granted)
    usage.record("a", ("x",), "read")
    with granted.app.app_context():
        granted.services.apis.repository.revoke_grant("x", "a")
    usage.flush()
    with granted.app.app_context():
        assert db.session.get(ApiGrantRow, ("a", "x")) is None


def test_what_could_not_be_written_is_written_later(granted: Harness) -> None:
    usage = tracker(granted)
    usage.record("a", ("x",), "read")

    def fail(*_: Any) -> None:
        raise OperationalError("x", {}, Exception("away"))

    with granted.app.app_context():
        engine = db.engine
    event.listen(engine, "before_cursor_execute", fail)
    try:
        with pytest.raises(OperationalError):
            usage.flush()
        usage.record("a", ("x",), "write")
    finally:
        event.remove(engine, "before_cursor_execute", fail)
    usage.flush()
    assert used(granted) == {"": "2026-01-31", "read": "2026-01-31", "write": "2026-01-31"}


def test_memory_is_bounded(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage_module, "MOST_RECORDS", 100)
    usage = tracker(harness)
    for number in range(110):
        usage.record(f"c{number}", ("x",), "read")
        usage.record("c0", ("x",), f"read {number}")
    assert len(usage._waiting) <= 100  # noqa: SLF001 - The size of its memory.
    assert len(usage._noted) <= 100  # noqa: SLF001


@settings(max_examples=20)
@given(
    uses=st.lists(
        st.tuples(
            st.sampled_from([("x",), ("y",), ("x", "y")]),
            st.sets(st.sampled_from(["read", "write"]), min_size=1),
            st.integers(0, 3),
            st.integers(0, 1),
        ),
        max_size=10,
    )
)
def test_each_scope_has_the_latest_day_of_all_workers(harness: Harness, uses: Any) -> None:
    with harness.app.app_context():
        if not harness.store.list_all():
            harness.register("a")
        for name in ("x", "y"):
            if any(row.name == name for row, _ in harness.services.apis.repository.list_all()):
                harness.services.apis.repository.delete(name)
            harness.services.apis.repository.create(ApiFields(name, name, ("read", "write")))
            harness.services.apis.repository.grant(name, "a", None)
    workers = [tracker(harness), tracker(harness)]
    expected: dict[str, dict[str, str]] = {"x": {}, "y": {}}
    begin = harness.clock.now
    for apis, scope, day, worker in uses:
        harness.clock.now = begin
        harness.clock.advance(days=day)
        today = harness.clock().date().isoformat()
        workers[worker].record("a", apis, " ".join(sorted(scope)))
        for api in apis:
            for name in ("", *scope):
                expected[api][name] = max(expected[api].get(name, ""), today)
    harness.clock.now = begin
    for worker in workers:
        worker.flush()
    assert {api: used(harness, api=api) for api in expected} == expected
