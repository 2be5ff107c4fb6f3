"""The state of one connection: socket, buffers, deadlines."""

import heapq
import select
import socket
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from buffered_worker.request_parser import RequestBuffer

RECEIVE_BYTES = 16 * 1024
"""Bytes per read."""
LINGER_SECONDS = 2.0
"""How long a refused caller may go on sending, so that it reads the response before the connection is reset."""
LINGER_BYTES = 8 * 1024 * 1024
"""What a refused caller may send at most before its connection is closed."""
YOUNG_SECONDS = 2.0
"""How long a new connection is not evicted."""
EVICTED_AT_ONCE = 16
READ = select.EPOLLIN | select.EPOLLONESHOT
WRITE = select.EPOLLOUT | select.EPOLLONESHOT


class Connection:
    """One connection. The thread that takes it out of the worker's ``parked`` owns it until it parks or closes it.

    :ivar incomplete: whether a request has begun to arrive, or a response to leave, and is not complete.
    :ivar since: when this request or this idle time began; ``deadline`` is when it must end (monotonic seconds).
    """

    __slots__ = ("accepted", "buffer", "closing", "deadline", "discarded", "environ", "fd", "incomplete", "lingering",
                 "peer", "refused", "since", "sock", "unsent")  # fmt: skip

    def __init__(self, sock: socket.socket, peer: Any, buffer: RequestBuffer, environ: dict[str, Any]) -> None:
        self.sock, self.fd, self.peer, self.buffer, self.environ = sock, sock.fileno(), peer, buffer, environ
        self.unsent: memoryview | bytes = b""
        self.closing = self.refused = self.lingering = self.incomplete = False
        self.discarded = 0
        self.accepted = self.since = time.monotonic()
        self.deadline = 0.0

    @property
    def host(self) -> object:
        """The caller's address without its port; the same for all callers of a Unix socket."""
        return self.peer[0] if isinstance(self.peer, tuple) else None

    def receive(self) -> bytes | None:
        """Return the bytes that have arrived: empty at the end, ``None`` if there are none yet."""
        try:
            return self.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return None

    def discard(self) -> bool:
        """Discard what a refused caller still sends; return whether more may come."""
        data = self.receive()
        self.discarded += len(data or b"")
        return data != b"" and self.discarded <= LINGER_BYTES

    def linger(self) -> None:
        """Read on for a while after the last response, and send no more.

        Closing while unread bytes arrive makes the kernel send a reset, which can overtake the response: RFC 9112
        section 9.6.
        """
        self.lingering = True
        self.deadline = time.monotonic() + LINGER_SECONDS
        self.sock.shutdown(socket.SHUT_WR)

    def flush(self) -> bool:
        """Send unsent bytes as far as the kernel takes them; return whether all were sent."""
        try:
            sent = self.sock.send(self.unsent)
        except BlockingIOError:
            return False
        self.unsent = memoryview(self.unsent)[sent:] if sent < len(self.unsent) else b""
        return not self.unsent


def choose_evicted(parked: Sequence[Connection], limit: int) -> list[Connection]:
    """Choose connections to close: those with an incomplete request, then idle ones, the oldest first.

    A new connection looks idle while its request is on its way, so it is chosen only if there are no others. If one
    address holds more than half of ``limit``, only its connections are chosen.

    :param limit: the number of connections that a worker holds at most.
    """
    (host, held), *_ = Counter(one.host for one in parked).most_common(1) or [(None, 0)]
    if held > limit // 2:
        parked = [one for one in parked if one.host == host]
    young_since = time.monotonic() - YOUNG_SECONDS
    old = [one for one in parked if not (one.buffer.is_new and one.accepted > young_since)]
    evicted = heapq.nsmallest(EVICTED_AT_ONCE, old, key=lambda one: (not one.incomplete, one.since))
    return evicted or heapq.nsmallest(1, parked, key=lambda one: one.accepted)


def choose_largest(parked: Sequence[Connection], limit_bytes: int) -> list[Connection]:
    """Choose connections to close if their incomplete requests take more than ``limit_bytes``, the largest first."""
    sizes = {one: one.buffer.size for one in parked if one.incomplete and not one.unsent}
    excess, chosen = sum(sizes.values()) - limit_bytes, []
    for one in sorted(sizes, key=lambda one: sizes[one], reverse=True) if excess > 0 else ():
        if excess <= 0:
            break
        chosen.append(one)
        excess -= sizes[one]
    return chosen


def addresses(peer: Any, server: Any) -> dict[str, str]:
    """Return the WSGI variables for the two addresses of a connection; a Unix socket has neither."""
    if not isinstance(peer, tuple) or not isinstance(server, tuple):
        return {"REMOTE_ADDR": "", "SERVER_NAME": "localhost", "SERVER_PORT": ""}
    return {
        "REMOTE_ADDR": peer[0],
        "REMOTE_PORT": str(peer[1]),
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
    }
