"""The same application behind stock servers: the ``gthread`` worker of gunicorn, and granian."""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import requests
from support.server import NewClient, RunningServer, free_port, wait_until

from app.config.values import PROJECT_FOLDER


@pytest.fixture
def prepared(tmp_path: Path) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path, TOKENHOUSE_METRICS_ADDRESS=f"127.0.0.1:{free_port()}")
    server.prepare()
    yield server
    server.stop()


def start_granian(server: RunningServer) -> None:
    server.port = free_port()
    server.stdout_path, server.stderr_path = server.folder / "stdout.log", server.folder / "stderr.log"
    command = [sys.executable, "-m", "granian", "--interface", "wsgi", "--port", str(server.port), "--workers", "2"]
    with server.stdout_path.open("wb") as stdout, server.stderr_path.open("wb") as stderr:
        server.process = subprocess.Popen(
            [*command, "--blocking-threads", "8", "wsgi:app"],
            env=server.environment,
            cwd=PROJECT_FOLDER,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    server._wait_until_it_answers()  # noqa: SLF001 - As RunningServer.start does.


def workers_of(server: RunningServer) -> set[int]:
    return {child.pid for child in psutil.Process(server.process.pid).children()}


def introspected(server: RunningServer, caller: NewClient, token: str) -> bool:
    answer = requests.post(
        f"{server.url}/oauth/introspect", {"token": token}, headers={"Authorization": caller.basic}, timeout=10
    )
    assert answer.status_code == 200
    return bool(answer.json()["active"])


def issues_and_introspects(server: RunningServer, client: NewClient) -> None:
    token = server.get_token(client)["access_token"]
    assert server.verify(token)["client_id"] == client.client_id
    assert introspected(server, client, token)
    assert not introspected(server, client, token[:-4] + "AAAA")
    assert server.post_token(headers={"Authorization": "Basic YTpi"}).json()["error"] == "invalid_client"


def metrics_of(server: RunningServer) -> str:
    address = server.environment["TOKENHOUSE_METRICS_ADDRESS"]
    return requests.get(f"http://{address}/metrics", timeout=10).text


def is_measured(server: RunningServer, line: str) -> bool:
    """Whether the metrics say so; the worker that answers for them is another one after a reload."""
    with contextlib.suppress(requests.ConnectionError):
        return line in metrics_of(server)
    return False


def test_gthread_serves_tokens_introspection_and_metrics_and_reloads(prepared: RunningServer) -> None:
    prepared.start("--worker-class", "gthread", "--workers", "2", "--threads", "8")
    client = prepared.create_client()
    issues_and_introspects(prepared, client)
    issued = 'tokenhouse_tokens_issued_total{auth_method="client_secret_basic",grant_type="client_credentials"}'
    wait_until(lambda: is_measured(prepared, f"{issued} 1.0"))
    before = workers_of(prepared)
    prepared.process.send_signal(signal.SIGHUP)
    wait_until(lambda: workers_of(prepared).isdisjoint(before) and len(workers_of(prepared)) == 2)
    issues_and_introspects(prepared, client)
    wait_until(lambda: is_measured(prepared, f"{issued} 2.0"))


def test_granian_serves_tokens_and_introspection_and_reloads_without_metrics(prepared: RunningServer) -> None:
    start_granian(prepared)
    client = prepared.create_client()
    issues_and_introspects(prepared, client)
    with pytest.raises(requests.ConnectionError):
        metrics_of(prepared)
    before = workers_of(prepared)
    prepared.process.send_signal(signal.SIGHUP)
    wait_until(lambda: workers_of(prepared).isdisjoint(before) and len(workers_of(prepared)) == 2)
    issues_and_introspects(prepared, client)
