"""An id is used once, whoever asks, until the assertion is refused by itself."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from conftest import SettableClock
from sqlalchemy import func, make_url, select
from unit.harness import Harness, open_harness

from app.database.models import UsedAssertionRow, db
from app.errors import ServiceUnavailable


@pytest.fixture
def harness(any_harness: Harness) -> Harness:
    return any_harness


def use(harness: Harness, issuer: str, jti: str, seconds: int = 60) -> bool:
    now = int(harness.clock().timestamp())
    with harness.app.app_context():
        return harness.services.oauth.replay_store.use(issuer, jti, now, now + seconds)


def remembered(harness: Harness) -> int:
    with harness.app.app_context(), db.engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(UsedAssertionRow)) or 0


def test_an_id_is_used_once_and_anothers_is_another(harness: Harness) -> None:
    assert [use(harness, "a", "1"), use(harness, "a", "1"), use(harness, "a", "2"), use(harness, "b", "1")] == [
        True,
        False,
        True,
        True,
    ]


def test_no_two_pairs_meet(harness: Harness) -> None:
    assert [use(harness, *pair) for pair in (("a", "b"), ("a b", ""), ('a","', "b"), ("", "ab"), ("a", "b "))] == [
        True
    ] * 5


def test_of_many_at_once_one_is_first(harness: Harness) -> None:
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(lambda _: use(harness, "a", "1"), range(64))) == 1


def test_what_is_refused_by_itself_is_forgotten_and_nothing_else(harness: Harness) -> None:
    for number in range(4):
        assert use(harness, "a", str(number), 60 if number % 2 else 600)
    harness.clock.advance(seconds=60)
    harness.services.oauth.replay_store.delete_expired()
    assert remembered(harness) == 4
    harness.clock.advance(seconds=1)
    harness.services.oauth.replay_store.delete_expired()
    assert remembered(harness) == 2
    assert not use(harness, "a", "0")
    harness.clock.now += timedelta(days=1)
    harness.services.oauth.replay_store.delete_expired()
    assert remembered(harness) == 0


def test_a_store_that_is_away_accepts_nothing(tmp_path: Path, clock: SettableClock) -> None:
    with open_harness(tmp_path, clock) as harness:
        path = Path(str(make_url(harness.settings.database_url.get_secret_value()).database))
        path.rename(tmp_path / "moved")
        with pytest.raises(ServiceUnavailable, match="cannot handle the request"):
            use(harness, "a", "1")
