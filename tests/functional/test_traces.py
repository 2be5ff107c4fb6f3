"""Requests as spans: in the trace of their callers, without a secret, and at no cost to a token when all goes wrong."""

import os
import secrets
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from support.collector import CLIENT, INTERNAL, SERVER, Collector, running_collector
from support.server import NewClient, RunningServer, basic, free_port, running_server, wait_until

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{CALLER}-01"
GRANT = {"grant_type": "client_credentials"}
SOON = {"OTEL_BSP_SCHEDULE_DELAY": "100", "TOKENHOUSE_TRUSTED_PROXIES": "127.0.0.1/32"}


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with running_collector() as found:
        yield found


@pytest.fixture(scope="module")
def traced(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    settings = {
        "TOKENHOUSE_LOG_LEVEL": "debug",
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_HEADERS": "api-key=collectors%20own%20key",
        "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=test",
        **SOON,
    }
    with running_server(tmp_path_factory.mktemp("traced"), "--workers", "2", **settings) as server:
        yield server


@pytest.fixture(scope="module")
def client(traced: RunningServer) -> NewClient:
    return traced.create_client(scope=("read",))


def new_parent(flags: str = "01") -> tuple[str, str]:
    """A trace that nobody has yet, and a caller's span in it, as a header."""
    trace_id = secrets.token_hex(16)
    return trace_id, f"00-{trace_id}-{CALLER}-{flags}"


def test_a_token_is_a_span_of_its_callers_trace_with_its_parts(
    traced: RunningServer, collector: Collector, client: NewClient
) -> None:
    answer = traced.post_token(headers={"Authorization": client.basic, "traceparent": PARENT})
    event = traced.event_of(answer)
    spans = collector.of(TRACE)
    request = spans["POST /oauth/token"]
    assert (request.kind, request.parent_id, request.has_failed) == (SERVER, CALLER, False)
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/oauth/token",
        "url.path": "/oauth/token",
        "url.scheme": "https",
        "http.response.status_code": 200,
        "client.address": "127.0.0.1",
        "tokenhouse.request_id": answer.headers["X-Request-ID"],
        "tokenhouse.outcome": "issued",
        "tokenhouse.client_id": client.client_id,
        "tokenhouse.auth_method": "client_secret_basic",
        "tokenhouse.secret_id": event["secret_id"],
        "tokenhouse.grant_type": "client_credentials",
        "tokenhouse.scope": "read",
        "tokenhouse.jti": event["jti"],
        "tokenhouse.kid": event["kid"],
        "tokenhouse.expires_in": 3600,
    }
    by_id = {span.span_id: name for name, span in spans.items()}
    assert {name: (span.kind, by_id.get(span.parent_id), span.attributes) for name, span in spans.items()} == {
        "POST /oauth/token": (SERVER, None, request.attributes),
        "authenticate": (INTERNAL, "POST /oauth/token", {}),
        "database": (CLIENT, "authenticate", {"db.system.name": "sqlite"}),
        "sign": (INTERNAL, "POST /oauth/token", {}),
        "log": (INTERNAL, "POST /oauth/token", {}),
    }
    for span in spans.values():
        assert request.began <= span.began <= span.ended <= request.ended, span.name
    assert event["trace_id"] == TRACE
    resource = {name: request.resource[name] for name in ("service.name", "deployment.environment.name")}
    assert resource == {"service.name": "tokenhouse", "deployment.environment.name": "test"}
    assert collector.headers[-1]["api-key"] == "collectors own key"


def test_a_refusal_says_what_the_audit_log_says(traced: RunningServer, collector: Collector, client: NewClient) -> None:
    trace_id, parent = new_parent()
    wrong = basic(client.client_id, "wrong")
    answer = traced.post_token(headers={"Authorization": wrong, "traceparent": parent})
    assert traced.event_of(answer)["trace_id"] == trace_id
    spans = collector.of(trace_id)
    told = spans["POST /oauth/token"].attributes
    assert (told["http.response.status_code"], told["tokenhouse.error"]) == (401, "invalid_client")
    assert told["tokenhouse.reason"] == "wrong_secret"
    assert not any(span.has_failed for span in spans.values()), "a caller's fault is none of ours"
    assert spans["authenticate"].attributes == {"error.type": "InvalidClient"}
    assert "sign" not in spans


def test_other_requests_are_spans_and_probes_are_not(traced: RunningServer, collector: Collector) -> None:
    found = {}
    for path in ("/livez", "/readyz", "/.well-known/jwks.json", "/no/ths_x"):
        trace_id, parent = new_parent()
        requests.get(f"{traced.url}{path}?a=b", headers={"traceparent": parent}, timeout=10)
        found[path] = trace_id
    assert list(collector.of(found["/.well-known/jwks.json"])) == ["GET /.well-known/jwks.json"]
    (unknown,) = collector.of(found["/no/ths_x"]).values()
    assert (unknown.name, unknown.attributes) == (
        "GET",
        {"http.request.method": "GET", "url.scheme": "https", "http.response.status_code": 404},
    )
    assert not {found["/livez"], found["/readyz"]} & {span.trace_id for span in collector.spans()}


@pytest.mark.parametrize(
    "parent",
    [
        pytest.param("", id="empty"),
        pytest.param(f"00-{'0' * 32}-{CALLER}-01", id="no trace"),
        pytest.param(f"00-{TRACE}-{'0' * 16}-01", id="no caller"),
        pytest.param(f"ff-{TRACE}-{CALLER}-01", id="a version that may not be"),
        pytest.param(f"00-{TRACE}-{CALLER}-01-more", id="more than this version has"),
        pytest.param(f"00-{TRACE.upper()}-{CALLER}-01", id="upper case"),
        pytest.param(f"{PARENT}, {PARENT}", id="twice"),
        pytest.param(f"cc-{TRACE}-{CALLER}-01-{'x' * 4000}", id="huge"),
        pytest.param("ths_a-secret-in-the-wrong-place", id="a secret"),
        pytest.param("\xff\x00".replace("\x00", "-") * 20, id="other bytes"),
    ],
)
def test_a_parent_that_is_none_begins_a_new_trace(
    traced: RunningServer, collector: Collector, client: NewClient, parent: str
) -> None:
    answer = traced.post_token(
        headers={"Authorization": client.basic, "traceparent": parent.encode("latin-1")}  # type: ignore[dict-item]
    )
    assert answer.status_code == 200
    trace_id = traced.event_of(answer)["trace_id"]
    assert trace_id != TRACE
    assert collector.of(trace_id)["POST /oauth/token"].parent_id == ""


def test_the_parent_of_a_stranger_does_not_count(tmp_path: Path, collector: Collector) -> None:
    variables = {**SOON, "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "TOKENHOUSE_TRUSTED_PROXIES": "192.0.2.0/24"}
    with running_server(tmp_path, "--workers", "1", **variables) as server:
        for flags in ("00", "01"):
            theirs, parent = new_parent(flags)
            headers = {"Authorization": server.create_client().basic, "traceparent": parent}
            trace_id = server.event_of(server.post_token(headers=headers))["trace_id"]
            assert trace_id != theirs
            # A stranger decides neither where the span belongs nor whether it is recorded.
            assert collector.of(trace_id)["POST /oauth/token"].parent_id == ""


def test_a_caller_that_does_not_record_is_not_recorded(
    traced: RunningServer, collector: Collector, client: NewClient
) -> None:
    silent, parent = new_parent("00")
    answer = traced.post_token(headers={"Authorization": client.basic, "traceparent": parent})
    assert traced.event_of(answer)["trace_id"] == silent
    recorded, parent = new_parent()
    for _ in range(2):
        # Of two workers, both have sent what they had.
        traced.post_token(headers={"Authorization": client.basic, "traceparent": parent})
        collector.of(recorded)
    time.sleep(0.5)
    assert silent not in {span.trace_id for span in collector.spans()}


def test_no_span_and_no_log_holds_what_a_caller_wrote(
    traced: RunningServer, collector: Collector, client: NewClient
) -> None:
    pasted = "ths_pasted-" + secrets.token_hex(12)
    named = {"Authorization": client.basic}
    trace_ids = []

    def send(method: str, path: str, data: object = None, **headers: str) -> None:
        trace_id, parent = new_parent()
        requests.request(
            method, f"{traced.url}{path}", data=data, headers={"traceparent": parent, **headers}, timeout=10
        )
        trace_ids.append(trace_id)

    send("POST", "/oauth/token", GRANT, **named)
    send("POST", "/oauth/token", {**GRANT, "client_id": client.client_id, "client_secret": client.secret})
    send("POST", "/oauth/token", {**GRANT, "client_id": client.client_id, "client_secret": pasted})
    send("POST", "/oauth/token", {**GRANT, "client_id": pasted, "client_secret": pasted})
    send("POST", "/oauth/token", {**GRANT, "scope": pasted}, **named)
    send("POST", "/oauth/token", {"grant_type": pasted}, **named)
    send("POST", f"/oauth/token?client_secret={pasted}", GRANT, **named)
    send("POST", f"/oauth/{pasted}", GRANT)
    send("POST", "/oauth/token", pasted, Authorization=f"Bearer {pasted}")
    send("POST", "/oauth/introspect", {"token": pasted}, **named)
    send("POST", "/oauth/revoke", {"token": pasted}, **named)
    send(pasted[:20].upper(), "/oauth/token")
    # Not X-Request-ID: that of a trusted proxy is taken over.
    for name in ("tracestate", "baggage", "User-Agent", "Referer", "Cookie"):
        send("POST", "/oauth/token", GRANT, **named, **{name: f"{pasted}"})
        send("POST", "/oauth/token", GRANT, **named, **{name: f"{pasted}={pasted},{pasted};=;"})
    for trace_id in trace_ids:
        collector.of(trace_id)
    everything = b"".join(collector.bodies) + traced.stdout_path.read_bytes() + traced.stderr_path.read_bytes()
    for forbidden in (pasted, pasted[:20].upper(), client.secret, client.basic.split()[1], "collectors own key"):
        assert forbidden.encode() not in everything


def test_workers_that_follow_trace_too(traced: RunningServer, collector: Collector, client: NewClient) -> None:
    before = traced.workers()
    traced.process.send_signal(signal.SIGHUP)
    wait_until(lambda: len(traced.workers()) == 2 and not traced.workers() & before)
    os.kill(min(traced.workers()), signal.SIGKILL)
    wait_until(lambda: len(traced.workers()) == 2)
    traced_by = set()
    for _ in range(20):
        trace_id, parent = new_parent()
        traced.post_token(headers={"Authorization": client.basic, "traceparent": parent})
        collector.of(trace_id)
        traced_by.add(trace_id)
    assert len(traced_by) == 20


def test_the_database_that_is_away_is_a_fault_of_ours(collector: Collector, tmp_path: Path) -> None:
    settings = {"TOKENHOUSE_TRACES": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **SOON}
    with running_server(tmp_path, "--workers", "1", **settings) as server:
        client = server.create_client()
        (tmp_path / "tokenhouse.db").rename(tmp_path / "elsewhere.db")
        trace_id, parent = new_parent()
        answer = server.post_token(headers={"Authorization": client.basic, "traceparent": parent})
        assert answer.status_code == 503
        spans = collector.of(trace_id)
        request = spans["POST /oauth/token"]
        assert (request.has_failed, request.attributes["error.type"]) == (True, "503")
        assert spans["database"].attributes["error.type"] == "OperationalError"


def test_the_last_spans_are_sent_when_the_server_ends(collector: Collector, tmp_path: Path) -> None:
    # A delay of a minute: nothing is sent before.
    settings = {"TOKENHOUSE_TRACES": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
    settings |= {"OTEL_BSP_SCHEDULE_DELAY": "60000", "OTEL_EXPORTER_OTLP_COMPRESSION": "gzip"}
    settings |= {"OTEL_TRACES_SAMPLER": "always_on", "OTEL_SERVICE_NAME": "tokens"}
    settings |= {"TOKENHOUSE_TRUSTED_PROXIES": "127.0.0.1/32"}
    with running_server(tmp_path, "--workers", "2", **settings) as server:
        client = server.create_client()
        # Whatever callers say, such a sampler records.
        sent = [new_parent("00") for _ in range(10)]
        for _, parent in sent:
            server.post_token(headers={"Authorization": client.basic, "traceparent": parent})
    for trace_id, _ in sent:
        assert collector.of(trace_id)["sign"].resource["service.name"] == "tokens"


def test_callers_may_be_left_out_of_it(collector: Collector, tmp_path: Path) -> None:
    settings = {"TOKENHOUSE_TRACES": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **SOON}
    with running_server(tmp_path, "--workers", "1", OTEL_PROPAGATORS="none", **settings) as server:
        client = server.create_client()
        trace_id, parent = new_parent("00")
        answer = server.post_token(headers={"Authorization": client.basic, "traceparent": parent})
        own = server.event_of(answer)["trace_id"]
        assert own != trace_id
        assert collector.of(own)["POST /oauth/token"].parent_id == ""


def test_a_collector_that_fails_is_told_once_and_costs_nobody_a_token(tmp_path: Path) -> None:
    with running_collector() as collector:
        collector.status = 401
        settings = {"TOKENHOUSE_TRACES": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, **SOON}
        with running_server(tmp_path, "--workers", "1", **settings) as server:
            client = server.create_client()
            for _ in range(3):
                asked = len(collector.headers)
                server.get_token(client)
                wait_until(lambda asked=asked: len(collector.headers) > asked)
            wait_until(lambda: "traces" in server.stderr_path.read_text())
            collector.status = 200
            server.get_token(client)
            wait_until(lambda: "sent again" in server.stderr_path.read_text())
            lines = [line for line in server.stderr_path.read_text().splitlines() if "traces" in line]
            assert len(lines) == 2
            assert "traces cannot be sent and are dropped: status 401" in lines[0]
            assert "traces can be sent again; spans lost: 15" in lines[1]
            assert "opentelemetry" not in server.stderr_path.read_text()


def test_a_collector_that_is_silent_or_gone_holds_up_no_end(tmp_path: Path) -> None:
    with running_collector() as collector:
        collector.is_silent = True
        for folder, url in (("silent", collector.url), ("gone", f"http://127.0.0.1:{free_port()}")):
            (tmp_path / folder).mkdir()
            settings = {"TOKENHOUSE_TRACES": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": url, **SOON}
            with running_server(tmp_path / folder, "--workers", "2", **settings) as server:
                client = server.create_client()
                for _ in range(5):
                    server.get_token(client)
                began = time.monotonic()
                server.process.terminate()
                assert server.process.wait(timeout=15) == 0
                assert time.monotonic() - began < 10


def pretend_it_is_not_installed(folder: Path) -> str:
    """A folder for ``PYTHONPATH`` where OpenTelemetry cannot be imported."""
    (folder / "without").mkdir()
    (folder / "without" / "sitecustomize.py").write_text('import sys\nsys.modules["opentelemetry"] = None\n')
    return str(folder / "without")


COLLECTOR = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"TOKENHOUSE_TRACES": "true", "OTEL_SDK_DISABLED": "true"},
        {"TOKENHOUSE_TRACES": "false", **COLLECTOR},
        COLLECTOR,
    ],
    ids=str,
)
def test_nothing_is_loaded_when_it_is_off(tmp_path: Path, settings: dict[str, str]) -> None:
    path = pretend_it_is_not_installed(tmp_path)
    with running_server(tmp_path, "--workers", "1", PYTHONPATH=path, **settings) as server:
        answer = server.post_token(headers={"Authorization": server.create_client().basic, "traceparent": PARENT})
        assert answer.status_code == 200
        assert "trace_id" not in server.event_of(answer)
        said = server.stderr_path.read_text()
        is_told = "traces need OpenTelemetry, which is not installed: pip install '.[otel]'" in said
        assert is_told is (settings == COLLECTOR)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "traces need OpenTelemetry, which is not installed: pip install '.[otel]'"),
        (
            {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"},
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL must be http/protobuf, which is what the extra otel sends",
        ),
    ],
)
def test_a_start_says_what_is_missing_or_wrong(tmp_path: Path, settings: dict[str, str], told: str) -> None:
    environment = settings or {"PYTHONPATH": pretend_it_is_not_installed(tmp_path)}
    server = RunningServer(tmp_path, TOKENHOUSE_TRACES="true", **environment)
    server.prepare()
    with pytest.raises(AssertionError, match="gunicorn ended"):
        server.start("--workers", "1")
    assert server.process.wait(timeout=10) == 4
    assert server.stderr_path.read_text().splitlines()[-1] == f"tokenhouse: {told}"
