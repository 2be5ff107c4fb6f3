"""Each kind of failure is logged at once, then once a minute, until the operation that failed succeeds."""

import pytest
from sqlalchemy.exc import OperationalError

from app.database import failure_log as module
from app.database.circuit_breaker import READING, WRITING
from app.database.failure_log import QUIET_SECONDS, REPEAT_SECONDS, FailureLog


class Clock:
    """A monotonic clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module.time, "monotonic", made)
    return made


@pytest.fixture
def failures() -> FailureLog:
    return FailureLog("the database")


def failure(message: str = "no space", kind: type[Exception] = OSError, sqlstate: str | None = None) -> Exception:
    driver = kind(message)
    driver.sqlstate = sqlstate  # type: ignore[attr-defined]
    return OperationalError("SELECT 1", {}, driver)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return lines


def test_a_service_that_writes_nothing_and_reads_all_is_one_line_a_minute(
    failures: FailureLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for second in range(int(REPEAT_SECONDS)):
        clock.now = second
        # The message differs each time.
        failures.failed(WRITING, failure(f"no space for {second}"))
        failures.succeeded(READING)
        assert failures.is_failing
    assert told(caplog) == ["the database fails: OSError: no space for 0"]
    clock.now = REPEAT_SECONDS
    failures.failed(WRITING, failure("again"))
    assert told(caplog) == ["the database fails: OSError: again (59 more since the last line)"]
    failures.failed(WRITING, failure("once more"))
    clock.now += QUIET_SECONDS
    failures.succeeded(READING)
    assert told(caplog) == []
    failures.succeeded(WRITING)
    assert not failures.is_failing
    assert told(caplog) == ["the database responds again (1 more failures since the last line)"]
    failures.succeeded(WRITING)
    assert told(caplog) == []


def test_a_service_that_fails_for_each_second_call_does_not_respond_again_in_between(
    failures: FailureLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(100):
        clock.now += 0.1
        failures.failed(READING, failure())
        assert failures.is_failing
        failures.succeeded(READING)
        assert not failures.is_failing
    assert told(caplog) == ["the database fails: OSError: no space"]
    clock.now += QUIET_SECONDS - 0.001
    failures.succeeded(READING)
    assert told(caplog) == []
    clock.now += 0.001
    failures.succeeded(READING)
    assert told(caplog) == ["the database responds again (99 more failures since the last line)"]


def test_each_kind_is_told(failures: FailureLog, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    clock.now = 7
    for error in (
        failure(),
        failure(kind=ValueError),
        failure(sqlstate="53100"),
        failure("a\x00b\x1b[31m", sqlstate="53200"),
        failure(sqlstate="53100"),
    ):
        failures.failed(READING, error)
    assert told(caplog) == [
        "the database fails: OSError: no space",
        "the database fails: ValueError: no space",
        "the database fails: OSError 53100: no space",
        "the database fails: OSError 53200: a?b?[31m",
    ]


def test_a_service_that_was_silent_and_answers_has_no_failures(
    failures: FailureLog, caplog: pytest.LogCaptureFixture
) -> None:
    failures.end()
    assert told(caplog) == []
    failures.failed(READING, failure())
    failures.failed(WRITING, failure())
    failures.end()
    assert not failures.is_failing
    assert told(caplog)[2:] == ["the database responds again"]


def test_any_success_shows_that_a_service_can_be_reached(
    failures: FailureLog, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    failures.failed(None, failure("refused"))
    failures.failed(WRITING, failure("no space", ValueError))
    clock.now = QUIET_SECONDS
    failures.succeeded(READING)
    assert told(caplog)[2:] == ["the database responds again"]
    assert failures.is_failing
    failures.succeeded(WRITING)
    assert not failures.is_failing
    assert told(caplog) == ["the database responds again"]
