"""Turns the bytes of a connection into complete requests (RFC 9112).

``httptools`` parses: llhttp, the parser of Node, which refuses every ambiguous length, bare line feed, folded line and
malformed chunk. This module adds limits and the rules that llhttp leaves to its user: one ``Host``, one
``Authorization``, HTTP/1.0 or HTTP/1.1, and no transfer coding but ``chunked``. Where a request ends, and whether it is
refused, depends on its bytes alone, not on how they were split into segments.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Any, NamedTuple, Self
from urllib.parse import unquote_to_bytes

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserUpgrade,
    HttpRequestParser,
)

HEAD_LIMIT_BYTES = 32 * 1024
"""The longest head. gunicorn's ``limit_request_*`` settings limit its parts."""
CHUNK_OVERHEAD_BYTES = 5
"""What a chunk of one byte has on the wire beside its data. No body may have more for each byte of the limit."""
FIELD_BYTES = 150
"""What a parsed field takes beside its characters."""
CHUNK_FRAMING_LIMIT_BYTES = 4096
"""The longest size line with its extensions, and the longest trailers, of a chunked body."""

_HTTP_1_1 = (1, 1)
_VERSIONS = {"HTTP/1.1": _HTTP_1_1, "HTTP/1.0": (1, 0)}
_OTHER_VERSION = re.compile(r"HTTP/[0-9]\.[0-9]")
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_ABSOLUTE = re.compile(r"https?://([^/?]+)(.*)", re.IGNORECASE)
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]*)?")
_METHOD = re.compile(rb"\A[A-Z0-9!$%&'*+.^_`|~-]{3,20} ")
"""A method in upper case, as all are."""
_UPGRADE = re.compile(rb"(?<=\r\n)upgrade:[^\r\n]*\r\n", re.IGNORECASE)
_STATUS_BY_REASON = {"Invalid HTTP version": HTTPStatus.HTTP_VERSION_NOT_SUPPORTED}
_LENGTH_DIGITS = 20
"""Digits of the largest length that llhttp accepts. Python refuses to convert thousands of digits, zeros too."""
_SINGLE = {"HTTP_HOST", "HTTP_AUTHORIZATION", "CONTENT_TYPE"}
"""Fields that have one value: RFC 9110 section 5.3. Joining two with a comma could make a third."""
_DROPPED = ""
_BLANKS = " \t"


class RequestError(Exception):
    """A request is refused below the application.

    :param reason: for the log; holds no byte that the caller sent.
    """

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _UnknownMethodError(RequestError):
    """llhttp does not know the method."""


class Limits(NamedTuple):
    """The limits of a worker, in bytes."""

    line: int
    field: int
    fields: int
    """How many fields, not how many bytes."""
    body: int

    @classmethod
    def of(cls, cfg: Any, body: int) -> Self:
        """Return gunicorn's ``limit_request_*``, where 0 means no limit, and the limit of a body."""
        settings = cfg.limit_request_line, cfg.limit_request_field_size, cfg.limit_request_fields
        line, field, fields = (setting or HEAD_LIMIT_BYTES for setting in settings)
        return cls(line, field, fields, body)


@dataclass(slots=True)
class Head:
    """One parsed head.

    :param path: the path as it was sent, without the query.
    :param version: the version of the response.
    :param environ: all WSGI variables that come from the head.
    :param closes: whether the caller wants no further response on its connection.
    :param expects_continue: whether the caller waits for ``100 Continue``: RFC 9110 section 10.1.1.
    """

    method: str
    path: str
    version: tuple[int, int]
    environ: dict[str, Any]
    closes: bool = False
    expects_continue: bool = False


class _Message:
    """What ``httptools`` reports of the current request. Fields are read from the head that it has accepted."""

    __slots__ = ("body", "body_limit", "has_head", "is_complete")

    def __init__(self, body_limit: int) -> None:
        self.body_limit = body_limit
        self.clear()

    def clear(self) -> None:
        # Not a list of pieces: with chunks of a byte or two it would take twenty times as much memory.
        self.body = bytearray()
        self.has_head = self.is_complete = False

    def on_headers_complete(self) -> None:
        self.has_head = True

    def on_body(self, data: bytes) -> None:
        self.body += data
        if len(self.body) > self.body_limit:
            raise _too_long()

    def on_message_complete(self) -> None:
        self.is_complete = True


@lru_cache(maxsize=256)
def _wsgi_name(field: str) -> str:
    if "_" in field:
        # In WSGI it could pass for another field, such as X-Forwarded-For.
        return _DROPPED
    key = field.upper().replace("-", "_")
    return key if key in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{key}"


class RequestBuffer:
    """The bytes of one caller; returns one complete request at a time.

    A head, and a body with a length, wait here until they are complete. A chunked body is decoded as it arrives.
    """

    __slots__ = ("_framing", "_has_body", "_has_skipped", "_head_bytes", "_limits", "_message", "_overhead", "_parser",
                 "_scanned", "_served", "_start", "data", "head")  # fmt: skip

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._message = _Message(limits.body)
        self._parser = HttpRequestParser(self._message)
        self._served = 0
        self.data = bytearray()
        self._begin()

    def _begin(self) -> None:
        self.head: Head | None = None
        self._start = b""
        self._scanned = self._framing = self._overhead = self._head_bytes = 0
        self._has_skipped = self._has_body = False

    @property
    def begun(self) -> bool:
        """Whether a part of a request has arrived."""
        return self.head is not None or bool(self.data)

    @property
    def size(self) -> int:
        """How many bytes the incomplete request takes here, roughly: a parsed head takes more than on the wire."""
        return len(self.data) + len(self._message.body) + self._head_bytes

    @property
    def is_new(self) -> bool:
        """Whether no complete request has arrived yet."""
        return self._served == 0

    @property
    def is_head(self) -> bool:
        """Whether the request is a ``HEAD``, however malformed or incomplete: its response has no body."""
        return (self._start or self.data[:5]) == b"HEAD "

    def must_continue(self) -> bool:
        """Return whether the caller waits for ``100 Continue`` and has sent no body yet."""
        return self.head is not None and self.head.expects_continue and not self.data and not self._has_body

    def take(self, *, at_end: bool = False) -> tuple[Head, bytes] | None:
        """Return the next complete request with its body; ``None`` while more must arrive.

        :param at_end: whether the caller has closed its side.
        :raises RequestError: the request is malformed, too long, or ends before it is complete.
        """
        head, message = self.head or self._take_head(), self._message
        if head and not message.is_complete:
            if "CONTENT_LENGTH" in head.environ:
                self._feed_body(int(head.environ["CONTENT_LENGTH"]))
            else:
                self._feed_chunks()
        if head is None or not message.is_complete:
            if at_end:
                raise RequestError(HTTPStatus.BAD_REQUEST, "The request ends before it is complete")
            return None
        complete = head, bytes(message.body)
        self._served += 1
        self._begin()
        message.clear()
        return complete

    def _take_head(self) -> Head | None:
        data = self.data
        if data[:2] == b"\r\n" and not self._has_skipped:
            # Some callers send a line break after a body: RFC 9112 section 2.2.
            del data[:2]
            self._has_skipped, self._scanned = True, 0
        end = data.find(b"\r\n\r\n", max(0, self._scanned - 3), HEAD_LIMIT_BYTES) + 4
        if end < 4:  # noqa: PLR2004 - Not found.
            found = _BARE_LINE_FEED.search(data, max(0, self._scanned - 1), HEAD_LIMIT_BYTES)
            if found is None and len(data) < HEAD_LIMIT_BYTES:
                self._scanned = len(data)
                return None
            end = found.end() if found else HEAD_LIMIT_BYTES
        raw = bytes(data[:end])
        del data[:end]
        self._start = raw[:5]
        if raw[0] in b"\r\n":
            # llhttp would skip any number of them.
            raise RequestError(HTTPStatus.BAD_REQUEST, "Line breaks before the request")
        self._feed_head(raw)
        self.head = self._read_head(raw)
        return self.head

    def _feed_head(self, raw: bytes) -> None:
        fed = raw
        try:
            asks_for_upgrade = self._feed(fed)
        except _UnknownMethodError:
            if not _METHOD.match(raw):
                raise
            # llhttp knows a list of methods. What another one may do is the application's to say.
            fed = _METHOD.sub(b"PUT ", raw)
            asks_for_upgrade = self._feed_anew(fed)
        if asks_for_upgrade:
            # llhttp would skip the body. A server may ignore Upgrade: RFC 9110 section 7.8.
            self._feed_anew(_UPGRADE.sub(b"", fed))

    def _feed_anew(self, head: bytes) -> bool:
        self._message.clear()
        self._parser = HttpRequestParser(self._message)
        return self._feed(head)

    def _read_head(self, raw: bytes) -> Head:
        """Read a head that llhttp has accepted, and check what llhttp leaves to us."""
        line, *fields = raw.decode("latin-1").split("\r\n")
        self._head_bytes = len(raw) + FIELD_BYTES * len(fields)
        self._require_limits(line, fields, len(raw))
        if not self._message.has_head:
            raise RequestError(HTTPStatus.BAD_REQUEST, "The head has no end, or is the preface of HTTP/2")
        method, target, version = _read_request_line(line)
        environ: dict[str, Any] = {}
        for field in fields[:-2]:
            name, _, value = field.partition(":")
            key = _wsgi_name(name)
            if key in environ:
                _require_repeatable(key)
                value = f"{environ[key]},{value.strip(_BLANKS)}"
            environ[key] = value.strip(_BLANKS)
        environ.pop(_DROPPED, None)
        self._require_sound(environ, version)
        path, environ["QUERY_STRING"] = _split_target(method, target)
        environ["REQUEST_METHOD"], environ["RAW_URI"], environ["SCRIPT_NAME"] = method, target, ""
        environ["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1") if "%" in path else path
        environ["SERVER_PROTOCOL"] = line[-8:]
        head = Head(method, path, version, environ)
        head.expects_continue = "HTTP_EXPECT" in environ and version == _HTTP_1_1
        head.closes = _closes(environ.get("HTTP_CONNECTION"), version)
        return head

    def _require_limits(self, line: str, fields: list[str], length: int) -> None:
        limits, too_large = self._limits, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        if len(line) > limits.line:
            raise RequestError(HTTPStatus.REQUEST_URI_TOO_LONG, "The request line is too long")
        if length >= HEAD_LIMIT_BYTES or (
            length > limits.field and max(map(len, fields), default=0) + 2 > limits.field
        ):
            raise RequestError(too_large, "A field, or the head, is too long")
        if len(fields) - 2 > limits.fields:
            raise RequestError(too_large, "Too many fields")

    def _require_sound(self, environ: dict[str, Any], version: tuple[int, int]) -> None:
        host, length = environ.get("HTTP_HOST"), environ.get("CONTENT_LENGTH", "0")
        if (host is None and version == _HTTP_1_1) or (host is not None and not _HOST.fullmatch(host)):
            raise RequestError(HTTPStatus.BAD_REQUEST, "No Host, or an invalid one")
        if "HTTP_TRANSFER_ENCODING" in environ:
            if version != _HTTP_1_1:
                raise RequestError(HTTPStatus.BAD_REQUEST, "A transfer coding in HTTP/1.0")
            if environ["HTTP_TRANSFER_ENCODING"].lower() != "chunked":
                raise RequestError(HTTPStatus.NOT_IMPLEMENTED, "Unsupported transfer coding")
        elif len(length) > _LENGTH_DIGITS or int(length) > self._limits.body:
            raise _too_long()
        if "HTTP_EXPECT" in environ and environ["HTTP_EXPECT"].lower() != "100-continue":
            raise RequestError(HTTPStatus.EXPECTATION_FAILED, "Unknown expectation")

    def _feed_body(self, length: int) -> None:
        if len(self.data) >= length:
            self._feed(bytes(self.data[:length]))
            del self.data[:length]

    def _feed_chunks(self) -> None:
        """Decode what has arrived, line by line: a chunked body ends with a line."""
        limit = CHUNK_OVERHEAD_BYTES * self._limits.body + CHUNK_FRAMING_LIMIT_BYTES
        while self.data and not self._message.is_complete:
            end = (self.data.find(b"\n") + 1) or len(self.data)
            # No piece exceeds the limit by more than a byte, so that a body is refused at the same byte however it was
            # split.
            piece = bytes(self.data[: min(end, limit - self._overhead + 1)])
            del self.data[: len(piece)]
            decoded = len(self._message.body)
            self._feed(piece)
            self._has_body = True
            decoded = len(self._message.body) - decoded
            self._overhead += len(piece) - decoded
            if self._overhead > limit:
                raise _too_long()
            self._framing = 0 if decoded else self._framing + len(piece.strip(b"\r\n"))
            if self._framing > CHUNK_FRAMING_LIMIT_BYTES:
                raise RequestError(HTTPStatus.BAD_REQUEST, "Chunk extensions or trailers are too long")

    def _feed(self, data: bytes) -> bool:
        """Feed the parser; return whether the request asks for another protocol."""
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:
            return True
        except HttpParserInvalidMethodError as error:
            raise _UnknownMethodError(HTTPStatus.BAD_REQUEST, str(error)) from None
        except HttpParserCallbackError as error:
            raise (error.__context__ or error) from None
        except HttpParserError as error:
            reason = str(error)
            if "overflow" in reason:
                raise _too_long() from None
            status = _STATUS_BY_REASON.get(reason, HTTPStatus.BAD_REQUEST)
            # llhttp's reasons are constants.
            raise RequestError(status, reason) from None
        return False


def _read_request_line(line: str) -> tuple[str, str, tuple[int, int]]:
    method, _, rest = line.partition(" ")
    target, _, protocol = rest.partition(" ")
    version = _VERSIONS.get(protocol)
    if version is None and _OTHER_VERSION.fullmatch(protocol):
        raise RequestError(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "Neither HTTP/1.0 nor HTTP/1.1")
    if version is None:
        raise RequestError(HTTPStatus.BAD_REQUEST, "Invalid request line")
    return method, target, version


def _require_repeatable(key: str) -> None:
    if key in _SINGLE:
        raise RequestError(HTTPStatus.BAD_REQUEST, "Repeated Host, Authorization or Content-Type")


def _closes(connection: str | None, version: tuple[int, int]) -> bool:
    if connection is None:
        return version != _HTTP_1_1
    options = {option.strip(_BLANKS) for option in connection.lower().split(",")}
    return "close" in options or (version != _HTTP_1_1 and "keep-alive" not in options)


def _split_target(method: str, target: str) -> tuple[str, str]:
    """Return the path and the query of a request target: RFC 9112 section 3.2."""
    absolute = None if target[:1] == "/" else _ABSOLUTE.fullmatch(target)
    if absolute and _HOST.fullmatch(absolute[1]):
        target = absolute[2] if absolute[2][:1] == "/" else f"/{absolute[2]}"
    elif target[:1] != "/" and (method, target) != ("OPTIONS", "*"):
        raise RequestError(HTTPStatus.BAD_REQUEST, "Invalid request target")
    if "#" in target:
        raise RequestError(HTTPStatus.BAD_REQUEST, "A fragment in the request target")
    path, _, query = target.partition("?")
    return path, query


def _too_long() -> RequestError:
    return RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The body is too long")
