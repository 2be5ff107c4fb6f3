"""Builds the audit log of an application: called once, by ``create_app``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Engine

from app.audit.events import Events
from app.audit.log import AuditLog
from app.audit.outbox import Outbox
from app.audit.summaries import RefusalSummaries
from app.config.settings import Settings
from app.types import Clock


@dataclass(frozen=True, slots=True)
class AuditServices:
    """The parts of the audit log.

    :param events: where events are emitted; the log is the first subscriber.
    :param summaries: summarizes refusals that are too many for a line each.
    :param outbox: takes the events of commands, for the log of a server.
    """

    events: Events
    log: AuditLog
    summaries: RefusalSummaries
    outbox: Outbox


def build(
    settings: Settings, engine: Engine, clock: Clock, *, timed: Callable[[str, Callable[..., Any]], Callable[..., Any]]
) -> AuditServices:
    """Build the audit log.

    :param timed: records how long a line takes.
    """
    events = Events()
    summaries = RefusalSummaries(events, clock)
    audit_log = AuditLog(
        settings.log_format,
        clock,
        server=settings.server_name,
        is_required=settings.audit_log_required,
        summarize=summaries.add,
    )
    events.subscribe(timed("log", audit_log))
    return AuditServices(events, audit_log, summaries, Outbox(engine, clock))
