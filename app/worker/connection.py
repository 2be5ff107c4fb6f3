"""One caller's socket, buffers and state, and the status that a refused one reads; what to do is left to the worker."""

import heapq
import select
import socket
import time
from collections import Counter
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from gunicorn.http.errors import (  # type: ignore[attr-defined]  # The stubs lack two names of gunicorn 27.
    ExpectationFailed,
    InvalidResponseHeader,
    InvalidResponseHeaderName,
    LimitRequestHeaders,
    LimitRequestLine,
    NoMoreData,
    ParseException,
    UnsupportedTransferCoding,
)

from app.worker.framing import Inbox, TooLong
from app.worker.heads import UnsupportedVersion

RECEIVE_BYTES = 16 * 1024
"""Read at once: as much as the longest body."""
YOUNG_SECONDS = 2.0
"""How long a new connection is not made to leave."""
LEAVE_AT_ONCE = 16
READ = select.EPOLLIN | select.EPOLLONESHOT
WRITE = select.EPOLLOUT | select.EPOLLONESHOT


class TooSlow(ParseException):
    """The request was not complete in time."""


_STATUS_BY_ERROR = (
    (LimitRequestLine, HTTPStatus.REQUEST_URI_TOO_LONG),
    (LimitRequestHeaders, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE),
    (ExpectationFailed, HTTPStatus.EXPECTATION_FAILED),
    (UnsupportedTransferCoding, HTTPStatus.NOT_IMPLEMENTED),
    (UnsupportedVersion, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED),
    (TooLong, HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    (TooSlow, HTTPStatus.REQUEST_TIMEOUT),
    # What the application sends and gunicorn refuses is the application's fault, though the classes are a caller's.
    ((InvalidResponseHeader, InvalidResponseHeaderName), HTTPStatus.INTERNAL_SERVER_ERROR),
)


class Connection:
    """One caller. Whoever takes it out of the worker's ``waiting`` owns it until it is parked again or closed."""

    __slots__ = ("accepted", "closing", "deadline", "discarded", "environ", "fd", "halfway", "inbox", "lingering",
                 "peer", "refused", "since", "sock", "unsent")  # fmt: skip

    def __init__(self, sock: socket.socket, peer: Any, inbox: Inbox, environ: dict[str, Any]) -> None:
        self.sock, self.fd, self.peer, self.inbox, self.environ = sock, sock.fileno(), peer, inbox, environ
        self.unsent: memoryview | bytes = b""
        self.closing = self.refused = self.lingering = self.halfway = False
        self.discarded = 0
        self.accepted = self.since = time.monotonic()
        self.deadline = 0.0

    @property
    def host(self) -> object:
        """The caller's address without its port; the same for all callers of a unix socket."""
        return self.peer[0] if isinstance(self.peer, tuple) else None

    def receive(self) -> bytes | None:
        """What has arrived, empty at the end, ``None`` when there is nothing yet."""
        try:
            return self.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return None

    def flush(self) -> bool:
        """Send what is unsent as far as the kernel takes it, and tell whether that was all."""
        try:
            sent = self.sock.send(self.unsent)
        except BlockingIOError:
            return False
        self.unsent = memoryview(self.unsent)[sent:] if sent < len(self.unsent) else b""
        return not self.unsent


def choose_leaving(waiting: Sequence[Connection], most: int) -> list[Connection]:
    """Who makes room: half-way connections and then idle ones, the oldest first; a new one where there are no others.

    What a new connection has sent may still be on its way, so it looks idle and is not. An address that holds more
    than half of ``most`` makes room out of its own.

    :param most: how many connections a worker holds.
    """
    (host, held), *_ = Counter(one.host for one in waiting).most_common(1) or [(None, 0)]
    if held > most // 2:
        waiting = [one for one in waiting if one.host == host]
    young_since = time.monotonic() - YOUNG_SECONDS
    old = [one for one in waiting if not (one.inbox.is_new and one.accepted > young_since)]
    leaving = heapq.nsmallest(LEAVE_AT_ONCE, old, key=lambda one: (not one.halfway, one.since))
    return leaving or heapq.nsmallest(1, waiting, key=lambda one: one.accepted)


def status_of(error: BaseException) -> HTTPStatus:
    """The status that a caller reads for ``error``."""
    for kind, status in _STATUS_BY_ERROR:
        if isinstance(error, kind):
            return status
    is_callers = isinstance(error, (ParseException, NoMoreData))
    return HTTPStatus.BAD_REQUEST if is_callers else HTTPStatus.INTERNAL_SERVER_ERROR


def addresses(peer: Any, server: Any) -> dict[str, str]:
    """Who called, and where; a unix socket has neither."""
    if not isinstance(peer, tuple) or not isinstance(server, tuple):
        return {"REMOTE_ADDR": "", "SERVER_NAME": "localhost", "SERVER_PORT": ""}
    return {
        "REMOTE_ADDR": peer[0],
        "REMOTE_PORT": str(peer[1]),
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
    }
