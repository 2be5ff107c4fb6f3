"""What the servers of a database record about themselves: who runs, since when, with which keys and settings.

Only fingerprints are stored. Those of peppers and encryption keys are keyed with the value itself, and passwords are
left out of the others: the database is no place to guess them from.
"""

import hashlib
import hmac
import json
import logging
import os
import secrets
import socket
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from sqlalchemy import delete, select, update
from sqlalchemy.engine import Connection, Engine, make_url

from app.config.settings import PREFIX, Settings
from app.config.values import IdentifiedKey, format_time
from app.database.engine import dialect_insert, reading_engine, write
from app.database.models import KeyFingerprintRow, ServerRow
from app.keyring.active import ActiveRing
from app.keyring.model import Ring
from app.keyring.serialization import to_entry
from app.services import installed_version
from app.shared_state import shared_state
from app.types import Clock

POLL_SECONDS = 30.0
"""How often a worker checks whether its server should be recorded; that is done about once a minute."""

RUNNING_WITHIN = timedelta(minutes=4)
"""A server that was recorded longer ago has ended, or cannot reach the database."""

FORGOTTEN_AFTER = timedelta(days=7)

PEPPER, ENCRYPTION_KEY = "pepper", "encryption_key"
KEY_KINDS = {PEPPER: "secret_peppers", ENCRYPTION_KEY: "encryption_keys"}
"""The kinds of keys with an id, and the settings that have them."""

OF_ONE_MACHINE = frozenset(
    {"server_name", "metrics_address", "snapshot", "log_format", "log_level", "traces", "config"}
)
"""Settings that may differ between servers."""

_TOLERANCE = timedelta(minutes=5)
"""Servers record themselves about once a minute."""

_CHARACTERS = 16

log = logging.getLogger(__name__)


class ServerRegistry:
    """Records this server, and reads who else runs.

    :param active: the key ring that this process uses.
    """

    def __init__(self, settings: Settings, engine: Engine, active: ActiveRing, clock: Clock) -> None:
        self._settings = settings
        self._engine = engine
        self._active = active
        self._clock = clock
        # Of this process alone, unless gunicorn's master has made the one of all its workers.
        self._id, self._started_at, self._recorded_at = secrets.token_hex(16), clock(), 0.0
        self.seen_by_snapshot: Callable[[], datetime | None] = lambda: None
        """Returns when the database was last read for the snapshot of this machine."""

    def poll(self) -> None:
        """Record this server, unless another of its workers has done so within a minute.

        :raises SQLAlchemyError: the database takes no writes.
        """
        shared = shared_state()
        if shared is None or shared.claim("this server was recorded"):
            self.record()

    def record(self) -> None:
        """Record this server, and the fingerprints of keys whose ids are new."""
        shared, now = shared_state(), self._clock()
        values = {
            "server_id": self.id,
            **self._place(),
            "version": installed_version(),
            "started_at": shared.started_at if shared else self._started_at,
            "seen_at": now,
            "ring": fingerprint_of_ring(self._active()),
            "settings": fingerprints_of(self._settings),
            "went_back_to": self._find_older_database(shared.recorded_at if shared else self._recorded_at),
        }
        write(self._engine, lambda connection: self._write(connection, values))
        self._recorded_at = now.timestamp()
        if shared:
            shared.recorded_at = self._recorded_at

    def mark_checked(self) -> None:
        """Record that the database was compared with the audit log.

        :raises SQLAlchemyError: the database takes no writes.
        """
        checked = update(ServerRow).values(went_back_to=None, checked_at=self._clock())
        write(self._engine, lambda connection: connection.execute(checked))

    def _place(self) -> dict[str, str]:
        """Return what a server has in common with the one that ran here before."""
        host, port = socket.gethostname()[:255], os.environ.get("PORT", "")[:16]
        return {"name": self._settings.server_name, "host": host, "port": port}

    def _find_older_database(self, recorded_at: float) -> datetime | None:
        """Return the time of the database's newest entry, if any server has seen a later state; log it once.

        :param recorded_at: when this server last recorded itself, in seconds since 1970; zero if it has not.
        """
        rows, place = self.servers(), tuple(self._place().values())
        known: datetime | None = next((row.went_back_to for row in rows if row.went_back_to), None)
        if known:
            return known
        # Other servers may have recorded themselves since the restore; the one that ran here before has not.
        own = [row for row in rows if row.server_id == self.id or (row.name, row.host, row.port) == place]
        newest: datetime | None = max((row.checked_at or row.seen_at for row in own or rows), default=None)
        seen = datetime.fromtimestamp(recorded_at, UTC) if recorded_at else self.seen_by_snapshot()
        if newest is None or seen is None or newest >= seen - _TOLERANCE:
            return None
        log.error(
            "the database is of %s, and this server has seen it at %s: was a backup restored? `flask restore-check` "
            "does again what it has undone",
            format_time(newest),
            format_time(seen),
        )
        return newest

    @property
    def id(self) -> str:
        """The id of this server: a gunicorn master and its workers."""
        shared = shared_state()
        return shared.server_id if shared else self._id

    def _write(self, connection: Connection, values: Mapping[str, Any]) -> None:
        row = dialect_insert(self._engine, ServerRow).values(**values)
        connection.execute(row.on_conflict_do_update(index_elements=["server_id"], set_=values))
        same = [getattr(ServerRow, name) == value for name, value in self._place().items()]
        # The server that ran here before, and those that have long ended.
        connection.execute(delete(ServerRow).where(*same, ServerRow.started_at < values["started_at"]))
        connection.execute(delete(ServerRow).where(ServerRow.seen_at < values["seen_at"] - FORGOTTEN_AFTER))
        for kind, setting in KEY_KINDS.items():
            for key in getattr(self._settings, setting):
                known = dialect_insert(self._engine, KeyFingerprintRow)
                found = known.values(kind=kind, key_id=key.id, fingerprint=fingerprint_of_key(kind, key))
                connection.execute(found.on_conflict_do_nothing(index_elements=["kind", "key_id"]))

    def servers(self) -> Sequence[Any]:
        """Return the rows of all servers that are not forgotten, by name.

        :raises SQLAlchemyError: the database does not answer.
        """
        with reading_engine(self._engine).connect() as connection:
            return connection.execute(select(ServerRow.__table__).order_by(ServerRow.name, ServerRow.started_at)).all()

    def known_keys(self) -> Mapping[tuple[str, str], str]:
        """Return the recorded fingerprints, by kind and id.

        :raises SQLAlchemyError: the database does not answer.
        """
        with reading_engine(self._engine).connect() as connection:
            rows = connection.execute(select(KeyFingerprintRow.__table__)).all()
        return {(row.kind, row.key_id): row.fingerprint for row in rows}


def is_running(row: Any, now: datetime) -> bool:
    """Return whether a server was recorded lately."""
    return bool(row.seen_at > now - RUNNING_WITHIN)


def differences(row: Any, settings: Settings) -> list[str]:
    """Return the names of the settings that differ between a server and ``settings``, and should not."""
    own, theirs = fingerprints_of(settings), row.settings
    # A setting that one of two versions does not know differs from nothing.
    return sorted(name for name in own.keys() & theirs.keys() if own[name] != theirs[name])


def fingerprints_of(settings: Settings) -> dict[str, str]:
    """Return a fingerprint of each setting that servers share, by the name of its variable."""
    found = {}
    for field in type(settings).model_fields:
        if field not in OF_ONE_MACHINE:
            value = getattr(settings, field)
            kind = next((kind for kind, name in KEY_KINDS.items() if name == field), None)
            shown = [f"{key.id}:{fingerprint_of_key(kind, key)}" for key in value] if kind else _comparable(value)
            found[f"{PREFIX}{field.upper()}"] = _short(json.dumps(shown, default=str).encode())
    return found


def fingerprint_of_key(kind: str, key: IdentifiedKey) -> str:
    """Return the fingerprint of a pepper or an encryption key."""
    name = f"tokenhouse fingerprint of the {kind} {key.id}".encode()
    return hmac.digest(key.value.get_secret_value().encode(), name, hashlib.sha256).hex()[:_CHARACTERS]


def fingerprint_of_ring(ring: Ring) -> str:
    """Return a fingerprint of the keys and their times."""
    entries = [{**to_entry(key), "jwks_max_age": None, "jwk": key.public_jwk} for key in ring.keys]
    return _short(
        json.dumps(sorted(entries, key=lambda entry: str(entry["kid"])), default=str, sort_keys=True).encode()
    )


def _comparable(value: object) -> object:
    """Return what two machines have in common: of a URL the server, of a secret whether it is set, of a ring where."""
    if isinstance(value, Path):
        return "file"
    if not isinstance(value, SecretStr):
        return value
    secret = value.get_secret_value()
    if "://" not in secret:
        return bool(secret)
    url = make_url(secret)
    return [url.get_backend_name(), url.host, url.port, url.database]


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_CHARACTERS]
