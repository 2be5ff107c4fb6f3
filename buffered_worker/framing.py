"""Finds where a request ends: bytes in, complete requests out (RFC 9112).

What a head means is left to ``request_head``, sockets to ``worker``.
"""

import re
from typing import Any

from gunicorn.http.errors import InvalidChunkSize, LimitRequestHeaders, NoMoreData, ParseException

from buffered_worker.request_head import Head, HeadReader

HEAD_LIMIT_BYTES = 32 * 1024
"""The longest head that is buffered. gunicorn's ``limit_request_*`` settings limit its parts."""
ENCODED_FACTOR = 8
"""A chunked body may be this many times as long on the wire as the longest body: one-byte chunks take six times."""
CHUNK_LINE_LIMIT_BYTES = 256
TRAILER_LIMIT_BYTES = 4096

_HEAD_END = re.compile(rb"\r\n\r\n|(?<!\r)\n")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]+")


class TooLong(ParseException):
    """The body is longer than the limit."""


def _head_end(buffer: bytearray, start: int) -> int:
    """Return where the head in ``buffer`` ends, from ``start`` on: after an empty line or a bare line feed; else 0."""
    end = buffer.find(b"\r\n\r\n", start, HEAD_LIMIT_BYTES)
    if end >= 0 and buffer.count(b"\n", start, end) == buffer.count(b"\r\n", start, end):
        return end + 4
    found = _HEAD_END.search(buffer, start, HEAD_LIMIT_BYTES)
    return found.end() if found else 0


class ChunkScan:
    """Finds the end of a chunked body, looking at each byte once. Decoding is left to gunicorn's reader."""

    __slots__ = ("_body_limit", "_in_trailers", "_position", "_searched", "_total")

    def __init__(self, body_limit: int) -> None:
        self._body_limit = body_limit
        self._position = self._searched = self._total = 0
        self._in_trailers = False

    def end(self, buffer: bytearray) -> int | None:
        """Return where the body in ``buffer`` ends or becomes malformed; ``None`` while more must arrive.

        :raises TooLong: the declared chunk sizes add up to more than the limit.
        """
        while not self._in_trailers:
            position = self._position
            if len(buffer) < position:
                return None
            if position and buffer[position - 2 : position] != b"\r\n":
                return position
            line_end = buffer.find(b"\r\n", self._searched, position + CHUNK_LINE_LIMIT_BYTES)
            if line_end < 0:
                self._searched = max(position, len(buffer) - 1)
                cut = position + CHUNK_LINE_LIMIT_BYTES
                return cut if len(buffer) >= cut else None
            size = bytes(buffer[position:line_end]).partition(b";")[0].rstrip(b" \t")
            if not _CHUNK_SIZE.fullmatch(size):
                return line_end + 2
            self._begin(int(size, 16), line_end + 2)
        return self._trailers_end(buffer)

    def _begin(self, size: int, data_start: int) -> None:
        self._in_trailers = size == 0
        self._total += size
        self._position = data_start + size + 2 if size else data_start
        self._searched = self._position
        if self._total > self._body_limit or self._position > ENCODED_FACTOR * self._body_limit:
            raise TooLong

    def _trailers_end(self, buffer: bytearray) -> int | None:
        start = self._position
        if buffer[start : start + 2] == b"\r\n":
            return start + 2
        cut = start + TRAILER_LIMIT_BYTES
        end = buffer.find(b"\r\n\r\n", self._searched, cut)
        if end >= 0:
            return end + 4
        self._searched = max(start, len(buffer) - 3)
        return cut if len(buffer) >= cut else None


class RequestBuffer:
    """Bytes that one caller has sent and that have not been served; returns one complete request at a time.

    Where a request ends depends on the bytes alone, not on how they were split into segments.

    :param body_limit: the longest body, in bytes.
    """

    __slots__ = ("_body_limit", "_chunks", "_has_skipped", "_peer", "_reader", "_scanned", "_served", "data", "head")

    def __init__(self, reader: HeadReader, peer: Any, body_limit: int) -> None:
        self._reader, self._peer, self._body_limit = reader, peer, body_limit
        self._scanned = self._served = 0
        self._chunks: ChunkScan | None = None
        self._has_skipped = False
        self.data = bytearray()
        self.head: Head | None = None

    @property
    def begun(self) -> bool:
        """Whether a part of a request has arrived."""
        return self.head is not None or bool(self.data)

    @property
    def is_new(self) -> bool:
        """Whether no complete request has arrived yet."""
        return self._served == 0

    def take(self, *, at_end: bool = False) -> tuple[Head, bytes] | None:
        """Return the next complete request with its body; ``None`` while more must arrive.

        :param at_end: whether the caller has closed its side.
        :raises ParseException: gunicorn's reason for a refusal, or ours.
        :raises NoMoreData: the request ends before it is complete.
        """
        head = self.head or self._read_head(at_end=at_end)
        if head is None:
            return None
        body = self._read_body(head)
        if body is None:
            if at_end:
                raise NoMoreData
            return None
        self.head = self._chunks = None
        self._scanned = 0
        self._has_skipped = False
        self._served += 1
        return head, body

    def must_continue(self) -> bool:
        """Return whether the caller waits for ``100 Continue`` (RFC 9110 section 10.1.1) and has sent no body yet."""
        return self.head is not None and self.head.expects_continue and not self.data

    def _read_head(self, *, at_end: bool) -> Head | None:
        buffer = self.data
        if not buffer:
            return None
        if not self._has_skipped and buffer[:2] == b"\r\n":
            # Some callers send a line break after a body: RFC 9112 section 2.2.
            del buffer[:2]
            self._has_skipped, self._scanned = True, 0
        end = _head_end(buffer, max(0, self._scanned - 3))
        if not end:
            if len(buffer) < HEAD_LIMIT_BYTES and not (at_end and buffer):
                self._scanned = len(buffer)
                return None
            end = min(len(buffer), HEAD_LIMIT_BYTES)
        head = bytes(buffer[:end])
        del buffer[:end]
        try:
            self.head = self._reader.read(head, self._peer, self._served + 1)
        except NoMoreData:
            raise (LimitRequestHeaders("head") if end >= HEAD_LIMIT_BYTES else NoMoreData) from None
        if self.head.length is None:
            self._chunks = ChunkScan(self._body_limit)
        return self.head

    def _read_body(self, head: Head) -> bytes | None:
        if self._chunks is not None:
            end = self._chunks.end(self.data)
            return None if end is None else self._decode(head.parsed, self._cut(end))
        length = head.length or 0
        if length > self._body_limit:
            raise TooLong
        return self._cut(length) if len(self.data) >= length else None

    def _cut(self, end: int) -> bytes:
        piece = bytes(self.data[:end])
        del self.data[:end]
        return piece

    def _decode(self, request: Any, encoded: bytes) -> bytes:
        """Decode a chunked body with gunicorn's reader."""
        request.unreader.unread(encoded)
        body: bytes = request.body.read()
        if request.unreader.take_buffered():
            # The scan and gunicorn's reader disagree about the end: nothing after this point can be trusted.
            raise InvalidChunkSize(b"")
        return body
