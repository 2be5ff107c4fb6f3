"""A collector of traces: takes what an exporter sends by OTLP over HTTP, to the byte, and takes it apart."""

import contextlib
import gzip
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it was sent."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    attributes: dict[str, Any]
    has_failed: bool
    began: int
    ended: int
    resource: dict[str, Any]


@dataclass
class Collector:
    """What was received, and how it is answered.

    :ivar status: of each answer.
    :ivar is_silent: whether there is none.
    """

    url: str = ""
    status: int = 200
    is_silent: bool = False
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    silenced: threading.Event = field(default_factory=threading.Event)

    def spans(self) -> list[ReceivedSpan]:
        """All spans that were taken."""
        return [span for body in list(self.bodies) for span in _spans_of(body)]

    def of(self, trace_id: str) -> dict[str, ReceivedSpan]:
        """The spans of a trace by name, once that of the request is there, which ends last."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            found = {span.name: span for span in self.spans() if span.trace_id == trace_id}
            if any(span.kind == SERVER for span in found.values()):
                return found
            time.sleep(0.05)
        raise AssertionError(f"there is no trace {trace_id}")


INTERNAL, SERVER, CLIENT = 1, 2, 3
_ERROR = 2


def _spans_of(body: bytes) -> Iterator[ReceivedSpan]:
    request = ExportTraceServiceRequest.FromString(body)
    for group in request.resource_spans:
        resource = _read(group.resource.attributes)
        for scope in group.scope_spans:
            for span in scope.spans:
                assert not span.events, "an exception's words may hold anything"
                yield ReceivedSpan(
                    span.name,
                    span.kind,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    _read(span.attributes),
                    span.status.code == _ERROR,
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    resource,
                )


def _read(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@contextlib.contextmanager
def running_collector() -> Iterator[Collector]:
    """A collector on a free port, for as long as the block runs."""
    collector = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if collector.is_silent:
                collector.silenced.wait(60)
                return
            # A test that has seen the request may set another status for the next one.
            status = collector.status
            collector.headers.append({name.lower(): value for name, value in self.headers.items()})
            if status == 200:
                assert self.path == "/v1/traces"
                packed = self.headers.get("Content-Encoding") == "gzip"
                collector.bodies.append(gzip.decompress(body) if packed else body)
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield collector
    finally:
        collector.silenced.set()
        server.shutdown()
        server.server_close()
        thread.join()
