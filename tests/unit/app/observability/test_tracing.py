"""Spans from outside: which parents count, what a failure tells, and that nobody who is served feels anything of it."""

import logging
import re
from collections.abc import Iterable, Sequence
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from unit.harness import Harness

from app.observability import tracing
from app.observability.tracing import CapturedLog, ReportingExporter, RequestSpans, Served

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = re.compile(r"[ \t]*([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*|[ \t]*)")


class Traced:
    """An application that answers as it is told, and its spans."""

    def __init__(self, answer: str | BaseException = "200 OK") -> None:
        self.kept = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.kept))
        served = Served(frozenset({"/oauth/token", "/livez"}), frozenset({"/livez"}), "https")
        spans = RequestSpans(provider.get_tracer("test"), served, {}, trusted_proxies=(ip_network("192.0.2.1/32"),))
        self.environ: dict[str, Any] = {}

        def serve(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            self.environ = environ
            if isinstance(answer, BaseException):
                raise answer
            start_response(answer, [])
            return [b"answer"]

        self.serve = spans.around(serve)

    def ask(self, path: str = "/oauth/token", method: str = "POST", **environ: str) -> Sequence[ReadableSpan]:
        """The spans of one request."""
        self.kept.clear()
        captured_log: list[Any] = []
        asked = {"REQUEST_METHOD": method, "PATH_INFO": path, "REMOTE_ADDR": "192.0.2.1", **environ}
        assert self.serve(asked, lambda *message: captured_log.append(message)) == [b"answer"]
        assert len(captured_log) == 1
        return self.kept.get_finished_spans()


_traced = Traced()
# A header as WSGI has it: no line ends in it.
HEADERS = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\0"), max_size=600)
NEARLY = st.from_regex(r"[0-9a-fF]{2}-[0-9a-fx]{32}-[0-9a-f]{15,16}-[0-9a-f]{2}(-[ -~]{0,9})?", fullmatch=True)


@given(st.one_of(HEADERS, NEARLY))
@example(f"00-{TRACE}-{CALLER}-01")
@example(f" 00-{TRACE}-{CALLER}-01\t")
@example(f"00-{TRACE}-{CALLER}-ff")
@example(f"01-{TRACE}-{CALLER}-01-{'x' * 400}")
@example(f"01-{TRACE}-{CALLER}-01-{'x' * 500}")
@example(f"00-{TRACE}-{CALLER}-01,00-{TRACE}-{CALLER}-01")
def test_a_parent_counts_if_and_only_if_it_is_one(header: str) -> None:
    found = PARENT.fullmatch(header)
    is_one = (
        found is not None
        and len(header) <= 512
        and found[1] != "ff"
        and not (found[1] == "00" and found[5].startswith("-"))
        and int(found[2], 16) != 0
        and int(found[3], 16) != 0
    )
    spans = _traced.ask(HTTP_TRACEPARENT=header)
    trace_id = _traced.environ["tokenhouse.trace_id"]
    if not is_one:
        (span,) = spans
        assert span.parent is None
        assert span.context is not None
        assert f"{span.context.trace_id:032x}" == trace_id
        return
    assert found is not None
    assert trace_id == found[2]
    # Whether it is recorded is the caller's to say: the last bit of the flags.
    assert len(spans) == int(found[4], 16) % 2
    for span in spans:
        assert span.parent is not None
        assert f"{span.parent.span_id:016x}" == found[3]


def test_a_parent_is_read_silently(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for header in ("", "x", "00-", f"00-{TRACE}-{CALLER}-01" * 100, "\xff" * 600):
        _traced.ask(HTTP_TRACEPARENT=header, HTTP_TRACESTATE="ths_secret==;", HTTP_BAGGAGE="ths_secret")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("method", "path", "name", "attributes"),
    [
        ("POST", "/oauth/token", "POST /oauth/token", {"http.route": "/oauth/token", "url.path": "/oauth/token"}),
        ("POST", "/oauth/token/", "POST", {}),
        ("GET", "/ths_secret", "GET", {}),
        ("THS_SECRET", "/oauth/token", "HTTP /oauth/token", {"http.route": "/oauth/token", "url.path": "/oauth/token"}),
        ("post", "", "HTTP", {}),
    ],
)
def test_a_name_is_of_what_is_known(method: str, path: str, name: str, attributes: dict[str, str]) -> None:
    (span,) = _traced.ask(path, method)
    known = method if method.isupper() and method != "THS_SECRET" else "_OTHER"
    assert (span.name, span.attributes) == (
        name,
        {"http.request.method": known, "url.scheme": "https", "http.response.status_code": 200, **attributes},
    )


def test_a_probe_is_no_span() -> None:
    assert _traced.ask("/livez", "GET") == ()
    assert "tokenhouse.trace_id" not in _traced.environ


@pytest.mark.parametrize(("status", "has_failed"), [("200 OK", False), ("401 UNAUTHORIZED", False), ("503 X", True)])
def test_an_answer_of_500_and_more_is_a_fault(status: str, *, has_failed: bool) -> None:
    (span,) = Traced(status).ask()
    assert span.attributes is not None
    assert (not span.status.is_ok, "error.type" in span.attributes) == (has_failed, has_failed)
    assert span.status.description is None


def test_an_application_that_fails_is_a_fault_without_its_words() -> None:
    traced = Traced(KeyError("ths_secret"))
    with pytest.raises(KeyError):
        traced.ask()
    (span,) = traced.kept.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["error.type"] == "KeyError"
    assert span.events == ()
    assert "ths_secret" not in span.to_json()


class Failing(SpanExporter):
    """Fails as often as it is told, and says so in words that hold a key."""

    def __init__(self, logger: logging.Logger, *faults: object) -> None:
        self._logger = logger
        self._faults = list(faults)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Fail, or not."""
        fault = self._faults.pop(0)
        if fault is None:
            return SpanExportResult.SUCCESS
        self._logger.error("Failed to export %s batch code: %s, reason: %s", "spans", *fault)  # type: ignore[misc]
        return SpanExportResult.FAILURE if spans else SpanExportResult.SUCCESS


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ([None, None], []),
        ([(401, "ths_key")], ["traces cannot be sent and are dropped: status 401"]),
        ([(None, OSError("ths_key"))], ["traces cannot be sent and are dropped: OSError"]),
        ([(None, "ths_key")], ["traces cannot be sent and are dropped: no reason is known"]),
        (
            [(503, "x"), (None, OSError("ths_key")), None, None, (500, "x"), None],
            [
                "traces cannot be sent and are dropped: status 503",
                "traces can be sent again; spans lost: 2",
                "traces cannot be sent and are dropped: status 500",
                "traces can be sent again; spans lost: 1",
            ],
        ),
    ],
    ids=str,
)
def test_a_failure_is_told_once_by_its_kind(
    caplog: pytest.LogCaptureFixture, faults: list[object], message: list[str]
) -> None:
    logger, captured_log = logging.getLogger("exporter.of.this.test"), CapturedLog()
    logger.addFilter(captured_log)
    exporter = ReportingExporter(Failing(logger, *faults), captured_log)
    (span,) = _traced.ask()
    for _ in faults:
        exporter.export([span])
    logger.removeFilter(captured_log)
    assert [record.getMessage() for record in caplog.records] == message


def test_a_variable_that_nothing_can_be_made_of_costs_no_token(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "ths_key")
    served = harness.app.wsgi_app
    instrumentation = harness.app.extensions["instrumentation"]
    tracing.start(harness.app, harness.settings, instrumentation)
    assert harness.app.wsgi_app == served
    assert instrumentation.spans is None
    (record,) = [record for record in caplog.records if record.name == "app.observability.tracing"]
    assert record.getMessage() == "tracing is off: a variable OTEL_… is wrong (ValueError)"
