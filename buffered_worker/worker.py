"""The gunicorn worker: it reads whole requests and sends whole responses, so a slow caller costs memory, not a thread.

A few equal threads share one epoll. A thread takes one event and handles it to the end: it accepts a connection, or
adds bytes to a buffer, or, once the buffer holds a complete request, runs the application and sends the response. Which
thread runs is left to ``scheduler``, HTTP (RFC 9112) to ``request_parser``, what a request means to the
application. ``README.md`` compares stock workers, with figures. Linux only, because of epoll.
"""

import contextlib
import errno
import io
import json
import os
import re
import secrets
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from itertools import count
from typing import Any, ClassVar, cast

from gunicorn.http.wsgi import base_environ
from gunicorn.workers.base import Worker

from buffered_worker.connection import READ, WRITE, Connection, addresses, choose_evicted, choose_largest
from buffered_worker.load_sharing import LoadSharing
from buffered_worker.request_parser import Head, Limits, RequestBuffer, RequestError
from buffered_worker.response import Response, error_response
from buffered_worker.scheduler import Scheduler, Slots

SWEEP_SECONDS = 1.0
"""How often deadlines are checked."""
FILES_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
RECEIVED_AT = "buffered_worker.received_at"
"""The WSGI variable with the value of :func:`time.perf_counter` when the request was complete."""


class BufferedWorker(Worker):
    """Serving threads around one epoll; the main thread checks deadlines, sends heartbeats and shuts down.

    Subclasses set the parameters: the class attributes in upper case, :meth:`error_body` and :meth:`on_blocking`.
    """

    SERVER: ClassVar[str] = "gunicorn"
    """The value of the ``Server`` header."""
    BODY_LIMIT_BYTES: ClassVar[int] = 16 * 1024
    """The longest request body; a longer one gets 413."""
    INCOMPLETE_LIMIT_BYTES: ClassVar[int] = 16 * 1024 * 1024
    """What all incomplete requests of a worker may take; in each sweep the largest are closed."""
    NEVER_BLOCKS: ClassVar[re.Pattern[str]] = re.compile(r"(?!)")
    """Paths whose views never block: they are served even when all other threads are blocked."""
    REQUEST_SECONDS: ClassVar[float] = 8.0
    """From a request's first byte to its last: with the sweep, slow callers are gone well within 10 s."""
    STOP_SECONDS: ClassVar[float] = 2.0
    """How long a stopping worker keeps idle connections open: a request may be on its way."""
    YIELD_SECONDS: ClassVar[float] = 0.001
    """How long a worker leaves a new connection to one that holds fewer."""
    STUCK_SECONDS: ClassVar[float] = 0.5
    """A thread that has served one request for this long without a blocking section loses the run lock."""

    _shared: ClassVar = LoadSharing.share()

    @staticmethod
    def error_body(status: HTTPStatus) -> bytes:
        """Return the JSON body of an error response."""
        return json.dumps({"error": status.phrase}).encode()

    @staticmethod
    def on_blocking(before: Callable[[], None], after: Callable[[], None]) -> None:
        """Have ``before`` and ``after`` called around each blocking section of the current thread."""

    def init_process(self) -> None:
        """Prepare the state of this process, then load the application and run."""
        self.epoll = select.epoll()
        self.load = LoadSharing(self._shared, self.age)
        self.connections: set[Connection] = set()
        self.parked: dict[int, Connection] = {}
        self.listeners: dict[int, tuple[Any, Any]] = {}
        self.busy_since = [0.0] * self.cfg.threads
        self.scheduler = Scheduler()
        self.request_numbers = count(1)
        # One thread is always left for paths that never block. A request without a slot is postponed, without a thread.
        self.slots = Slots(max(1, self.cfg.threads - 1))
        self.postponed: deque[tuple[Connection, Head, bytes]] = deque()
        self.keepalive: int = self.cfg.keepalive
        self.limits = Limits.of(self.cfg, self.BODY_LIMIT_BYTES)
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
            self._sweep(SWEEP_SECONDS)
            self._stop_unless_healthy()
        self._stop()

    # The main thread.

    def _sweep(self, seconds: float) -> None:
        now = time.monotonic()
        self.notify()
        self.load.publish(len(self.connections), heartbeat=int(now) if self.alive else 0)
        for connection in list(self.parked.values()):
            if connection.deadline <= now and self._claim(connection):
                self._expire(connection)
        self._close_all(choose_largest(list(self.parked.values()), self.INCOMPLETE_LIMIT_BYTES))
        running = self.scheduler.running
        if running is not None and 0.0 < self.busy_since[running] < now - self.STUCK_SECONDS:
            self.scheduler.step_aside(running)
        if select.select([self.PIPE[0]], [], [], seconds)[0]:
            os.read(self.PIPE[0], 4096)

    def _stop_unless_healthy(self) -> None:
        if self.ppid != os.getppid():
            self.log.info("Parent changed, shutting down: %s", self)
            self.alive = False
        if self._lost_threads():
            # The other threads still serve: a worker that ends by itself lets them finish, the arbiter would kill it.
            self.log.critical("Threads have died or hang longer than %s s: %s is replaced", self.cfg.timeout, self)
            self.alive = False

    def _lost_threads(self) -> int:
        limit = time.monotonic() - self.cfg.timeout if self.cfg.timeout else 0.0
        hung = sum(0.0 < since < limit for since in self.busy_since)
        return hung + sum(not thread.is_alive() for thread in self.threads)

    def _stop(self) -> None:
        began = time.monotonic()
        for connection in list(self.parked.values()):
            if not connection.incomplete:
                connection.deadline = min(connection.deadline, began + self.STOP_SECONDS)
        self._drain(began + min(self.STOP_SECONDS, self.cfg.graceful_timeout))
        for fd, (listener, _) in list(self.listeners.items()):
            self.epoll.unregister(fd)
            # Serve the connections that the kernel has accepted already; later ones find the port closed.
            for _ in range(self.cfg.backlog):
                if not self._accept_one(fd):
                    break
            del self.listeners[fd]
            listener.close()
        self._drain(began + self.cfg.graceful_timeout)

    def _drain(self, until: float) -> None:
        while len(self.connections) > self._lost_threads() and time.monotonic() < until:
            self._sweep(0.05)

    def _expire(self, connection: Connection) -> None:
        if connection.incomplete and not connection.unsent:
            too_slow = RequestError(HTTPStatus.REQUEST_TIMEOUT, "Not complete in time")
            connection.unsent = self._refuse(connection.buffer.head, connection, too_slow)
            with contextlib.suppress(OSError):
                connection.flush()
        self._close(connection)

    # The serving threads.

    def _serve(self, number: int) -> None:
        self.on_blocking(partial(self.scheduler.step_aside, number), partial(self.scheduler.acquire, number))
        try:
            while True:
                self._serve_next(number)
        finally:
            self.scheduler.step_aside(number)

    def _serve_next(self, number: int) -> None:
        fd = self.scheduler.next_event(number, self.epoll)
        self.busy_since[number] = time.monotonic()
        connection = self.parked.pop(fd, None)
        if connection:
            self._guard(connection, self._handle)
        elif fd in self.listeners:
            self._accept(fd, number)
        while self.postponed and self.slots.take():
            self.busy_since[number] = time.monotonic()
            self._resume()
        self.busy_since[number] = 0.0

    def _guard(self, connection: Connection, handle: Callable[[Connection], None]) -> None:
        try:
            handle(connection)
        except OSError:
            # The caller has gone.
            self._close(connection)
        except Exception:
            self.log.exception("A connection is dropped")
            self._close(connection)

    def _resume(self) -> None:
        """Serve the request that was postponed first; the slot is taken."""
        try:
            connection, head, body = self.postponed.popleft()
        except IndexError:
            self.slots.release()
            return
        self._guard(connection, lambda one: self._proceed(one, (head, body)))

    def _accept(self, fd: int, number: int) -> None:
        if not self.alive or self.load.another_has_fewer(len(self.connections)):
            self.scheduler.step_aside(number)
            time.sleep(self.YIELD_SECONDS)
            self.scheduler.acquire(number)
        while self._accept_one(fd) and not self.load.another_has_fewer(len(self.connections)):
            # Accept this worker's whole share: events of busy connections would come between each two.
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
                # With every connection in use there is none to evict: do not try again at once.
                time.sleep(self.YIELD_SECONDS)
            return False
        if len(self.connections) >= self.cfg.worker_connections:
            self._evict()
        buffer = RequestBuffer(self.limits)
        connection = Connection(sock, peer, buffer, {**self.environ, **addresses(peer, server)})
        self.connections.add(connection)
        self.load.publish(len(self.connections))
        connection.deadline = connection.since + self._idle_seconds()
        self.parked[connection.fd] = connection
        with contextlib.suppress(OSError):
            self.epoll.register(connection.fd, READ)
        return True

    def _handle(self, connection: Connection) -> None:
        if connection.lingering:
            self._discard(connection)
        elif connection.unsent:
            if self._send(connection, connection.unsent):
                self._proceed(connection)
        else:
            data = connection.receive()
            if data and connection.incomplete and connection.deadline <= time.monotonic():
                # The sweep runs once a second, and skips a connection that is being handled just then.
                self._expire(connection)
            elif data:
                connection.buffer.data += data
                self._proceed(connection)
            elif data is None:
                self._park(connection, READ)
            elif connection.buffer.begun:
                self._proceed(connection, at_end=True)
            else:
                self._close(connection)

    def _proceed(
        self, connection: Connection, postponed: tuple[Head, bytes] | None = None, *, at_end: bool = False
    ) -> None:
        """Serve complete requests in order, until more bytes must arrive or a response cannot be sent."""
        buffer = connection.buffer
        if postponed and not self._send(connection, self._respond_in_slot(connection, *postponed)):
            return None
        while True:
            try:
                complete = buffer.take(at_end=at_end)
            except RequestError as error:
                response = self._refuse(buffer.head, connection, error)
            else:
                if complete is None:
                    return self._await_more(connection)
                connection.incomplete = False
                if self.slots.take():
                    response = self._respond_in_slot(connection, *complete)
                elif self.NEVER_BLOCKS.search(complete[0].path):
                    response = self._respond(connection, *complete)
                else:
                    return self.postponed.append((connection, *complete))
            connection.incomplete = False
            if not self._send(connection, response):
                return None

    def _await_more(self, connection: Connection) -> None:
        if connection.buffer.begun:
            self._begin_deadline(connection)
            if connection.buffer.must_continue():
                connection.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        else:
            connection.since = time.monotonic()
            connection.deadline = connection.since + self._idle_seconds()
        self._park(connection, READ)

    def _begin_deadline(self, connection: Connection) -> None:
        if not connection.incomplete:
            connection.incomplete = True
            connection.since = time.monotonic()
            connection.deadline = connection.since + self.REQUEST_SECONDS

    def _idle_seconds(self) -> float:
        seconds = self.keepalive or self.REQUEST_SECONDS
        return seconds if self.alive else min(seconds, self.STOP_SECONDS)

    def _respond_in_slot(self, connection: Connection, head: Head, body: bytes) -> bytes:
        try:
            return self._respond(connection, head, body)
        finally:
            self.slots.release()

    def _respond(self, connection: Connection, head: Head, body: bytes) -> bytes:
        environ = {**connection.environ, **head.environ}
        environ["wsgi.input"] = io.BytesIO(body)
        environ[RECEIVED_AT] = time.perf_counter()
        if next(self.request_numbers) >= self.max_requests and self.alive:
            self.alive = False
            os.write(self.PIPE[1], b"1")
        response, application = Response(self.SERVER), cast("Any", self.wsgi)
        try:
            content = response.collect(application, environ)
            # Decided only now: a worker that was told to stop while the application ran says so in this response.
            connection.closing = head.closes or not (self.alive and self.keepalive)
            return response.to_bytes(content, head, closes=connection.closing)
        except Exception as error:  # noqa: BLE001
            return self._refuse(head, connection, error)

    def _refuse(self, head: Head | None, connection: Connection, error: Exception) -> bytes:
        """Return the JSON response for ``error``, and log it without any byte that the caller sent."""
        connection.closing = connection.refused = True
        status, request_id = HTTPStatus.INTERNAL_SERVER_ERROR, secrets.token_hex(16)
        if isinstance(error, RequestError):
            status, source = error.status, connection.host or "unix"
            self.log.info("Refused with %d: %s from %s, request_id=%s", status, error, source, request_id)
        else:
            method = getattr(head, "method", "malformed")
            self.log.error("Error handling a %s request, request_id=%s", method, request_id, exc_info=error)
        to_head = head.method == "HEAD" if head else connection.buffer.is_head
        return error_response(status, self.error_body(status), request_id, server=self.SERVER, to_head=to_head)

    def _send(self, connection: Connection, response: bytes | memoryview) -> bool:
        """Send ``response``; return whether the connection is ready for the next request."""
        connection.unsent = response
        if not connection.flush():
            self._begin_deadline(connection)
            self._park(connection, WRITE)
            return False
        connection.incomplete = False
        if not connection.closing:
            return True
        if connection.refused or connection.buffer.begun:
            connection.linger()
            self._park(connection, READ)
        else:
            self._close(connection)
        return False

    def _discard(self, connection: Connection) -> None:
        if connection.discard():
            self._park(connection, READ)
        else:
            self._close(connection)

    def _park(self, connection: Connection, events: int) -> None:
        # First parked, then armed: an event for a connection that is not parked would be lost. In between the main
        # thread may close it and its descriptor may go to a new connection, which is then woken for nothing.
        self.parked[connection.fd] = connection
        self._arm(connection.fd, events)

    def _arm(self, fd: int, events: int) -> None:
        try:  # noqa: SIM105 - Runs for each request: a context manager would take as long as the call.
            self.epoll.modify(fd, events)
        except OSError:
            pass

    def _claim(self, connection: Connection) -> bool:
        claimed = self.parked.pop(connection.fd, None)
        if claimed not in {None, connection}:
            self._park(claimed, WRITE if claimed.unsent else READ)
        return claimed is connection

    def _evict(self) -> None:
        """Close connections to make room for new ones."""
        self._close_all(choose_evicted(list(self.parked.values()), self.cfg.worker_connections))

    def _close_all(self, connections: list[Connection]) -> None:
        for connection in filter(self._claim, connections):
            self._close(connection)

    def _close(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self.load.publish(len(self.connections))
        connection.sock.close()
