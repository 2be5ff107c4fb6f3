"""Responses (RFC 9112 section 4): the application's, sent whole, and errors for requests that never reach it."""

import re
import time
from collections.abc import Callable, Sequence
from email.utils import formatdate
from enum import Enum
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from gunicorn.http.errors import (  # type: ignore[attr-defined]  # The stubs lack two names of gunicorn 27.
    InvalidResponseHeader,
    InvalidResponseHeaderName,
)
from gunicorn.util import is_hoppish

from buffered_worker.request_parser import Head

_STATUS = re.compile(r"[0-9]{3}(?: [\t -~\x80-\xff]*)?")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t -~\x80-\xff]*")

_CACHED_NAMES = 256
_dated: tuple[int, str] = (0, "")


class _Kind(Enum):
    """How a header of the application is handled."""

    ANY = "sent as it is"
    LENGTH = "must equal the length of the body"
    CONNECTION = "replaced by the worker"


@lru_cache(maxsize=_CACHED_NAMES)
def _kind_of(name: str) -> _Kind:
    if not _NAME.fullmatch(name):
        raise InvalidResponseHeaderName(repr(name))
    if name.lower() == "content-length":
        return _Kind.LENGTH
    return _Kind.CONNECTION if is_hoppish(name) else _Kind.ANY


class Response:
    """The application's response (PEP 3333), sent when it is complete.

    :param server: the value of the ``Server`` header.
    """

    __slots__ = ("_length", "_lines", "_parts", "_server", "_status")

    def __init__(self, server: str) -> None:
        self._server = server
        self._status = ""
        self._lines: list[str] = []
        self._parts: list[bytes] = []
        self._length: int | None = None

    def start_response(
        self, status: str, headers: Sequence[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """Take status and headers. Hop-by-hop headers are dropped: the worker writes them.

        :raises ValueError: the status is malformed, or ``Content-Length`` is not a number.
        :raises InvalidResponseHeaderName, InvalidResponseHeader: a malformed header; the value is not quoted.
        """
        if self._status and not exc_info:
            raise AssertionError("the response has been started already")
        if not _STATUS.fullmatch(status):
            raise ValueError("the status is malformed")
        self._status, self._lines, self._length = status, [], None
        if not _VALUE.fullmatch("\t".join([value for _, value in headers])):
            raise InvalidResponseHeader(repr(next(name for name, value in headers if not _VALUE.fullmatch(value))))
        for name, value in headers:
            kind = _kind_of(name)
            if kind is _Kind.ANY:
                self._lines.append(f"{name}: {value}\r\n")
            elif kind is _Kind.LENGTH:
                self._length = int(value)
        return self._parts.append

    def collect(self, application: Any, environ: dict[str, Any]) -> bytes:
        """Run the WSGI application; return the body that it returned, whole."""
        items = application(environ, self.start_response)
        try:
            return b"".join(items)
        finally:
            if hasattr(items, "close"):
                items.close()

    def to_bytes(self, body: bytes, head: Head, *, closes: bool) -> bytes:
        """Return the whole response to the request with ``head``.

        :raises ValueError: the body is not as long as ``Content-Length`` says.
        """
        body = b"".join((*self._parts, body)) if self._parts else body
        code = self._status[:3]
        has_length = code[0] != "1" and code != "204"
        has_body = has_length and code != "304" and head.method != "HEAD"
        if self._length is None and has_body:
            self._length = len(body)
        if has_body and self._length != len(body):
            raise ValueError(f"the body has {len(body)} bytes where Content-Length says {self._length}")
        length = f"Content-Length: {self._length}\r\n" if has_length and self._length is not None else ""
        major, minor = head.version
        text = (
            f"HTTP/{major}.{minor} {self._status}\r\nServer: {self._server}\r\nDate: {_date()}\r\n"
            f"Connection: {'close' if closes else 'keep-alive'}\r\n{length}{''.join(self._lines)}\r\n"
        ).encode("latin-1")
        return text + body if has_body else text


def error_response(status: HTTPStatus, body: bytes, request_id: str, *, server: str, to_head: bool) -> bytes:
    """Return the whole response to a request that never reached the application, or failed in it.

    :param body: JSON.
    """
    text = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Server: {server}\r\n"
        f"Date: {_date()}\r\n"
        "Connection: close\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\n"
        "Pragma: no-cache\r\n"
        "X-Content-Type-Options: nosniff\r\n"
        f"X-Request-ID: {request_id}\r\n\r\n"
    )
    return text.encode("latin-1") + (b"" if to_head else body)


def _date() -> str:
    """Return the ``Date`` of RFC 9110 section 6.6.1, formatted once a second."""
    global _dated  # noqa: PLW0603 - Replaced as a whole: other threads do the same.
    now, text = _dated
    if now != (this := int(time.time())):
        text = formatdate(this, usegmt=True)
        _dated = this, text
    return text
