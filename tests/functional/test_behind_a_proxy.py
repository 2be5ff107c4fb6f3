"""What a trusted proxy says of its caller is taken over, and from anybody else nothing."""

import json
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from support.server import RunningServer, free_port, running_server, wait_until

ADDRESS = "198.51.100.4"
REQUEST_ID = "from-the-proxy.0123"
SAID = {"X-Forwarded-For": f"203.0.113.66, {ADDRESS}", "X-Request-ID": REQUEST_ID}


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("proxied"), TOKENHOUSE_TRUSTED_PROXIES="127.0.0.0/8,unix") as server:
        yield server


def diagnostics(server: RunningServer) -> list[str]:
    return [json.loads(line)["event"] for line in server.stderr_path.read_text().splitlines()]


def test_address_and_request_id_come_from_a_trusted_proxy(proxied: RunningServer) -> None:
    client = proxied.create_client()
    answer = proxied.post_token(headers={"Authorization": client.basic, **SAID})
    assert answer.headers["X-Request-ID"] == REQUEST_ID
    event = proxied.event_of(answer)
    assert (event["event"], event["source_address"]) == ("TokenIssued", ADDRESS)
    refused = proxied.post_token(
        headers={"Authorization": client.basic[:-6], **SAID, "X-Request-ID": "other.id.01234567"}
    )
    assert (refused.status_code, proxied.event_of(refused)["source_address"]) == (401, ADDRESS)


@pytest.mark.parametrize("given", ["short", "x" * 129, 'a"b"c"d"e', "a b c d e f g"])
def test_a_request_id_that_could_not_stand_in_a_log_is_replaced(proxied: RunningServer, given: str) -> None:
    answer = proxied.post_token(headers={"X-Request-ID": given})
    assert len(answer.headers["X-Request-ID"]) == 32
    assert answer.headers["X-Request-ID"] != given


def test_from_anybody_else_nothing_is_taken(server: RunningServer) -> None:
    client = server.create_client()
    said = {**SAID, "Forwarded": f"for={ADDRESS}"}
    answer = server.post_token(headers={"Authorization": client.basic, **said})
    assert answer.headers["X-Request-ID"] != REQUEST_ID
    assert server.event_of(answer)["source_address"] == "127.0.0.1"


def test_refusals_below_oauth_are_found_by_their_request_id(proxied: RunningServer) -> None:
    missing = requests.get(f"{proxied.url}/nothing/secret-in-a-path", headers=SAID, timeout=10)
    method = requests.get(proxied.token_url, headers={**SAID, "X-Request-ID": "method.01234"}, timeout=10)
    (too_long,) = proxied.send(b"POST /oauth/token HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\n")
    assert [answer.status_code for answer in (missing, method, too_long)] == [404, 405, 413]
    said = diagnostics(proxied)
    assert f"Refused with 404: Not Found from {ADDRESS}, request_id={REQUEST_ID}" in said
    assert f"Refused with 405: Method Not Allowed from {ADDRESS}, request_id=method.01234" in said
    assert (
        f"Refused with 413: The body is too long from 127.0.0.1, request_id={too_long.headers['X-Request-ID']}" in said
    )
    assert not [line for line in said if "secret-in-a-path" in line]


def test_a_unix_socket_is_for_its_owner_and_group(tmp_path: Path) -> None:
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="th-") as folder:
        path = Path(folder) / "socket"
        options = ("--bind", f"127.0.0.1:{port}", "--bind", f"unix:{path}")
        with running_server(tmp_path, *options, PORT=str(port), TOKENHOUSE_TRUSTED_PROXIES="unix") as server:
            assert stat.S_IMODE(path.stat().st_mode) == 0o770
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(path))
                connection.sendall(
                    b"POST /oauth/token HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 192.0.2.9\r\nConnection: TE, close\r\n"
                    b"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 3\r\n\r\na=b"
                )
                received = b"".join(iter(lambda: connection.recv(65536), b""))
            assert received.startswith(b"HTTP/1.1 400 ")
            wait_until(lambda: [event["source_address"] for event in server.events()] == ["192.0.2.9"])
