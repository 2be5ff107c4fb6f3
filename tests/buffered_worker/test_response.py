"""An response is whole, says how long it is, and holds nothing that could be read as a second one."""

from collections.abc import Sequence

import pytest
import time_machine
from gunicorn.http.errors import (  # type: ignore[attr-defined]  # The stubs lack them.
    InvalidResponseHeader,
    InvalidResponseHeaderName,
)
from hypothesis import given
from hypothesis import strategies as st

from buffered_worker.request_parser import Head
from buffered_worker.response import Response

HEADERS = [("Content-Type", "application/json"), ("Content-Length", "2")]


def head(method: str = "GET", version: tuple[int, int] = (1, 1)) -> Head:
    made = Head(method, "/", version, {})
    made.version = version
    return made


def sent(
    status: str = "200 OK",
    headers: Sequence[tuple[str, str]] = HEADERS,
    body: bytes = b"{}",
    *,
    to: Head | None = None,
    closes: bool = False,
) -> bytes:
    response = Response("tokenhouse")
    response.start_response(status, headers)
    return response.to_bytes(body, to or head(), closes=closes)


@time_machine.travel("2026-01-31T12:00:00Z", tick=False)
def test_an_answer_to_the_byte() -> None:
    assert sent() == (
        b"HTTP/1.1 200 OK\r\nServer: tokenhouse\r\nDate: Sat, 31 Jan 2026 12:00:00 GMT\r\nConnection: keep-alive\r\n"
        b"Content-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"
    )
    assert sent(to=head(version=(1, 0)), closes=True).startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"\r\nConnection: close\r\n" in sent(closes=True)


def test_the_date_moves_with_the_clock() -> None:
    for second in (1, 1, 2, 1, 3):
        with time_machine.travel(f"2026-01-31T12:00:0{second}.9Z", tick=False):
            assert f"\r\nDate: Sat, 31 Jan 2026 12:00:0{second} GMT\r\n".encode() in sent()


def test_a_length_that_nobody_said_is_said() -> None:
    assert b"\r\nContent-Length: 3\r\n" in sent(headers=[], body=b"abc")


@pytest.mark.parametrize("length", ["1", "3", "0"])
def test_a_length_that_is_not_the_bodys_is_a_fault(length: str) -> None:
    with pytest.raises(ValueError, match="has 2 bytes"):
        sent(headers=[("Content-Length", length)])


def test_what_has_no_body_has_none() -> None:
    assert sent(to=head("HEAD")).endswith(b"Content-Length: 2\r\nContent-Type: application/json\r\n\r\n")
    assert sent("304 Not Modified", [("ETag", '"a"')]).endswith(b'keep-alive\r\nETag: "a"\r\n\r\n')
    assert sent("204 No Content").endswith(b"keep-alive\r\nContent-Type: application/json\r\n\r\n")


def test_the_connection_is_ours_to_say() -> None:
    spoken = sent(
        headers=[*HEADERS, ("Connection", "upgrade"), ("Transfer-Encoding", "chunked"), ("server", "x"), ("Date", "x")]
    )
    assert spoken.count(b"Connection:") == spoken.count(b"Date:") == 1
    assert b"Transfer-Encoding" not in spoken
    assert b"server: x" not in spoken


@pytest.mark.parametrize("status", ["", "200OK", "20", "2000 OK", "200 OK\r\nX: y", "200 \x00"])
def test_a_malformed_status_is_a_fault(status: str) -> None:
    with pytest.raises(ValueError, match="status"):
        sent(status)


@given(st.text(), st.text())
def test_no_header_breaks_out_of_its_line(name: str, value: str) -> None:
    try:
        spoken = sent(headers=[(name, value)], body=b"")
    except (InvalidResponseHeader, InvalidResponseHeaderName):
        return
    except ValueError:
        assert name.lower() == "content-length"
        return
    assert spoken.count(b"\r\n") == spoken.count(b"\r") == spoken.count(b"\n") <= 7
    assert spoken.endswith(b"\r\n\r\n")


def test_a_refused_header_is_named_without_its_value() -> None:
    with pytest.raises(InvalidResponseHeader) as caught:
        sent(headers=[("X-A", "a-secret\n")])
    assert "X-A" in str(caught.value)
    assert "a-secret" not in str(caught.value)


def test_what_was_written_comes_before_what_was_returned() -> None:
    response = Response("tokenhouse")
    response.start_response("200 OK", [])(b"a")
    assert response.to_bytes(b"b", head(), closes=False).endswith(b"Content-Length: 2\r\n\r\nab")


def test_an_answer_is_started_once_unless_it_failed() -> None:
    response = Response("tokenhouse")
    response.start_response("200 OK", [])
    with pytest.raises(AssertionError):
        response.start_response("200 OK", [])
    response.start_response("500 Internal Server Error", [], (ValueError, ValueError(), None))
    assert response.to_bytes(b"", head(), closes=False).startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
