"""A text stream for lines that never blocks its writers: for standard output and standard error.

A line is written at once if the stream takes it. If it does not (a slow reader, a full disk), the line waits in memory,
up to a bound, and a thread writes it later; the thread exists only while lines wait. Beyond the bound lines are dropped
and counted, and the count is written when the stream takes lines again. No line is torn: a process that has written
part of a line keeps its sibling processes from writing until the line is complete. When log rotation has moved the file
away, the stream continues in a new file of that name without losing a line.

A process that never calls :meth:`NonBlockingStream.begin`, such as a command, writes in the ordinary way.
"""

import atexit
import contextlib
import errno
import fcntl
import math
import os
import select
import socket
import stat
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import IO, TextIO

QUEUE_LIMIT_BYTES = 8 * 1024 * 1024
"""Lines that may wait, per process and stream: some twenty thousand."""

STALLED_SECONDS = 2.0
"""A line that has waited this long means that the stream is stalled."""

FOLLOW_SECONDS = 1.0
"""How often a write checks whether the file has been moved away."""

RETRY_SECONDS = 0.5
YIELD_SECONDS = 0.01
STOP_SECONDS = 5.0
"""How long the end of a process waits for a stream that takes no lines."""
LAST_LINE_SECONDS = 1.0
"""The same for a line that is written after :meth:`NonBlockingStream.stop`."""


class Sink:
    """A file descriptor that is written without blocking, whatever it refers to."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        kind = os.fstat(descriptor).st_mode
        self._path = _path_of(descriptor) if stat.S_ISREG(kind) else None
        self._socket = socket.socket(fileno=os.dup(descriptor)) if stat.S_ISSOCK(kind) else None
        self._may_block = False
        if stat.S_ISFIFO(kind) or stat.S_ISCHR(kind):
            try:
                # Open it again: O_NONBLOCK on the given descriptor would apply to every process that shares it.
                self._descriptor = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            except OSError:
                self._may_block = True

    def write(self, data: memoryview) -> int:
        """Write as much as is taken at once.

        :returns: the number of bytes written.
        :raises OSError: nothing can be written, for another reason than a slow reader.
        """
        try:
            if self._socket:
                return self._socket.send(data, socket.MSG_DONTWAIT)
            if self._may_block and not self.wait(0):
                return 0
            return os.write(self._descriptor, data[: select.PIPE_BUF] if self._may_block else data)
        except BlockingIOError:
            return 0

    def follow(self) -> None:
        """Continue in a new file if this one has been moved away, as log rotation does.

        An existing regular file of the old name is used; otherwise one is created with the old mode and, if possible,
        the old group. All processes that write to the descriptor continue there too. If that fails, the old file stays
        in use.
        """
        if self._path is None:
            return
        with contextlib.suppress(OSError):
            held = os.fstat(self._descriptor)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(self._path.lstat(), held):
                    return
            opened = _create_like(self._path, held)
            try:
                if stat.S_ISREG(os.fstat(opened).st_mode):
                    os.dup2(opened, self._descriptor)
            finally:
                os.close(opened)

    def end_torn_line(self) -> None:
        """Start a new line in a file whose last line is incomplete: a process was killed, or the disk was full."""
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            return
        with contextlib.suppress(OSError), Path(f"/proc/self/fd/{self._descriptor}").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                os.write(self._descriptor, b"\n")

    def wait(self, seconds: float) -> bool:
        """Wait until the descriptor takes data; return whether it does."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return any(event & select.POLLOUT for _, event in poll.poll(seconds * 1000))


def _create_like(path: Path, before: os.stat_result) -> int:
    """Open ``path`` for appending; create it with the mode and the group of ``before`` if it does not exist."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        opened = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return os.open(path, flags)
    with contextlib.suppress(OSError):
        os.fchown(opened, -1, before.st_gid)
    # Regardless of the umask: the program that collects the log must be able to read the new file too.
    os.fchmod(opened, stat.S_IMODE(before.st_mode))
    return opened


class NonBlockingStream:
    """One stream of this process, usable as a text stream.

    :param find_stream: returns the ordinary stream; called for each write until :meth:`begin`.
    :param blocking: a reusable context manager around waits of the caller, for its scheduler.
    """

    describe_loss: Callable[[int], str] = staticmethod("{} lines were lost\n".format)
    """Makes the line that reports how many lines were dropped."""

    def __init__(
        self, find_stream: Callable[[], TextIO | None], blocking: AbstractContextManager[object] | None = None
    ) -> None:
        self._find_stream = find_stream
        self._blocking = blocking or nullcontext()
        self._sink: Sink | None = None
        self._sibling_lock: IO[bytes] | None = None
        self._followed_at = 0.0
        self._thread: threading.Thread | None
        self._lock: threading.RLock
        self._changed: threading.Condition
        self._queue: deque[tuple[bytes, float]]
        self._queued_bytes: int
        self._put: int
        self._written: int
        self._lost: int
        self._watchers: int
        self._is_writing: bool
        self._is_mid_line: bool
        self._is_stopping: bool
        self._fault: str | None
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def begin(self) -> None:
        """Never block from now on. Forked processes inherit this; one that calls it again follows a moved file.

        :raises OSError: the stream is closed.
        """
        stream = self._find_stream()
        if stream is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        stream.flush()
        if self._sink is None:
            self._sink = Sink(stream.fileno())
            self._sink.end_torn_line()
            # Created before any fork, so that all siblings lock the same file.
            self._sibling_lock = tempfile.TemporaryFile()  # noqa: SIM115 - Open for as long as the process writes.
            atexit.register(self.stop)
        self._follow()

    def stop(self) -> None:
        """Write the lines that wait, for at most :data:`STOP_SECONDS`."""
        with self._lock:
            self._is_stopping = True
            self._changed.notify_all()
            thread = self._thread
        if thread:
            thread.join(STOP_SECONDS)

    def follow(self) -> None:
        """Continue in a new file if this one has been moved away, unless a line is being written."""
        with self._lock:
            if self._sink is None or self._is_writing:
                return
            self._is_writing = True
        try:
            self._follow()
        finally:
            self._write_queue()

    @property
    def fault(self) -> str | None:
        """Why the stream takes nothing, in the system's words; ``None`` while it works or is only slow."""
        return self._fault

    @property
    def is_stalled(self) -> bool:
        """Whether a line has waited for long, or lines were lost."""
        with self._lock:
            waits = self._queue and time.monotonic() - self._queue[0][1] > STALLED_SECONDS
            return bool(waits or self._lost)

    def write(self, text: str) -> int:
        """Write one or more whole lines."""
        self.put(text)
        return len(text)

    def flush(self) -> None:
        """Flush the ordinary stream; a non-blocking one buffers nothing."""
        if self._sink is None and (stream := self._find_stream()):
            stream.flush()

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        stream = self._find_stream()
        return stream is not None and stream.isatty()

    def put(self, text: str) -> int:
        """Write whole lines; return a number for :meth:`is_written`."""
        if self._sink is None:
            stream = self._find_stream()
            if stream:
                stream.write(text)
                stream.flush()
            return 0
        data = text.encode(errors="backslashreplace")
        with self._lock:
            if self._queued_bytes + len(data) > QUEUE_LIMIT_BYTES:
                self._lost += 1
                return self._put + QUEUE_LIMIT_BYTES
            self._enqueue(data)
            number = self._put
            if self._is_writing:
                return number
            self._is_writing = True
        self._write_queue()
        return number

    def is_written(self, number: int, seconds: float) -> bool:
        """Wait until all lines up to ``number`` are written; return whether they are."""
        if self._written >= number:
            return True
        with self._blocking, self._lock:
            self._watchers += 1
            try:
                return self._changed.wait_for(lambda: self._written >= number, seconds) or self._sink is None
            finally:
                self._watchers -= 1

    def _follow(self) -> None:
        assert self._sink is not None  # noqa: S101 - Set by begin.
        self._followed_at = time.monotonic()
        self._sink.follow()

    def _enqueue(self, data: bytes) -> None:
        self._queue.append((data, time.monotonic()))
        self._queued_bytes += len(data)
        self._put += 1

    def _write_queue(self) -> None:
        """Write until no line waits or the stream takes no more; leave the rest to a thread. The caller is writing."""
        try:
            while self._write_some() and self._queue:
                pass
        finally:
            with self._lock:
                starts_thread = bool(self._queue)
                if starts_thread:
                    self._thread = threading.Thread(target=self._run, name="log writer", daemon=True)
                else:
                    self._end_writing()
            if starts_thread:
                self._start_thread()

    def _start_thread(self) -> None:
        assert self._thread is not None  # noqa: S101 - Set by _write_queue.
        with contextlib.suppress(RuntimeError):
            # At the very end of a process no thread can be started any more.
            if not self._is_stopping:
                self._thread.start()
                return
        self._run(time.monotonic() + LAST_LINE_SECONDS)

    def _end_writing(self) -> None:
        self._is_writing = False
        self._thread = None
        if self._watchers:
            self._changed.notify_all()

    def _run(self, until: float = math.inf) -> None:
        """Write until no line waits."""
        while True:
            try:
                progress = self._write_some(patient=True)
            except Exception as error:  # noqa: BLE001 - No other thread would write if this one ended.
                progress, self._fault = False, type(error).__name__
            with self._lock:
                if self._watchers:
                    self._changed.notify_all()
                if not self._queue or time.monotonic() > until:
                    self._end_writing()
                    return
                if not progress:
                    # A full disk fails at once; a slow reader has been waited for.
                    self._changed.wait(RETRY_SECONDS if self._fault and not self._is_stopping else YIELD_SECONDS)

    def _write_some(self, *, patient: bool = False) -> bool:
        """Write waiting lines as far as they are taken; return whether any byte was."""
        assert self._sink is not None  # noqa: S101 - Set by begin.
        if not self._lock_out_siblings(patient=patient):
            return False
        if not self._is_mid_line and time.monotonic() - self._followed_at > FOLLOW_SECONDS:
            self._follow()
        with self._lock:
            batch, size = [], 0
            for data, _ in self._queue:
                if size and size + len(data) > select.PIPE_BUF:
                    break
                batch.append(data)
                size += len(data)
        taken = 0
        try:
            taken = self._sink.write(memoryview(b"".join(batch))) if batch else 0
            self._fault = None
        except OSError as error:
            self._fault = error.strerror
        finally:
            self._dequeue(taken)
            if not self._is_mid_line:
                self._let_siblings_in()
        if patient and taken == 0 and self._fault is None:
            self._sink.wait(RETRY_SECONDS)
        return taken > 0

    def _dequeue(self, taken: int) -> None:
        with self._lock:
            self._queued_bytes -= taken
            while taken:
                data, since = self._queue.popleft()
                self._is_mid_line = taken < len(data)
                if self._is_mid_line:
                    self._queue.appendleft((data[taken:], since))
                    return
                taken -= len(data)
                self._written += 1
            if self._lost and not self._queue:
                lost, self._lost = self._lost, 0
                self._enqueue(self.describe_loss(lost).encode())

    def _lock_out_siblings(self, *, patient: bool) -> bool:
        if self._is_mid_line:
            return True
        assert self._sibling_lock is not None  # noqa: S101 - Set by begin.
        try:
            fcntl.lockf(self._sibling_lock, fcntl.LOCK_EX | (0 if patient else fcntl.LOCK_NB))
        except OSError:
            return False
        return True

    def _let_siblings_in(self) -> None:
        assert self._sibling_lock is not None  # noqa: S101 - Set by begin.
        fcntl.lockf(self._sibling_lock, fcntl.LOCK_UN)

    def _reset(self) -> None:
        """Start empty in a forked process: the lines that wait are the parent's to write."""
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._queue = deque()
        self._queued_bytes = self._put = self._written = self._lost = self._watchers = 0
        self._is_writing = self._is_mid_line = self._is_stopping = False
        self._fault = None
        self._thread = None


def _path_of(descriptor: int) -> Path | None:
    """Return the path of the file that ``descriptor`` refers to, if it still has its name."""
    with contextlib.suppress(OSError):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if os.path.samestat(path.lstat(), os.fstat(descriptor)):
            return path
    return None
