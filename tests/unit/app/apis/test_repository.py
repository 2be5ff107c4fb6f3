"""APIs in each kind of database: what clients' rows say of them is always what was granted."""

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from unit.harness import Harness

from app.apis.fields import ApiFields
from app.clients.authentication import to_client
from app.database.models import ApiGrantRow, ApiRow, ClientRow, OutboxRow, db
from app.errors import ManagementError
from app.types import GrantedApi

URI = "https://orders.example.com"


def create(harness: Harness, name: str = "orders", **fields: Any) -> None:
    with harness.app.app_context():
        harness.services.apis.repository.create(
            ApiFields(
                **{"name": name, "identifier": f"https://{name}.example.com", "scope": ("read", "write"), **fields}
            )
        )


def grant(harness: Harness, client_id: str, name: str = "orders", scope: tuple[str, ...] | None = None) -> None:
    with harness.app.app_context():
        harness.services.apis.repository.grant(name, client_id, scope)


def update(harness: Harness, name: str = "orders", **changes: Any) -> None:
    with harness.app.app_context():
        harness.services.apis.repository.update(name, lambda _before: changes)


def apis_of(harness: Harness, client_id: str) -> tuple[GrantedApi, ...]:
    with harness.app.app_context():
        return to_client(harness.store.find(client_id)).apis


def audiences_ever(harness: Harness, client_id: str) -> list[str] | None:
    with harness.app.app_context():
        return harness.store.find(client_id).audiences_ever


def refusal(harness: Harness, act: Callable[[], object]) -> str:
    with harness.app.app_context(), pytest.raises(ManagementError) as caught:
        act()
    return str(caught.value)


def events(harness: Harness) -> list[tuple[str, dict[str, Any]]]:
    with harness.app.app_context():
        rows = db.session.scalars(select(OutboxRow).order_by(OutboxRow.outbox_id)).all()
        return [(row.event, json.loads(row.facts)) for row in rows]


def test_a_grant_reaches_the_clients_row_at_once(any_harness: Harness) -> None:
    any_harness.register("a", scope=("own",))
    create(any_harness, access_token_lifetime=90, claims={"plan": "gold"})
    grant(any_harness, "a", scope=("read",))
    assert apis_of(any_harness, "a") == (GrantedApi("orders", URI, ("read",), 90, {"plan": "gold"}),)
    assert audiences_ever(any_harness, "a") == ["", URI]
    update(any_harness, scope=("write", "read", "all"), access_token_lifetime=None, claims={})
    assert apis_of(any_harness, "a") == (GrantedApi("orders", URI, ("read",)),)
    grant(any_harness, "a")
    assert apis_of(any_harness, "a") == (GrantedApi("orders", URI, ("write", "read", "all")),)
    update(any_harness, scope=("all",))
    assert apis_of(any_harness, "a") == (GrantedApi("orders", URI, ("all",)),)


def test_grants_are_in_the_order_in_which_they_were_made(any_harness: Harness) -> None:
    any_harness.register("a")
    for name in ("orders", "bills", "archive"):
        create(any_harness, name)
    for name in ("orders", "archive", "bills"):
        grant(any_harness, "a", name)
        any_harness.clock.advance(seconds=1)
    grant(any_harness, "a", "orders", ("read",))
    assert [api.name for api in apis_of(any_harness, "a")] == ["orders", "archive", "bills"]


def test_a_revoked_grant_and_a_deleted_api_are_gone_and_verifiers_still_learn_of_revocations(
    any_harness: Harness,
) -> None:
    any_harness.register("a")
    for name in ("orders", "bills"):
        create(any_harness, name)
        grant(any_harness, "a", name)
        any_harness.clock.advance(seconds=1)
    with any_harness.app.app_context():
        any_harness.services.apis.repository.revoke_grant(URI, "a")
    assert [api.name for api in apis_of(any_harness, "a")] == ["bills"]
    with any_harness.app.app_context():
        any_harness.services.apis.repository.delete("bills")
    assert apis_of(any_harness, "a") == ()
    assert audiences_ever(any_harness, "a") == ["", URI, "https://bills.example.com"]
    with any_harness.app.app_context():
        assert db.session.scalars(select(ApiGrantRow)).all() == []


def test_a_deleted_client_calls_nothing(any_harness: Harness) -> None:
    any_harness.register("a")
    create(any_harness)
    grant(any_harness, "a")
    with any_harness.app.app_context():
        any_harness.store.delete("a")
    with any_harness.app.app_context():
        assert db.session.scalar(select(ClientRow.apis).where(ClientRow.client_id == "a")) is None
        assert any_harness.services.apis.repository.callers("orders") == []


def test_an_identifier_belongs_to_one_api(any_harness: Harness) -> None:
    create(any_harness)
    create(any_harness, "bills")
    repository = any_harness.services.apis.repository
    same = "HTTPS://ORDERS.example.com:443/"
    told = refusal(any_harness, lambda: repository.create(ApiFields("other", same)))
    assert told == f"identifier {same!r} is that of API 'orders'"
    told = refusal(any_harness, lambda: repository.update("bills", lambda _: {"identifier": same}))
    assert told == f"identifier {same!r} is that of API 'orders'"
    told = refusal(any_harness, lambda: repository.create(ApiFields("orders", "urn:x")))
    assert told == "API 'orders' exists: `flask apis update` changes it"
    # Its own may get another spelling.
    update(any_harness, identifier=same)
    with any_harness.app.app_context():
        assert repository.find(URI).identifier == same


def test_of_two_that_create_the_same_api_one_is_told(any_harness: Harness) -> None:
    told: list[str] = []
    barrier = threading.Barrier(4)

    def race(number: int) -> None:
        barrier.wait()
        try:
            create(any_harness, f"api-{number}", identifier=URI)
        except ManagementError as error:
            told.append(str(error))

    threads = [threading.Thread(target=race, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 3
    with any_harness.app.app_context():
        assert len(db.session.scalars(select(ApiRow)).all()) == 1


def test_what_cannot_be_is_refused_and_changes_nothing(any_harness: Harness) -> None:
    any_harness.register("a")
    create(any_harness)
    repository = any_harness.services.apis.repository
    before = events(any_harness)
    for act, told in (
        (lambda: repository.find("x"), "there is no API 'x': `flask apis list` shows all"),
        (lambda: repository.grant("orders", "b", None), "there is no client 'b': `flask clients list` shows all"),
        (
            lambda: repository.grant("orders", "a", ("read", "x", "y")),
            "API 'orders' has no scope x y: it has read write",
        ),
        (lambda: repository.revoke_grant("orders", "a"), "a was not granted API 'orders'"),
        (lambda: repository.update("orders", lambda _: {"identifier": "x y"}), None),
        (
            lambda: repository.create(ApiFields("own", "https://tokens.example.com/oauth/introspect")),
            "identifier 'https://tokens.example.com/oauth/introspect' is one of this server's own resources",
        ),
    ):
        found = refusal(any_harness, act)
        assert told is None or found == told
    assert events(any_harness) == before
    assert apis_of(any_harness, "a") == ()


def test_no_caller_gets_a_default_token_that_is_too_long(any_harness: Harness) -> None:
    any_harness.register("a", claims={"tenant": "x" * 900})
    wide = tuple(f"{number:03}{'s' * 26}" for number in range(120))
    create(any_harness, scope=wide, claims={"plan": "y" * 900})
    told = refusal(any_harness, lambda: any_harness.services.apis.repository.grant("orders", "a", None))
    assert told.startswith(f"a token of a for {URI} with all scopes may have")
    assert apis_of(any_harness, "a") == ()
    fitting = next(number for number in range(119, 0, -1) if _can_grant(any_harness, wide[:number]))
    assert fitting > 100
    refusal(any_harness, lambda: any_harness.store.update("a", claims={"tenant": "x" * 900, "more": "z" * 90}))
    with any_harness.app.app_context():
        assert any_harness.store.find("a").claims == {"tenant": "x" * 900}
    long = f"https://orders.example.com/{'x' * 1900}"
    refusal(any_harness, lambda: any_harness.services.apis.repository.update("orders", lambda _: {"identifier": long}))
    assert apis_of(any_harness, "a")[0].identifier == URI


def _can_grant(harness: Harness, scope: tuple[str, ...]) -> bool:
    try:
        grant(harness, "a", scope=scope)
    except ManagementError:
        return False
    return True


def test_each_change_is_recorded_with_its_client(any_harness: Harness) -> None:
    any_harness.register("a")
    create(any_harness)
    grant(any_harness, "a")
    update(any_harness, owner="Team O", access_token_lifetime=60)
    with any_harness.app.app_context():
        any_harness.services.apis.repository.revoke_grant("orders", "a")
        any_harness.services.apis.repository.delete("orders")
    found = [
        (name, {key: value for key, value in facts.items() if key not in {"by", "outcome"}})
        for name, facts in events(any_harness)
    ]
    assert found[1:] == [
        ("ApiChanged", {"api": "orders", "change": "created"}),
        ("ClientChanged", {"client_id": "a", "change": "updated", "fields": ["apis"]}),
        ("ApiChanged", {"api": "orders", "change": "granted", "client_id": "a"}),
        ("ClientChanged", {"client_id": "a", "change": "updated", "fields": ["apis"]}),
        ("ApiChanged", {"api": "orders", "change": "updated", "fields": ["access_token_lifetime", "owner"]}),
        ("ClientChanged", {"client_id": "a", "change": "updated", "fields": ["apis"]}),
        ("ApiChanged", {"api": "orders", "change": "grant_revoked", "client_id": "a"}),
        ("ApiChanged", {"api": "orders", "change": "deleted"}),
    ]


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["grant", "revoke", "update", "delete", "create"]),
        st.sampled_from(["orders", "bills"]),
        st.sampled_from(["a", "b"]),
        st.lists(st.sampled_from(["read", "write", "all"]), unique=True),
    ),
    max_size=12,
)


@settings(max_examples=15)
@given(steps=_STEPS)
def test_whatever_was_done_the_rows_of_clients_say_what_the_grants_say(harness: Harness, steps: Any) -> None:
    with harness.app.app_context():
        for row in harness.services.apis.repository.list_all():
            harness.services.apis.repository.delete(row[0].name)
        if not harness.store.list_all():
            harness.register("a")
            harness.register("b")
        for kind, name, client_id, scope in steps:
            _step(harness, kind, name, client_id, tuple(scope))
            harness.clock.advance(seconds=1)
        db.session.rollback()
        for client_id in ("a", "b"):
            expected = {
                grant_row.api_name: (tuple(grant_row.scope), api.identifier)
                for grant_row, api in db.session.execute(
                    select(ApiGrantRow, ApiRow)
                    .join(ApiRow, ApiRow.name == ApiGrantRow.api_name)
                    .where(ApiGrantRow.client_id == client_id)
                )
            }
            compiled = to_client(harness.store.find(client_id)).apis
            assert {api.name: (api.scope, api.identifier) for api in compiled} == expected


def _step(harness: Harness, kind: str, name: str, client_id: str, scope: tuple[str, ...]) -> None:
    repository = harness.services.apis.repository
    try:
        if kind == "create":
            repository.create(ApiFields(name, f"urn:{name}", scope))
        elif kind == "grant":
            repository.grant(name, client_id, scope or None)
        elif kind == "revoke":
            repository.revoke_grant(name, client_id)
        elif kind == "update":
            repository.update(name, lambda _: {"scope": scope, "identifier": f"urn:{name}:{len(scope)}"})
        else:
            repository.delete(name)
    except ManagementError:
        db.session.rollback()


def test_grants_that_another_release_wrote_are_read(harness: Harness) -> None:
    harness.register("a")
    with harness.app.app_context():
        row = harness.store.find("a")
        row.apis = [
            {"name": "old", "identifier": "urn:old", "scope": ["read"]},
            {"name": "new", "identifier": "urn:new", "scope": [], "claims": {"a": "b"}, "unheard_of": True},
        ]
        db.session.commit()
    expected = (GrantedApi("old", "urn:old", ("read",)), GrantedApi("new", "urn:new", (), None, {"a": "b"}))
    assert apis_of(harness, "a") == expected
