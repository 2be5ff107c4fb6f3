"""A key ring in the database, for several machines: private keys encrypted with ``TOKENHOUSE_ENCRYPTION_KEYS``.

One row per key, and one with a version that workers poll. Each write replaces all rows in one transaction and
encrypts them again, so that a new encryption key takes over with the next change.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from app.config.settings import Settings
from app.config.values import KEYRING_IN_DATABASE
from app.crypto.algorithms import PrivateKey
from app.crypto.encryption import DecryptionError, Encrypter
from app.database.engine import error_class, is_stale_connection, reading_engine, writing_engine
from app.database.models import KeyRingRow, SigningKeyRow
from app.errors import ManagementError, StartError, Unreachable
from app.keyring.backends.base import Change
from app.keyring.model import Ring, SigningKey
from app.keyring.serialization import parse_entry, parse_pem, to_entry, to_pem

_THE_ONE = 1
_MIGRATE = "is TOKENHOUSE_DATABASE_URL right, has `flask db upgrade` run?"

# Serializes writers on PostgreSQL, for the first row too. Any number that nothing else in the database uses.
_WRITING_LOCK = 0x6B657972696E67

_VERSION = select(KeyRingRow.version).where(KeyRingRow.ring_id == _THE_ONE)
# One statement, so that keys and time are of the same moment.
_KEYS = (
    select(*SigningKeyRow.__table__.columns, KeyRingRow.written_at)
    .select_from(SigningKeyRow)
    .outerjoin(KeyRingRow, KeyRingRow.ring_id == _THE_ONE)
    .order_by(SigningKeyRow.signs_from, SigningKeyRow.kid)
)


class DatabaseKeyring:
    """The key ring of several machines."""

    name = "the key ring in the database"
    is_shared = True
    propagation_seconds = 5
    """Workers poll every second; the rest is for a slow database."""

    def __init__(self, engine: Engine, encrypter: Encrypter, *, signing_alg: str = "RS256") -> None:
        self.signing_alg = signing_alg
        self._write_engine = writing_engine(engine)
        self._reading = reading_engine(engine)
        self._encrypter = encrypter
        self._parsed: dict[bytes, PrivateKey] = {}

    @staticmethod
    def accepts(location: Path | str) -> bool:
        """Return whether ``location`` is ``database``."""
        return location == KEYRING_IN_DATABASE

    @classmethod
    def open(cls, _location: Path | str, settings: Settings, engine: Engine) -> "DatabaseKeyring":
        """Open the ring in the database. Nothing is read yet."""
        return cls(engine, Encrypter(settings.encryption_keys), signing_alg=settings.signing_alg)

    def version(self) -> object:
        """Return the number of the last write; ``None`` before the first.

        :raises StartError: the database does not answer.
        """
        version: object = self._ask(lambda connection: connection.execute(_VERSION).scalar())
        return version

    def read(self) -> Ring:
        """Decrypt and parse the ring.

        :raises StartError: one line that says what is wrong.
        """
        ring: Ring = self._ask(self._read)
        if not ring.keys:
            raise StartError(f"{self.name} has no keys: `flask keys generate` makes one")
        return ring

    def is_empty(self) -> bool:
        """Return whether no key exists yet."""
        empty: bool = self._ask(lambda asked: asked.execute(select(SigningKeyRow.kid).limit(1)).first() is None)
        return empty

    def leftovers(self) -> list[str]:
        """Return the names of the tables."""
        return [f"the rows of the table {table.__tablename__}" for table in (SigningKeyRow, KeyRingRow)]

    def change(self, change: Change) -> Ring:
        """Write what ``change`` makes of the ring, in one transaction.

        :raises ManagementError: it cannot be written; the ring is unchanged.
        """
        try:
            with self._writing() as connection:
                before = self._read(connection)
                after = change(before)
                if after != before:
                    self._write(connection, after)
                return after
        except (SQLAlchemyError, DecryptionError) as error:
            cause = str(error) if isinstance(error, DecryptionError) else f"{error_class(error)}: {_MIGRATE}"
            raise ManagementError(f"{self.name} cannot be written, and is as it was: {cause}") from None

    def _ask(self, question: Callable[[Connection], Any]) -> Any:
        try:
            try:
                with self._reading.connect() as connection:
                    return question(connection)
            except DBAPIError as error:
                if not is_stale_connection(error):
                    raise
                with self._reading.connect() as connection:
                    return question(connection)
        except SQLAlchemyError as error:
            raise Unreachable(f"{self.name} cannot be read ({error_class(error)}): {_MIGRATE}") from None

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._write_engine.begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _WRITING_LOCK})
            yield connection

    def _read(self, connection: Connection) -> Ring:
        rows = [dict(row) for row in connection.execute(_KEYS).mappings()]
        written = [row.pop("written_at") for row in rows]
        used: dict[bytes, PrivateKey] = {}
        keys = tuple(self._parse(row, used) for row in rows)
        self._parsed = used
        return Ring(keys, self.signing_alg, written[0] if written else None)

    def _parse(self, row: dict[str, Any], used: dict[bytes, PrivateKey]) -> SigningKey:
        where = f"key {row['kid']} of {self.name}"
        key_id = row.pop("encryption_key_id")

        def load(encrypted: object, alg: str) -> PrivateKey:
            assert isinstance(encrypted, bytes)  # noqa: S101 - The column's type.
            digest = hashlib.sha256(f"{alg} {key_id} ".encode() + encrypted).digest()
            used[digest] = self._parsed.get(digest) or self._decrypt(encrypted, key_id, alg, row["kid"], where)
            return used[digest]

        return parse_entry({name: value for name, value in row.items() if value is not None}, where, load)

    def _decrypt(self, encrypted: bytes, key_id: str, alg: str, kid: str, where: str) -> PrivateKey:
        try:
            pem = self._encrypter.decrypt(key_id, encrypted, bound_to=kid)
        except DecryptionError as error:
            raise StartError(f"{where}: {error}") from None
        return parse_pem(pem, None, alg, where, "its private key")

    def _write(self, connection: Connection, ring: Ring) -> None:
        connection.execute(delete(SigningKeyRow))
        for key in ring.keys:
            key_id, encrypted = self._encrypter.encrypt(to_pem(key.private_key, None), bound_to=key.kid)
            members = {"jwks_max_age": 0, **to_entry(key), "private_key": encrypted, "encryption_key_id": key_id}
            connection.execute(insert(SigningKeyRow).values(**members))
        written = {"version": KeyRingRow.version + 1, "written_at": ring.written_at}
        if not connection.execute(update(KeyRingRow).where(KeyRingRow.ring_id == _THE_ONE).values(**written)).rowcount:
            connection.execute(insert(KeyRingRow).values(ring_id=_THE_ONE, version=1, written_at=ring.written_at))
