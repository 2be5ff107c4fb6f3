"""Traces: each request and its parts as OpenTelemetry spans, in the trace of the caller.

Loaded only if traces are on. OpenTelemetry's own variables (``otel_variables``) say where spans are sent and which
are sampled. A span contains what the audit log may contain: no unknown path, no query, no header, no exception
message. Of the request only ``traceparent`` is read (W3C Trace Context), from trusted proxies alone, never
``tracestate``.
"""

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from flask import Flask
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http import trace_exporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, format_trace_id, get_current_span, use_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from sqlalchemy.engine import make_url

from app.audit.events import Event, RequestFacts
from app.config.settings import Settings
from app.config.values import TrustedProxies
from app.http.application import RECEIVED_AT, peer_of
from app.http.forwarded_headers import is_trusted
from app.observability.health_endpoint import PROBES
from app.observability.instrumentation import Instrumentation
from app.observability.otel_variables import reads_parents
from app.services import installed_version

log = logging.getLogger(__name__)

STOP_SECONDS = 2.0
"""How long the end of a worker waits for its last spans to be sent."""

_SERVER_FAULTS = 500
_LONGEST_PARENT = 512
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
_EVENT_FIELDS = (
    *("outcome", "endpoint", "client_id", "auth_method", "secret_id", "grant_type", "scope", "jti", "kid"),
    *("expires_in", "error", "reason", "active", "was_live"),
)
"""Fields of events that become attributes ``tokenhouse.<field>`` of the span."""

Wsgi = Callable[[Any, Any], Iterable[bytes]]


class Served(NamedTuple):
    """What is served.

    :ivar routes: our paths.
    :ivar untraced: those of them that machines poll.
    :ivar scheme: the scheme of the public URL.
    """

    routes: frozenset[str]
    untraced: frozenset[str]
    scheme: str


class RequestSpans:
    """Creates a span for each request and for its parts.

    :param systems: ``db.system.name`` by part, for parts that query something.
    :param trusted_proxies: whose ``traceparent`` is used: a stranger's could add spans to any trace, or have each
        request recorded.
    """

    def __init__(
        self,
        tracer: Tracer,
        served: Served,
        systems: Mapping[str, str],
        *,
        trusted_proxies: TrustedProxies,
    ) -> None:
        self._tracer = tracer
        self._served = served
        self._systems = systems
        self._trusted_proxies = trusted_proxies
        self._propagator = TraceContextTextMapPropagator()

    def around(self, serve: Wsgi) -> Wsgi:
        """Return ``serve`` as a WSGI application that creates a span for each request."""

        def serve_traced(environ: Any, start_response: Any) -> Iterable[bytes]:
            path = environ.get("PATH_INFO", "")
            if path in self._served.untraced:
                return serve(environ, start_response)
            span = self._begun(environ, path)
            environ["tokenhouse.trace_id"] = format_trace_id(span.get_span_context().trace_id)

            def start_traced(status: str, headers: Any, *exc_info: Any) -> Any:
                _record_status(span, int(status[:3]))
                return start_response(status, headers, *exc_info)

            with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
                try:
                    return serve(environ, start_traced)
                except BaseException as error:
                    _record_failure(span, error)
                    raise

        return serve_traced

    def part(self, name: str) -> AbstractContextManager[None]:
        """Return the span of a part of the current request."""
        if not get_current_span().is_recording():
            return nullcontext()
        return self._part(name)

    @contextmanager
    def _part(self, name: str) -> Iterator[None]:
        system = self._systems.get(name)
        kind = SpanKind.CLIENT if system else SpanKind.INTERNAL
        span = self._tracer.start_span(name, kind=kind, attributes={"db.system.name": system} if system else None)
        with use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            try:
                yield
            except BaseException as error:
                span.set_attribute("error.type", type(error).__name__)
                raise

    def record(self, event: Event) -> None:
        """Add ``event`` to the span of the request that caused it."""
        request: RequestFacts | None = getattr(event, "request", None)
        span = get_current_span()
        if request is None or not span.is_recording():
            return
        attributes: dict[str, Any] = {"tokenhouse.request_id": request.request_id}
        if request.source_address is not None:
            attributes["client.address"] = request.source_address
        for name in _EVENT_FIELDS:
            if (value := getattr(event, name, None)) is not None:
                attributes[f"tokenhouse.{name}"] = value
        span.set_attributes(attributes)

    def _begun(self, environ: Any, path: str) -> Span:
        name = method = environ["REQUEST_METHOD"]
        if method not in _METHODS:
            name, method = "HTTP", "_OTHER"
        attributes = {"http.request.method": method, "url.scheme": self._served.scheme}
        if path in self._served.routes:
            attributes |= {"http.route": path, "url.path": path}
            name = f"{name} {path}"
        received_at = environ.get(RECEIVED_AT)
        waited = time.perf_counter() - received_at if received_at else 0
        return self._tracer.start_span(
            name,
            context=self._parent(environ),
            kind=SpanKind.SERVER,
            attributes=attributes,
            start_time=time.time_ns() - int(waited * 1e9),
        )

    def _parent(self, environ: Mapping[str, Any]) -> Context:
        traceparent = environ.get("HTTP_TRACEPARENT")
        if traceparent is None or len(traceparent) > _LONGEST_PARENT:
            return Context()
        if not is_trusted(peer_of(environ), self._trusted_proxies):
            return Context()
        return self._propagator.extract({"traceparent": traceparent}, Context())


def _record_status(span: Span, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    if status >= _SERVER_FAULTS:
        span.set_attribute("error.type", str(status))
        span.set_status(Status(StatusCode.ERROR))


def _record_failure(span: Span, error: BaseException) -> None:
    span.set_attribute("error.type", type(error).__name__)
    span.set_status(Status(StatusCode.ERROR))


class ReportingExporter(SpanExporter):
    """Sends spans with another exporter, and logs when sending begins to fail and when it works again.

    :param captured_log: the log of that exporter, which is otherwise dropped.
    """

    def __init__(self, exporter: SpanExporter, captured_log: "CapturedLog") -> None:
        self._exporter = exporter
        self._captured_log = captured_log
        self._lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send ``spans``, or lose them."""
        result = self._exporter.export(spans)
        if result is not SpanExportResult.SUCCESS:
            if not self._lost:
                log.error("traces cannot be sent and are dropped: %s", self._captured_log.last)
            self._lost += len(spans)
        elif self._lost:
            log.warning("traces can be sent again; spans lost: %d", self._lost)
            self._lost = 0
        return result

    def shutdown(self) -> None:
        """Close the exporter's connections."""
        self._exporter.shutdown()


class CapturedLog(logging.Filter):
    """Drops a logger's records and remembers the kind of the last fault: its message may contain a key."""

    last = "no reason is known"

    def filter(self, record: logging.LogRecord) -> bool:
        """Drop every record."""
        for fact in record.args if isinstance(record.args, tuple) else ():
            if isinstance(fact, BaseException):
                self.last = type(fact).__name__
            elif isinstance(fact, int):
                self.last = f"status {fact}"
        return False


class _Ending:
    """Shuts down a tracer provider within a time limit, which it does not keep itself while the collector is silent."""

    def __init__(self, provider: TracerProvider) -> None:
        self._asked, self._done = threading.Event(), threading.Event()
        self._provider = provider
        # No thread can be started at the end of a process.
        threading.Thread(target=self._wait, name="the end of traces", daemon=True).start()

    def end(self) -> None:
        """Send the remaining spans, if they can be sent."""
        self._asked.set()
        self._done.wait(STOP_SECONDS)

    def _wait(self) -> None:
        self._asked.wait()
        self._provider.shutdown()
        self._done.set()


def start(app: Flask, settings: Settings, instrumentation: Instrumentation) -> None:
    """Trace the requests of ``app`` from now on, in a worker. A wrong variable is logged and prevents no token."""
    try:
        provider = _open_provider()
    except Exception as error:  # noqa: BLE001 - Many parts read variables, and each fails in its own way.
        # Not the message: it may quote a variable.
        log.error("tracing is off: a variable OTEL_… is wrong (%s)", type(error).__name__)  # noqa: TRY400
        return
    rules = list(app.url_map.iter_rules())
    spans = RequestSpans(
        provider.get_tracer("tokenhouse", installed_version()),
        Served(
            routes=frozenset(rule.rule for rule in rules),
            untraced=frozenset(rule.rule for rule in rules if rule.endpoint.startswith(PROBES)),
            scheme=urlsplit(settings.issuer).scheme,
        ),
        {"database": make_url(settings.database_url.get_secret_value()).get_backend_name(), "redis": "redis"},
        trusted_proxies=settings.trusted_proxies if reads_parents(os.environ) else (),
    )
    instrumentation.trace_with(spans)
    app.wsgi_app = spans.around(app.wsgi_app)  # type: ignore[assignment, method-assign]
    atexit.register(_Ending(provider).end)


def _open_provider() -> TracerProvider:
    captured_log = CapturedLog()
    exporter = trace_exporter.OTLPSpanExporter()
    logging.getLogger(trace_exporter.__name__).addFilter(captured_log)
    ours = {SERVICE_NAME: "tokenhouse", SERVICE_VERSION: installed_version()}
    # What the environment says about the service wins.
    message = Resource(ours).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=Resource.create().merge(message), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(ReportingExporter(exporter, captured_log)))
    return provider
