"""A key ring in a TOML file, with private keys in PEM files beside it.

``config/keyring.example.toml`` explains the format.

Reading refuses what cannot be intended: a key that others may read, a weak key, one that cannot be parsed. Writing
is atomic and under a lock: readers see the old file or the new one.
"""

import fcntl
import hashlib
import os
import re
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomlkit
from sqlalchemy.engine import Engine
from tomlkit.items import AoT, Table

from app.config.private_files import find_changeable
from app.config.settings import Settings
from app.crypto.algorithms import PrivateKey
from app.errors import ManagementError, StartError
from app.keyring.backends.base import Change, passphrase_of
from app.keyring.model import Ring
from app.keyring.serialization import check_table, parse_entry, parse_pem, to_entry, to_pem, written_at

LOCAL_PROPAGATION_SECONDS = 2
SHARED_PROPAGATION_SECONDS = 300
"""Kubernetes copies a changed secret to its nodes within a minute or two."""

_HEADER = "Signing keys and their times. `flask keys` writes this file; config/keyring.example.toml explains it."
_NO_BLANK_ABOVE = re.compile(r"^([^#\n].*)\n\[\[keys\]\]", re.MULTILINE)
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "ceph", "lustre", "fuse.ceph", "fuse.gluster", "fuse.sshfs", "fuse.s3fs")


class FileKeyring:
    """The key ring of one machine, or of several that share a volume.

    :param path: the TOML file, or a link to it. It names PEM files relative to its folder.
    :param passphrase: decrypts encrypted PEM files, and encrypts new ones.
    """

    def __init__(self, path: Path, passphrase: str | None = None, *, signing_alg: str = "RS256") -> None:
        self.name = f"the key ring {path}"
        self._path = path
        self._passphrase = passphrase.encode() if passphrase else None
        self.signing_alg = signing_alg
        self._parsed: dict[bytes, PrivateKey] = {}

    @staticmethod
    def accepts(location: Path | str) -> bool:
        """Return whether ``location`` is a path."""
        return isinstance(location, Path)

    @classmethod
    def open(cls, location: Path | str, settings: Settings, _engine: Engine) -> "FileKeyring":
        """Open the ring at the path. Nothing is read yet."""
        return cls(Path(location), passphrase_of(settings), signing_alg=settings.signing_alg)

    @property
    def is_shared(self) -> bool:
        """Whether other machines may use it too: a link is a mounted secret, a network file system a shared volume."""
        return self._path.is_symlink() or _file_system_of(self._path.parent).startswith(_NETWORK_FILE_SYSTEMS)

    @property
    def propagation_seconds(self) -> int:
        """How long a change takes at most: a mounted secret takes minutes to reach every machine."""
        return SHARED_PROPAGATION_SECONDS if self.is_shared else LOCAL_PROPAGATION_SECONDS

    def version(self) -> object:
        """Return which file is there now: it may be replaced, edited in place, or behind a link that changes."""
        try:
            found = self._path.stat()
        except OSError as error:
            return error.errno
        return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size

    def read(self) -> Ring:
        """Parse the ring, and each private key that was not parsed before: 40 ms for an RSA key.

        :raises StartError: one line that names the file and what is wrong in it.
        """
        # The link of a mounted secret may change at any moment; its old target stays as it was.
        path = self._real_path()
        document = self._read_document(path)
        entries = check_table(document, self.name)
        if not entries:
            raise StartError(f"{self.name} has no keys: `flask keys generate` makes one")
        used: dict[bytes, PrivateKey] = {}
        keys = tuple(self._parse(entry, number, path.parent, used) for number, entry in enumerate(entries, start=1))
        self._parsed = used
        return Ring(keys, self.signing_alg, written_at(document, self.name))

    def is_empty(self) -> bool:
        """Return whether no key exists yet: no file, or one without keys."""
        path = self._real_path()
        return not path.exists() or not check_table(self._read_document(path), self.name)

    def leftovers(self) -> list[str]:
        """Return the paths of the ring and its private keys."""
        path = self._real_path()
        keys = [str(entry.get("private_key")) for entry in check_table(self._read_document(path), self.name)]
        return [str(self._path), *(str(path.parent / key) for key in keys)]

    def change(self, change: Change) -> Ring:
        """Write what ``change`` makes of the ring, if that differs.

        :raises ManagementError: it cannot be written; the ring is unchanged.
        """
        path = self._real_path()
        try:
            with _locked(path):
                before = Ring((), self.signing_alg) if self.is_empty() else self.read()
                after = change(before)
                if after != before:
                    self._write(path, after)
                return after
        except OSError as error:
            raise ManagementError(f"{self.name} cannot be written, and is as it was: {error.strerror}") from None

    def _real_path(self) -> Path:
        try:
            return self._path.resolve(strict=True)
        except (OSError, RuntimeError):
            return self._path

    def _read_document(self, path: Path) -> dict[str, Any]:
        try:
            text = path.read_text(encoding="utf-8")
            if fault := find_changeable(path):
                raise StartError(f"{self.name} decides which keys sign: {fault}")
            return tomllib.loads(text)
        except FileNotFoundError:
            raise StartError(f"there is no key ring at {self._path}: `flask keys generate` makes one") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise StartError(f"{self.name} cannot be read: {error}") from None

    def _parse(self, entry: dict[str, Any], number: int, folder: Path, used: dict[bytes, PrivateKey]) -> Any:
        where = f"key {number} of {self.name}"

        def load(name: object, alg: str) -> PrivateKey:
            if not isinstance(name, str) or not name.isprintable():
                raise StartError(f"{where}: private_key must be the name of a PEM file")
            pem = _read_private_file(folder / name, where)
            digest = hashlib.sha256(alg.encode() + pem).digest()
            key = self._parsed.get(digest) or parse_pem(pem, self._passphrase, alg, where, str(folder / name))
            used[digest] = key
            return key

        return parse_entry(entry, where, load)

    def _write(self, path: Path, after: Ring) -> None:
        _remove_leftovers(path)
        document = tomlkit.parse(path.read_text(encoding="utf-8")) if path.exists() else _empty_document()
        tables = _array_of_tables(document)
        kept = {key.kid for key in after.keys}
        forgotten = [(index, table) for index, table in enumerate(tables) if table["kid"] not in kept]
        for index, _ in reversed(forgotten):
            del tables[index]
        by_kid = {str(table["kid"]): table for table in tables}
        made: list[Path] = []
        try:
            for key in after.keys:
                if key.kid not in by_kid:
                    made.append(path.parent / f"{key.kid}.pem")
                    write_private_file(made[-1], to_pem(key.private_key, self._passphrase))
                    by_kid[key.kid] = _new_table(key.kid, key.alg, made[-1].name)
                    tables.append(by_kid[key.kid])
                _update(by_kid[key.kid], to_entry(key))
            if after.written_at:
                document["written_at"] = after.written_at
            write_private_file(path, _NO_BLANK_ABOVE.sub(r"\1\n\n[[keys]]", tomlkit.dumps(document)).encode())
        except BaseException:
            for pem in made:
                pem.unlink(missing_ok=True)
            raise
        # Only after the ring that no longer names them is on the disk.
        for _, table in forgotten:
            (path.parent / str(table["private_key"])).unlink(missing_ok=True)


def write_private_file(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` for its owner only, atomically.

    :raises OSError: it could not be written; the old file is unchanged.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    # Of a process that had this number and was killed.
    temporary.unlink(missing_ok=True)
    try:
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
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


def _read_private_file(path: Path, where: str) -> bytes:
    try:
        found = path.stat()
        others = found.st_mode & _OTHERS
        if _is_mounted(found):
            others &= ~stat.S_IRGRP
        if stat.S_ISREG(found.st_mode) and others:
            raise StartError(f"{where}: {path} may be read by others: `chmod 600 {path}`")
        if fault := find_changeable(path):
            raise StartError(f"{where}: {fault}")
        return path.read_bytes()
    except OSError as error:
        raise StartError(f"{where}: {path} cannot be read: {error.strerror}") from None


def _is_mounted(found: os.stat_result) -> bool:
    """Return whether a file was mounted for us, as Kubernetes does: owned by root, and readable for our own group.

    Its mode is 0440, or another user owns it, so that the group is the only way to read it. A writable file of our
    own is one whose mode somebody forgot.
    """
    is_for_our_group = found.st_gid in {os.getegid(), *os.getgroups()}
    return is_for_our_group and (found.st_uid != os.geteuid() or not found.st_mode & stat.S_IWUSR)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Lock out other writers. The lock is a separate file, since the ring's file is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_leftovers(path: Path) -> None:
    """Delete temporary files of a writer that was killed. Called under the lock."""
    for pattern in (f".{path.name}.*.new", ".*.pem.*.new"):
        for leftover in path.parent.glob(pattern):
            leftover.unlink(missing_ok=True)


def _file_system_of(folder: Path) -> str:
    """Return the type of the file system that ``folder`` is on; empty if this is not Linux."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        return ""
    above = {str(parent) for parent in (folder.resolve(), *folder.resolve().parents)}
    found = [mount for mount in mounts if mount[1] in above]
    return max(found, key=lambda mount: len(mount[1]))[2] if found else ""


def _new_table(kid: str, alg: str, private_key: str) -> Table:
    table = tomlkit.table()
    table["kid"] = kid
    table["alg"] = alg
    table["private_key"] = private_key
    return table


def _update(table: Table | dict[str, Any], members: dict[str, Any]) -> None:
    for name in ("signs_until", "revoked_at", "jwks_max_age"):
        if name in table and name not in members:
            del table[name]
    for name, value in members.items():
        if name not in table or table[name] != value:
            table[name] = value


def _array_of_tables(document: tomlkit.TOMLDocument) -> AoT:
    """Return ``[[keys]]`` of ``document``; an array in one line is expanded first."""
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
