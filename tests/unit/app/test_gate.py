"""The gate to the database: a thread is always left, silence is answered at once, and it opens again."""

import threading

import pytest
from sqlalchemy.exc import OperationalError

from app import gate as room
from app.errors import ServiceUnavailable
from app.gate import DatabaseGate

WAIT_SECONDS = 10
FAILURE = OperationalError("SELECT 1", {}, Exception("silent"))


@pytest.fixture
def gate() -> DatabaseGate:
    return DatabaseGate(places=2)


class Visitor(threading.Thread):
    """Somebody who is inside until told to leave."""

    def __init__(self, gate: DatabaseGate) -> None:
        super().__init__(daemon=True)
        self._gate = gate
        self._may_leave = threading.Event()
        self._came_in = threading.Event()
        self.start()
        assert self._came_in.wait(WAIT_SECONDS)

    def run(self) -> None:
        with self._gate.entered():
            self._came_in.set()
            assert self._may_leave.wait(WAIT_SECONDS)

    def leave(self) -> None:
        self._may_leave.set()
        self.join(WAIT_SECONDS)


def refused(gate: DatabaseGate) -> str:
    with pytest.raises(ServiceUnavailable) as caught, gate.entered():
        pass
    return caught.value.reason


def test_who_finds_no_place_is_refused_and_the_next_one_too_without_waiting(
    gate: DatabaseGate, monkeypatch: pytest.MonkeyPatch
) -> None:
    visitors = [Visitor(gate), Visitor(gate)]
    assert refused(gate) == "database_crowded"
    monkeypatch.setattr(room, "PATIENCE_SECONDS", None)
    assert refused(gate) == "database_crowded"
    visitors[0].leave()
    with gate.entered():
        pass
    visitors[1].leave()


def test_who_waits_gets_the_place_that_becomes_free(gate: DatabaseGate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "PATIENCE_SECONDS", WAIT_SECONDS)
    first, second = Visitor(gate), Visitor(gate)
    threading.Timer(0.05, first.leave).start()
    with gate.entered():
        pass
    second.leave()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that pass when they are told to."""
    now = [0.0]
    monkeypatch.setattr(room.time, "monotonic", lambda: now[0])
    return now


def fail_after(seconds: float, gate: DatabaseGate, clock: list[float]) -> None:
    def ask() -> None:
        with gate.entered():
            clock[0] += seconds
            raise FAILURE

    with pytest.raises(OperationalError):
        ask()


def test_a_long_failure_shuts_it_and_an_answer_opens_it(
    gate: DatabaseGate, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    fail_after(1.5, gate, clock)
    assert refused(gate) == "database_silent"

    def fail() -> None:
        raise FAILURE

    gate.look(fail)
    assert refused(gate) == "database_silent"
    gate.look(lambda: None)
    with gate.entered():
        pass
    assert [record.getMessage() for record in caplog.records] == [
        "the database is silent: requests that need it are refused at once until it answers",
        "the database answers again",
    ]


def test_a_short_failure_says_what_is_wrong_each_time(gate: DatabaseGate, clock: list[float]) -> None:
    for _ in range(3):
        fail_after(0.5, gate, clock)


def test_nobody_asks_while_it_is_open(gate: DatabaseGate) -> None:
    gate.look(lambda: pytest.fail("asked"))
