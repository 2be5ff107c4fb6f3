"""An id is used once, whoever asks; a Redis that may have forgotten is noticed; one that is away accepts nothing."""

import logging
import re
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import SettableClock
from sqlalchemy import func, select
from support.redis import RedisServer, running_redis
from unit.harness import Harness, open_harness

from app.config.values import PROJECT_FOLDER
from app.database.circuit_breaker import DatabaseCircuitBreaker
from app.database.models import UsedAssertionRow, db
from app.database.redis import RedisAccess
from app.errors import ServiceUnavailable
from app.oauth.replay_store import DatabaseReplayStore, key_of
from app.oauth.replay_store_redis import RedisReplayStore


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def harness(tmp_path: Path, clock: SettableClock, redis: RedisServer) -> Iterator[Harness]:
    with open_harness(tmp_path, clock, redis_url=redis.url) as harness:
        yield harness


def use(harness: Harness, jti: str, *, issuer: str = "a", issued: int = 0, seconds: int = 300) -> bool:
    """Use ``jti`` of an assertion that was issued ``issued`` seconds from now."""
    now = int(harness.clock().timestamp())
    with harness.app.app_context():
        return harness.services.oauth.replay_store.use(issuer, jti, now + issued, now + seconds)


def poll(harness: Harness) -> None:
    with harness.app.app_context():
        harness.services.oauth.replay_store.poll()


def refused(harness: Harness) -> str:
    with pytest.raises(ServiceUnavailable) as caught:
        use(harness, "refused")
    return caught.value.reason


def flush(redis: RedisServer) -> None:
    with redis.client() as client:
        client.flushall()


def test_an_id_is_used_once_and_anothers_is_another(harness: Harness) -> None:
    used = [use(harness, jti, issuer=issuer) for issuer, jti in (("a", "1"), ("a", "1"), ("a", "2"), ("b", "1"))]
    assert used == [True, False, True, True]


def test_of_many_at_once_one_is_first(harness: Harness) -> None:
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(lambda _: use(harness, "1"), range(64))) == 1


def test_it_is_remembered_until_the_assertion_is_refused_by_itself(harness: Harness, redis: RedisServer) -> None:
    assert use(harness, "1", seconds=300)
    assert use(harness, "2", seconds=-5)
    with redis.client() as client:
        times = [client.pttl("tokenhouse:{replay}:" + key_of("a", jti)) for jti in ("1", "2")]
    assert 290_000 < times[0] <= 300_000
    assert times[1] <= 1_000
    assert remembered(harness) == 1


def remembered(harness: Harness) -> int:
    with harness.app.app_context(), db.engine.connect() as connection:
        return connection.scalar(select(func.count()).select_from(UsedAssertionRow)) or 0


def test_the_first_time_nothing_can_have_been_forgotten(harness: Harness, caplog: pytest.LogCaptureFixture) -> None:
    assert use(harness, "1", issued=-30)
    assert caplog.messages == []


@pytest.mark.parametrize("_round", range(5))
def test_of_many_workers_that_are_the_first_at_once_none_refuses(
    harness: Harness, redis: RedisServer, _round: int
) -> None:
    with harness.app.app_context():
        durable = DatabaseReplayStore(db.engine, DatabaseCircuitBreaker(), harness.clock)
        workers = [RedisReplayStore(RedisAccess(redis.url), durable, harness.clock) for _ in range(8)]
    now = int(harness.clock().timestamp())
    ready = threading.Barrier(len(workers))

    def begin(number: int) -> bool:
        ready.wait()
        return workers[number].use("a", str(number), now - 30, now + 300)

    with ThreadPoolExecutor(len(workers)) as pool:
        assert list(pool.map(begin, range(len(workers)))) == [True] * len(workers)


def test_who_comes_from_the_database_has_used_what_is_remembered_there(
    tmp_path: Path, clock: SettableClock, redis: RedisServer
) -> None:
    with open_harness(tmp_path, clock) as before:
        assert use(before, "1")
        settings = {"secret_peppers": f"p1:{'x' * 40}", "database_url": before.settings.database_url.get_secret_value()}
    with open_harness(tmp_path, clock, migrated=False, with_key=False, redis_url=redis.url, **settings) as after:
        assert not use(after, "1")
        clock.advance(seconds=1)
        assert use(after, "2")


def test_an_empty_redis_refuses_what_is_from_before(
    harness: Harness, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    assert use(harness, "1")
    flush(redis)
    assert not use(harness, "1")
    assert not use(harness, "never used", issued=0)
    harness.clock.advance(seconds=1)
    assert not use(harness, "1", issued=-1)
    assert use(harness, "fresh")
    assert not use(harness, "fresh")
    assert caplog.messages == [
        "redis may have forgotten used assertions (it is empty): assertions issued before now are refused"
    ]


def test_it_is_noticed_between_requests(harness: Harness, redis: RedisServer) -> None:
    assert use(harness, "1")
    flush(redis)
    poll(harness)
    harness.clock.advance(seconds=1)
    assert use(harness, "the first one after it")


def test_a_redis_that_restarts_from_an_older_copy_is_noticed(harness: Harness, redis: RedisServer) -> None:
    assert use(harness, "1")
    with redis.client() as client:
        client.save()
    assert use(harness, "2")
    redis.stop()
    redis.start()
    with redis.client() as client:
        assert client.dbsize() == 2, "the epoch and the first"
    assert [use(harness, "1"), use(harness, "2")] == [False, False]
    harness.clock.advance(seconds=1)
    assert not use(harness, "2", issued=-1)
    assert use(harness, "3")


def test_a_restart_that_another_worker_has_noticed_is_one(harness: Harness, redis: RedisServer) -> None:
    assert use(harness, "1")
    redis.stop()
    redis.start()
    poll(harness)
    harness.clock.advance(seconds=30)
    with harness.app.app_context():
        durable = DatabaseReplayStore(db.engine, DatabaseCircuitBreaker(), harness.clock)
        now = int(harness.clock().timestamp())
        assert RedisReplayStore(RedisAccess(redis.url), durable, harness.clock).use(
            "a", "another worker", now - 20, now + 300
        )


@pytest.mark.parametrize("what", ["flushed", "restarted"])
def test_a_client_whose_clock_is_ahead_cannot_come_again(harness: Harness, redis: RedisServer, what: str) -> None:
    assert use(harness, "ahead", issued=50)
    if what == "flushed":
        flush(redis)
    else:
        redis.stop()
        redis.start()
    poll(harness)
    harness.clock.advance(seconds=20)
    assert not use(harness, "ahead", issued=30)
    assert use(harness, "another", issued=30)


def test_an_epoch_that_nobody_here_has_written_is_none(harness: Harness, redis: RedisServer) -> None:
    assert use(harness, "1")
    for wrong in (b"", b"x", b"\xff\xfe", b"x 0", b" -5"):
        with redis.client() as client:
            client.set("tokenhouse:{replay}:epoch", wrong)
        assert not use(harness, f"after {wrong!r}")


@pytest.mark.parametrize("ahead", [61, 10**9, 10**30, None])
def test_an_epoch_in_the_future_is_none(harness: Harness, redis: RedisServer, ahead: int | None) -> None:
    """Whoever may write to Redis by mistake would have every assertion refused until then."""
    assert use(harness, "1")
    now = int(harness.clock().timestamp())
    with redis.client() as client:
        process = client.get("tokenhouse:{replay}:epoch").split()[0]  # type: ignore[union-attr]
        digits = b"%d" % (now + ahead) if ahead else b"9" * 5000
        client.set("tokenhouse:{replay}:epoch", process + b" " + digits)
    assert not use(harness, "issued before the new epoch")
    harness.clock.advance(seconds=62)
    assert use(harness, "issued after it")


def test_a_connection_that_was_dropped_is_made_anew(harness: Harness, redis: RedisServer) -> None:
    assert use(harness, "1")
    with redis.client() as client:
        client.client_kill_filter(_type="normal", skipme=True)
    assert use(harness, "2")


def test_one_that_is_away_accepts_nothing_and_comes_back(
    harness: Harness, redis: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.database.failure_log.QUIET_SECONDS", 0.0)
    assert use(harness, "1")
    redis.stop()
    assert refused(harness) == "redis_ConnectionError"
    assert harness.services.oauth.replay_store.is_unavailable
    poll(harness)
    redis.start()
    poll(harness)
    assert not harness.services.oauth.replay_store.is_unavailable
    harness.clock.advance(seconds=1)
    assert use(harness, "2")
    told = [record.levelname for record in caplog.records if record.levelno > logging.INFO]
    assert told == ["ERROR", "WARNING", "WARNING"], caplog.messages


def test_one_that_is_silent_is_not_asked_again_until_it_answers(harness: Harness, redis: RedisServer) -> None:
    assert use(harness, "1")
    redis.process.send_signal(signal.SIGSTOP)
    try:
        assert refused(harness) == "redis_TimeoutError"
        assert refused(harness) == "redis_silent"
    finally:
        redis.process.send_signal(signal.SIGCONT)
    poll(harness)
    assert use(harness, "2")
    assert not use(harness, "1")


def test_a_redis_that_refuses_us_says_why(
    tmp_path: Path, clock: SettableClock, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        running_redis("--requirepass", "a password of the test") as redis,
        open_harness(tmp_path, clock, redis_url=f"{redis.url}?password=wr0ng-secret") as harness,
    ):
        assert refused(harness) == "redis_AuthenticationError"
        told = capsys.readouterr().err
        assert "redis fails: AuthenticationError: invalid username-password pair" in told
        assert "wr0ng" not in told


def test_without_the_database_it_is_not_known_whether_anything_was_forgotten(harness: Harness, tmp_path: Path) -> None:
    (tmp_path / "tokenhouse.db").rename(tmp_path / "moved")
    assert refused(harness).startswith("database_")


def test_a_user_with_the_rights_that_the_document_names_is_enough(tmp_path: Path, clock: SettableClock) -> None:
    document = (PROJECT_FOLDER / "docs" / "client-keys.md").read_text()
    rights = re.findall(r"needs `([^`]+)`\s+on `([^`]+)`", document)
    assert len(rights) == 1
    with running_redis() as redis:
        with redis.client() as client:
            client.execute_command("ACL", "SETUSER", "least", "on", ">word", rights[0][1], *rights[0][0].split())
        url = redis.url.replace("unix://", "unix://least@") + "?password=word"
        with open_harness(tmp_path, clock, redis_url=url) as harness:
            assert [use(harness, "1"), use(harness, "1")] == [True, False]
            poll(harness)
            assert not harness.services.oauth.replay_store.is_unavailable


def test_a_question_is_a_part_of_the_request_where_requests_are_traced(harness: Harness) -> None:
    parts: list[str] = []

    class Spans:
        def record(self, _event: object) -> None:
            raise AssertionError("nothing has happened")

        @contextmanager
        def part(self, name: str) -> Iterator[None]:
            parts.append(name)
            yield

    assert use(harness, "before")
    harness.app.extensions["instrumentation"].trace_with(Spans())
    assert use(harness, "after")
    assert parts == ["redis"]
