"""The scopes of all clients that are served, as of the last look."""

from sqlalchemy import update
from unit.house import House, statements

from app.clients.registered_scopes import RegisteredScopes
from app.database.models import ClientRow, db


def scopes(house: House, *, published: bool = True) -> RegisteredScopes:
    with house.app.app_context():
        return RegisteredScopes(db.engine, published=published)


def test_each_is_told_once_in_the_order_of_the_alphabet(any_house: House) -> None:
    for scope in (("write", "read"), ("read", "Zoo"), (), ("a:b",)):
        any_house.register(scope=scope)
    known = scopes(any_house)
    assert known() == ()
    known.look()
    assert known() == ("Zoo", "a:b", "read", "write")


def test_clients_that_are_not_served_have_none(any_house: House) -> None:
    ids = [any_house.register(scope=(scope,)).client_id for scope in ("one", "two", "three")]
    with any_house.app.app_context():
        any_house.store.disable(ids[0])
        any_house.store.delete(ids[1])
    known = scopes(any_house)
    known.look()
    assert known() == ("three",)


def test_those_of_our_own_management_are_never_told(house: House) -> None:
    client = house.register(scope=("read",))
    with house.app.app_context(), db.engine.begin() as connection:
        ours = update(ClientRow).where(ClientRow.client_id == client.client_id)
        connection.execute(ours.values(scope=["tokenhouse:admin", "read"]))
    known = scopes(house)
    known.look()
    assert known() == ("read",)


def test_nobody_looks_where_they_are_not_published(house: House) -> None:
    house.register(scope=("read",))
    with statements(house) as seen:
        known = scopes(house, published=False)
        known.look()
    assert (known(), seen) == ((), [])


def test_the_same_scopes_are_the_same_object_and_a_long_look_is_followed_by_a_long_rest(house: House) -> None:
    house.register(scope=("read",))
    known = scopes(house)
    known.look()
    first = known()
    known._not_before = 0.0  # noqa: SLF001 - It is not waited for.
    known.look()
    assert known() is first
    house.register(scope=("write",))
    with statements(house) as seen:
        known.look()
    assert seen == []
