"""What a worker does beside its requests: jobs that come again and again, each in a thread of its own.

The threads start when a worker does (``serving``), elsewhere with the first request, and in a command line never. A job
that fails is logged and comes again; at the process's end every job that wants it runs a last time.
"""

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from flask import Flask
from sqlalchemy.exc import SQLAlchemyError

from app.database.engine import describe

log = logging.getLogger(__name__)

STOP_SECONDS = 5.0
"""How long the end of a process waits for a job that is running."""


@dataclass(frozen=True, slots=True)
class PeriodicTask:
    """Something that is done every ``seconds``.

    :param at_start: whether it runs at once, and not only after ``seconds``.
    :param at_exit: whether it runs a last time when the process ends.
    :param on_the_second: whether it runs when the clock's seconds are a multiple of ``seconds``, so that all processes
        of a machine do it in the same moment.
    """

    name: str
    seconds: float
    run: Callable[[], None]
    at_start: bool = False
    at_exit: bool = False
    on_the_second: bool = False


class Scheduler:
    """Runs jobs in the process that serves."""

    def __init__(self, *tasks: PeriodicTask) -> None:
        self._tasks = tasks
        self._lock = threading.Lock()
        self._pid: int | None = None
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def add(self, task: PeriodicTask) -> None:
        """A further job, before they start."""
        self._tasks += (task,)

    def install(self, app: Flask) -> None:
        """Start with the first request."""
        app.extensions["scheduler"] = self
        app.before_request(self.start)

    def start(self) -> None:
        """Start the jobs, unless they run in this process."""
        if self._pid == os.getpid():
            return
        with self._lock:
            if self._pid == os.getpid():
                return
            self._stopping = threading.Event()
            self._threads = [
                threading.Thread(target=self._repeat, args=(task,), name=task.name, daemon=True) for task in self._tasks
            ]
            for thread in self._threads:
                thread.start()
            self._pid = os.getpid()
            atexit.register(self.stop)

    def stop(self) -> None:
        """End the threads, then run a last time what wants it. Twice is once."""
        if self._pid != os.getpid():
            return
        self._pid = None
        self._stopping.set()
        for thread in self._threads:
            thread.join(STOP_SECONDS)
        for task in self._tasks:
            if task.at_exit:
                _run_once(task)

    def _repeat(self, task: PeriodicTask) -> None:
        went_well = _run_once(task) if task.at_start else True
        while not self._stopping.wait(task.seconds - (time.time() % task.seconds if task.on_the_second else 0)):
            went_well = _run_once(task, is_repeated=not went_well)


def _run_once(task: PeriodicTask, *, is_repeated: bool = False) -> bool:
    """Run ``job``. Of several failures in a row only the first is told: an outage would fill the log."""
    try:
        task.run()
    except SQLAlchemyError as error:
        if not is_repeated:
            log.error("%s failed, and comes again: %s", task.name, describe(error))  # noqa: TRY400 - It says all.
        return False
    except Exception:
        if not is_repeated:
            log.exception("%s failed, and comes again", task.name)
        return False
    return True
