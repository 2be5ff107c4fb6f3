"""OpenTelemetry's variables: each fault is named, no value is quoted, and what passes makes nobody quote it later."""

import logging
import sys
from importlib.util import find_spec

import pytest
import requests
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.util.re import parse_env_headers

from app.config.values import PROJECT_FOLDER
from app.errors import StartError
from app.observability import otel_variables
from app.observability.otel_variables import check, find_faults, is_enabled, reads_parents

OTLP = "OTEL_EXPORTER_OTLP_"
URL_RULE = "must be an http or https URL without user, query and fragment: keys go into OTEL_EXPORTER_OTLP_HEADERS"
HEADERS_RULE = "must be comma-separated name=value pairs, with %XX for commas, semicolons and what is not ASCII"
COUNT_RULE = "must be a whole number, 1 or more"
SAMPLER_RULE = "must be always_on, always_off, traceidratio, or one of them behind parentbased_"
SHARE_RULE = "must be a share from 0 to 1, such as 0.05"
FILE_RULE = "must be a file that can be read"
HERE = str(PROJECT_FOLDER / "setup.cfg")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (f"{OTLP}ENDPOINT", "http://localhost:4318"),
        (f"{OTLP}ENDPOINT", "https://otlp.example.com/some/path/"),
        (f"{OTLP}TRACES_ENDPOINT", "http://[::1]:4318/v1/traces"),
        (f"{OTLP}HEADERS", "api-key=abc"),
        (f"{OTLP}HEADERS", "Authorization=Basic%20dGVzdDp4PQ==,x-scope=a%2Cb"),
        (f"{OTLP}HEADERS", "authorization=Bearer abc.def-ghi, , x=1,"),
        (f"{OTLP}TRACES_HEADERS", "empty="),
        (f"{OTLP}PROTOCOL", "http/protobuf"),
        (f"{OTLP}COMPRESSION", "gzip"),
        (f"{OTLP}TRACES_TIMEOUT", "2.5"),
        (f"{OTLP}CERTIFICATE", HERE),
        ("OTEL_TRACES_EXPORTER", "otlp"),
        ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
        ("OTEL_TRACES_SAMPLER", "always_on"),
        ("OTEL_TRACES_SAMPLER_ARG", "0.05"),
        ("OTEL_TRACES_SAMPLER_ARG", "1"),
        ("OTEL_BSP_SCHEDULE_DELAY", "5000"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "512"),
        ("OTEL_SERVICE_NAME", "anything is fine here"),
        (f"{OTLP}ENDPOINT", ""),
    ],
)
def test_what_is_right_passes(name: str, value: str) -> None:
    check({name: value})


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        *(
            (name, value, URL_RULE)
            for name in (f"{OTLP}ENDPOINT", f"{OTLP}TRACES_ENDPOINT")
            for value in (
                *("localhost:4318", "collector", "grpc://collector:4317", "http://", "http://:4318", "//collector"),
                *("http://collector:0", "http://collector:99999", "http://collector:port", "http://[::1", " "),
                *("https://ths_key@collector", "https://a:ths_key@collector", "https://collector?api-key=ths_key"),
                *("https://collector#ths_key", "http://collec tor", "http://collector\n", "http://kollektör"),
            )
        ),
        *(
            (name, value, HEADERS_RULE)
            for name in (f"{OTLP}HEADERS", f"{OTLP}TRACES_HEADERS")
            for value in (
                *("ths_key", "ths key=1", "=ths_key", "a=1;b=ths_key", "a=ths_key\n", "a=ths_kéy"),
                *("a=ths_key%0d%0aX: y", "a=%00", "a=%C3%A9", 'a="ths_key"'),
            )
        ),
        (f"{OTLP}PROTOCOL", "grpc", "must be http/protobuf, which is what the extra otel sends"),
        (f"{OTLP}COMPRESSION", "zstd", "must be none, gzip or deflate"),
        *((f"{OTLP}TIMEOUT", value, "must be seconds, more than 0") for value in ("0", "-1", "10s", "1e3", "nan")),
        *(
            (f"{OTLP}{name}", "/no/such/file", FILE_RULE)
            for name in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")
        ),
        (f"{OTLP}TRACES_CERTIFICATE", str(PROJECT_FOLDER), FILE_RULE),
        ("OTEL_TRACES_EXPORTER", "console", "must be otlp; TOKENHOUSE_TRACES=false sends none"),
        ("OTEL_TRACES_SAMPLER", "parentbased", SAMPLER_RULE),
        *(("OTEL_TRACES_SAMPLER_ARG", value, SHARE_RULE) for value in ("5", "1.5", "-0.1", "5%", "nan", "½")),
        *(("OTEL_BSP_SCHEDULE_DELAY", value, COUNT_RULE) for value in ("0", "-1", "1.5", "soon", "²", "9" * 5000)),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "none", COUNT_RULE),
    ],
    ids=str,
)
def test_what_is_wrong_is_named_and_not_quoted(name: str, value: str, rule: str) -> None:
    with pytest.raises(StartError) as caught:
        check({name: value})
    assert str(caught.value) == f"{name} {rule}"


def test_a_batch_is_no_larger_than_the_queue() -> None:
    message = ["OTEL_BSP_MAX_EXPORT_BATCH_SIZE must be at most OTEL_BSP_MAX_QUEUE_SIZE (2048 unless set)"]
    assert list(find_faults({"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "2049"})) == message
    assert list(find_faults({"OTEL_BSP_MAX_QUEUE_SIZE": "511"})) == message
    assert list(find_faults({"OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "511", "OTEL_BSP_MAX_QUEUE_SIZE": "511"})) == []


def test_what_is_not_set_is_what_opentelemetry_takes() -> None:
    processor = BatchSpanProcessor(InMemorySpanExporter())
    kept = processor._batch_processor  # noqa: SLF001 - It is told nowhere else.
    processor.shutdown()
    assert (kept._max_export_batch_size, kept._max_queue_size, kept._schedule_delay) == (512, 2048, 5.0)  # noqa: SLF001


def test_all_faults_are_told_at_once() -> None:
    wrong = {f"{OTLP}ENDPOINT": "x", "OTEL_TRACES_SAMPLER": "x", "OTEL_BSP_MAX_QUEUE_SIZE": "x"}
    with pytest.raises(StartError) as caught:
        check(wrong)
    assert [line.split(" ")[0] for line in str(caught.value).splitlines()] == list(wrong)


def test_a_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    message = ["traces need OpenTelemetry, which is not installed: pip install '.[otel]'"]
    for missing in ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http"):
        monkeypatch.setattr(
            otel_variables, "find_spec", lambda name, missing=missing: None if name == missing else find_spec(name)
        )
        assert list(find_faults({})) == message
    monkeypatch.setattr(otel_variables, "find_spec", find_spec)
    monkeypatch.delitem(sys.modules, "opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto", None)
    assert list(find_faults({})) == message


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
@example("a=%ff")
@example("a=%E2%80%A8")
@example("a= leading")
@example("a=%20leading%20")
@example("a%41=b")
@example("a=\t")
def test_headers_that_pass_can_be_read_and_sent(value: str) -> None:
    if list(find_faults({f"{OTLP}HEADERS": value})):
        return
    said: list[str] = []
    logger, handler = logging.getLogger("opentelemetry.util.re"), _Keeping(said)
    logger.addHandler(handler)
    try:
        headers = parse_env_headers(value, liberal=True)
    finally:
        logger.removeHandler(handler)
    assert said == []
    prepared = requests.Request("POST", "http://localhost:4318", headers=dict(headers)).prepare()
    assert all(str(text).isascii() for text in prepared.headers.values())


@given(
    st.one_of(st.text(st.characters(codec="utf-8", exclude_characters="\0")), st.from_regex(r"https?://[!-~]{1,30}"))
)
@example("http://collector/%")
@example("http://a..b")
@example("http://.example.com")
@example("http://*.example.com")
def test_endpoints_that_pass_can_be_asked(value: str) -> None:
    if value and not list(find_faults({f"{OTLP}ENDPOINT": value})):
        requests.Request("POST", value).prepare()


class _Keeping(logging.Handler):
    def __init__(self, said: list[str]) -> None:
        super().__init__()
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(record.getMessage())


def test_an_exporter_takes_what_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    right = {
        f"{OTLP}ENDPOINT": "https://otlp.example.com",
        f"{OTLP}HEADERS": "a=b",
        f"{OTLP}COMPRESSION": "gzip",
        f"{OTLP}TIMEOUT": "3",
        f"{OTLP}CERTIFICATE": HERE,
    }
    check(right)
    for name, value in right.items():
        monkeypatch.setenv(name, value)
    OTLPSpanExporter().shutdown()


def test_parents_are_read_unless_others_are_named() -> None:
    values = ("", "tracecontext,baggage", "b3, TraceContext", "none", "b3")
    assert [reads_parents({"OTEL_PROPAGATORS": value}) for value in values] == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("traces", "environ", "wanted"),
    [
        (None, {}, False),
        (None, {f"{OTLP}ENDPOINT": ""}, False),
        (None, {f"{OTLP}ENDPOINT": "http://collector:4318"}, True),
        (None, {f"{OTLP}TRACES_ENDPOINT": "http://collector:4318"}, True),
        (None, {"OTEL_SERVICE_NAME": "tokens"}, False),
        (False, {f"{OTLP}ENDPOINT": "http://collector:4318"}, False),
        (True, {}, True),
        (True, {"OTEL_SDK_DISABLED": " True "}, False),
        (True, {"OTEL_SDK_DISABLED": "0"}, True),
        (None, {f"{OTLP}ENDPOINT": "http://collector:4318", "OTEL_SDK_DISABLED": "true"}, False),
    ],
    ids=str,
)
def test_who_names_a_collector_or_says_so_wants_traces(
    *, traces: bool | None, environ: dict[str, str], wanted: bool
) -> None:
    assert is_enabled(traces, environ) is wanted
