"""An id is used once, whoever asks, until the assertion is refused by itself."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from conftest import SettableClock
from sqlalchemy import func, make_url, select
from unit.house import House, open_house

from app.database.models import UsedAssertionRow, db
from app.errors import ServiceUnavailable


@pytest.fixture
def house(any_house: House) -> House:
    return any_house


def use(house: House, issuer: str, jti: str, seconds: int = 60) -> bool:
    now = int(house.clock().timestamp())
    with house.app.app_context():
        return house.services.oauth.replay_store.use(issuer, jti, now, now + seconds)


def remembered(house: House) -> int:
    with house.app.app_context(), db.engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(UsedAssertionRow)) or 0


def test_an_id_is_used_once_and_anothers_is_another(house: House) -> None:
    assert [use(house, "a", "1"), use(house, "a", "1"), use(house, "a", "2"), use(house, "b", "1")] == [
        True,
        False,
        True,
        True,
    ]


def test_no_two_pairs_meet(house: House) -> None:
    assert [use(house, *pair) for pair in (("a", "b"), ("a b", ""), ('a","', "b"), ("", "ab"), ("a", "b "))] == [
        True
    ] * 5


def test_of_many_at_once_one_is_first(house: House) -> None:
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(lambda _: use(house, "a", "1"), range(64))) == 1


def test_what_is_refused_by_itself_is_forgotten_and_nothing_else(house: House) -> None:
    for number in range(4):
        assert use(house, "a", str(number), 60 if number % 2 else 600)
    house.clock.advance(seconds=60)
    house.services.oauth.replay_store.forget_expired()
    assert remembered(house) == 4
    house.clock.advance(seconds=1)
    house.services.oauth.replay_store.forget_expired()
    assert remembered(house) == 2
    assert not use(house, "a", "0")
    house.clock.now += timedelta(days=1)
    house.services.oauth.replay_store.forget_expired()
    assert remembered(house) == 0


def test_a_store_that_is_away_accepts_nothing(tmp_path: Path, clock: SettableClock) -> None:
    with open_house(tmp_path, clock) as house:
        path = Path(str(make_url(house.settings.database_url.get_secret_value()).database))
        path.rename(tmp_path / "moved")
        with pytest.raises(ServiceUnavailable, match="cannot handle the request"):
            use(house, "a", "1")
