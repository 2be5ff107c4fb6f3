"""The scopes of all clients that are served, as of the last look."""

from types import SimpleNamespace

import pytest
from sqlalchemy import update
from unit.harness import Harness, statements

from app.clients import registered_scopes
from app.clients.registered_scopes import RegisteredScopes
from app.database.models import ClientRow, db


def scopes(harness: Harness, *, published: bool = True) -> RegisteredScopes:
    with harness.app.app_context():
        return RegisteredScopes(db.engine, published=published)


def test_each_is_told_once_in_the_order_of_the_alphabet(any_harness: Harness) -> None:
    for scope in (("write", "read"), ("read", "Zoo"), (), ("a:b",)):
        any_harness.register(scope=scope)
    known = scopes(any_harness)
    assert known() == ()
    known.poll()
    assert known() == ("Zoo", "a:b", "read", "write")


def test_clients_that_are_not_served_have_none(any_harness: Harness) -> None:
    ids = [any_harness.register(scope=(scope,)).client_id for scope in ("one", "two", "three")]
    with any_harness.app.app_context():
        any_harness.store.disable(ids[0])
        any_harness.store.delete(ids[1])
    known = scopes(any_harness)
    known.poll()
    assert known() == ("three",)


def test_those_of_our_own_management_are_never_told(harness: Harness) -> None:
    client = harness.register(scope=("read",))
    with harness.app.app_context(), db.engine.begin() as connection:
        ours = update(ClientRow).where(ClientRow.client_id == client.client_id)
        connection.execute(ours.values(scope=["tokenhouse:admin", "read"]))
    known = scopes(harness)
    known.poll()
    assert known() == ("read",)


def test_nobody_looks_where_they_are_not_published(harness: Harness) -> None:
    harness.register(scope=("read",))
    with statements(harness) as seen:
        known = scopes(harness, published=False)
        known.poll()
    assert (known(), seen) == ((), [])


def test_the_same_scopes_are_the_same_object_and_a_long_look_is_followed_by_a_long_rest(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = [100.0]

    def later() -> float:
        seconds[0] += 0.5
        return seconds[0]

    monkeypatch.setattr(registered_scopes, "time", SimpleNamespace(monotonic=later))
    harness.register(scope=("read",))
    known = scopes(harness)
    known.poll()
    first = known()
    # By this clock the scan took a second: it rests for a hundred.
    seconds[0] += 101
    known.poll()
    assert known() is first
    harness.register(scope=("write",))
    seconds[0] += 40
    with statements(harness) as seen:
        known.poll()
    assert seen == []
    seconds[0] += 101
    known.poll()
    assert known() == ("read", "write")
