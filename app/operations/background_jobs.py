"""Periodic tasks beside the requests, each in its own thread.

The threads start with the worker (``gunicorn_hooks``) or, with another server, with the first request; never in a
command. A failed task is logged and runs again. Some tasks run a last time when the process ends.
"""

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flask import Flask
from sqlalchemy.exc import SQLAlchemyError

from app.database.engine import describe

log = logging.getLogger(__name__)

STOP_SECONDS = 5.0
"""How long the end of a process waits for a running task."""


@dataclass(frozen=True, slots=True)
class PeriodicTask:
    """Something to do every ``seconds``.

    :param name: for the log, as the subject of "failed".
    :param at_start: whether it also runs at once.
    :param at_exit: whether it also runs when the process ends.
    :param on_the_second: whether it runs when the clock's seconds are a multiple of ``seconds``, so that all
        processes of a machine run it at the same moment.
    """

    name: str
    seconds: float
    run: Callable[[], None]
    at_start: bool = False
    at_exit: bool = False
    on_the_second: bool = False


class Scheduler:
    """Runs periodic tasks in a serving process."""

    def __init__(self, *tasks: PeriodicTask) -> None:
        self._tasks = tasks
        self._lock = threading.Lock()
        self._pid: int | None = None
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def add(self, task: PeriodicTask) -> None:
        """Add a task, before the scheduler starts."""
        self._tasks += (task,)

    def install(self, app: Flask) -> None:
        """Start with the first request. Later requests do not pass through here."""
        app.extensions["scheduler"] = self
        serve = app.wsgi_app

        def start_and_serve(environ: Any, start_response: Any) -> Any:
            self.start()
            if app.wsgi_app is start_and_serve:
                app.wsgi_app = serve  # type: ignore[method-assign]
            return serve(environ, start_response)

        app.wsgi_app = start_and_serve  # type: ignore[method-assign]  # As Flask documents it.

    def start(self) -> None:
        """Start the tasks, unless they run in this process already."""
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
        """Stop the threads, then run the tasks that want a last run. Stopping twice changes nothing."""
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
    """Run ``task`` and return whether it succeeded. Of several failures in a row only the first is logged."""
    try:
        task.run()
    except SQLAlchemyError as error:
        if not is_repeated:
            fault = describe(error)
            log.error("%s failed; retrying in %g s: %s", task.name, task.seconds, fault)  # noqa: TRY400 - No traceback.
        return False
    except Exception:
        if not is_repeated:
            log.exception("%s failed; retrying in %g s", task.name, task.seconds)
        return False
    return True
