"""Lines to standard output and standard error that never hold up who has something to say.

A server's line is written at once where the stream takes it. Where it does not (a reader that stalls, a full disk), it
waits in memory, up to a bound, and a thread writes it when it can; beyond the bound lines are counted, and the count is
written when the stream takes lines again. A line is never torn: who has written half of one keeps all siblings out
until it is whole. A file that is moved away, as logs are rotated, is followed by a new one of its name, and no line is
lost. A process that does not serve, such as a command, writes as it always did.
"""

import atexit
import contextlib
import errno
import fcntl
import os
import select
import socket
import stat
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, TextIO

from app.blocking import blocking

MOST_BYTES = 8 * 1024 * 1024
"""What may wait in one process and stream: some twenty thousand lines."""

STALLED_SECONDS = 2.0
"""A line that has waited for so long shows that the stream is stalled."""

HALFWAY_SECONDS = 1.0
"""How long a process without a thread tries to finish a line."""

RETRY_SECONDS = 0.5
YIELD_SECONDS = 0.01
STOP_SECONDS = 5.0
"""How long the end of a process waits for a stream that does not take its lines."""


class Sink:
    """A descriptor that is written without waiting, whatever it is."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        kind = os.fstat(descriptor).st_mode
        self._path = _path_of(descriptor) if stat.S_ISREG(kind) else None
        self._socket = socket.socket(fileno=os.dup(descriptor)) if stat.S_ISSOCK(kind) else None
        self._may_block = False
        if stat.S_ISFIFO(kind) or stat.S_ISCHR(kind):
            try:
                # Opened anew: to make the given one non-blocking would make it so for all who share it.
                self._descriptor = os.open(f"/proc/self/fd/{descriptor}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            except OSError:
                self._may_block = True

    def write(self, data: memoryview) -> int:
        """Write as much as is taken at once, and tell how much that was.

        :raises OSError: it takes nothing, for another reason than that its reader is slow.
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
        """Go on in a new file where this one has been moved away, as a rotation of logs does.

        The new one is what lies under the old one's name, or is made there with its mode. Everybody who writes to the
        descriptor goes along. Where that cannot be, the old one stays.
        """
        if self._path is None:
            return
        with contextlib.suppress(OSError):
            held = os.fstat(self._descriptor)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(self._path.lstat(), held):
                    return
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            opened = os.open(self._path, flags, stat.S_IMODE(held.st_mode))
            try:
                if stat.S_ISREG(os.fstat(opened).st_mode):
                    os.dup2(opened, self._descriptor)
            finally:
                os.close(opened)

    def end_a_torn_line(self) -> None:
        """Begin a new line in a file whose last one was never finished: a process was killed, or the disk was full."""
        if not stat.S_ISREG(os.fstat(self._descriptor).st_mode):
            return
        with contextlib.suppress(OSError), Path(f"/proc/self/fd/{self._descriptor}").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
                os.write(self._descriptor, b"\n")

    def wait(self, seconds: float) -> bool:
        """Wait until there is room."""
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        return any(event & select.POLLOUT for _, event in poll.poll(seconds * 1000))


class LineWriter:
    """One stream of this process. Stands where a text stream is expected.

    :param find_stream: the stream, asked for while it is written as it always was.
    """

    describe_loss: Callable[[int], str] = staticmethod("{} lines were lost\n".format)
    """Makes the line that tells how many were lost."""

    def __init__(self, find_stream: Callable[[], TextIO | None]) -> None:
        self._find_stream = find_stream
        self._sink: Sink | None = None
        self._siblings: IO[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._changed: threading.Condition
        self._waiting: deque[tuple[bytes, float]]
        self._bytes: int
        self._put: int
        self._done: int
        self._lost: int
        self._watchers: int
        self._is_busy: bool
        self._is_halfway: bool
        self._is_stopping: bool
        self._fault: str | None
        self._reset()
        os.register_at_fork(after_in_child=self._reset)

    def begin(self, *, threaded: bool) -> None:
        """Wait for nothing from now on. Without a thread, lines that were not taken go with the next one.

        :raises OSError: the stream is closed.
        """
        stream = self._find_stream()
        if stream is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        stream.flush()
        if self._sink is None:
            self._sink = Sink(stream.fileno())
            self._sink.end_a_torn_line()
        self._sink.follow()
        # Made before there are workers, and the same file for all of them.
        self._siblings = self._siblings or tempfile.TemporaryFile()  # noqa: SIM115 - Open for as long as we write.
        if threaded and self._thread is None:
            self._thread = threading.Thread(target=self._run, name="the log", daemon=True)
            self._thread.start()
            atexit.register(self.stop)

    def stop(self) -> None:
        """Write what waits, within :data:`STOP_SECONDS`; later lines are written if they are taken at once."""
        thread = self._thread
        if thread is None:
            return
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        thread.join(STOP_SECONDS)
        self._thread = None

    def follow(self) -> None:
        """Go on in a new file where ours has been moved away, unless a line is being written just now."""
        with self._changed:
            if self._sink is None or self._is_busy or self._is_halfway:
                return
            self._is_busy = True
        try:
            self._sink.follow()
        finally:
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()

    @property
    def fault(self) -> str | None:
        """Why the stream takes nothing, in the system's words, if it is not only slow."""
        return self._fault

    @property
    def is_stalled(self) -> bool:
        """Whether lines wait for long, or were lost."""
        with self._changed:
            waits = self._waiting and time.monotonic() - self._waiting[0][1] > STALLED_SECONDS
            return bool(waits or self._lost)

    def write(self, text: str) -> int:
        """Write one or more whole lines."""
        self.put(text)
        return len(text)

    def flush(self) -> None:
        """Do nothing: nothing is kept back."""
        if self._sink is None and (stream := self._find_stream()):
            stream.flush()

    def isatty(self) -> bool:
        """Whether a person reads it."""
        stream = self._find_stream()
        return stream is not None and stream.isatty()

    def put(self, text: str) -> int:
        """Write whole lines, and return a number for :meth:`is_written`."""
        if self._sink is None:
            stream = self._find_stream()
            if stream:
                stream.write(text)
                stream.flush()
            return 0
        data = text.encode(errors="backslashreplace")
        with self._changed:
            if self._bytes + len(data) > MOST_BYTES:
                self._lost += 1
                return self._put + MOST_BYTES
            self._put += 1
            number = self._put
            is_alone = self._thread is not None and not (self._waiting or self._is_busy)
            if not is_alone:
                self._waiting.append((data, time.monotonic()))
                self._bytes += len(data)
                if self._is_busy or self._thread:
                    return number
            self._is_busy = True
        if is_alone:
            self._write_at_once(data)
            return number
        try:
            self._write_alone()
        finally:
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()
        return number

    def is_written(self, number: int, seconds: float) -> bool:
        """Wait until all up to ``number`` is written; tell whether it is."""
        if self._done >= number:
            return True
        with blocking, self._changed:
            self._watchers += 1
            try:
                return self._changed.wait_for(lambda: self._done >= number, seconds) or self._sink is None
            finally:
                self._watchers -= 1

    def _write_at_once(self, data: bytes) -> None:
        """Write a line before which none waits. What is not taken waits for the thread, in the first place."""
        assert self._sink is not None  # noqa: S101 - Set by begin.
        taken = 0
        try:
            if self._keep_siblings_out(patient=False):
                taken = self._sink.write(memoryview(data))
                self._fault = None
        except OSError as error:
            self._fault = error.strerror
        finally:
            if taken in {0, len(data)}:
                self._let_siblings_in()
            with self._changed:
                if taken == len(data):
                    self._done += 1
                else:
                    self._waiting.appendleft((data[taken:], time.monotonic()))
                    self._bytes += len(data) - taken
                    self._is_halfway = taken > 0
                self._is_busy = False
                # Nobody is woken who has nothing to do: the thread would cost as much as the line.
                if self._waiting or self._watchers:
                    self._changed.notify_all()

    def _write_alone(self) -> None:
        """Write what is taken at once. There is nobody to finish a line later, and siblings must not wait for that."""
        assert self._sink is not None  # noqa: S101 - Set by begin.
        if not self._is_halfway:
            self._sink.follow()
        until = time.monotonic() + HALFWAY_SECONDS
        while self._write_some() or (self._is_halfway and time.monotonic() < until):
            if self._is_halfway:
                self._sink.wait(YIELD_SECONDS)
        if self._is_halfway:
            with self._changed:
                data, _ = self._waiting.popleft()
                self._bytes -= len(data)
                self._is_halfway = False
            self._let_siblings_in()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._is_busy and (self._waiting or self._is_stopping))
                if not self._waiting:
                    return
                self._is_busy = True
            try:
                moved = self._write_some(patient=True)
            except Exception as error:  # noqa: BLE001 - Nobody else would write if this thread ended.
                moved, self._fault = False, type(error).__name__
            with self._changed:
                self._is_busy = False
                self._changed.notify_all()
                if not moved:
                    # A full disk says so at once; a slow reader has been waited for.
                    self._changed.wait(RETRY_SECONDS if self._fault and not self._is_stopping else YIELD_SECONDS)

    def _write_some(self, *, patient: bool = False) -> bool:
        """Write what waits as far as it is taken, and tell whether any was. Only whoever set ``_is_busy`` does."""
        assert self._sink is not None  # noqa: S101 - Set by begin.
        if not self._keep_siblings_out(patient=patient):
            return False
        with self._changed:
            batch, size = [], 0
            for data, _ in self._waiting:
                if size and size + len(data) > select.PIPE_BUF:
                    break
                batch.append(data)
                size += len(data)
        try:
            taken = self._sink.write(memoryview(b"".join(batch)))
            self._fault = None
        except OSError as error:
            taken, self._fault = 0, error.strerror
        if patient and taken == 0 and self._fault is None:
            self._sink.wait(RETRY_SECONDS)
        self._forget(taken)
        if not self._is_halfway:
            self._let_siblings_in()
        return taken > 0

    def _forget(self, taken: int) -> None:
        with self._changed:
            self._bytes -= taken
            while taken:
                data, since = self._waiting.popleft()
                if taken < len(data):
                    self._waiting.appendleft((data[taken:], since))
                    self._is_halfway = True
                    return
                taken -= len(data)
                self._done += 1
                self._is_halfway = False
            if self._lost and not self._waiting:
                told = self.describe_loss(self._lost).encode()
                self._lost = 0
                self._waiting.append((told, time.monotonic()))
                self._bytes += len(told)
                self._put += 1

    def _keep_siblings_out(self, *, patient: bool) -> bool:
        if self._is_halfway:
            return True
        assert self._siblings is not None  # noqa: S101 - Set by begin.
        try:
            fcntl.lockf(self._siblings, fcntl.LOCK_EX | (0 if patient else fcntl.LOCK_NB))
        except OSError:
            return False
        return True

    def _let_siblings_in(self) -> None:
        assert self._siblings is not None  # noqa: S101 - Set by begin.
        fcntl.lockf(self._siblings, fcntl.LOCK_UN)

    def _reset(self) -> None:
        """Begin anew in a process that was forked: what waits is the other's to write."""
        self._changed = threading.Condition()
        self._waiting = deque()
        self._bytes = self._put = self._done = self._lost = self._watchers = 0
        self._is_busy = self._is_halfway = self._is_stopping = False
        self._fault = None
        self._thread = None


def _path_of(descriptor: int) -> Path | None:
    """Where the file of ``descriptor`` lies, unless it has no name any more."""
    with contextlib.suppress(OSError):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if os.path.samestat(path.lstat(), os.fstat(descriptor)):
            return path
    return None


def follow_files() -> None:
    """Go on in new files where those of this process' streams have been moved away."""
    STDOUT.follow()
    STDERR.follow()


STDOUT = LineWriter(lambda: sys.stdout)
STDERR = LineWriter(lambda: sys.stderr)
