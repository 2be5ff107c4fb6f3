"""``/livez`` and ``/readyz``, what fails when the database does, and what every answer has in common."""

import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from conformance.expected import METHOD_NOT_ALLOWED, NOT_FOUND, Response, assert_refused, refusal
from support.server import PROJECT_FOLDER, RunningServer, running_server

UNAVAILABLE = refusal(503, "server_error", "The server cannot handle the request right now.")


@pytest.fixture
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server that is about to lose its tables."""
    server = RunningServer(tmp_path_factory.mktemp("broken"), TOKENHOUSE_OUTAGE_GRACE="0")
    server.prepare()
    server.start()
    yield server
    server.stop()


def rename_table(server: RunningServer, old: str, new: str) -> None:
    connection = sqlite3.connect(server.folder / "tokenhouse.db")
    with connection:
        connection.execute(f"ALTER TABLE {old} RENAME TO {new}")
    connection.close()


def get(server: RunningServer, path: str) -> requests.Response:
    return requests.get(f"{server.url}{path}", timeout=10)


@pytest.fixture
def portable(tmp_path: Path) -> Iterator[RunningServer]:
    """A server of the test's own, whose database it may take away."""
    with running_server(tmp_path, TOKENHOUSE_OUTAGE_GRACE="0") as server:
        yield server


def test_a_server_that_can_issue_tokens_is_alive_and_ready(portable: RunningServer) -> None:
    """Not on the shared server: other tests leave clients there whose key sets cannot be fetched."""
    alive, ready = get(portable, "/livez"), get(portable, "/readyz")
    assert (alive.status_code, alive.content) == (200, b'{"status":"ok"}')
    assert (ready.status_code, ready.json()) == (
        200,
        {"status": "ok", "checks": {"database": "ok", "keyring": "ok", "settings": "ok", "audit_log": "ok"}},
    )
    for response in (alive, ready):
        assert response.headers["Content-Type"] == "application/json"
        assert response.headers["Cache-Control"] == "no-store"


def test_a_database_file_that_is_taken_away_is_missed_and_found_again(portable: RunningServer) -> None:
    client = portable.create_client()
    statuses = {portable.post_token(headers={"Authorization": client.basic}).status_code for _ in range(20)}
    assert statuses == {200}
    files = [path for path in portable.folder.iterdir() if path.name.startswith("tokenhouse.db")]
    (portable.folder / "elsewhere").mkdir()
    for path in files:
        shutil.copy2(path, portable.folder / "elsewhere" / path.name)
        path.unlink()
    for _ in range(10):
        assert get(portable, "/readyz").status_code == 503
        assert portable.post_token(headers={"Authorization": client.basic}).status_code == 503
    # Nobody has made an empty one in its place.
    assert not (portable.folder / "tokenhouse.db").exists()
    for path in files:
        shutil.copy2(portable.folder / "elsewhere" / path.name, path)
    for _ in range(20):
        assert get(portable, "/readyz").json()["status"] == "ok"
        assert portable.post_token(headers={"Authorization": client.basic}).status_code == 200


def test_without_its_tables_it_is_alive_not_ready_and_says_come_again(broken: RunningServer) -> None:
    client = broken.create_client()
    broken.get_token(client)
    rename_table(broken, "clients", "gone")
    assert get(broken, "/livez").status_code == 200
    ready = get(broken, "/readyz")
    expected = {
        "status": "failed",
        "checks": {"database": "failed", "keyring": "ok", "settings": "ok", "audit_log": "ok"},
    }
    assert (ready.status_code, ready.json()) == (503, expected)
    known = broken.post_token(headers={"Authorization": client.basic})
    unknown = broken.post_token({"grant_type": "client_credentials", "client_id": "nobody", "client_secret": "x"})
    for response in (known, unknown):
        assert_refused(response, UNAVAILABLE)
        assert response.headers["Retry-After"] == "1"
        event = broken.event_of(response)
        assert (event["status"], event["error"]) == (503, "server_error")
        assert event["reason"] == "database_OperationalError"
        assert "client_id" not in event
    assert client.secret not in broken.stderr_path.read_text()
    rename_table(broken, "gone", "clients")
    assert get(broken, "/readyz").status_code == 200
    broken.get_token(client)


def test_a_request_that_is_refused_before_the_database_is_needed_stays_so(broken: RunningServer) -> None:
    rename_table(broken, "clients", "gone")
    assert broken.post_token("grant_type=password").status_code == 400
    assert broken.post_token().status_code == 401


def answers_of_all_kinds(server: RunningServer) -> Iterator[Response]:
    client = server.create_client()
    yield server.post_token(headers={"Authorization": client.basic})
    yield server.post_token()
    yield server.post_token("")
    yield server.post_token("x" * 20000)
    for path in ("/livez", "/readyz", "/nothing", "/oauth/token", "/.well-known/jwks.json"):
        for method in ("GET", "HEAD", "POST", "OPTIONS", "DELETE"):
            yield requests.request(method, f"{server.url}{path}", timeout=10)
    yield from server.send(b"garbage\r\n\r\n")
    yield from server.send(b"GET / HTTP/1.1\r\nHost: x\r\nBad Header: x\r\n\r\n")


def test_every_answer_has_the_security_headers_and_tells_no_version(server: RunningServer) -> None:
    ids = []
    for response in answers_of_all_kinds(server):
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Server"] == "tokenhouse"
        assert "Set-Cookie" not in response.headers
        assert "X-Powered-By" not in response.headers
        assert "Cache-Control" in response.headers
        ids.append(response.headers["X-Request-ID"])
    assert len(set(ids)) == len(ids)


def test_every_answer_with_a_body_is_json(server: RunningServer) -> None:
    for response in answers_of_all_kinds(server):
        if response.headers["Content-Length"] != "0":
            assert response.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("path", ["/", "/nothing", "/metrics", "/admin/v1/clients", "/oauth/authorize", "/favicon.ico"])
def test_what_does_not_exist_is_404_in_our_form(server: RunningServer, path: str) -> None:
    assert_refused(get(server, path), NOT_FOUND)


def test_what_exists_for_another_method_is_405_in_our_form(server: RunningServer) -> None:
    response = get(server, "/oauth/token")
    assert_refused(response, METHOD_NOT_ALLOWED)
    assert response.headers["Allow"] == "POST"


def test_refusals_below_oauth_are_no_audit_lines(server: RunningServer) -> None:
    request_ids = {get(server, path).headers["X-Request-ID"] for path in ("/nothing", "/oauth/token", "/livez")}
    assert not request_ids & {event.get("request_id") for event in server.events()}


def test_a_running_server_has_warned_of_nothing(server: RunningServer) -> None:
    server.get_token(server.create_client())
    assert "Warning" not in server.stderr_path.read_text()
    assert "Traceback" not in server.stderr_path.read_text()


def test_a_worker_that_is_told_to_stop_as_it_is_born_stops(tmp_path: Path) -> None:
    configuration = tmp_path / "slow_birth.py"
    configuration.write_text(
        "import runpy, time\n"
        f"globals().update(runpy.run_path({str(PROJECT_FOLDER / 'config' / 'gunicorn.py')!r}))\n"
        "outlive = post_fork\n"
        "def post_fork(server, worker):\n"
        "    outlive(server, worker)\n"
        "    time.sleep(2 if worker.age == 2 else 0)\n"
    )
    server = RunningServer(tmp_path)
    server.prepare()
    server.start("--config", str(configuration), "--workers", "2")
    while server.stderr_path.read_text().count("Booting worker") < 2:
        time.sleep(0.01)
    server.process.terminate()
    try:
        # Whoever forgot the signal would be killed after 25 s.
        assert server.process.wait(15) == 0
    finally:
        server.stop()
    assert "Shutting down" in server.stderr_path.read_text()


@pytest.mark.parametrize(
    "target",
    ["//readyz", "//livez", "///readyz", "/%2freadyz", "/%2Flivez", "//oauth/token", "//.well-known/jwks.json"],
)
def test_leading_slashes_are_part_of_the_path(server: RunningServer, target: str) -> None:
    """A proxy whose rules are for ``/readyz`` would not see these."""
    for method in (b"GET", b"POST"):
        raw = method + f" {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        (answer,) = server.send(raw, method.decode())
        assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


@pytest.mark.parametrize("target", ["/oauth/token#x", "/readyz#", "/livez?x#y"])
def test_a_fragment_is_refused(server: RunningServer, target: str) -> None:
    raw = f"GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
    assert server.send(raw, "GET")[0].status_code == 400
