"""No process, and no number of processes that share a Redis, lets more requests through than a rate says."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.redis import RedisServer, running_redis

from app.database.redis import RedisAccess
from app.oauth.rate_limiter import RESERVATIONS_PER_LIMIT, RateLimiter
from app.oauth.rate_limiter_redis import RedisCounts
from app.types import Rate


class Seconds:
    """A monotonic clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


def allowed(limiter: RateLimiter, requests: int, rate: Rate, subject: str = "a") -> int:
    """How many of so many requests are let through."""
    return sum(limiter.take("tokens", subject, rate) == 0 for _ in range(requests))


@given(
    rate=st.builds(Rate, st.integers(1, 20), st.integers(1, 60)),
    steps=st.lists(st.floats(0, 30), min_size=1, max_size=100),
)
def test_a_window_lets_through_what_the_rate_says_and_begins_with_its_first_request(
    rate: Rate, steps: list[float]
) -> None:
    seconds = Seconds()
    limiter = RateLimiter(10, monotonic=seconds)
    began, count = None, 0
    for step in steps:
        seconds.now += step
        if began is None or seconds.now >= began + rate.seconds:
            began, count = seconds.now, 0
        count += 1
        wait = limiter.take("tokens", "a", rate)
        assert wait == (0 if count <= rate.amount else pytest.approx(began + rate.seconds - seconds.now))


def test_subjects_kinds_and_rates_are_counted_apart() -> None:
    limiter, rate = RateLimiter(100), Rate(1, 60)
    assert allowed(limiter, 2, rate) == 1
    assert allowed(limiter, 2, rate, "b") == 1
    assert limiter.take("assertions", "a", rate) == 0
    # A limit that is changed holds at once.
    assert limiter.take("tokens", "a", Rate(2, 60)) == 0


def test_beyond_the_most_windows_the_oldest_is_forgotten() -> None:
    limiter, rate = RateLimiter(3), Rate(1, 60)
    for subject in "abcd":
        assert limiter.take("tokens", subject, rate) == 0
    assert [limiter.take("tokens", subject, rate) > 0 for subject in "bcd"] == [True, True, True]
    assert limiter.take("tokens", "a", rate) == 0


def test_windows_that_have_ended_are_forgotten_before() -> None:
    seconds = Seconds()
    limiter = RateLimiter(1000, monotonic=seconds)
    for number in range(500):
        limiter.take("tokens", str(number), Rate(1, 60))
    seconds.now += 60
    limiter.take("tokens", "one more", Rate(1, 60))
    assert len(limiter._windows) == 1  # noqa: SLF001 - What is forgotten shows in the memory alone.


def test_threads_together_get_what_the_rate_says() -> None:
    limiter, rate = RateLimiter(10), Rate(500, 60)
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: allowed(limiter, 100, rate), range(8))) == 500


@pytest.mark.parametrize("amount", [1, 7, 100, 150, 1000])
def test_processes_that_share_a_redis_get_what_the_rate_says(redis: RedisServer, amount: int) -> None:
    rate = Rate(amount, 60)
    limiters = [RateLimiter(10, RedisCounts(RedisAccess(redis.url))) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda limiter: allowed(limiter, amount, rate), limiters))
    assert sum(got) == amount
    for limiter in limiters:
        assert 59 < limiter.take("tokens", "a", rate) <= 60


def test_a_limit_costs_a_hundred_round_trips_at_most(redis: RedisServer) -> None:
    limiter = RateLimiter(10, RedisCounts(RedisAccess(redis.url)))
    with redis.client() as admin:
        admin.config_resetstat()
        assert allowed(limiter, 10_000, Rate(6000, 60)) == 6000
        assert admin.info("commandstats")["cmdstat_incrby"]["calls"] == RESERVATIONS_PER_LIMIT + 1


def test_a_window_ends_in_redis_too(redis: RedisServer) -> None:
    limiter = RateLimiter(10, RedisCounts(RedisAccess(redis.url)))
    limiter.take("tokens", "a name that is long and secret", Rate(5, 60))
    with redis.client() as admin:
        (key,) = admin.keys("*")
        assert key.startswith(b"tokenhouse:limit:")
        assert b"secret" not in key
        assert 59_000 < admin.pttl(key) <= 60_000


def test_while_redis_is_away_each_process_counts_for_itself(redis: RedisServer) -> None:
    rate = Rate(5, 60)
    access = RedisAccess(redis.url)
    one, two = (RateLimiter(10, RedisCounts(access)) for _ in range(2))
    redis.stop()
    assert [allowed(one, 9, rate), allowed(two, 9, rate)] == [5, 5]
    assert access.circuit_breaker.is_failing
    redis.start()
    # A new window is shared again.
    assert sorted([allowed(one, 9, rate, "b"), allowed(two, 9, rate, "b")]) == [0, 5]
    assert not access.circuit_breaker.is_failing
