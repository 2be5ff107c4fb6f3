"""Two streams: the audit log on standard output, diagnostics on standard error; one JSON object a line in production.

The audit log is made of events alone and is always complete. Diagnostics are what libraries and we say through
:mod:`logging`; their level is a setting. Authlib logs whole tokens at DEBUG, so it never gets below WARNING.
"""

import json
import logging
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from app.contracts import Clock
from app.events import Event
from app.settings import Settings

# Libraries whose DEBUG lines hold tokens, secrets or the values of statements.
_NEVER_BELOW_WARNING = ("authlib", "sqlalchemy", "urllib3", "joserfc", "psycopg")


def configure_logging(settings: Settings) -> None:
    """Send everything that is logged in this process to standard error, in the format of the settings."""
    handler = logging.StreamHandler()
    handler.setFormatter(_formatter(settings.log_format, sys.stderr))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    # gunicorn gives its logger a handler and a level of its own before it loads the application.
    server = logging.getLogger("gunicorn.error")
    server.handlers.clear()
    server.setLevel(logging.NOTSET)
    server.propagate = True
    for name in _NEVER_BELOW_WARNING:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)


class AuditLog:
    """Subscriber that writes each event as one line.

    :param stream: standard output unless told; a test's own buffer.
    """

    def __init__(self, log_format: str, clock: Clock, stream: TextIO | None = None) -> None:
        self._clock = clock
        self._logger = structlog.wrap_logger(
            structlog.WriteLogger(stream or sys.stdout),
            processors=[_time_and_event_first, _renderer(log_format, stream or sys.stdout)],
            wrapper_class=structlog.BoundLogger,
        )

    def __call__(self, event: Event) -> None:
        """Write ``event``: its time and name first, what is empty left out."""
        facts = asdict(event)
        if request := facts.pop("request", None):
            facts = {**request, "duration_ms": round(request["duration_ms"], 3), **facts}
        told = {name: _plain(value) for name, value in facts.items() if value is not None}
        time = self._clock().astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        self._logger.msg(type(event).__name__, time=time, **told)


def _plain(value: object) -> object:
    return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if isinstance(value, datetime) else value


def _formatter(log_format: str, stream: TextIO) -> logging.Formatter:
    chain: list[Processor] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        _add_time,
    ]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=chain,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *([structlog.processors.format_exc_info] if log_format == "json" else []),
            _time_and_event_first,
            _renderer(log_format, stream),
        ],
    )


def _renderer(log_format: str, stream: TextIO) -> Processor:
    if log_format == "console":
        plain = structlog.dev.plain_traceback
        return structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), pad_event_to=12, exception_formatter=plain, timestamp_key="time"
        )
    return structlog.processors.JSONRenderer(serializer=partial(json.dumps, separators=(",", ":")))


def _time_and_event_first(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """What a person's eye looks for first."""
    return {"time": event.pop("time"), "event": event.pop("event"), **event}


def _add_time(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["time"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return event
