"""The snapshot: a file with known clients and keys. Workers start and issue with it while the database is away.

It is encrypted and authenticated (AES-256-GCM) with a key of ``TOKENHOUSE_ENCRYPTION_KEYS``, and bound to the issuer.
One worker of the machine writes it while the database answers. It is refused when it was changed, when it is older
than the newest one that this machine has written, and when the database last answered longer ago than
``TOKENHOUSE_OUTAGE_GRACE``.
"""

import json
import logging
import time
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy.engine import Engine

from app.clients.outage_memory import MOST_CLIENTS, ReadClients, Row, Rows, by_client
from app.clients.queries import most_used
from app.config.settings import Settings
from app.config.values import KEYRING_IN_DATABASE, format_time
from app.crypto.encryption import DecryptionError, Encrypter
from app.database.engine import reading_engine
from app.keyring.active import ActiveRing
from app.keyring.backends.file import write_private_file
from app.keyring.model import Ring
from app.keyring.serialization import dump_ring, load_ring
from app.services import Services
from app.shared_state import try_lock
from app.types import Clock

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""How often a worker checks whether it should write."""

WRITE_SECONDS = 5.0
"""How often a snapshot is written, unless that takes much time."""

_REST = 100
"""Wait 100 times as long as the last snapshot kept a processor busy before writing the next one."""

CLOCK_TOLERANCE = timedelta(seconds=60)

FORMAT = "tokenhouse-snapshot 1"
"""The first word of the file, and the version of what follows."""

_DATES = {"tokens_not_before", "disabled_at", "deleted_at", "expires_at", "revoked_at"}
_BYTES = {"digest", "encrypted"}


class SnapshotError(Exception):
    """The snapshot cannot be used: one line that says why."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a snapshot holds.

    :param number: grows with each snapshot of a machine.
    :param read_at: when the database was read.
    :param ring: the key ring, if it is in the database.
    """

    number: int
    read_at: datetime
    clients: Mapping[str, Rows]
    ring: bytes | None


class Snapshot:
    """The snapshot of this machine.

    :param path: its file. ``PATH.newest`` has the number of the newest one, and ``PATH.lock`` is held by its writer.
    """

    def __init__(self, path: Path, settings: Settings, engine: Engine, active: ActiveRing, clock: Clock) -> None:
        self._path = path
        self._newest = path.with_name(f"{path.name}.newest")
        self._issuer = settings.issuer
        self._grace = timedelta(seconds=settings.outage_grace)
        self._has_ring = settings.keyring == KEYRING_IN_DATABASE
        self._signing_alg = settings.signing_alg
        self._encrypter = Encrypter(settings.encryption_keys)
        self._reading = reading_engine(engine)
        self._active = active
        self._clock = clock
        self._lock: int | None = None
        self._not_before = 0.0
        self._fault: str | None = None

    def poll(self) -> None:
        """Write a snapshot when it is time, unless another worker of this machine does.

        :raises SQLAlchemyError: the database does not answer.
        :raises OSError: the file cannot be written.
        """
        began = time.monotonic()
        if began < self._not_before or not self._lead():
            return
        worked_before = time.thread_time()
        self.write()
        worked = time.thread_time() - worked_before
        self._not_before = began + max(WRITE_SECONDS, _REST * worked)

    def write(self) -> None:
        """Write a snapshot; see :meth:`poll`."""
        read_at = self._clock()
        with self._reading.connect() as connection:
            clients = by_client(connection.execute(most_used(MOST_CLIENTS)))
        # The ring that is in use, also if a changed one was rejected.
        ring = dump_ring(self._active()) if self._has_ring else None
        number = max(int(read_at.timestamp() * 1000), self._newest_number() + 1)
        content = {
            "number": number,
            "read_at": read_at.isoformat(),
            "clients": [[_encoded(row) for row in rows] for rows in clients.values()],
            "ring": ring.decode() if ring else None,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private_file(self._path, self._sealed(json.dumps(content).encode(), "the snapshot"))
        # Afterwards: a snapshot may be newer than the newest that is known, never older.
        write_private_file(self._newest, self._sealed(str(number).encode(), "the newest snapshot"))

    def load(self) -> Contents:
        """Read the snapshot.

        :raises SnapshotError: it cannot be used.
        """
        content = json.loads(self._opened(self._path, "the snapshot"))
        try:
            found = Contents(
                content["number"],
                datetime.fromisoformat(content["read_at"]),
                {rows[0]["client_id"]: [_decoded(row) for row in rows] for rows in content["clients"]},
                content["ring"].encode() if content["ring"] else None,
            )
        except (KeyError, TypeError):
            raise SnapshotError(f"{self._path} is of another version of Tokenhouse") from None
        now, read_at = self._clock(), format_time(found.read_at)
        if found.number < int(self._opened(self._newest, "the newest snapshot")):
            raise SnapshotError(f"{self._path} is older than the newest one that this machine has written")
        if now - found.read_at > self._grace:
            raise SnapshotError(f"{self._path} is of {read_at}, longer ago than TOKENHOUSE_OUTAGE_GRACE")
        if found.read_at - now > CLOCK_TOLERANCE:
            raise SnapshotError(f"{self._path} is of {read_at}, which is in the future: is the clock right?")
        return found

    def clients(self) -> ReadClients | None:
        """Return the clients of the snapshot; ``None`` if it cannot be used, which is logged."""
        found = self._load_or_log()
        age = (self._clock() - found.read_at).total_seconds() if found else 0.0
        return ReadClients(age, found.clients) if found else None

    def read_at(self) -> datetime | None:
        """Return when the database was read for the snapshot, however long ago; ``None`` if that cannot be known."""
        try:
            return datetime.fromtimestamp(int(self._opened(self._newest, "the newest snapshot")) / 1000, UTC)
        except SnapshotError:
            return None

    def ring(self) -> Ring | None:
        """Return the key ring of the snapshot; ``None`` if it has none or cannot be used, which is logged."""
        found = self._load_or_log()
        return load_ring(found.ring, self._signing_alg) if found and found.ring else None

    def _load_or_log(self) -> Contents | None:
        try:
            found = self.load()
        except SnapshotError as error:
            if str(error) != self._fault:
                log.error("the snapshot is not used: %s", error)  # noqa: TRY400 - It is no bug.
            self._fault = str(error)
            return None
        self._fault = None
        return found

    def _lead(self) -> bool:
        """Return whether this process writes; it does until it ends."""
        if self._lock is None:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = try_lock(self._path.with_name(f"{self._path.name}.lock"))
        return self._lock is not None

    def _newest_number(self) -> int:
        try:
            return int(self._opened(self._newest, "the newest snapshot"))
        except SnapshotError:
            return 0

    def _sealed(self, clear: bytes, what: str) -> bytes:
        key_id, encrypted = self._encrypter.encrypt(clear, bound_to=f"{what} of {self._issuer}")
        return f"{FORMAT} {key_id}\n".encode() + encrypted

    def _opened(self, path: Path, what: str) -> bytes:
        try:
            head, _, encrypted = path.read_bytes().partition(b"\n")
        except OSError as error:
            raise SnapshotError(f"{path} cannot be read: {error.strerror}") from None
        known, _, key_id = head.decode("ascii", "replace").rpartition(" ")
        if known != FORMAT:
            raise SnapshotError(f"{path} is no snapshot of this version of Tokenhouse")
        try:
            return self._encrypter.decrypt(key_id, encrypted, bound_to=f"{what} of {self._issuer}")
        except DecryptionError:
            raise SnapshotError(
                f"{path} was changed, is of another issuer, or its key has left TOKENHOUSE_ENCRYPTION_KEYS"
            ) from None


def open_snapshot(services: Services, engine: Engine) -> Snapshot | None:
    """Return the snapshot of the settings, if there is one. Nothing is read yet."""
    path = services.settings.snapshot
    return Snapshot(path, services.settings, engine, services.keys.active, services.clock) if path else None


def _encoded(row: Any) -> dict[str, Any]:
    members: dict[str, Any] = row._asdict()
    members |= {name: b64encode(members[name]).decode() for name in _BYTES if members[name] is not None}
    return members | {name: members[name].isoformat() for name in _DATES if members[name] is not None}


def _decoded(members: dict[str, Any]) -> Any:
    members |= {name: b64decode(members[name]) for name in _BYTES if members[name] is not None}
    members |= {name: datetime.fromisoformat(members[name]).astimezone(UTC) for name in _DATES if members[name]}
    return Row(**members)
