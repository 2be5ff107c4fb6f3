"""The fronts of ``deploy/``, each with the real proxy and two servers behind it: who called, and nothing is lost."""

import socket
import ssl
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from support.fronts import FRONTS, NAME, Front, is_installed, open_front
from support.server import NewClient, RunningServer, read_answers, wait_until


@pytest.fixture(params=FRONTS)
def front(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Front]:
    if not is_installed(request.param):
        pytest.skip(f"{request.param} is not installed")
    with open_front(request.param, tmp_path) as made:
        yield made


def test_a_token_comes_through_and_the_log_says_who_called(front: Front) -> None:
    client = front.servers[0].create_client()
    spoofed = {"X-Forwarded-For": "203.0.113.66", "Forwarded": "for=203.0.113.66", "X-Request-ID": "spoofed-request-id"}
    ids = set()
    for _ in range(6):
        answer = front.post(client, **spoofed)
        assert answer.status_code == 200, answer.text
        assert front.servers[0].verify(answer.json()["access_token"])["sub"] == client.client_id
        assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
        ids.add(answer.headers["X-Request-ID"])
        (event,) = [
            event
            for server in front.servers
            for event in server.events()
            if event.get("request_id") == answer.headers["X-Request-ID"]
        ]
        # The peer of the proxy, and not what it says of itself; Envoy has its own address for a caller on its machine.
        assert event["source_address"] != "203.0.113.66"
        assert event["source_address"] == "127.0.0.1" or "envoy" in str(front.process.args)
    assert len(ids) == 6
    assert "spoofed-request-id" not in ids
    counts = [sum(event["event"] == "TokenIssued" for event in server.events()) for server in front.servers]
    assert sum(counts) == 6
    wait_until(lambda: all(request_id in front.log.read_text() for request_id in ids))


def test_refusals_come_through_as_they_are_and_no_secret_is_logged(front: Front) -> None:
    client = front.servers[0].create_client()
    secret = "a-secret-in-the-wrong-place"
    url = f"{front.url}/oauth/token?client_secret={secret}"
    body = {"grant_type": "client_credentials"}
    answer = requests.post(url, body, headers={"Authorization": client.basic}, verify=str(front.authority), timeout=10)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    wrong = front.post(NewClient(client.client_id, "x" * 40))
    assert (wrong.status_code, wrong.json()["error"]) == (401, "invalid_client")
    assert wrong.headers["WWW-Authenticate"].startswith("Basic ")
    large = requests.post(f"{front.url}/oauth/token", {"x": "y" * 20_000}, verify=str(front.authority), timeout=10)
    assert (large.status_code, large.headers["Content-Type"]) == (413, "application/json")
    assert requests.get(f"{front.url}/.well-known/jwks.json", verify=str(front.authority), timeout=10).ok
    wait_until(lambda: wrong.headers["X-Request-ID"] in front.log.read_text())
    assert secret not in front.log.read_text()


def test_old_tls_is_refused_and_plain_http_gets_nothing(front: Front) -> None:
    for version in (ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2):
        context = ssl.create_default_context(cafile=str(front.authority))
        with warnings.catch_warnings(action="ignore"):
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = version
        context.set_ciphers("DEFAULT@SECLEVEL=0")
        with socket.create_connection((NAME, front.port), timeout=10) as plain:
            if version is ssl.TLSVersion.TLSv1_2:
                context.wrap_socket(plain, server_hostname=NAME).close()
            else:
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    context.wrap_socket(plain, server_hostname=NAME)
    with pytest.raises(requests.RequestException):
        # Some answer 400 in HTTP's words, none with a token.
        requests.post(front.url.replace("https", "http"), {"grant_type": "x"}, timeout=10).raise_for_status()


def test_a_caller_that_does_not_come_to_an_end_is_told_so_by_haproxy(front: Front) -> None:
    if "haproxy" not in str(front.process.args):
        pytest.skip("it is the one that waits for the whole request")
    context = ssl.create_default_context(cafile=str(front.authority))
    head = b"POST /oauth/token HTTP/1.1\r\nHost: localhost\r\nContent-Length: 29\r\n\r\ngrant_type="
    with (
        socket.create_connection((NAME, front.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname=NAME) as caller,
    ):
        caller.sendall(head)
        (answer,) = read_answers(b"".join(iter(lambda: caller.recv(65536), b"")))
    assert (answer.status_code, answer.json()["error"]) == (408, "invalid_request")
    assert answer.headers["Content-Type"] == "application/json"


def test_where_no_server_is_there_callers_are_told_to_come_again(front: Front) -> None:
    client = front.servers[0].create_client()
    assert front.post(client).status_code == 200
    for server in front.servers:
        server.stop()
    wait_until(lambda: front.post(client).status_code in {502, 503})
    answer = front.post(client)
    assert answer.json()["error"] == "server_error"
    assert answer.headers["Retry-After"] == "1"
    assert answer.headers["Content-Type"].startswith("application/json")
    assert answer.headers["Cache-Control"] == "no-store"
    wait_until(lambda: front.post(client).status_code == 503)
    front.servers[0].start("--workers", "2")
    wait_until(lambda: front.post(client).status_code == 200)


def test_without_a_database_keys_are_published_and_callers_told_to_come_again(front: Front) -> None:
    client = front.servers[0].create_client()
    database = front.servers[0].folder / "tokenhouse.db"
    database.rename(database.with_suffix(".away"))
    deadline = time.monotonic() + 8
    statuses = set()
    # Longer than any proxy takes to find a server unwell.
    while time.monotonic() < deadline:
        answer = front.post(client)
        assert (answer.status_code, answer.headers["Retry-After"], answer.json()["error"]) == (503, "1", "server_error")
        for path in ("/.well-known/jwks.json", "/.well-known/oauth-authorization-server"):
            statuses.add(requests.get(f"{front.url}{path}", verify=str(front.authority), timeout=10).status_code)
        time.sleep(0.2)
    assert statuses == {200}
    database.with_suffix(".away").rename(database)
    wait_until(lambda: front.post(client).status_code == 200)


def test_a_server_that_alone_has_no_database_costs_nobody_a_token(front: Front) -> None:
    client = front.servers[0].create_client()
    front.way_of_the_other.unlink()
    wait_until(lambda: requests.get(f"{front.servers[1].url}/readyz", timeout=10).status_code == 503)
    statuses = [front.post(client).status_code for _ in range(40)]
    if "nginx" in str(front.process.args):
        # It would take that server out for the keys too; callers come again, and meet the other one.
        assert statuses.count(200) > 10
        assert set(statuses) == {200, 503}
    else:
        assert set(statuses) == {200}
    assert any(event["event"] == "TokenRefused" for event in front.servers[1].events()), "it was asked too"


def test_a_rolling_restart_under_load_fails_no_request(front: Front) -> None:
    """Twice, and the second server at once when the first answers: the front does not know yet that it is back."""
    client = front.servers[0].create_client()
    is_over = threading.Event()
    faults: list[str] = []
    counts = [0] * 8

    def ask(number: int) -> None:
        with requests.Session() as session:
            while not is_over.is_set():
                try:
                    answer = front.post(client, session)
                except requests.RequestException as error:
                    faults.append(repr(error))
                    continue
                counts[number] += 1
                keys = session.get(f"{front.url}/.well-known/jwks.json", verify=str(front.authority), timeout=30)
                if keys.status_code != 200:
                    faults.append(f"keys: {keys.status_code} {keys.text[:200]}")
                if answer.status_code != 200 or "access_token" not in answer.json():
                    faults.append(f"{answer.status_code} {answer.text[:200]}")

    with ThreadPoolExecutor(len(counts)) as pool:
        asking = [pool.submit(ask, number) for number in range(len(counts))]
        try:
            wait_until(lambda: min(counts) > 5)
            for server in front.servers * 2:
                server.stop()
                server.start("--workers", "2")
            own = [_issued(server) for server in front.servers]
            wait_until(lambda: all(_issued(server) > had for server, had in zip(front.servers, own, strict=True)))
        finally:
            is_over.set()
        for one in asking:
            one.result()
    assert faults == []
    assert min(counts) > 10


def _issued(server: RunningServer) -> int:
    return sum(event["event"] == "TokenIssued" for event in server.events())
