"""Builds the signing keys of an application: called once, by ``create_app``."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy.engine import Engine

from app.audit.events import Events
from app.config.settings import Settings
from app.keyring.active import ActiveRing
from app.keyring.backends import BACKENDS
from app.keyring.backends.base import KeyringBackend
from app.keyring.service import KeyringManager, rules_for
from app.keyring.usage_counters import KeyUsageCounters
from app.types import Clock


@dataclass(frozen=True, slots=True)
class KeyServices:
    """The parts of key management.

    :param active: the ring that this process signs and publishes with.
    :param manager: changes the ring.
    :param usage: counts signed tokens by key.
    :param open_backend: opens the ring at a location, a value of ``TOKENHOUSE_KEYRING``.
    """

    active: ActiveRing
    manager: KeyringManager
    usage: KeyUsageCounters
    open_backend: Callable[[Path | str], KeyringBackend]


def open_backend(location: Path | str, settings: Settings, engine: Engine) -> KeyringBackend:
    """Open the ring at ``location``, a value of ``TOKENHOUSE_KEYRING``. Nothing is read yet."""
    backend = next(backend for backend in BACKENDS if backend.accepts(location))
    return backend.open(location, settings, engine)


def build(settings: Settings, engine: Engine, events: Events, clock: Clock) -> KeyServices:
    """Build key management. The ring is not read yet, so that a command can create it."""
    open_at = partial(open_backend, settings=settings, engine=engine)
    backend = open_at(settings.keyring)
    manager = KeyringManager(backend, rules_for(settings, backend), clock)
    usage = KeyUsageCounters(engine, clock)
    events.subscribe(usage)
    return KeyServices(ActiveRing(backend, manager.rules, events, clock), manager, usage, open_at)
