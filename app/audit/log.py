"""The audit log on standard output, and diagnostics on standard error; one JSON object per line in production.

The audit log consists of events alone, at every level. Diagnostics are what libraries and we send to :mod:`logging`;
their level is a setting. Authlib logs whole tokens at DEBUG, so its level is never below WARNING.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from functools import cache, partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import orjson

from app.audit.events import AuditLinesLost, Event, RefusalCounted, RequestFacts, TokenIssued
from app.audit.streams import STDERR, STDOUT
from app.config.settings import Settings
from app.config.values import format_time
from app.errors import ServiceUnavailable
from app.reasons import RefusalReason
from app.types import Clock
from buffered_worker.stream import NonBlockingStream

if TYPE_CHECKING:
    # Imported when the first line is formatted: the import takes 0.1 s, and most commands log nothing.
    from structlog.typing import EventDict, Processor, WrappedLogger

log = logging.getLogger(__name__)

REQUIRED_WITHIN_SECONDS = 1.0
"""How long a token waits for its audit line, if lines are required."""

MOST_ALIKE, FLOOD_SECONDS = 200, 60.0
"""At most this many messages of one kind are logged in this time."""

MOST_KINDS = 1000

# Libraries that log tokens, secrets or values of statements at DEBUG; the last one is only noisy.
_NEVER_BELOW_WARNING = ("authlib", "sqlalchemy", "urllib3", "joserfc", "psycopg", "alembic.runtime.plugins")


def configure_logging(settings: Settings) -> None:
    """Send all logging of this process to standard error, as the settings say."""
    send_to_standard_error(settings.log_format, settings.log_level)


def send_to_standard_error(log_format: str, level: str) -> None:
    """Send all logging of this process to standard error."""
    handler = logging.StreamHandler(STDERR)
    handler.setFormatter(_Formatter(log_format, STDERR))
    handler.addFilter(FloodFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # gunicorn sets its logger's handler and level at its start and at each reload.
    server = logging.getLogger("gunicorn.error")
    server.handlers.clear()
    server.setLevel(logging.NOTSET)
    server.propagate = True
    for name in _NEVER_BELOW_WARNING:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)


class FloodFilter(logging.Filter):
    """Limits messages of level INFO, which callers can cause, to :data:`MOST_ALIKE` of one kind per minute.

    The first message of a later minute has the number that was left out.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._counted: dict[str, tuple[float, int]] = {}
        """When the minute began, and how many messages came, by the text before arguments are filled in."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether ``record`` is logged."""
        if record.levelno != logging.INFO:
            return True
        kind, now = str(record.msg), self._monotonic()
        with self._lock:
            began, count = self._counted.get(kind, (now, 0))
            left_out = 0
            if now >= began + FLOOD_SECONDS:
                began, count, left_out = now, 0, max(0, count - MOST_ALIKE)
            if len(self._counted) >= MOST_KINDS:
                self._counted.clear()
            self._counted[kind] = began, count + 1
        if left_out:
            record.msg = f"{record.getMessage()} ({left_out} more like this were not logged)"
            record.args = ()
        return count < MOST_ALIKE


class AuditLog:
    """Subscriber that writes each event as one line.

    :param writer: the stream.
    :param server: the name of this server, for lines in JSON.
    :param summarize: gets the events that have no line of their own.
    :param is_required: whether a token may be issued only if its line was written.
    """

    def __init__(  # noqa: PLR0913 - Each has a default.
        self,
        log_format: str,
        clock: Clock,
        writer: NonBlockingStream = STDOUT,
        *,
        server: str | None = None,
        is_required: bool = False,
        summarize: Callable[[RefusalCounted], None] = lambda _: None,
    ) -> None:
        self._summarize = summarize
        self._clock = clock
        self._writer = writer
        self._is_required = is_required
        self._was_stalled = False
        # On a developer's screen there is one server.
        self._server = server if log_format == "json" else None
        self._render: Callable[[dict[str, Any]], str] = _as_json
        if log_format == "console":
            self._render = lambda facts: str(_console(writer)(None, "", facts))
        writer.describe_loss = lambda lines: self._line(AuditLinesLost(lines=lines))

    def __call__(self, event: Event) -> None:
        """Write ``event``, or queue it while the log takes no lines.

        :raises ServiceUnavailable: the line of a token is required and cannot be written.
        """
        if isinstance(event, RefusalCounted):
            self._summarize(event)
            return
        is_needed = self._is_required and isinstance(event, TokenIssued)
        if is_needed and self._writer.is_stalled:
            raise ServiceUnavailable(RefusalReason.AUDIT_LOG_STALLED)
        number = self._writer.put(self._line(event))
        if is_needed and not self._writer.is_written(number, REQUIRED_WITHIN_SECONDS):
            raise ServiceUnavailable(RefusalReason.AUDIT_LOG_STALLED)

    @property
    def is_stalled(self) -> bool:
        """Whether a line has waited for long, or lines were lost."""
        return self._writer.is_stalled

    def poll(self) -> None:
        """Log once when the audit log takes no lines, and once when it does again."""
        was_stalled, self._was_stalled = self._was_stalled, self.is_stalled
        if self._was_stalled and not was_stalled:
            log.error("the audit log takes no lines (%s): lines are queued", self._writer.fault or "its reader is slow")
        elif was_stalled and not self._was_stalled:
            log.warning("the audit log takes lines again")

    def write_past(self, happened_at: datetime, name: str, facts: dict[str, Any]) -> None:
        """Write an event that a command has left in the outbox."""
        self._writer.put(self._rendered(happened_at, name, facts))

    def _line(self, event: Event) -> str:
        """Format ``event`` as a line: time and name first, empty fields left out."""
        kind: Any = type(event)
        names, values_of = _reader(kind)
        facts: dict[str, Any] = {}
        if names[0] == "request":
            request: RequestFacts = event.request  # type: ignore[union-attr]
            facts["request_id"] = request.request_id
            facts["source_address"] = request.source_address
            facts["duration_ms"] = round(request.duration_ms, 3)
            facts["trace_id"] = request.trace_id
        facts.update(zip(names, values_of(event), strict=True))
        facts.pop("request", None)
        return self._rendered(self._clock(), kind.__name__, facts)

    def _rendered(self, happened_at: datetime, name: str, facts: dict[str, Any]) -> str:
        time = happened_at.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
        fields: dict[str, Any] = {"time": f"{time}Z", "event": name}
        for fact, value in facts.items():
            if value is not None:
                fields[fact] = format_time(value) if isinstance(value, datetime) else value
        if self._server:
            fields["server"] = self._server
        return f"{self._render(fields)}\n"


@cache
def _reader(kind: Any) -> tuple[tuple[str, ...], Callable[[Event], tuple[Any, ...]]]:
    """Return the names of an event's fields, and a function that returns their values."""
    names = tuple(field.name for field in fields(kind))
    return names, attrgetter(*names)


class _Formatter(logging.Formatter):
    """Creates the real formatter at the first line."""

    def __init__(self, log_format: str, stream: NonBlockingStream) -> None:
        super().__init__()
        self._true: logging.Formatter | None = None
        self._make = partial(_formatter, log_format, stream)

    def format(self, record: logging.LogRecord) -> str:
        """Format ``record`` as a line."""
        self._true = self._true or self._make()
        return self._true.format(record)


def _formatter(log_format: str, stream: NonBlockingStream) -> logging.Formatter:
    import structlog  # noqa: PLC0415

    chain: list[Processor] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        _add_time,
    ]
    is_json = log_format == "json"
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=chain,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *([structlog.processors.format_exc_info] if is_json else []),
            _time_and_event_first,
            structlog.processors.JSONRenderer(serializer=_as_json) if is_json else _console(stream),
        ],
    )


@cache
def _console(stream: NonBlockingStream) -> "Processor":
    import structlog  # noqa: PLC0415

    plain = structlog.dev.plain_traceback
    return structlog.dev.ConsoleRenderer(
        colors=stream.isatty(), pad_event_to=12, exception_formatter=plain, timestamp_key="time"
    )


def _as_json(facts: dict[str, Any], **options: Any) -> str:
    try:
        return orjson.dumps(facts).decode("ascii")
    except (TypeError, UnicodeDecodeError):
        # Escape other characters than ASCII: a log must not control the reader's terminal.
        return json.dumps(facts, separators=(",", ":"), **options)


def _time_and_event_first(_logger: "WrappedLogger", _method: str, event: "EventDict") -> "EventDict":
    """Put first what a reader looks for first."""
    return {"time": event.pop("time"), "event": event.pop("event"), **event}


def _add_time(_logger: "WrappedLogger", _method: str, event: "EventDict") -> "EventDict":
    event["time"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return event
