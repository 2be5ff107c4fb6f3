"""The two streams: audit lines are exact, diagnostics are one object a line, and dangerous libraries stay quiet."""

import io
import json
import logging
import sys

import pytest
from conftest import SettableClock

from app.audit.events import Event, RequestFacts, TokenIssued, TokenRefused
from app.audit.log import FLOOD_SECONDS, MOST_ALIKE, AuditLog, FloodFilter, configure_logging
from app.config.settings import Settings
from buffered_worker.stream import NonBlockingStream

FACTS = RequestFacts(request_id="r-1", source_address="192.0.2.1", duration_ms=1.23456)
REFUSED = TokenRefused(
    request=FACTS, client_id=None, error="invalid_scope", status=400, reason="scope_not_granted", detail="x\x1b[31m"
)
ISSUED = TokenIssued(
    request=FACTS,
    client_id="an-id",
    auth_method="client_secret_basic",
    secret_id="s-1",
    grant_type="client_credentials",
    scope="read write",
    audience=("urn:a", "urn:b"),
    jti="a-jti",
    kid="a-kid",
    expires_in=3600,
)


def settings(**values: str) -> Settings:
    return Settings(issuer="https://t.example", secret_peppers="p1:" + "x" * 32, **values)  # type: ignore[arg-type]


def audit(event: Event, clock: SettableClock, log_format: str = "json") -> str:
    stream = io.StringIO()
    AuditLog(log_format, clock, NonBlockingStream(lambda: stream))(event)
    return stream.getvalue()


def test_an_issued_token_is_one_line_with_time_and_name_first(clock: SettableClock) -> None:
    assert audit(ISSUED, clock) == (
        '{"time":"2026-01-31T12:00:00.000Z","event":"TokenIssued","request_id":"r-1","source_address":"192.0.2.1",'
        '"duration_ms":1.235,"client_id":"an-id","auth_method":"client_secret_basic","secret_id":"s-1",'
        '"grant_type":"client_credentials","scope":"read write","audience":["urn:a","urn:b"],"jti":"a-jti",'
        '"kid":"a-kid","expires_in":3600,"outcome":"issued"}\n'
    )


@pytest.mark.parametrize(("log_format", "is_named"), [("json", True), ("console", False)])
def test_a_line_names_its_server(clock: SettableClock, log_format: str, *, is_named: bool) -> None:
    stream = io.StringIO()
    log = AuditLog(log_format, clock, NonBlockingStream(lambda: stream), server="tokens-2")
    log(ISSUED)
    log.write_past(clock(), "ClientChanged", {"by": "root"})
    first, second = stream.getvalue().splitlines()
    assert ('"server":"tokens-2"' in first) is ('"server":"tokens-2"' in second) is is_named
    assert ("tokens-2" in stream.getvalue()) is is_named


def test_a_refusal_is_one_line_without_what_is_empty(clock: SettableClock) -> None:
    line = audit(REFUSED, clock)
    assert line.count("\n") == 1
    assert json.loads(line) == {
        "time": "2026-01-31T12:00:00.000Z",
        "event": "TokenRefused",
        "request_id": "r-1",
        "source_address": "192.0.2.1",
        "duration_ms": 1.235,
        "error": "invalid_scope",
        "status": 400,
        "reason": "scope_not_granted",
        "detail": "x\x1b[31m",
        "outcome": "refused",
    }
    assert "\x1b" not in line


@pytest.mark.parametrize("name", ["Zoë\x9b31m", "\udcff"])
def test_what_is_not_ascii_is_escaped(clock: SettableClock, name: str) -> None:
    stream = io.StringIO()
    log = AuditLog("json", clock, NonBlockingStream(lambda: stream))
    log.write_past(clock(), "ClientChanged", {"by": name})
    line = stream.getvalue()
    assert line.isascii()
    assert json.loads(line) == {"time": "2026-01-31T12:00:00.000Z", "event": "ClientChanged", "by": name}


def test_a_console_line_is_for_people_and_has_no_colours_in_a_file(clock: SettableClock) -> None:
    line = audit(ISSUED, clock, "console")
    assert line.startswith("2026-01-31T12:00:00.000Z TokenIssued ")
    assert "client_id=an-id" in line
    assert line.count("\n") == 1
    assert "\x1b" not in line


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_diagnostics_go_to_standard_error(capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    configure_logging(settings(log_format=log_format))
    logging.getLogger("somebody").warning("a %s", "warning")
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.count("\n") == 1
    assert "a warning" in written.err


def test_a_diagnostic_line_is_a_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings(log_format="json"))
    logging.getLogger("somebody").error('quoted "text"\nsecond line')
    line = json.loads(capsys.readouterr().err)
    assert list(line) == ["time", "event", "logger", "level"]
    assert (line["event"], line["logger"], line["level"]) == ('quoted "text"\nsecond line', "somebody", "error")


def test_a_traceback_stays_in_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings(log_format="json"))
    try:
        tuple[int, ...]()[0]
    except IndexError:
        logging.getLogger("somebody").exception("it failed")
    written = capsys.readouterr().err
    assert written.count("\n") == 1
    assert json.loads(written)["exception"].endswith("IndexError: tuple index out of range")


@pytest.mark.parametrize(
    ("level", "heard"),
    [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)],
)
def test_the_level_is_a_setting(capsys: pytest.CaptureFixture[str], level: str, heard: int) -> None:
    configure_logging(settings(log_level=level))
    for name in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger("somebody"), name)("said")
    assert capsys.readouterr().err.count("\n") == heard


@pytest.mark.parametrize(
    "library", ["authlib", "authlib.oauth2.rfc6749", "sqlalchemy.engine", "joserfc", "psycopg", "urllib3"]
)
def test_libraries_that_log_secrets_never_get_below_warning(capsys: pytest.CaptureFixture[str], library: str) -> None:
    configure_logging(settings(log_level="debug"))
    for name in ("debug", "info", "warning"):
        getattr(logging.getLogger(library), name)(name)
    assert [json.loads(line)["level"] for line in capsys.readouterr().err.splitlines()] == ["warning"]


def test_gunicorns_own_lines_have_the_same_form(capsys: pytest.CaptureFixture[str]) -> None:
    server = logging.getLogger("gunicorn.error")
    server.addHandler(logging.StreamHandler(sys.stdout))
    server.propagate = False
    configure_logging(settings(log_format="json"))
    server.info("Booting worker")
    written = capsys.readouterr()
    assert written.out == ""
    assert json.loads(written.err)["event"] == "Booting worker"


def test_configuring_twice_does_not_double_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(settings())
    configure_logging(settings())
    logging.getLogger("somebody").warning("once")
    assert capsys.readouterr().err.count("\n") == 1


def test_a_flood_of_messages_alike_is_cut_and_counted() -> None:
    now = [0.0]
    flood = FloodFilter(lambda: now[0])

    def logged(level: int = logging.INFO, text: str = "Refused with %d") -> str | None:
        record = logging.LogRecord("a", level, "a.py", 1, text, (404,) if "%d" in text else (), None)
        return record.getMessage() if flood.filter(record) else None

    assert [logged() for _ in range(MOST_ALIKE + 7)] == ["Refused with 404"] * MOST_ALIKE + [None] * 7
    assert logged(text="another message") == "another message"
    assert logged(logging.WARNING) == "Refused with 404"
    now[0] = FLOOD_SECONDS
    assert logged() == "Refused with 404 (7 more like this were not logged)"
    assert logged() == "Refused with 404"
