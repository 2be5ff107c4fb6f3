"""Builds the signing keys of an application: called once, by ``create_app``."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sqlalchemy.engine import Engine

from app.audit.events import Events
from app.config.settings import Settings
from app.keyring.active import CurrentRing
from app.keyring.backends.base import KeyringHome
from app.keyring.backends.registry import open_home
from app.keyring.service import Keys, rules_for
from app.keyring.usage_counters import KeyUses
from app.types import Clock


@dataclass(frozen=True, slots=True)
class KeyServices:
    """The parts of key management.

    :param active: the ring that this process signs and publishes with.
    :param manager: changes the ring.
    :param usage: counts signed tokens by key.
    :param open_backend: opens the ring at a location, a value of ``TOKENHOUSE_KEYRING``.
    """

    active: CurrentRing
    manager: Keys
    usage: KeyUses
    open_backend: Callable[[Path | str], KeyringHome]


def build(settings: Settings, engine: Engine, events: Events, clock: Clock) -> KeyServices:
    """Build key management. The ring is not read yet, so that a command can make it."""
    open_backend = partial(open_home, settings=settings, engine=engine)
    backend = open_backend(settings.keyring)
    manager = Keys(backend, rules_for(settings, backend), clock)
    usage = KeyUses(engine, clock)
    events.subscribe(usage)
    return KeyServices(CurrentRing(backend, manager.rules, events, clock), manager, usage, open_backend)
