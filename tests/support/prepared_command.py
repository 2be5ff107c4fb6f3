"""Runs ``flask …`` in a forked process. Importing the application is most of a command's time.

A helper process imports the command once and forks for each run, with the environment, working directory and streams of
that run. Tests of the start itself run the installed script, ``support.server.FLASK``.
"""

import atexit
import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

LIMIT_BYTES = 1 << 20
IMPORTED = ("app.cli.main", "app", "flask_migrate", "psycopg", "rich.console", "structlog", "tomlkit")
AT_START = ("PYTHON", "LANG", "LC_", "LD_")
"""Prefixes of variables that only a new process reads: Python's, the locale's and the dynamic loader's."""


class PreparedCommand:
    """The helper of this process, started by the first run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._helper: tuple[int, socket.socket, subprocess.Popen[bytes]] | None = None

    def can_run(self, environment: dict[str, str]) -> bool:
        """Return whether the helper can apply ``environment``: it differs in no variable of :data:`AT_START`."""
        return {n: v for n, v in environment.items() if n.startswith(AT_START)} == {
            n: v for n, v in os.environ.items() if n.startswith(AT_START)
        }

    def run(
        self, arguments: list[str], environment: dict[str, str], stdin: bytes | None, cwd: Path, seconds: float
    ) -> subprocess.CompletedProcess[str]:
        """Run ``flask`` with ``arguments``; the status of one that a signal ended is negative."""
        request = json.dumps([arguments, environment, str(cwd)]).encode()
        theirs, ours = [], []
        for reads in (True, False, False, False):
            read, write = os.pipe()
            theirs.append(read if reads else write)
            ours.append(write if reads else read)
        with self._lock:
            connection = self._connection()
            connection.sendall(len(request).to_bytes(4))
            socket.send_fds(connection, [request], theirs)
        for descriptor in theirs:
            os.close(descriptor)
        contents: list[bytes] = [b"", b"", b""]

        def read(place: int) -> None:
            with os.fdopen(ours[place + 1], "rb") as stream:
                contents[place] = stream.read()

        readers = [threading.Thread(target=read, args=(place,), daemon=True) for place in range(3)]
        for reader in readers:
            reader.start()
        with contextlib.suppress(BrokenPipeError), os.fdopen(ours[0], "wb") as stream:
            stream.write(stdin or b"")
        for reader in readers:
            reader.join(seconds)
            if reader.is_alive():
                raise subprocess.TimeoutExpired(["flask", *arguments], seconds)
        stdout, stderr, status = contents
        return subprocess.CompletedProcess(
            ["flask", *arguments], int(status), stdout.decode(), stderr.decode(errors="replace")
        )

    def _connection(self) -> socket.socket:
        if self._helper is None or self._helper[0] != os.getpid():
            ours, theirs = socket.socketpair()
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, __file__, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                )
            self._helper = os.getpid(), ours, process
            atexit.register(self._end)
        return self._helper[1]

    def _end(self) -> None:
        if self._helper and self._helper[0] == os.getpid():
            _, connection, process = self._helper
            connection.close()
            process.wait()


def serve(connection: socket.socket) -> None:
    """Fork for each run, until the test process closes the connection."""
    for name in IMPORTED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while length := connection.recv(4, socket.MSG_WAITALL):
        request: bytes = b""
        descriptors: list[int] = []
        while len(request) < int.from_bytes(length):
            part, found, _, _ = socket.recv_fds(connection, LIMIT_BYTES, 4)
            request += part
            descriptors.extend(found)
        if os.fork() == 0:
            connection.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _watch(*json.loads(request), descriptors[:3], descriptors[3])
        for descriptor in descriptors:
            os.close(descriptor)


def _watch(arguments: list[str], environment: dict[str, str], cwd: str, streams: Sequence[int], status: int) -> None:
    """Run the command in a child, and report its status."""
    if (child := os.fork()) == 0:
        os.close(status)
        for number, descriptor in enumerate(streams):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.environ.clear()
        os.environ.update(environment)
        time.tzset()
        os.chdir(cwd)
        sys.argv = ["flask", *arguments]
        # Raises SystemExit, which ends this process with the status of the command.
        sys.modules["app.cli.main"].main()
    for descriptor in streams:
        os.close(descriptor)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.write(status, str(ended).encode())
    os._exit(0)


if __name__ == "__main__":
    # The folder of this file, where a module `redis` would hide the library's.
    del sys.path[0]
    serve(socket.socket(fileno=int(sys.argv[1])))
