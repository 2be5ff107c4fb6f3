"""The way of requests to the database, or to Redis: shut while it is silent, so that nobody waits again and again.

That those who wait do not hold up the others is left to ``worker``: it keeps a thread for what needs no database.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType

from sqlalchemy.exc import SQLAlchemyError

from app.blocking import blocking
from app.database.engine import describe, error_class
from app.errors import ServiceUnavailable

log = logging.getLogger(__name__)

SILENCE_SECONDS = 1.0
"""A failure that took longer was a database that does not answer; a shorter one says at once what is wrong."""

POLL_SECONDS = 1.0
"""How often it is tried whether a silent database answers again."""


Span = Callable[[str], AbstractContextManager[None] | None]
"""Of a part of a request, if there is one."""


class CircuitBreaker:
    """Lets requests to what is behind it, or refuses them.

    :cvar what: what that is, for the log.
    :cvar failures: how it fails.
    :param span: what the question to it happens within, where requests are traced.
    """

    what: str
    failures: type[Exception]

    def __init__(self, span: Span = lambda _: None) -> None:
        self.span = span
        self._is_open = False
        self._reported_fault: str | None = None
        self._lock = threading.Lock()

    def allow(self) -> "_Call":
        """Ask within.

        :raises ServiceUnavailable: it is silent.
        """
        return _Call(self)

    @contextmanager
    def allow_blocking(self) -> Iterator[None]:
        """Ask within, while others go on.

        :raises ServiceUnavailable: it is silent, or does not answer.
        """
        try:
            with self.allow(), blocking:
                yield
        except self.failures as error:
            raise ServiceUnavailable(f"{self.what}_{error_class(error)}") from error

    def poll(self, question: Callable[[], object]) -> None:
        """Open the gate if ``question`` is answered; nothing to do while it is open."""
        if not self._is_open:
            return
        try:
            question()
        except self.failures:
            return
        self._is_open = False
        self._report(None)

    def require_closed(self) -> None:
        """Refuse while it is silent."""
        if self._is_open:
            raise ServiceUnavailable(f"{self.what}_silent")

    def record_success(self) -> None:
        """Note that it has answered."""
        if self._reported_fault:
            self._report(None)

    def record_failure(self, error: Exception, seconds: float) -> None:
        """Note that it has failed, after so long."""
        self._report(describe(error))
        if seconds > SILENCE_SECONDS:
            self._trip()

    @property
    def is_failing(self) -> bool:
        """Whether the last answer was none."""
        return self._reported_fault is not None

    @property
    def _name(self) -> str:
        return "the database" if self.what == "database" else self.what

    def _report(self, fault: str | None) -> None:
        """Say what is wrong when that changes, not for each request."""
        with self._lock:
            before, self._reported_fault = self._reported_fault, fault
        if fault and fault != before:
            log.error("%s fails: %s", self._name, fault)
        elif before and not fault:
            log.warning("%s answers again", self._name)

    def _trip(self) -> None:
        with self._lock:
            was_shut, self._is_open = self._is_open, True
        if not was_shut:
            log.error("%s is silent: requests that need it are refused at once until it answers", self._name)


class DatabaseCircuitBreaker(CircuitBreaker):
    """The way to the database."""

    what = "database"
    failures = SQLAlchemyError


class _Call:
    """One question."""

    __slots__ = ("_began", "_circuit_breaker", "_span")

    def __init__(self, circuit_breaker: CircuitBreaker) -> None:
        self._circuit_breaker = circuit_breaker

    def __enter__(self) -> None:
        self._circuit_breaker.require_closed()
        self._began = time.monotonic()
        if span := self._circuit_breaker.span(self._circuit_breaker.what):
            span.__enter__()
        self._span = span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._span:
            self._span.__exit__(kind, error, trace)
        if error is None:
            self._circuit_breaker.record_success()
        elif isinstance(error, self._circuit_breaker.failures):
            self._circuit_breaker.record_failure(error, time.monotonic() - self._began)
