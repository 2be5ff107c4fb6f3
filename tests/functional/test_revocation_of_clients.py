"""A disabled or deleted client gets no token from any worker from the next request on: no worker holds truth."""

import contextlib
import http.client
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conformance.expected import CHALLENGE
from support.server import START_SECONDS, NewClient, RunningServer, running_server

CONNECTIONS = 12


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("two-workers"), "--workers", "2") as running:
        wait_for_both_workers(running)
        yield running


def worker_pids(server: RunningServer) -> list[int]:
    master = server.process.pid
    return [int(pid) for pid in Path(f"/proc/{master}/task/{master}/children").read_text().split()]


def sockets_of(pid: int) -> set[str]:
    """Inodes of the sockets that a process holds."""
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if match := re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink())):
                found.add(match[1])
    return found


def worker_of(server: RunningServer, connection: http.client.HTTPConnection) -> int:
    """Which worker holds the other end of ``connection``, by the kernel's own table."""
    local = f":{server.port:04X}"
    remote = f":{connection.sock.getsockname()[1]:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    # Of one that has ended a row may stay for a minute, without a file.
    (inode,) = (row[9] for row in rows if row[1].endswith(local) and row[2].endswith(remote) and row[9] != "0")
    (pid,) = (pid for pid in worker_pids(server) if inode in sockets_of(pid))
    return pid


@contextlib.contextmanager
def connections(server: RunningServer) -> Iterator[dict[int, http.client.HTTPConnection]]:
    """A connection that is kept open to each of the workers, by the worker's process id."""
    opened = [http.client.HTTPConnection("127.0.0.1", server.port, timeout=10) for _ in range(CONNECTIONS)]
    try:
        for connection in opened:
            connection.request("GET", "/livez")
            connection.getresponse().read()
        yield {worker_of(server, connection): connection for connection in opened}
    finally:
        for connection in opened:
            connection.close()


def wait_for_both_workers(server: RunningServer) -> None:
    """The server answers as soon as one of them has loaded the application."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        with connections(server) as by_worker:
            if len(by_worker) == len(worker_pids(server)) == 2:
                return
    raise AssertionError("only one worker answers")


def ask(connection: http.client.HTTPConnection, client: NewClient) -> tuple[int, str | None]:
    headers = {"Authorization": client.basic, "Content-Type": "application/x-www-form-urlencoded"}
    connection.request("POST", "/oauth/token", b"grant_type=client_credentials", headers)
    response = connection.getresponse()
    response.read()
    return response.status, response.headers["WWW-Authenticate"]


ISSUED, REFUSED = (200, None), (401, CHALLENGE)


def run(server: RunningServer, *arguments: str) -> None:
    done = server.flask(*arguments)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_there_are_two_workers_and_both_are_asked(two_workers: RunningServer) -> None:
    with connections(two_workers) as by_worker:
        assert set(by_worker) == set(worker_pids(two_workers))
        assert len(by_worker) == 2


def test_disable_enable_and_delete_count_from_the_next_request_on_in_every_worker(two_workers: RunningServer) -> None:
    client, bystander = two_workers.create_client(), two_workers.create_client()
    with connections(two_workers) as by_worker:
        assert len(by_worker) == 2
        for command, expected in (
            (None, ISSUED),
            (("clients", "disable", client.client_id), REFUSED),
            (("clients", "disable", client.client_id), REFUSED),
            (("clients", "enable", client.client_id), ISSUED),
            (("clients", "delete", client.client_id, "--yes"), REFUSED),
        ):
            if command:
                run(two_workers, *command)
            assert [ask(connection, client) for connection in by_worker.values()] == [expected, expected], command
            assert [ask(connection, bystander) for connection in by_worker.values()] == [ISSUED, ISSUED], command


def test_a_new_client_is_known_to_every_worker_at_once(two_workers: RunningServer) -> None:
    with connections(two_workers) as by_worker:
        made = two_workers.flask_json("clients", "create", "New")
        client = NewClient(made["client_id"], made["client_secret"])
        assert [ask(connection, client) for connection in by_worker.values()] == [ISSUED, ISSUED]


def test_a_deleted_client_stays_deleted_and_its_id_is_never_reused(two_workers: RunningServer) -> None:
    client = two_workers.create_client()
    run(two_workers, "clients", "delete", client.client_id, "--yes")
    again = two_workers.flask("clients", "create", "Again", "--client-id", client.client_id)
    assert again.returncode == 1
    assert again.stderr == f"Error: client id '{client.client_id}' is taken, or was: ids are never reused\n"
    enabled = two_workers.flask("clients", "enable", client.client_id)
    assert enabled.returncode == 1
    with connections(two_workers) as by_worker:
        assert [ask(connection, client) for connection in by_worker.values()] == [REFUSED, REFUSED]


def test_tokens_of_a_disabled_client_stay_valid_offline_until_they_expire(two_workers: RunningServer) -> None:
    client = two_workers.create_client()
    token = two_workers.get_token(client)["access_token"]
    run(two_workers, "clients", "disable", client.client_id)
    assert two_workers.verify(token)["client_id"] == client.client_id
