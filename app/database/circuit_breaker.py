"""Circuit breakers for the database and Redis: while one does not respond, requests that need it fail fast.

Keeping blocked requests from delaying others is left to ``buffered_worker``, which reserves a thread for views that
need no database.
"""

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from app.blocking import blocking
from app.database.engine import could_not_connect, error_class
from app.database.failure_log import FailureLog
from app.errors import ServiceUnavailable
from app.reasons import RefusalReason

log = logging.getLogger(__name__)

SILENCE_SECONDS = 1.0
"""A failure that took longer means that the service does not respond, and opens the circuit."""

POLL_SECONDS = 1.0
"""How often an open circuit is probed."""


READING, WRITING = "reading", "writing"
"""Kinds of operation. Each can fail while the other works: a full disk, a read-only server."""


class Spans(Protocol):
    """Makes trace spans."""

    def part(self, name: str) -> AbstractContextManager[None]:
        """Return a span within that of the current request."""
        ...


class Tracing(Protocol):
    """Makes trace spans while requests are traced."""

    @property
    def spans(self) -> Spans | None:
        """What makes them; ``None`` while requests are not traced."""


class _Untraced:
    spans = None


UNTRACED = _Untraced()


class CircuitBreaker(ABC):
    """Lets calls pass while closed, and refuses them while open.

    :cvar what: the name of the service, for the log and for traces.
    :cvar failure_reason: the reason of a refusal after a failed call.
    :cvar silence_reason: the reason of a refusal while the circuit is open.
    :cvar failures: the exceptions that count as failures.
    :param traced_by: makes the trace spans of calls.
    """

    what: str
    failure_reason: RefusalReason
    silence_reason: RefusalReason
    failures: type[Exception]

    def __init__(self, traced_by: Tracing = UNTRACED) -> None:
        self.traced_by = traced_by
        self._is_open = False
        self._failures = FailureLog(self._name)
        self._lock = threading.Lock()

    def allow(self, operation: str = READING) -> "_Call":
        """Make a call in this context.

        :param operation: :data:`READING` or :data:`WRITING`. A successful read does not show that writes work again.
        :raises ServiceUnavailable: the circuit is open.
        """
        return _Call(self, operation)

    @contextmanager
    def allow_blocking(self, operation: str = READING) -> Iterator[None]:
        """Make a call that may block in this context, while other threads run.

        :raises ServiceUnavailable: the circuit is open, or the call failed.
        """
        try:
            with self.allow(operation), blocking:
                yield
        except self.failures as error:
            raise ServiceUnavailable(self.failure_reason.caused_by(error_class(error))) from error

    def poll(self, question: Callable[[], object]) -> None:
        """Probe the service with ``question`` while the circuit is open; close it on success."""
        if not self._is_open:
            return
        try:
            question()
        except self.failures:
            return
        self._is_open = False
        self._failures.end()

    def require_closed(self) -> None:
        """Refuse while the circuit is open."""
        if self._is_open:
            raise ServiceUnavailable(self.silence_reason)

    def record_success(self, operation: str = READING) -> None:
        """Record a successful call."""
        if self._failures.kinds:
            self._failures.succeeded(operation)

    def record_failure(self, error: Exception, seconds: float, operation: str = READING) -> None:
        """Record a failed call and how long it took."""
        self._failures.failed(None if self.is_away(error) else operation, error)
        if seconds > SILENCE_SECONDS:
            self._trip()

    @abstractmethod
    def is_away(self, error: Exception) -> bool:
        """Return whether ``error`` means that the service could not be reached, so that every operation fails."""

    @property
    def is_failing(self) -> bool:
        """Whether the last call of any operation failed."""
        return self._failures.is_failing

    @property
    def _name(self) -> str:
        return "the database" if self.what == "database" else self.what

    def _trip(self) -> None:
        with self._lock:
            was_shut, self._is_open = self._is_open, True
        if not was_shut:
            log.error("%s does not respond: failing requests fast until it recovers", self._name)


class DatabaseCircuitBreaker(CircuitBreaker):
    """The circuit breaker of the database."""

    what = "database"
    failure_reason = RefusalReason.DATABASE
    silence_reason = RefusalReason.DATABASE_SILENT
    failures = SQLAlchemyError

    def is_away(self, error: Exception) -> bool:
        """See :meth:`CircuitBreaker.is_away`."""
        return could_not_connect(error)


class _Call:
    """One call."""

    __slots__ = ("_began", "_circuit_breaker", "_operation", "_span")

    def __init__(self, circuit_breaker: CircuitBreaker, operation: str) -> None:
        self._circuit_breaker = circuit_breaker
        self._operation = operation

    def __enter__(self) -> None:
        self._circuit_breaker.require_closed()
        self._began = time.monotonic()
        spans = self._circuit_breaker.traced_by.spans
        self._span = spans.part(self._circuit_breaker.what) if spans else None
        if self._span:
            self._span.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._span:
            self._span.__exit__(kind, error, trace)
        if error is None:
            self._circuit_breaker.record_success(self._operation)
        elif isinstance(error, self._circuit_breaker.failures):
            self._circuit_breaker.record_failure(error, time.monotonic() - self._began, self._operation)
