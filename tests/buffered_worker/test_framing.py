"""The worker's framing, in memory: where a request ends, what it may hold, and what looking for the end costs."""

import itertools
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import InvalidHeader, LimitRequestHeaders, LimitRequestLine, NoMoreData, ParseException
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader
from hypothesis import given
from hypothesis import strategies as st

from buffered_worker.connection import RECEIVE_BYTES, Connection
from buffered_worker.framing import (
    CHUNK_LINE_LIMIT_BYTES,
    ENCODED_FACTOR,
    HEAD_LIMIT_BYTES,
    TRAILER_LIMIT_BYTES,
    ChunkScan,
    RequestBuffer,
    TooLong,
)
from buffered_worker.request_head import HeadReader
from buffered_worker.worker import BufferedWorker

BODY_LIMIT_BYTES = 16 * 1024
ENCODED_LIMIT_BYTES = ENCODED_FACTOR * BODY_LIMIT_BYTES
PEER = ("192.0.2.1", 4711)
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def new_buffer() -> RequestBuffer:
    return RequestBuffer(HeadReader(Config()), PEER, BODY_LIMIT_BYTES)


def take_all(segments: list[bytes]) -> list[Any]:
    """Every request in ``segments`` as method and body, and the class of the error that ends them."""
    buffer, seen = new_buffer(), []
    for segment, at_end in [*((segment, False) for segment in segments), (b"", True)]:
        buffer.data += segment
        try:
            while complete := buffer.take(at_end=at_end and buffer.begun):
                seen.append((complete[0].method, complete[1]))
        except (ParseException, NoMoreData) as error:
            return [*seen, type(error)]
    return seen


def test_it_gives_out_requests_one_by_one_and_keeps_the_rest() -> None:
    buffer = new_buffer()
    buffer.data += b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\nHost: a\r\n\r\nGET"
    first, second = buffer.take(), buffer.take()
    assert first is not None
    assert (first[0].path, first[1]) == ("/a", b"abc")
    assert second is not None
    assert (second[0].path, second[1]) == ("/b", b"")
    assert buffer.take() is None
    assert buffer.data == b"GET"


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (b"a" * HEAD_LIMIT_BYTES, LimitRequestLine),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 6000, LimitRequestHeaders),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: b\n", InvalidHeader),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 16385\r\n\r\n", TooLong),
        (CHUNKED + b"4001\r\n", TooLong),
        (CHUNKED + b"1;" + b"a" * 200 + b"\r\na\r\n" + b"%x\r\n" % BODY_LIMIT_BYTES, TooLong),
    ],
)
def test_what_is_too_long_is_refused_before_the_rest_has_come(sent: bytes, error: type[Exception]) -> None:
    buffer = new_buffer()
    buffer.data += sent
    with pytest.raises(error):
        buffer.take()


def test_chunk_sizes_with_endless_extensions_are_refused() -> None:
    chunk = b"1;" + b"a" * 200 + b"\r\na\r\n"
    buffer = new_buffer()
    buffer.data += CHUNKED + chunk * (ENCODED_LIMIT_BYTES // len(chunk) + 1)
    with pytest.raises(TooLong):
        buffer.take()


@given(st.binary(max_size=2 * RECEIVE_BYTES), st.sampled_from([b"", CHUNKED]))
def test_a_caller_fills_no_more_than_its_share_of_memory(sent: bytes, head: bytes) -> None:
    buffer = new_buffer()
    buffer.data += head + sent
    try:
        while buffer.take():
            pass
    except ParseException:
        return
    assert len(buffer.data) <= ENCODED_LIMIT_BYTES + CHUNK_LINE_LIMIT_BYTES + TRAILER_LIMIT_BYTES


fragments = st.sampled_from(
    [
        b"0\r\n",
        b"3\r\nabc\r\n",
        b"2;a=b\r\nab\r\n",
        b"\r\n",
        b"A: b\r\n",
        b"1",
        b";",
        b"a",
        b"\n",
        b"\r",
        b"g",
        b" ",
        b'"',
    ]
)
chunk_streams = st.one_of(st.lists(fragments, max_size=10).map(b"".join), st.binary(max_size=30))
request_streams = st.tuples(st.sampled_from([b"", CHUNKED, b"GET / HTTP/1.1\r\nHost: a\r\n"]), chunk_streams).map(
    b"".join
)


@given(request_streams, st.lists(st.integers(0, 100), max_size=8))
def test_segments_do_not_matter(sent: bytes, places: list[int]) -> None:
    ends = sorted({min(place, len(sent)) for place in places} | {0, len(sent)})
    assert take_all([sent[a:b] for a, b in itertools.pairwise(ends)]) == take_all([sent])


def as_gunicorn_reads_it(stream: bytes) -> tuple[bytes, bytes] | None:
    """Body and rest, by gunicorn's parser alone with the whole stream before it, or ``None`` if it refuses."""
    try:
        request: Any = Request(Config(), IterUnreader((CHUNKED + stream,)), PEER)
        return request.body.read(), request.unreader.take_buffered()
    except (ParseException, NoMoreData):
        return None


@given(chunk_streams)
def test_a_chunked_body_ends_where_gunicorn_alone_would_end_it(stream: bytes) -> None:
    buffer = new_buffer()
    buffer.data += CHUNKED + stream
    try:
        complete = buffer.take(at_end=True)
    except TooLong:
        return
    except (ParseException, NoMoreData):
        complete = None
    assert (complete and (complete[1], bytes(buffer.data))) == as_gunicorn_reads_it(stream)


class CountingBuffer(bytearray):
    """Counts the bytes that a search looks at."""

    looked_at = 0

    def find(self, sought: Any, start: Any = 0, end: Any = None) -> int:
        self.looked_at += min(len(self), end or len(self)) - start
        return super().find(sought, start, end)


@pytest.mark.parametrize("stream", [b"1\r\na\r\n" * 3000, b"5;" + b"a" * 250, b"0\r\n" + b"A: b\r\n" * 600])
def test_the_scan_looks_at_each_byte_a_few_times_only(stream: bytes) -> None:
    buffer, scan = CountingBuffer(), ChunkScan(BODY_LIMIT_BYTES)
    for byte in stream:
        buffer.append(byte)
        assert scan.end(buffer) is None
    assert buffer.looked_at < 5 * len(stream)


def test_a_connection_that_took_the_place_of_another_is_not_claimed_in_its_stead() -> None:
    class Epoll:
        armed: list[int] = []  # noqa: RUF012

        def modify(self, fd: int, events: int) -> None:
            del events
            self.armed.append(fd)

    class Socket:
        def fileno(self) -> int:
            return 7

    worker: Any = BufferedWorker.__new__(BufferedWorker)
    worker.epoll, worker.parked = Epoll(), {}
    gone, newcomer = (Connection(Socket(), PEER, new_buffer(), {}) for _ in range(2))  # type: ignore[arg-type]
    worker.parked[7] = newcomer
    assert not worker._claim(gone)  # noqa: SLF001
    assert worker.parked == {7: newcomer}
    assert worker.epoll.armed == [7]
    assert worker._claim(newcomer)  # noqa: SLF001
    assert worker.parked == {}
