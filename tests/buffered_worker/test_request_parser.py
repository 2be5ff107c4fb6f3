"""Bytes in, requests out, in memory: where a request ends, what it may contain, and how much memory it takes.

The tests compare with gunicorn's own parser, which the worker does not use: it must read what we accept in the same
way.
"""

import itertools
import socket
import tracemalloc
from http import HTTPStatus
from typing import Any

import pytest
from gunicorn.config import Config
from hypothesis import example, given
from hypothesis import strategies as st
from support.framing import (
    BODY_LIMIT_BYTES,
    CHUNKED,
    PEER,
    as_gunicorn_reads_it,
    assert_read_alike,
    by_gunicorn,
    by_us,
    new_buffer,
    take_all,
)

from buffered_worker.connection import RECEIVE_BYTES, Connection, choose_largest
from buffered_worker.request_parser import (
    CHUNK_FRAMING_LIMIT_BYTES,
    CHUNK_OVERHEAD_BYTES,
    FIELD_BYTES,
    HEAD_LIMIT_BYTES,
    Head,
    Limits,
    RequestBuffer,
    RequestError,
    _wsgi_name,
)
from buffered_worker.worker import BufferedWorker

OVERHEAD_LIMIT_BYTES = CHUNK_OVERHEAD_BYTES * BODY_LIMIT_BYTES + CHUNK_FRAMING_LIMIT_BYTES


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
    ("sent", "status"),
    [
        (b"A" * HEAD_LIMIT_BYTES, 400),
        (b"GET /" + b"a" * HEAD_LIMIT_BYTES, 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"A: b\r\n" * 6000, 431),
        (b"GET / HTTP/1.1\r\nHost: a\r\nA: b\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 16385\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"0" * 5000 + b"3\r\n\r\nabc", 413),
        (CHUNKED + b"4001\r\n" + b"a" * 0x4001, 413),
        (CHUNKED + b"f" * 17 + b"\r\n", 413),
        (CHUNKED + b"1;" + b"a" * 5000, 400),
        (CHUNKED + b"0\r\nA: " + b"a" * 5000, 400),
        (CHUNKED + b"0\r\n" + b"A: b\r\n" * 1200, 400),
    ],
)
@pytest.mark.parametrize("size", [1, 1000, 100_000])
def test_what_is_too_long_is_refused_before_the_rest_has_come(sent: bytes, status: int, size: int) -> None:
    buffer = new_buffer()
    with pytest.raises(RequestError) as refused:  # noqa: PT012 - Which segment it is in is none of the caller's choice.
        for start in range(0, len(sent), size):
            buffer.data += sent[start : start + size]
            assert buffer.take() is None
    assert refused.value.status == status


@pytest.mark.parametrize("size", [1, 97, 100_000])
def test_chunk_sizes_with_endless_extensions_are_refused(size: int) -> None:
    chunk = b"1;" + b"a" * 200 + b"\r\na\r\n"
    chunks = OVERHEAD_LIMIT_BYTES // (len(chunk) - 1)
    allowed = CHUNKED + chunk * chunks
    assert take_all([allowed[start : start + size] for start in range(0, len(allowed), size)]) == [
        HTTPStatus.BAD_REQUEST
    ]
    sent = allowed + chunk
    assert take_all([sent[start : start + size] for start in range(0, len(sent), size)]) == [
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    ]


def test_the_largest_incomplete_requests_are_closed_beyond_the_limit() -> None:
    def connection(sent: bytes, *, incomplete: bool = True) -> Connection:
        one, other = socket.socketpair()
        other.close()
        made = Connection(one, PEER, new_buffer(), {})
        made.buffer.data += sent
        made.buffer.take()
        made.incomplete = incomplete
        return made

    small, head = connection(b"GET /"), connection(b"GET /" + b"a" * 4000)
    body = connection(CHUNKED + b"1000\r\n" + b"a" * 4096)
    idle = connection(b"", incomplete=False)
    sizes = [one.buffer.size for one in (small, head, body, idle)]
    assert sizes[:2] == [5, 4005]
    assert sizes[2] == 4096 + len(CHUNKED) + 4 * FIELD_BYTES
    assert sizes[3] == 0
    parked = [small, body, idle, head]
    assert choose_largest(parked, sum(sizes)) == []
    assert choose_largest(parked, sum(sizes) - 1) == [body]
    assert choose_largest(parked, sum(sizes) - sizes[2] - 1) == [body, head]
    assert choose_largest(parked, 0) == [body, head, small]
    for one in parked:
        one.sock.close()


@given(st.lists(st.binary(max_size=RECEIVE_BYTES), max_size=6), st.sampled_from([b"", CHUNKED, CHUNKED + b"3fff\r\n"]))
def test_a_caller_fills_no_more_than_its_share_of_memory(segments: list[bytes], head: bytes) -> None:
    buffer = new_buffer()
    for segment in [head, *segments]:
        buffer.data += segment
        try:
            while buffer.take():
                pass
        except RequestError:
            return
        held = len(buffer.data) + len(buffer._message.body)  # noqa: SLF001
        assert held <= HEAD_LIMIT_BYTES + BODY_LIMIT_BYTES


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_a_chunked_body_takes_the_memory_of_its_bytes(size: int) -> None:
    """Not that of its chunks: an object for each would take twenty times as much."""
    buffer = new_buffer()
    buffer.data += CHUNKED
    assert buffer.take() is None
    tracemalloc.start()
    try:
        for _ in range(BODY_LIMIT_BYTES // size):
            buffer.data += b"%x\r\n%s\r\n" % (size, b"a" * size)
            assert buffer.take() is None
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held <= 2 * BODY_LIMIT_BYTES


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


@given(chunk_streams)
@example(b'3;a="b"\r\nabc\r\n0\r\nA: b\r\n\r\nrest')
def test_a_chunked_body_that_is_accepted_ends_where_gunicorn_would_end_it(stream: bytes) -> None:
    buffer = new_buffer()
    buffer.data += CHUNKED + stream
    try:
        complete = buffer.take(at_end=True)
    except RequestError:
        return
    assert complete is not None
    assert (complete[1], bytes(buffer.data)) == as_gunicorn_reads_it(stream)


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


# As they were recorded: curl, requests, Go, Node, Java, a browser, a proxy.
USUAL = [
    head.encode() + b"\r\n\r\n"
    for head in (
        (
            "POST /oauth/token HTTP/1.1\r\nHost: localhost:8080\r\nAuthorization: Basic YTpi\r\nUser-Agent: curl/7\r\n"
            "Accept: */*\r\nContent-Length: 29\r\nContent-Type: application/x-www-form-urlencoded"
        ),
        (
            "POST /oauth/token HTTP/1.1\r\nHost: localhost:8080\r\nUser-Agent: python-requests/2.34.2\r\n"
            "Accept-Encoding: gzip, deflate\r\nAccept: */*\r\nConnection: keep-alive\r\nContent-Length: 29\r\n"
            "Content-Type: application/x-www-form-urlencoded\r\nAuthorization: Basic YTpi"
        ),
        (
            "POST /oauth/token HTTP/1.1\r\nHost: tokens.example.com\r\nUser-Agent: Go-http-client/1.1\r\n"
            "Content-Length: 29\r\nAuthorization: Basic YTpi\r\nContent-Type: application/x-www-form-urlencoded\r\n"
            "Accept-Encoding: gzip"
        ),
        (
            "POST /oauth/token HTTP/1.1\r\nhost: [::1]:8080\r\nconnection: keep-alive\r\nauthorization: Basic YTpi\r\n"
            "content-type: application/x-www-form-urlencoded;charset=UTF-8\r\naccept: application/json\r\n"
            "accept-language: *\r\nsec-fetch-mode: cors\r\nuser-agent: node\r\naccept-encoding: gzip, deflate\r\n"
            "content-length: 29"
        ),
        (
            "GET /.well-known/jwks.json HTTP/1.1\r\nConnection: Close\r\nHost: tokens.example.com\r\n"
            'If-None-Match: "e3b0"\r\nAccept: text/html, image/gif, *; q=.2'
        ),
        (
            "GET /.well-known/openid-configuration?a=b%20c&d?e HTTP/1.1\r\nHost: tokens.example.com\r\n"
            "X-Forwarded-For: 192.0.2.7, 10.0.0.1\r\nX-Forwarded-Proto: https\r\n"
            "X-Request-ID: 0123456789\r\nEmpty:\r\nTabs:\t a \t"
        ),
    )
]


def read(head: bytes, limits: Limits | None = None) -> Head:
    """The head that stands in ``head``, which has no body or one that is not sent."""
    buffer = RequestBuffer(limits or Limits.of(Config(), BODY_LIMIT_BYTES))
    buffer.data += head
    complete = buffer.take()
    found = complete[0] if complete else buffer.head
    assert found is not None
    return found


@pytest.mark.parametrize("head", USUAL)
def test_what_callers_usually_send_is_read_as_gunicorn_reads_it(head: bytes) -> None:
    assert by_us(read(head)) == by_gunicorn(head)


names = st.sampled_from(
    ["Host", "host", "HOST", "Content-Type", "Content-Length", "content-length", "Authorization", "Connection",
     "Expect", "Transfer-Encoding", "X-Forwarded-Proto", "X-Forwarded-Ssl", "X-Forwarded-For", "X-A", "x_a",
     "Script-Name", "Path-Info", "", "a b",
     "é", "Upgrade", "TE"]
)  # fmt: skip
values = st.sampled_from(
    ["", "a", "a:1", "[::1]", "0", "29", "+29", "2 9", "\u0661", "00029", "99999999999", "close", "Close", "keep-alive",
     "close, TE", "chunked", "100-continue", "https", "http", "a\tb", " a ", "\x00", "a\rb", "a\nb", "\x7f", "é", "a@b"]
) | st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=8)  # fmt: skip
targets = st.sampled_from(
    ["/", "/oauth/token", "/a?b=c", "/a?", "/?a?b", "//a", "/a//b", "/a#b", "/a?b#c", "*", "http://h/a?b", "a", "",
     "/%41%2f%00%zz%", "/a b", "/é", "/;a", "/[a", "/..", "/a\\b"]
) | st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=12).map("/{}".format)  # fmt: skip
lines = st.builds(
    lambda name, colon, value: f"{name}{colon}{value}", names, st.sampled_from([": ", ":", " : "]), values
)
heads = st.builds(
    lambda method, target, version, fields, end: (
        "\r\n".join([f"{method} {target} HTTP/{version}", *fields]) + end
    ).encode("latin-1", "replace"),
    st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "DELETE", "CONNECT", "get", "G", "PURGE", "FROB", "A-B_C"]),
    targets,
    st.sampled_from(["1.1", "1.1", "1.1", "1.0", "1.2", "2.0", "1"]),
    st.lists(lines, max_size=5).map(lambda more: ["Host: a", *more]) | st.lists(lines, max_size=5),
    st.sampled_from(["\r\n\r\n", "\r\n\r\n", "\r\n\n", "\n\n"]),
)


@given(heads)
@example(USUAL[0].replace(b"Accept: */*", b"X_A: b"))
@example(b"\n" + USUAL[0])
@example(b"GET http://h/a?b HTTP/1.1\r\nHost: a\r\n\r\n")
@example(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
def test_gunicorn_reads_every_head_that_we_accept_in_the_same_way(head: bytes) -> None:
    assert_read_alike(head)


@given(st.binary(max_size=60), st.sampled_from(USUAL), st.integers(0, 400), st.integers(0, 20))
def test_so_it_does_with_something_else_in_the_head(inserted: bytes, usual: bytes, place: int, removed: int) -> None:
    assert_read_alike(usual[:place] + inserted + usual[place + removed :])


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("Host: b", 400),
        ("Authorization: Basic b", 400),
        ("Content-Type: b", 400),
        ("Content-Length: 1", 400),
        ("Transfer-Encoding: chunked", 400),
        ("Expect: tea", 417),
        (" folded: a", 400),
        ("X-A : b", 400),
        ("X-A", 400),
    ],
)
def test_a_line_that_may_not_be_added_is_refused(line: str, status: int) -> None:
    head = (
        "POST / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic a\r\nContent-Type: a\r\nContent-Length: 1\r\n"
        f"{line}\r\n\r\n"
    )
    with pytest.raises(RequestError) as refused:
        read(head.encode())
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / RTSP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"SOURCE / ICE/1.0\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505),
        (b"GET /\r\n\r\n", 400),
        (b"get / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"FROB / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"FROB / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"F / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT  HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET http://u@h/a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET ftp://h/a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    ],
)
def test_what_llhttp_accepts_and_we_do_not_is_refused(head: bytes, status: int) -> None:
    with pytest.raises(RequestError) as refused:
        read(head)
    assert refused.value.status == status


@pytest.mark.parametrize("method", ["FROB", "THS_X-1", "M!$%&'*+.^_`|~"])
def test_a_method_that_llhttp_does_not_know_is_the_applications_to_refuse(method: str) -> None:
    head = f"{method} /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\nabc"
    known = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    assert take_all([head.encode() + known]) == [(method, b"abc"), ("GET", b"")]


@pytest.mark.parametrize(
    "framed", [b"Content-Length: 3\r\n\r\nabc", b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"]
)
def test_the_body_of_a_request_that_asks_for_an_upgrade_is_its_body(framed: bytes) -> None:
    """As ``curl --http2`` asks. llhttp alone would skip the body, and read it as the next request."""
    head = b"POST /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    assert take_all([head + framed + b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n"]) == [("POST", b"abc"), ("GET", b"")]


@pytest.mark.parametrize(
    ("line", "closes"),
    [
        ("GET / HTTP/1.1", False),
        ("GET / HTTP/1.1\r\nConnection: Close", True),
        ("GET / HTTP/1.1\r\nConnection: TE, close", True),
        ("GET / HTTP/1.0", True),
        ("GET / HTTP/1.0\r\nConnection: Keep-Alive", False),
        ("GET / HTTP/1.0\r\nConnection: keep-alive, close", True),
    ],
)
def test_a_connection_is_kept_as_the_caller_wants(line: str, *, closes: bool) -> None:
    assert read(f"{line}\r\nHost: a\r\n\r\n".encode()).closes is closes


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        ("/a?b?c", "/a", "b?c"),
        ("//a", "//a", ""),
        ("http://h:1/a?b", "/a", "b"),
        ("HTTPS://h", "/", ""),
        ("http://h?b", "/", "b"),
    ],
)
def test_a_target_is_split(target: str, path: str, query: str) -> None:
    head = read(f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    assert (head.path, head.environ["QUERY_STRING"], head.environ["RAW_URI"]) == (path, query, target)


@pytest.mark.parametrize(
    ("setting", "value", "status"),
    [("limit_request_line", 20, 414), ("limit_request_fields", 2, 431), ("limit_request_field_size", 40, 431)],
)
def test_gunicorns_limits_are_kept(setting: str, value: object, status: int) -> None:
    config = Config()
    config.set(setting, value)
    with pytest.raises(RequestError) as refused:
        read(USUAL[1], Limits.of(config, BODY_LIMIT_BYTES))
    assert refused.value.status == status


def test_the_names_of_fields_that_are_kept_are_bounded() -> None:
    for number in range(2000):
        head = f"GET / HTTP/1.1\r\nHost: a\r\nX-{number}: {number}\r\n\r\n".encode()
        assert read(head).environ[f"HTTP_X_{number}"] == str(number)
    assert _wsgi_name.cache_info().currsize == 256


def test_repeated_fields_are_joined_in_order() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: a\r\nx-forwarded-for: b\r\nX_Forwarded_For: c\r\n\r\n"
    assert read(head).environ["HTTP_X_FORWARDED_FOR"] == "a,b"
