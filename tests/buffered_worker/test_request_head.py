"""A head that is read at a glance says what gunicorn's parser would have said, or is left to it."""

import os
from typing import Any
from unittest.mock import patch

import pytest
from gunicorn.config import Config
from gunicorn.http.errors import ConfigurationProblem, InvalidHeader, NoMoreData, ParseException
from hypothesis import example, given
from hypothesis import strategies as st

from buffered_worker.request_head import Head, HeadReader

PEER = ("192.0.2.1", 4711)
READER = HeadReader(Config())

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


def facts(head: Head) -> dict[str, Any]:
    """All that the worker and the application see of a head."""
    return {
        "wsgi.url_scheme": "http",
        **head.environ,
        **{name: getattr(head, name) for name in ("closes", "expects_continue", "length", "method", "path", "version")},
    }


def by_gunicorn(head: bytes, reader: HeadReader = READER) -> dict[str, Any] | type[Exception]:
    try:
        return facts(reader.read_any(head, PEER, 1))
    except (ParseException, NoMoreData) as error:
        return type(error)


@pytest.mark.parametrize("head", USUAL)
def test_what_callers_usually_send_is_read_at_a_glance(head: bytes) -> None:
    plain = READER.read_ordinary(head)
    assert plain is not None
    assert facts(plain) == by_gunicorn(head)


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
    st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "DELETE", "CONNECT", "get", "G", "PURGE"]),
    targets,
    st.sampled_from(["1.1", "1.1", "1.1", "1.0", "1.2", "2.0", "1"]),
    st.lists(lines, max_size=5).map(lambda more: ["Host: a", *more]) | st.lists(lines, max_size=5),
    st.sampled_from(["\r\n\r\n", "\r\n\r\n", "\r\n\n", "\n\n"]),
)


@given(heads)
@example(USUAL[0].replace(b"Accept: */*", b"Host: b"))
@example(USUAL[0].replace(b"Accept: */*", b"authorization: Basic b"))
@example(USUAL[0].replace(b"Accept: */*", b"Accept: a\r\n b"))
def test_what_is_read_at_a_glance_is_what_gunicorn_reads(head: bytes) -> None:
    plain = READER.read_ordinary(head)
    if plain is not None:
        assert facts(plain) == by_gunicorn(head)


@given(st.binary(max_size=60), st.sampled_from(USUAL), st.integers(0, 400), st.integers(0, 20))
def test_a_head_with_something_else_in_it_is_what_gunicorn_reads(
    inserted: bytes, usual: bytes, place: int, removed: int
) -> None:
    head = usual[:place] + inserted + usual[place + removed :]
    plain = READER.read_ordinary(head)
    if plain is not None:
        assert facts(plain) == by_gunicorn(head)


@pytest.mark.parametrize(
    "line",
    [
        "Host: b",
        "Authorization: Basic b",
        "Content-Length: 29",
        "Content-Length: +1",
        "Content-Length: 12345678901",
        "Transfer-Encoding: chunked",
        "Expect: 100-continue",
        "X-Forwarded-Proto: https\r\nX-Forwarded-Ssl: off",
        "X_A: b",
        "X-A: \x80",
        " folded: a",
        "X-A : b",
        "X-A",
    ],
)
def test_what_is_unusual_is_left_to_gunicorn(line: str) -> None:
    head = f"POST / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic a\r\nContent-Length: 1\r\n{line}\r\n\r\n"
    assert READER.read_ordinary(head.encode("latin-1")) is None


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("limit_request_line", 40),
        ("limit_request_fields", 2),
        ("limit_request_field_size", 100),
        ("proxy_protocol", "auto"),
    ],
)
def test_gunicorns_limits_are_kept(setting: str, value: object) -> None:
    config = Config()
    config.set(setting, value)
    assert HeadReader(Config()).read_ordinary(USUAL[1]) is not None
    assert HeadReader(config).read_ordinary(USUAL[1]) is None


def test_the_names_of_fields_that_are_kept_are_bounded() -> None:
    reader = HeadReader(Config())
    for number in range(2000):
        head = f"GET / HTTP/1.1\r\nHost: a\r\nX-{number}: {number}\r\nX-{'y' * 200}: z\r\n\r\n".encode()
        found = reader.read(head, PEER, 1)
        assert found.environ[f"HTTP_X_{number}"] == str(number)
        assert len(reader.names) <= 256
    assert not any(len(name) > 64 for name in reader.names)


def test_repeated_fields_are_joined_in_order_unless_they_may_not() -> None:
    head = b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: a\r\nX-Forwarded-For: b\r\n\r\n"
    assert READER.read(head, PEER, 1).environ["HTTP_X_FORWARDED_FOR"] == "a,b"
    with pytest.raises(InvalidHeader):
        READER.read(head.replace(b"X-Forwarded-For", b"Authorization"), PEER, 1)


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
def test_a_script_name_is_taken_off_the_path(version: bytes) -> None:
    with patch.dict(os.environ, SCRIPT_NAME="/below"):
        reader = HeadReader(Config())
    head = b"GET /below/a%20b HTTP/" + version + b"\r\nHost: a\r\n\r\n"
    environ = reader.read(head, PEER, 1).environ
    assert (environ["SCRIPT_NAME"], environ["PATH_INFO"], environ["RAW_URI"]) == ("/below", "/a b", "/below/a%20b")
    with pytest.raises(ConfigurationProblem):
        reader.read(head.replace(b"/below", b"/beside"), PEER, 1)
