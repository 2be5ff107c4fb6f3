"""Answers (RFC 9112 section 4): what the application says, whole, and what a refused caller reads."""

import json
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

from app.errors import below_oauth
from app.worker.heads import Head

SERVER = "tokenhouse"
_STATUS = re.compile(r"[0-9]{3}(?: [\t -~\x80-\xff]*)?")
_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\t -~\x80-\xff]*")

_MOST_NAMES_KEPT = 256
_dated: tuple[int, str] = (0, "")


class _Kind(Enum):
    """What becomes of a header of the application's."""

    ANY = "it is sent"
    LENGTH = "it must be true"
    CONNECTION = "it is ours to say"


@lru_cache(maxsize=_MOST_NAMES_KEPT)
def _kind_of(name: str) -> _Kind:
    if not _NAME.fullmatch(name):
        raise InvalidResponseHeaderName(repr(name))
    if name.lower() == "content-length":
        return _Kind.LENGTH
    return _Kind.CONNECTION if is_hoppish(name) else _Kind.ANY


class Answer:
    """What an application answers: PEP 3333. It is sent when all of it is there."""

    __slots__ = ("_length", "_lines", "_parts", "_status")

    def __init__(self) -> None:
        self._status = ""
        self._lines: list[str] = []
        self._parts: list[bytes] = []
        self._length: int | None = None

    def start_response(
        self, status: str, headers: Sequence[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """Take status and headers. Those of the connection are ours to say.

        :raises ValueError: the status, or a length, is none.
        :raises InvalidResponseHeaderName, InvalidResponseHeader: likewise, without the value.
        """
        if self._status and not exc_info:
            raise AssertionError("the answer has been started already")
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

    def whole(self, body: bytes, head: Head, *, closes: bool) -> bytes:
        """All bytes of the answer to ``head``.

        :raises ValueError: the body is not as long as was said.
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
            f"HTTP/{major}.{minor} {self._status}\r\nServer: {SERVER}\r\nDate: {_date()}\r\n"
            f"Connection: {'close' if closes else 'keep-alive'}\r\n{length}{''.join(self._lines)}\r\n"
        ).encode("latin-1")
        return text + body if has_body else text


def refusal(status: HTTPStatus, request_id: str, *, to_head: bool) -> bytes:
    """The whole JSON answer for a request that never reached the application, or failed there."""
    body = json.dumps(below_oauth(status), separators=(",", ":")).encode()
    text = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\n"
        f"Server: {SERVER}\r\n"
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
    """RFC 9110 section 6.6.1; the same for a second."""
    global _dated  # noqa: PLW0603 - Replaced whole: other threads do the same.
    now, text = _dated
    if now != (this := int(time.time())):
        text = formatdate(this, usegmt=True)
        _dated = this, text
    return text
