"""Parses a request's head (RFC 9112 sections 2 to 5) into WSGI's environ.

gunicorn's own parser decides, fed from memory. Nearly all heads are ordinary and take a shortcut with the same result:
one regular expression accepts the whole head or leaves it to gunicorn. What must arrive after the head is left to
``framing``.
"""

import os
import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote_to_bytes

from gunicorn.http.body import ChunkedReader
from gunicorn.http.errors import (
    ConfigurationProblem,
    InvalidHeader,
    InvalidHTTPVersion,
    ParseException,
    UnsupportedTransferCoding,
)
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader

_PLAIN = re.compile(
    rb"(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS) (/(?!/)[!-\"$->@-~]*)(\?[!-\"$-~]*)? HTTP/1\.1\r\n"
    rb"((?:[A-Za-z0-9-]+:[\t -~]*\r\n)+)\r\n"
)
_OTHER_VERSION = re.compile(rb"[^\r\n]* HTTP/[02-9]\.[0-9]\r\n")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]*)?")
_LENGTH = re.compile(r"[0-9]{1,9}")
_NOT_ORDINARY = {"HTTP_EXPECT", "HTTP_TRANSFER_ENCODING"}
_CACHED_NAMES = 256
_CACHED_NAME_CHARACTERS = 64


class UnsupportedVersion(ParseException):
    """The request has another major version than HTTP/1."""


class Head:
    """One parsed head.

    :ivar path: the path as it was sent, without the query.
    :ivar version: the version of the response: RFC 9110 section 2.5.
    :ivar environ: all WSGI variables that come from the head.
    :ivar length: the length of the body in bytes; ``None`` for a chunked body, which ``parsed`` decodes.
    :ivar closes: whether the caller wants no further response on its connection.
    """

    __slots__ = ("closes", "environ", "expects_continue", "length", "method", "parsed", "path", "version")

    def __init__(self, environ: dict[str, Any], path: str, length: int | None, *, closes: bool) -> None:
        self.environ, self.path, self.length, self.closes = environ, path, length, closes
        self.method: str = environ["REQUEST_METHOD"]
        self.version = (1, 1)
        self.expects_continue = False
        self.parsed: Any = None


class HeadReader:
    """Parses heads.

    :param cfg: gunicorn's settings, for their limits.
    """

    def __init__(self, cfg: Any) -> None:
        self._cfg = cfg
        self._script_name = os.environ.get("SCRIPT_NAME", "")
        self.names: dict[str, str] = {}
        """Cached WSGI names by field name."""
        # Two of these headers may contradict each other. A single one is ignored: TLS ends in a proxy.
        self._schemes = set(map(_key_of, cfg.secure_scheme_headers))
        limits = (cfg.limit_request_line, cfg.limit_request_field_size)
        # Without limits, or with the PROXY protocol, no head takes the shortcut.
        self._plain_bytes = 0 if cfg.proxy_protocol != "off" else min(limits)
        self._plain_fields = cfg.limit_request_fields

    def read(self, head: bytes, peer: Any, number: int) -> Head:
        """Parse ``head``, which ends with its last line.

        :param number: the number of the request on its connection, from 1.
        :raises ParseException: gunicorn's reason for a refusal, or ours.
        :raises NoMoreData: the head is incomplete.
        """
        return self.read_ordinary(head) or self.read_any(head, peer, number)

    def read_ordinary(self, head: bytes) -> Head | None:
        """Parse an ordinary ``head``; return ``None`` for any other, which is left to gunicorn."""
        found = _PLAIN.fullmatch(head) if len(head) <= self._plain_bytes else None
        if found is None:
            return None
        method, path, query, fields = [(part or b"").decode("ascii") for part in found.groups()]
        lines = fields.split("\r\n")
        environ: dict[str, Any] = {}
        for line in lines[:-1]:
            name, _, value = line.partition(":")
            environ[self.names.get(name) or self._key(name)] = value.strip(" \t")
        length = environ.get("CONTENT_LENGTH", "0")
        is_ordinary = (
            len(environ) == len(lines) - 1 <= self._plain_fields
            and _NOT_ORDINARY.isdisjoint(environ)
            and len(self._schemes.intersection(environ)) <= 1
            and _HOST.fullmatch(environ.get("HTTP_HOST", "@"))
            and _LENGTH.fullmatch(length)
        )
        if not is_ordinary:
            return None
        environ["REQUEST_METHOD"] = method
        environ["RAW_URI"] = path + query
        environ["QUERY_STRING"] = query[1:]
        environ["SERVER_PROTOCOL"] = "HTTP/1.1"
        self._set_path(environ, path)
        closes = "HTTP_CONNECTION" in environ and environ["HTTP_CONNECTION"].lower() == "close"
        return Head(environ, path, int(length), closes=closes)

    def read_any(self, head: bytes, peer: Any, number: int) -> Head:
        """Parse ``head`` with gunicorn's parser; raises as :meth:`read` does."""
        try:
            # The unreader ends with the head, so the parser can neither block nor consume the body.
            parsed: Any = Request(self._cfg, IterUnreader((head,)), peer, number)
        except InvalidHTTPVersion as error:
            raise (UnsupportedVersion() if _OTHER_VERSION.match(head) else error) from None
        parsed.version = min(parsed.version, (1, 1))
        _require_host(parsed)
        _require_plain_coding(parsed.headers)
        _require_one_authorization(parsed.headers)
        environ: dict[str, Any] = {}
        for name, value in parsed.headers:
            key = _key_of(name)
            environ[key] = f"{environ[key]},{value}" if key in environ else value
        environ["REQUEST_METHOD"] = parsed.method
        environ["RAW_URI"] = parsed.uri
        environ["QUERY_STRING"] = parsed.query
        environ["SERVER_PROTOCOL"] = "HTTP/{}.{}".format(*parsed.version)
        self._set_path(environ, parsed.path)
        reader = parsed.body.reader
        length = None if isinstance(reader, ChunkedReader) else reader.length
        read = Head(environ, parsed.path, length, closes=parsed.should_close())
        read.version, read.expects_continue, read.parsed = parsed.version, parsed._expected_100_continue, parsed  # noqa: SLF001
        return read

    def _set_path(self, environ: dict[str, Any], path: str) -> None:
        if not path.startswith(self._script_name):
            raise ConfigurationProblem(f"A path does not start with SCRIPT_NAME {self._script_name!r}")
        environ["SCRIPT_NAME"] = self._script_name
        below = path[len(self._script_name) :]
        environ["PATH_INFO"] = unquote_to_bytes(below).decode("latin-1") if "%" in below else below

    def _key(self, name: str) -> str:
        """Return the WSGI name of a field, and cache it."""
        if len(self.names) >= _CACHED_NAMES:
            self.names.clear()
        key = _key_of(name)
        if len(name) <= _CACHED_NAME_CHARACTERS:
            self.names[name] = key
        return key


def _key_of(name: str) -> str:
    key = name.upper().replace("-", "_")
    return key if key in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{key}"


def _require_host(request: Any) -> None:
    # RFC 9112 section 3.2. gunicorn refuses two Host headers, but not a missing or malformed one.
    hosts = [value for name, value in request.headers if name == "HOST"]
    if (request.version >= (1, 1) and not hosts) or not all(map(_HOST.fullmatch, hosts)):
        raise InvalidHeader("HOST")


def _require_plain_coding(headers: Iterable[tuple[str, str]]) -> None:
    # gunicorn accepts a compressed chunked body and does not decompress it.
    for name, value in headers:
        if name == "TRANSFER-ENCODING" and value.strip().lower() != "chunked":
            raise UnsupportedTransferCoding(value)


def _require_one_authorization(headers: Iterable[tuple[str, str]]) -> None:
    # gunicorn joins two values with a comma, and a lenient base64 decoder would read the result as a third value.
    if sum(name == "AUTHORIZATION" for name, _ in headers) > 1:
        raise InvalidHeader("AUTHORIZATION")
