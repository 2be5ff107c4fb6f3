"""State that gunicorn's master and its workers share in memory. It ends with them.

It holds the last good key ring, so that a worker can be replaced while the database is away or the ring is broken; the
latest time that was reached; and which events were emitted lately, so that one worker emits each. What is in a ring is
left to ``keyring``.
"""

import fcntl
import hashlib
import mmap
import os
import secrets
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

SIZE_BYTES = 1024 * 1024
"""Enough for a ring of some four hundred keys."""

CLAIMED_SECONDS = 60.0
"""How long an emitted event is not emitted by another worker. Workers notice a change within seconds of each other."""

_CLAIMS = range(8, 8 + 2 * 100, 2)
"""Cells of the latest emitted events: hash and time."""

_BEGINNINGS = range(_CLAIMS.stop, _CLAIMS.stop + 128)
"""Cells of the workers that have begun to serve: their process ids."""

_LENGTH_BYTES = 8
_DIGEST_BYTES = 32


class SharedState:
    """Shared memory of one server.

    Content that is read while another worker writes it does not match its digest and counts as absent. All workers
    store the same ring, so the next write repairs it.
    """

    def __init__(self) -> None:
        self.server_id = secrets.token_hex(16)
        """Identifies this server: a master and its workers."""
        self.started_at = datetime.now(UTC)
        self._memory = mmap.mmap(-1, SIZE_BYTES)
        # Aligned, so that each is written atomically: the latest time, whether a worker has started, whether SIGHUP
        # was refused.
        self._cells = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("d")
        self._lock = threading.Lock()
        # A lock between processes: each of those that inherit this descriptor can take it. Open for as long as they
        # run.
        with tempfile.TemporaryFile() as file:
            self._turn = os.dup(file.fileno())

    def claim(self, what: str) -> bool:
        """Return whether this process is the first, lately, to emit ``what``."""
        mark = float(int.from_bytes(hashlib.sha256(what.encode()).digest()[:6]))
        with self._lock:
            fcntl.lockf(self._turn, fcntl.LOCK_EX)
            try:
                now = time.monotonic()
                recent = [place for place in _CLAIMS if self._cells[place + 1] > now - CLAIMED_SECONDS]
                if any(self._cells[place] == mark for place in recent):
                    return False
                oldest = min(_CLAIMS, key=lambda place: self._cells[place + 1])
                self._cells[oldest], self._cells[oldest + 1] = mark, now
                return True
            finally:
                fcntl.lockf(self._turn, fcntl.LOCK_UN)

    def store(self, content: bytes) -> None:
        """Store ``content`` in place of what was stored last. What is too large is not stored."""
        framed = len(content).to_bytes(_LENGTH_BYTES) + hashlib.sha256(content).digest() + content
        if len(framed) > SIZE_BYTES:
            return
        with self._lock:
            if self._memory[: len(framed)] != framed:
                self._memory[: len(framed)] = framed

    def reach(self, moment: datetime) -> datetime:
        """Store ``moment`` if it is the latest; return the latest time that any process has reached."""
        self._cells[0] = max(self._cells[0], moment.timestamp())
        return datetime.fromtimestamp(self._cells[0], UTC)

    @property
    def has_started_worker(self) -> bool:
        """Whether any worker of this server has started."""
        return bool(self._cells[1])

    @has_started_worker.setter
    def has_started_worker(self, value: bool) -> None:
        self._cells[1] = value

    def begin_serving(self, pid: int) -> None:
        """Record that a worker serves."""
        self.has_started_worker = True
        self._cells[_BEGINNINGS[pid % len(_BEGINNINGS)]] = pid

    def has_served(self, pid: int) -> bool:
        """Return whether a worker has begun to serve."""
        return self._cells[_BEGINNINGS[pid % len(_BEGINNINGS)]] == pid

    @property
    def recorded_at(self) -> float:
        """When this server was last recorded in the database, in seconds since 1970; zero: never."""
        return self._cells[3]

    @recorded_at.setter
    def recorded_at(self, value: float) -> None:
        self._cells[3] = value

    @property
    def reload_failed(self) -> bool:
        """Whether the last SIGHUP was refused: the files differ from what is served."""
        return bool(self._cells[2])

    @reload_failed.setter
    def reload_failed(self, value: bool) -> None:
        self._cells[2] = value

    def load(self) -> bytes | None:
        """Return what was stored last; ``None`` if there is nothing."""
        length = int.from_bytes(self._memory[:_LENGTH_BYTES])
        start = _LENGTH_BYTES + _DIGEST_BYTES
        if not 0 < length <= SIZE_BYTES - start:
            return None
        content = self._memory[start : start + length]
        return content if hashlib.sha256(content).digest() == self._memory[_LENGTH_BYTES:start] else None


_shared: SharedState | None = None


def share() -> None:
    """Allocate the memory that this process shares with the processes that it forks from now on, once."""
    global _shared  # noqa: PLW0603 - One for a process, and it must be there before any application is.
    _shared = _shared or SharedState()


def shared_state() -> SharedState | None:
    """Return the memory of this server; ``None`` if :func:`share` was not called."""
    return _shared


def try_lock(path: Path) -> int | None:
    """Lock ``path`` until the returned descriptor is closed; return ``None`` if another process holds it.

    :raises OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
