"""Jobs beside the requests: from the first request on, again after failures, a last time at the end."""

import logging
import os
import threading
from typing import Any

import pytest
from flask import Flask
from sqlalchemy.exc import OperationalError

from app.operations.background_jobs import PeriodicTask, Scheduler

WAIT_SECONDS = 10


class Work:
    """A job that waits to be counted."""

    def __init__(self, failures: int = 0) -> None:
        self.runs = 0
        self._failures = failures
        self._ran = threading.Condition()

    def __call__(self) -> None:
        with self._ran:
            self.runs += 1
            self._ran.notify_all()
        if self.runs <= self._failures:
            raise RuntimeError(f"failure {self.runs}")

    def wait_for(self, runs: int) -> None:
        with self._ran:
            assert self._ran.wait_for(lambda: self.runs >= runs, WAIT_SECONDS)


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == name]


def test_jobs_begin_with_the_first_request_and_once() -> None:
    work = Work()
    scheduler = Scheduler(PeriodicTask("count", 0.01, work))
    app = Flask("test")
    scheduler.install(app)
    assert threads("count") == []
    caller = app.test_client()
    for _ in range(3):
        caller.get("/")
    work.wait_for(2)
    assert len(threads("count")) == 1
    scheduler.stop()
    assert threads("count") == []


def test_a_command_line_starts_nothing() -> None:
    app = Flask("test")
    Scheduler(PeriodicTask("count at the command line", 0.01, Work())).install(app)
    with app.app_context():
        assert threads("count at the command line") == []


def test_a_job_that_fails_comes_again_and_is_told_once_in_a_row(caplog: pytest.LogCaptureFixture) -> None:
    work = Work(failures=3)
    scheduler = Scheduler(PeriodicTask("the count", 0.01, work))
    with caplog.at_level(logging.ERROR):
        scheduler.start()
        work.wait_for(5)
        scheduler.stop()
    assert [record.getMessage() for record in caplog.records] == ["the count failed; retrying in 0.01 s"]


def test_the_end_runs_what_wants_it_a_last_time() -> None:
    last, other = Work(), Work()
    scheduler = Scheduler(PeriodicTask("last", 3600, last, at_exit=True), PeriodicTask("other", 3600, other))
    scheduler.start()
    scheduler.stop()
    assert (last.runs, other.runs) == (1, 0)
    scheduler.stop()
    assert last.runs == 1


def test_what_never_began_has_no_end() -> None:
    work = Work()
    Scheduler(PeriodicTask("last", 3600, work, at_exit=True)).stop()
    assert work.runs == 0


def test_a_forked_process_starts_jobs_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work()
    scheduler = Scheduler(PeriodicTask("in each process", 3600, work, at_exit=True))
    scheduler.start()
    here: Any = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: here + 1)
    scheduler.stop()
    assert work.runs == 0
    scheduler.start()
    assert len(threads("in each process")) == 2
    scheduler.stop()
    assert work.runs == 1


def test_a_database_that_does_not_answer_is_told_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    failed = threading.Event()

    def ask() -> None:
        failed.set()
        raise OperationalError("SELECT 1", {}, Exception("no answer"))

    scheduler = Scheduler(PeriodicTask("the question", 0.01, ask))
    scheduler.start()
    assert failed.wait(WAIT_SECONDS)
    scheduler.stop()
    (record,) = caplog.records
    assert record.getMessage() == "the question failed; retrying in 0.01 s: Exception: no answer"
    assert record.exc_info is None
