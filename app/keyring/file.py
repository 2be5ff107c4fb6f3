"""A key ring in a TOML file, private keys in PEM files beside it. ``config/keyring.example.toml`` explains the format.

Reading refuses whatever could not be meant: a key that others may read, a weak one, one that cannot be parsed. Writing
is atomic and under a lock: the file that was there, or the new one whole.
"""

import fcntl
import os
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomlkit
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc.jwk import RSAKey
from tomlkit.items import AoT

from app.errors import ManagementError
from app.keyring.ring import RSA_MIN_BITS, Ring, SigningKey
from app.settings import StartError

_KID = re.compile(r"[A-Za-z0-9._~-]{1,128}")
_FIELDS = {"kid", "alg", "private_key", "published_at", "signs_from", "revoked_at"}
_REQUIRED = _FIELDS - {"revoked_at"}
_SUPPORTED_ALG = "RS256"
_PUBLIC_EXPONENT = 65537
_HEADER = "Signing keys and their times. `flask keys` writes this file; config/keyring.example.toml explains it."


class FileKeyring:
    """The key ring of one machine.

    :param path: the TOML file. PEM files are named in it relative to its folder.
    :param passphrase: decrypts encrypted PEM files.
    """

    def __init__(self, path: Path, passphrase: str | None = None) -> None:
        self._path = path
        self._passphrase = passphrase.encode() if passphrase else None

    def read(self) -> Ring:
        """Parse the ring and every private key of it: some 40 ms a key, so once per process.

        :raises StartError: one line that names the file and what is wrong in it.
        """
        entries = self._read_entries()
        if not entries:
            raise StartError(f"the key ring {self._path} has no keys: `flask keys generate` makes one")
        return Ring(tuple(self._parse(entry, number) for number, entry in enumerate(entries, start=1)))

    def generate(self, *, signs_from: datetime, published_at: datetime, bits: int = RSA_MIN_BITS) -> SigningKey:
        """Add a new RSA key to the ring and return it.

        :raises ManagementError: the ring cannot be written; it is as it was.
        """
        private_key = rsa.generate_private_key(_PUBLIC_EXPONENT, bits)
        kid = RSAKey(private_key, private_key, {}).thumbprint()
        key = SigningKey(kid, _SUPPORTED_ALG, published_at, signs_from, None, private_key)
        try:
            with self._locked():
                self._add(key)
        except OSError as error:
            raise ManagementError(f"the key ring {self._path} cannot be written: {error.strerror}") from None
        return key

    def is_empty(self) -> bool:
        """Whether there are no keys yet: no file, or one without keys."""
        return not self._path.exists() or not self._read_entries()

    def _read_entries(self) -> list[dict[str, Any]]:
        try:
            document = tomllib.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise StartError(f"there is no key ring at {self._path}: `flask keys generate` makes one") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise StartError(f"the key ring {self._path} cannot be read: {error}") from None
        entries = document.get("keys", [])
        if document.keys() - {"keys"} or not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise StartError(f"the key ring {self._path} may hold [[keys]] tables only")
        return entries

    def _parse(self, entry: Mapping[str, Any], number: int) -> SigningKey:
        where = f"key {number} of the key ring {self._path}"
        if missing := _REQUIRED - entry.keys():
            raise StartError(f"{where} lacks {', '.join(sorted(missing))}")
        if unknown := entry.keys() - _FIELDS:
            raise StartError(
                f"{where} has the unknown {', '.join(sorted(unknown))}; allowed: {', '.join(sorted(_FIELDS))}"
            )
        if not isinstance(entry["kid"], str) or not _KID.fullmatch(entry["kid"]):
            raise StartError(f"{where}: kid must be 1 to 128 characters of A-Z a-z 0-9 . _ ~ -")
        if entry["alg"] != _SUPPORTED_ALG:
            raise StartError(f"{where}: alg must be {_SUPPORTED_ALG}")
        published_at, signs_from = (_time(entry[name], name, where) for name in ("published_at", "signs_from"))
        if signs_from < published_at:
            raise StartError(f"{where}: signs_from must not be before published_at")
        revoked_at = _time(entry["revoked_at"], "revoked_at", where) if "revoked_at" in entry else None
        if not isinstance(entry["private_key"], str) or not entry["private_key"].isprintable():
            raise StartError(f"{where}: private_key must be the name of a PEM file")
        private_key = self._load_private_key(entry["private_key"], where)
        return SigningKey(entry["kid"], entry["alg"], published_at, signs_from, revoked_at, private_key)

    def _load_private_key(self, name: str, where: str) -> rsa.RSAPrivateKey:
        path = self._path.parent / name
        try:
            mode = path.stat().st_mode
            if stat.S_ISREG(mode) and mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise StartError(f"{where}: {path} may be read by others: `chmod 600 {path}`")
            pem = path.read_bytes()
        except OSError as error:
            raise StartError(f"{where}: {path} cannot be read: {error.strerror}") from None
        try:
            key = serialization.load_pem_private_key(pem, self._passphrase if b"ENCRYPTED" in pem else None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            encrypted = " with TOKENHOUSE_KEYRING_PASSPHRASE" if b"ENCRYPTED" in pem else ""
            raise StartError(f"{where}: {path} cannot be parsed as a private key in PEM{encrypted}") from None
        if not isinstance(key, rsa.RSAPrivateKey):
            raise StartError(f"{where}: {path} must hold an RSA key for {_SUPPORTED_ALG}")
        if key.key_size < RSA_MIN_BITS:
            raise StartError(f"{where}: {path} has {key.key_size} bits; an RSA key needs {RSA_MIN_BITS} or more")
        return key

    def _add(self, key: SigningKey) -> None:
        document = _empty_document()
        if self._path.exists():
            if self._read_entries():
                self.read()
            document = tomlkit.parse(self._path.read_text(encoding="utf-8"))
        keys = _array_of_tables(document)
        entry = tomlkit.table()
        entry["kid"] = key.kid
        entry["alg"] = key.alg
        entry["private_key"] = f"{key.kid}.pem"
        entry["published_at"] = key.published_at.astimezone(UTC).replace(microsecond=0)
        entry["signs_from"] = key.signs_from.astimezone(UTC).replace(microsecond=0)
        keys.append(entry)
        pem_path = self._path.parent / f"{key.kid}.pem"
        write_private_file(pem_path, self._to_pem(key.private_key))
        try:
            write_private_file(self._path, tomlkit.dumps(document).encode())
        except BaseException:
            pem_path.unlink(missing_ok=True)
            raise

    def _to_pem(self, key: rsa.RSAPrivateKey) -> bytes:
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if self._passphrase:
            encryption = serialization.BestAvailableEncryption(self._passphrase)
        return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other writers out. The lock is a file of its own: the ring itself is replaced, and a lock with it."""
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def write_private_file(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` for its owner only, so that a reader sees the old file or the new one whole.

    :raises OSError: it could not be written; what was there still is.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        descriptor = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def public_pem(key: SigningKey) -> str:
    """The public key of ``key`` in PEM (SubjectPublicKeyInfo)."""
    public = key.private_key.public_key()
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def _time(value: object, name: str, where: str) -> datetime:
    try:
        if isinstance(value, datetime) and value.tzinfo is not None:
            return value.astimezone(UTC)
    except OverflowError:
        # At the ends of the calendar there is no such moment in UTC.
        pass
    raise StartError(f"{where}: {name} must be a date and time with a zone, such as 2026-01-31T12:00:00Z")


def _array_of_tables(document: tomlkit.TOMLDocument) -> AoT:
    """``[[keys]]`` of ``document``; an array that is written in one line is spread first."""
    keys = document.get("keys")
    if not isinstance(keys, AoT):
        written = keys.unwrap() if keys is not None else []
        document.pop("keys", None)
        keys = tomlkit.aot()
        for entry in written:
            keys.append(tomlkit.item(entry))
        document["keys"] = keys
    return keys


def _empty_document() -> tomlkit.TOMLDocument:
    document = tomlkit.document()
    document.add(tomlkit.comment(_HEADER))
    document.add(tomlkit.nl())
    return document
