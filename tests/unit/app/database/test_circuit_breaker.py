"""The gate to the database: silence is answered at once, and it opens again."""

import pytest
from sqlalchemy.exc import OperationalError

from app.database import circuit_breaker as module
from app.database.circuit_breaker import DatabaseCircuitBreaker
from app.errors import ServiceUnavailable

FAILURE = OperationalError("SELECT 1", {}, Exception("silent"))


@pytest.fixture
def circuit_breaker() -> DatabaseCircuitBreaker:
    return DatabaseCircuitBreaker()


def refused(circuit_breaker: DatabaseCircuitBreaker) -> str:
    with pytest.raises(ServiceUnavailable) as caught, circuit_breaker.allow():
        pass
    return caught.value.reason


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that pass when they are told to."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def fail_after(seconds: float, circuit_breaker: DatabaseCircuitBreaker, clock: list[float]) -> None:
    def execute() -> None:
        with circuit_breaker.allow():
            clock[0] += seconds
            raise FAILURE

    with pytest.raises(OperationalError):
        execute()


def test_a_long_failure_shuts_it_and_an_answer_opens_it(
    circuit_breaker: DatabaseCircuitBreaker, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    fail_after(1.5, circuit_breaker, clock)
    assert refused(circuit_breaker) == "database_silent"

    def fail() -> None:
        raise FAILURE

    circuit_breaker.poll(fail)
    assert refused(circuit_breaker) == "database_silent"
    circuit_breaker.poll(lambda: None)
    with circuit_breaker.allow():
        pass
    assert [record.getMessage() for record in caplog.records] == [
        "the database fails: Exception: silent",
        "the database does not respond: failing requests fast until it recovers",
        "the database responds again",
    ]


def test_a_short_failure_says_what_is_wrong_each_time(
    circuit_breaker: DatabaseCircuitBreaker, clock: list[float]
) -> None:
    for _ in range(3):
        fail_after(0.5, circuit_breaker, clock)


def test_nobody_asks_while_it_is_open(circuit_breaker: DatabaseCircuitBreaker) -> None:
    circuit_breaker.poll(lambda: pytest.fail("asked"))
