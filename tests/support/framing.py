"""How the worker cuts bytes into requests, beside how gunicorn's own parser, which it does not use, reads them."""

from typing import Any

from gunicorn.config import Config
from gunicorn.http.errors import NoMoreData, ParseException
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader

from buffered_worker.request_parser import Head, Limits, RequestBuffer, RequestError

BODY_LIMIT_BYTES = 16 * 1024
PEER = ("192.0.2.1", 4711)
CONFIG = Config()
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


def new_buffer() -> RequestBuffer:
    return RequestBuffer(Limits.of(CONFIG, BODY_LIMIT_BYTES))


def take_all(segments: list[bytes]) -> list[Any]:
    """Every request in ``segments`` as method and body, and the status of the error that ends them."""
    buffer, seen = new_buffer(), []
    for segment, at_end in [*((segment, False) for segment in segments), (b"", True)]:
        buffer.data += segment
        try:
            while complete := buffer.take(at_end=at_end and buffer.begun):
                seen.append((complete[0].method, complete[1]))
        except RequestError as error:
            return [*seen, error.status]
    return seen


def as_gunicorn_reads_it(stream: bytes) -> tuple[bytes, bytes] | None:
    """Body and rest, by gunicorn's parser alone with the whole stream before it, or ``None`` if it refuses."""
    try:
        request: Any = Request(CONFIG, IterUnreader((CHUNKED + stream,)), PEER)
        return request.body.read(), request.unreader.take_buffered()
    except (ParseException, NoMoreData):
        return None


def by_gunicorn(head: bytes) -> dict[str, Any]:
    """All that gunicorn's parser says of a head: method, path, query, version and fields."""
    parsed: Any = Request(CONFIG, IterUnreader((head,)), PEER)
    environ: dict[str, Any] = {}
    for name, value in parsed.headers:
        key = name.replace("-", "_")
        key = key if key in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{key}"
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    path = parsed.path or "/"
    about = {"method": parsed.method, "path": path, "query": parsed.query, "version": parsed.version}
    return environ | about


def by_us(head: Head) -> dict[str, Any]:
    fields = {name: value for name, value in head.environ.items() if name.startswith(("HTTP_", "CONTENT_"))}
    about = {"method": head.method, "path": head.path, "query": head.environ["QUERY_STRING"], "version": head.version}
    return fields | about


def assert_read_alike(head: bytes) -> None:
    """Compare both parsers, if ours accepts ``head``."""
    buffer = new_buffer()
    buffer.data += head
    try:
        complete = buffer.take()
    except RequestError:
        return
    found = complete[0] if complete else buffer.head
    if found is not None:
        ours, theirs = by_us(found), by_gunicorn(head)
        if "HTTP_UPGRADE" not in ours:
            theirs.pop("HTTP_UPGRADE", None)
        assert ours == theirs
