"""The way of requests to the database: so few at once that a thread is left, and shut while it is silent.

A worker has one thread more than places here, so ``/livez``, the JWKS and the metadata answer whatever the database
does. Who finds no place, or a database that has just been silent for long, is refused at once.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError

from app.errors import ServiceUnavailable

log = logging.getLogger(__name__)

PLACES = 7
"""Requests of one worker that may wait for the database at once; ``threads`` of ``config/gunicorn.py`` is one more."""

PATIENCE_SECONDS = 0.05
"""How long the one thread that is left waits for a place, before it says that there is none."""

SILENCE_SECONDS = 1.0
"""A failure that took longer was a database that does not answer; a shorter one says at once what is wrong."""

LOOK_SECONDS = 1.0
"""How often it is tried whether a silent database answers again."""


class DatabaseGate:
    """Lets requests to the database, or refuses them."""

    def __init__(self, places: int = PLACES) -> None:
        self._places = places
        self._inside = 0
        self._is_crowded = False
        self._is_shut = False
        self._changed = threading.Condition()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Hold a place.

        :raises ServiceUnavailable: there is none, or the database is silent.
        """
        self._enter()
        began = time.monotonic()
        try:
            yield
        except SQLAlchemyError:
            if time.monotonic() - began > SILENCE_SECONDS:
                self._shut()
            raise
        finally:
            self._leave()

    def look(self, question: Callable[[], object]) -> None:
        """Open the gate if ``question`` is answered; nothing to do while it is open."""
        if not self._is_shut:
            return
        try:
            question()
        except SQLAlchemyError:
            return
        self._is_shut = False
        log.warning("the database answers again")

    def _enter(self) -> None:
        with self._changed:
            if self._is_shut:
                raise ServiceUnavailable("database_silent")
            if self._inside >= self._places:
                if not self._is_crowded:
                    # Once: a second one would wait as long, and whoever asks for no database waits behind both.
                    self._is_crowded = not self._changed.wait_for(self._has_place, PATIENCE_SECONDS)
                if self._is_crowded:
                    raise ServiceUnavailable("database_crowded")
            self._inside += 1

    def _has_place(self) -> bool:
        return self._inside < self._places

    def _leave(self) -> None:
        with self._changed:
            self._inside -= 1
            self._is_crowded = False
            self._changed.notify()

    def _shut(self) -> None:
        with self._changed:
            was_shut, self._is_shut = self._is_shut, True
        if not was_shut:
            log.error("the database is silent: requests that need it are refused at once until it answers")
