"""A tiny application behind the real worker, and raw sockets to speak to it."""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from app.blocking import blocking
from app.operations.worker import TokenhouseWorker

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent

_served: list[str] = []


class HastyWorker(TokenhouseWorker):
    """The worker with less patience, for tests that wait for its end."""

    REQUEST_SECONDS = 1.0


class FrugalWorker(TokenhouseWorker):
    """The worker with little memory for incomplete requests."""

    INCOMPLETE_LIMIT_BYTES = 100_000


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Echo the request; ``/served``, ``/pid`` and ``/files`` tell about the worker.

    ``/sleep?1`` waits for a second, ``/hang?1`` does not say that it does.
    """
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/raise":
        raise RuntimeError("not for the wire")
    if path == "/sleep":
        with blocking:
            time.sleep(float(query))
    if path == "/hang":
        time.sleep(float(query))
    if path == "/big":
        start_response("200 OK", [("Content-Length", "8000000")])
        return [b"x" * 8_000_000]
    if path == "/empty":
        start_response("204 No Content", [])
        return []
    body = environ["wsgi.input"].read()
    answer = {
        "method": environ["REQUEST_METHOD"],
        "path": path,
        "length": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
        "content_length": environ.get("CONTENT_LENGTH"),
    }
    if path == "/served":
        answer = {"served": len(_served)}
    elif path == "/files":
        answer = {"files": len(list(pathlib.Path("/proc/self/fd").iterdir()))}
    elif path == "/pid":
        answer = {"pid": os.getpid()}
    else:
        _served.append(path)
    payload = json.dumps(answer).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(payload)))])
    return [payload]


class Answer(NamedTuple):
    """One response."""

    status: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Server:
    """A running gunicorn: where it listens and what it has logged."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.log: list[str] = []
        self.address = ("127.0.0.1", 0)
        self._collector = threading.Thread(target=self._collect, daemon=True)
        self._listening = threading.Event()
        self._collector.start()
        assert self._listening.wait(20), self.log
        assert self.address[1], self.log

    def _collect(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"Listening at: https?://127\.0\.0\.1:(\d+)", line):
                self.address = ("127.0.0.1", int(found[1]))
                self._listening.set()
        self._listening.set()

    def wait_for_log(self, text: str) -> str:
        """Return the log, once ``text`` is in it."""
        deadline = time.monotonic() + 10
        while text not in (log := "".join(self.log)):
            assert time.monotonic() < deadline, log
            time.sleep(0.01)
        return log

    def connect(self, sent: bytes = b"") -> socket.socket:
        """A fresh connection on which ``sent`` has been sent."""
        caller = socket.create_connection(self.address, timeout=15)
        caller.sendall(sent)
        return caller

    def exchange(self, *segments: bytes, half_close: bool = True) -> list[Answer]:
        """Send ``segments`` one by one, and read every answer until the server closes."""
        with self.connect() as caller:
            caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(ConnectionError):
                for segment in segments:
                    caller.sendall(segment)
                if half_close:
                    caller.shutdown(socket.SHUT_WR)
            return split_answers(read_all(caller))

    def get(self, path: str) -> Any:
        """The JSON answer at ``path``."""
        (answer,) = self.exchange(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        assert answer.status == "HTTP/1.0 200 OK", answer
        return answer.json


@contextlib.contextmanager
def serve(*arguments: str, worker: str = "app.operations.worker.TokenhouseWorker") -> Iterator[Server]:
    """A gunicorn with the project's own configuration and the application above."""
    command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "tests/support/echo_gunicorn.py")]
    command += ["-b", "127.0.0.1:0"]
    command += ["-k", worker, "--pythonpath", f"{ROOT},{HERE}", "--log-level", "debug", *arguments, "echo_app:app"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    server = None
    try:
        server = Server(process)
        yield server
    finally:
        process.send_signal(signal.SIGQUIT)
        # A worker that is born at this moment may miss it, and ends when gunicorn's patience does: holding signals back
        # is left to on_starting, which needs an application of ours.
        process.wait(60)
        if server:
            server._collector.join(5)  # noqa: SLF001
        assert process.stderr is not None
        process.stderr.close()


def read_all(caller: socket.socket) -> bytes:
    """Everything until the server closes, however it does."""
    received = bytearray()
    with contextlib.suppress(ConnectionError):
        while piece := caller.recv(65536):
            received += piece
    return bytes(received)


def read_one(caller: socket.socket) -> Answer:
    """One answer from a connection that stays open."""
    received = bytearray()
    while b"\r\n\r\n" not in received:
        piece = caller.recv(1)
        assert piece, received
        received += piece
    length = re.search(rb"(?i)content-length: (\d+)", received)
    while length and len(received.partition(b"\r\n\r\n")[2]) < int(length[1]):
        received += caller.recv(65536)
    (answer,) = split_answers(bytes(received))
    return answer


def split_answers(stream: bytes, *, to_head: bool = False) -> list[Answer]:
    """The answers in ``stream``; those to HEAD have no body."""
    answers = []
    while stream:
        head, _, stream = stream.partition(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        length = 0 if to_head else int(headers.get("Content-Length", 0))
        answers.append(Answer(status, headers, stream[:length]))
        stream = stream[length:]
    return answers
