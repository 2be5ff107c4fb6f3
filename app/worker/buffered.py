"""The gunicorn worker: complete requests in, whole answers out, and a slow caller costs a buffer, never a thread.

Each of the few serving threads waits on the process's one epoll and serves what it is handed: it accepts, or adds bytes
to a buffer, or, when the buffer holds a complete request, runs the application and sends the answer in one piece. What
a head means (RFC 9112) is left to ``heads``, and with that to gunicorn's own parser; what a request means to the
application. Why not a stock worker, with figures: ``docs/worker.md``. Linux only, for its epoll.
"""

import contextlib
import errno
import io
import os
import re
import secrets
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from itertools import count
from typing import Any, ClassVar, cast

from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.wsgi import base_environ
from gunicorn.workers.base import Worker

from app.blocking import blocking
from app.worker.answers import Answer, refusal
from app.worker.connection import READ, WRITE, Connection, TooSlow, addresses, choose_leaving, status_of
from app.worker.floor import Floor, Turns
from app.worker.framing import Inbox
from app.worker.heads import Head, HeadReader
from app.worker.peers import Peers

LINGER_SECONDS = 2.0
"""How long a caller that was refused may still send, so that it reads the answer before the connection is reset."""
LINGER_BYTES = 8 * 1024 * 1024
SWEEP_SECONDS = 1.0
NEVER_WAITS = re.compile(r"(/livez|/\.well-known/[^?]*)$")
"""Paths that are served from memory, whatever the database does."""
FILES_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class BufferedWorker(Worker):
    """Serving threads around one epoll, and a main thread that keeps deadlines, the heartbeat and the way out."""

    REQUEST_SECONDS: ClassVar[float] = 8.0
    """From a request's first byte to its last: with the sweep, half-way callers are gone well within 10 s."""
    STOP_SECONDS: ClassVar[float] = 2.0
    """How long a worker that stops still waits for requests on idle connections: they may be on their way."""
    YIELD_SECONDS: ClassVar[float] = 0.001
    """How long a worker leaves a new connection to one that has fewer."""

    FLOOR_SECONDS: ClassVar[float] = 0.5
    """How long a thread that serves keeps others from it, unless it says that it waits."""

    _shared: ClassVar = Peers.share()

    def init_process(self) -> None:
        """Prepare what belongs to this process alone, then load the application and run."""
        self.epoll = select.epoll()
        self.peers = Peers(self._shared, self.age)
        self.connections: set[Connection] = set()
        self.waiting: dict[int, Connection] = {}
        self.listeners: dict[int, tuple[Any, Any]] = {}
        self.busy_since = [0.0] * self.cfg.threads
        self.floor = Floor()
        self.numbers = count(1)
        # A thread is always left for what never waits; whoever finds no turn is postponed, without a thread.
        self.turns = Turns(max(1, self.cfg.threads - 1))
        self.postponed: deque[tuple[Connection, Head, bytes]] = deque()
        self.keepalive: int = self.cfg.keepalive
        self.reader = HeadReader(self.cfg)
        self.environ = {**base_environ(self.cfg), "wsgi.multithread": self.cfg.threads > 1, "wsgi.url_scheme": "http"}
        super().init_process()

    def run(self) -> None:
        """Serve until told to stop."""
        for listener in self.sockets:
            listener.setblocking(False)  # noqa: FBT003
            self.listeners[listener.fileno()] = (listener, listener.getsockname())
            self.epoll.register(listener.fileno(), READ)
        self.threads = [threading.Thread(target=self._serve, args=(n,), daemon=True) for n in range(self.cfg.threads)]
        for thread in self.threads:
            thread.start()
        while self.alive:
            self._tick(SWEEP_SECONDS)
            self._stop_unless_healthy()
        self._stop()

    # The main thread.

    def _tick(self, seconds: float) -> None:
        now = time.monotonic()
        self.notify()
        self.peers.publish(len(self.connections), beat=int(now) if self.alive else 0)
        for connection in list(self.waiting.values()):
            if connection.deadline <= now and self._claim(connection):
                self._expire(connection)
        self.floor.free(self.busy_since, now - self.FLOOR_SECONDS)
        if select.select([self.PIPE[0]], [], [], seconds)[0]:
            os.read(self.PIPE[0], 4096)

    def _stop_unless_healthy(self) -> None:
        if self.ppid != os.getppid():
            self.log.info("Parent changed, shutting down: %s", self)
            self.alive = False
        if self._lost_threads():
            # The rest of this worker still serves: ending by itself lets it finish, where the arbiter would kill it.
            self.log.critical(
                "Serving threads have died or hang longer than %s s: worker %s is replaced", self.cfg.timeout, self.pid
            )
            self.alive = False

    def _lost_threads(self) -> int:
        limit = time.monotonic() - self.cfg.timeout if self.cfg.timeout else 0.0
        hung = sum(0.0 < since < limit for since in self.busy_since)
        return hung + sum(not thread.is_alive() for thread in self.threads)

    def _stop(self) -> None:
        began = time.monotonic()
        for connection in list(self.waiting.values()):
            if not connection.halfway:
                connection.deadline = min(connection.deadline, began + self.STOP_SECONDS)
        self._finish(began + min(self.STOP_SECONDS, self.cfg.graceful_timeout))
        for fd, (listener, _) in list(self.listeners.items()):
            self.epoll.unregister(fd)
            # What the kernel has accepted for us already is served; whoever comes later meets a closed door.
            for _ in range(self.cfg.backlog):
                if not self._accept_one(fd):
                    break
            del self.listeners[fd]
            listener.close()
        self._finish(began + self.cfg.graceful_timeout)

    def _finish(self, end: float) -> None:
        while len(self.connections) > self._lost_threads() and time.monotonic() < end:
            self._tick(0.05)

    def _expire(self, connection: Connection) -> None:
        if connection.halfway and not connection.unsent:
            connection.unsent = self._refusal(connection.inbox.head, connection, TooSlow())
            with contextlib.suppress(OSError):
                connection.flush()
        self._close(connection)

    # The serving threads.

    def _serve(self, number: int) -> None:
        self.floor.enter(number)
        try:
            while True:
                self._serve_next(number)
        finally:
            self.floor.give_up(number)

    def _serve_next(self, number: int) -> None:
        floor, busy_since = self.floor, self.busy_since
        floor.lead(number)
        floor.share(number)
        came = self.epoll.poll(0, 1)
        if not came:
            floor.leave(number)
            came = self.epoll.poll(None, 1)
            floor.take(number)
        fd, _ = came[0]
        busy_since[number] = time.monotonic()
        connection = self.waiting.pop(fd, None)
        if connection:
            self._guard(connection, self._attend)
        elif fd in self.listeners:
            self._welcome(fd)
        while self.postponed and self.turns.take():
            busy_since[number] = time.monotonic()
            self._resume()
        busy_since[number] = 0.0

    def _guard(self, connection: Connection, serve: Callable[[Connection], None]) -> None:
        try:
            serve(connection)
        except OSError:
            # The caller has gone.
            self._close(connection)
        except Exception:
            self.log.exception("A connection is dropped")
            self._close(connection)

    def _resume(self) -> None:
        """Serve who was postponed for longest; the turn is ours."""
        try:
            connection, head, body = self.postponed.popleft()
        except IndexError:
            self.turns.give_back()
            return

        def serve(connection: Connection) -> None:
            if self._send(connection, self._answer_in_turn(connection, head, body)):
                self._proceed(connection)

        self._guard(connection, serve)

    def _welcome(self, fd: int) -> None:
        if not self.alive or self.peers.have_fewer_than(len(self.connections)):
            with blocking:
                time.sleep(self.YIELD_SECONDS)
        while self._accept_one(fd) and not self.peers.have_fewer_than(len(self.connections)):
            # All that is due to this worker: busy connections would come in between each two.
            pass
        self._arm(fd, READ)

    def _accept_one(self, fd: int) -> bool:
        try:
            listener, server = self.listeners[fd]
            sock, peer = listener.accept()
            sock.setblocking(False)  # noqa: FBT003
        except (KeyError, OSError) as error:
            if isinstance(error, OSError) and error.errno in FILES_EXHAUSTED:
                self._evict()
                # When every connection is being served there is nobody to evict: not to ask again at once.
                time.sleep(self.YIELD_SECONDS)
            return False
        if len(self.connections) >= self.cfg.worker_connections:
            self._evict()
        environ = {**self.environ, **addresses(peer, server)}
        connection = Connection(sock, peer, Inbox(self.reader, peer), environ)
        self.connections.add(connection)
        self.peers.publish(len(self.connections))
        connection.deadline = connection.since + self._patience()
        self.waiting[connection.fd] = connection
        with contextlib.suppress(OSError):
            self.epoll.register(connection.fd, READ)
        return True

    def _attend(self, connection: Connection) -> None:
        if connection.lingering:
            self._discard(connection)
        elif connection.unsent:
            if self._send(connection, connection.unsent):
                self._proceed(connection)
        else:
            data = connection.receive()
            if data and connection.halfway and connection.deadline <= time.monotonic():
                # The sweep looks once a second, and may have missed it just while it was being attended to.
                self._expire(connection)
            elif data:
                connection.inbox.buffer += data
                self._proceed(connection)
            elif data is None:
                self._park(connection, READ)
            elif connection.inbox.begun:
                self._proceed(connection, at_end=True)
            else:
                self._close(connection)

    def _proceed(self, connection: Connection, *, at_end: bool = False) -> None:
        """Serve what is complete, in order, until more must come or an answer cannot leave."""
        inbox = connection.inbox
        while True:
            try:
                complete = inbox.take(at_end=at_end)
            except (ParseException, NoMoreData) as error:
                answer = self._refusal(inbox.head, connection, error)
            else:
                if complete is None:
                    return self._await(connection)
                connection.halfway = False
                if self.turns.take():
                    answer = self._answer_in_turn(connection, *complete)
                elif NEVER_WAITS.search(complete[0].path):
                    answer = self._answer(connection, *complete)
                else:
                    return self.postponed.append((connection, *complete))
            connection.halfway = False
            if not self._send(connection, answer):
                return None

    def _await(self, connection: Connection) -> None:
        if connection.inbox.begun:
            self._hurry(connection)
            if connection.inbox.must_continue():
                connection.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        else:
            connection.since = time.monotonic()
            connection.deadline = connection.since + self._patience()
        self._park(connection, READ)

    def _hurry(self, connection: Connection) -> None:
        if not connection.halfway:
            connection.halfway = True
            connection.since = time.monotonic()
            connection.deadline = connection.since + self.REQUEST_SECONDS

    def _patience(self) -> float:
        seconds = self.keepalive or self.REQUEST_SECONDS
        return seconds if self.alive else min(seconds, self.STOP_SECONDS)

    def _answer_in_turn(self, connection: Connection, head: Head, body: bytes) -> bytes:
        try:
            return self._answer(connection, head, body)
        finally:
            self.turns.give_back()

    def _answer(self, connection: Connection, head: Head, body: bytes) -> bytes:
        environ = {**connection.environ, **head.environ}
        environ["wsgi.input"] = io.BytesIO(body)
        environ["tokenhouse.received_at"] = time.perf_counter()
        if next(self.numbers) >= self.max_requests and self.alive:
            self.alive = False
            os.write(self.PIPE[1], b"1")
        answer, application = Answer(), cast("Any", self.wsgi)
        try:
            items = application(environ, answer.start_response)
            try:
                content = b"".join(items)
            finally:
                if hasattr(items, "close"):
                    items.close()
            # Not before: a worker that was told to stop while the application ran says so in this very answer.
            connection.closing = head.closes or not (self.alive and self.keepalive)
            return answer.whole(content, head, closes=connection.closing)
        except Exception as error:  # noqa: BLE001
            return self._refusal(head, connection, error)

    def _refusal(self, head: Head | None, connection: Connection, error: Exception) -> bytes:
        """A JSON answer for ``error``. Nothing that the caller sent is logged."""
        connection.closing = connection.refused = True
        status, request_id = status_of(error), secrets.token_hex(16)
        if head is None or status != HTTPStatus.INTERNAL_SERVER_ERROR:
            source = connection.peer[0] if connection.peer else "unix"
            self.log.info(
                "Refused with %d: %s from %s, request_id=%s", status, type(error).__name__, source, request_id
            )
        else:
            self.log.error("Error handling a %s request, request_id=%s", head.method, request_id, exc_info=error)
        return refusal(status, request_id, to_head=head is not None and head.method == "HEAD")

    # What both do with a connection that they own.

    def _send(self, connection: Connection, answer: bytes | memoryview) -> bool:
        """Send ``answer``, and tell whether the connection is ready for the next request."""
        connection.unsent = answer
        if not connection.flush():
            self._hurry(connection)
            self._park(connection, WRITE)
            return False
        connection.halfway = False
        if not connection.closing:
            return True
        if connection.refused or connection.inbox.begun:
            self._linger(connection)
        else:
            self._close(connection)
        return False

    def _linger(self, connection: Connection) -> None:
        # Closing while unread bytes arrive makes the kernel send a reset, which can overtake the answer: RFC 9112
        # section 9.6.
        connection.lingering = True
        connection.deadline = time.monotonic() + LINGER_SECONDS
        connection.sock.shutdown(socket.SHUT_WR)
        self._park(connection, READ)

    def _discard(self, connection: Connection) -> None:
        data = connection.receive()
        connection.discarded += len(data or b"")
        if data == b"" or connection.discarded > LINGER_BYTES:
            self._close(connection)
        else:
            self._park(connection, READ)

    def _park(self, connection: Connection, events: int) -> None:
        # First waiting, then armed: an event that finds nobody waiting would be lost. In between the main thread may
        # close it, and its number may belong to a newcomer, who is then woken for nothing.
        self.waiting[connection.fd] = connection
        self._arm(connection.fd, events)

    def _arm(self, fd: int, events: int) -> None:
        try:  # noqa: SIM105 - On the way of each request: a context manager takes as long as the call.
            self.epoll.modify(fd, events)
        except OSError:
            pass

    def _claim(self, connection: Connection) -> bool:
        claimed = self.waiting.pop(connection.fd, None)
        if claimed not in {None, connection}:
            self._park(claimed, WRITE if claimed.unsent else READ)
        return claimed is connection

    def _evict(self) -> None:
        """Make room for others."""
        for connection in choose_leaving(list(self.waiting.values()), self.cfg.worker_connections):
            if self._claim(connection):
                self._close(connection)

    def _close(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self.peers.publish(len(self.connections))
        connection.sock.close()
