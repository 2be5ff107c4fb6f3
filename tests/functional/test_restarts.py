"""Whatever is restarted, and however, under load: every token that is made reaches its caller, and no answer is wrong.

A caller may meet the race that HTTP has: it sends on a connection that it has kept while the other side closes it.
"""

import http.client
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode

import psutil
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from support.server import FORM, NewClient, RunningServer, free_port, running_server, wait_until

CALLERS = 8
BODY = urlencode({"grant_type": "client_credentials"})


@dataclass(frozen=True)
class Lost:
    """A request without an answer.

    :ivar was_kept: whether it was sent on a connection that had served another one before.
    :ivar port: the caller's, by which the server's processes know the connection.
    """

    error: str
    was_kept: bool
    port: int


@dataclass
class Callers:
    """Callers that ask without end, each on connections of its own that it keeps, and note what they meet."""

    server: RunningServer
    client: NewClient
    tokens: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    refused: int = 0
    is_over: threading.Event = field(default_factory=threading.Event)

    def ask(self) -> None:
        """Ask until it is over."""
        while not self.is_over.is_set():
            connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
            try:
                connection.connect()
            except OSError:
                # Nobody listens: at the end of a server, as it should be.
                self.refused += 1
                time.sleep(0.01)
                continue
            self._ask_on(connection)
            connection.close()

    def _ask_on(self, connection: http.client.HTTPConnection) -> None:
        port = connection.sock.getsockname()[1]
        was_kept = False
        while not self.is_over.is_set():
            try:
                connection.request("POST", "/oauth/token", BODY, {**FORM, "Authorization": self.client.basic})
                answer = connection.getresponse()
                content = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(Lost(type(error).__name__, was_kept, port))
                return
            if answer.status == 200:
                self.tokens.append(json.loads(content)["access_token"])
            else:
                self.wrong.append(f"{answer.status} {content!r}")
            if answer.will_close:
                return
            was_kept = True

    def go_on(self) -> None:
        """Wait until some more have been answered."""
        before = len(self.tokens)
        wait_until(lambda: len(self.tokens) >= before + 100)

    def check(self) -> None:
        """No answer was wrong, and none that was made was lost: what was logged is what was received."""
        assert self.wrong == []
        received = [self.server.verify(token)["jti"] for token in self.tokens[-50:]]
        assert len(set(received)) == len(received)
        issued = [event["jti"] for event in self.server.events() if event["event"] == "TokenIssued"]
        assert len(issued) == len(set(issued)) == len(self.tokens)

    def check_lost(self, new: int = 0) -> None:
        """Only to the race of a connection that was kept, and at most ``new`` others."""
        assert len([lost for lost in self.lost if not lost.was_kept]) <= new, self.lost
        assert len(self.lost) <= CALLERS


@contextmanager
def called(server: RunningServer) -> Iterator[Callers]:
    callers = Callers(server, server.create_client())
    threads = [threading.Thread(target=callers.ask) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    try:
        callers.go_on()
        yield callers
    finally:
        callers.is_over.set()
        for thread in threads:
            thread.join(30)


@pytest.fixture
def metrics_port() -> int:
    return free_port()


@pytest.fixture
def server(tmp_path: Path, metrics_port: int) -> Iterator[RunningServer]:
    with running_server(tmp_path, "--workers", "2", TOKENHOUSE_METRICS_ADDRESS=f"127.0.0.1:{metrics_port}") as running:
        yield running


def counted(port: int) -> int:
    """How many tokens Prometheus is told of; 0 while the worker that tells it is followed by another."""
    try:
        told = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
    except requests.ConnectionError:
        return 0
    return sum(
        int(sample.value)
        for family in text_string_to_metric_families(told)
        for sample in family.samples
        if sample.name == "tokenhouse_tokens_issued_total"
    )


def test_sigterm_answers_what_was_asked(server: RunningServer) -> None:
    with called(server) as callers:
        jwks = server.jwks()
        server.process.terminate()
        assert server.process.wait(timeout=20) == 0
        wait_until(lambda: callers.refused > CALLERS)
    server.jwks = lambda: jwks  # type: ignore[method-assign]
    callers.check()
    # One may knock in the very moment in which the door is shut, after the last look at who stands before it.
    callers.check_lost(new=1)


def test_sighup_fails_no_request(server: RunningServer, metrics_port: int) -> None:
    with called(server) as callers:
        for _ in range(3):
            before = server.workers()
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda before=before: len(server.workers()) == 2 and not server.workers() & before)
            callers.go_on()
    callers.check()
    callers.check_lost()
    assert callers.refused == 0
    wait_until(lambda: counted(metrics_port) == len(callers.tokens))


def test_a_new_master_by_usr2_fails_no_request(tmp_path: Path, metrics_port: int) -> None:
    pid_file = tmp_path / "pid"
    address = f"127.0.0.1:{metrics_port}"
    with running_server(
        tmp_path, "--workers", "2", "--pid", str(pid_file), TOKENHOUSE_METRICS_ADDRESS=address
    ) as server:
        old = server.process
        with called(server) as callers:
            old.send_signal(signal.SIGUSR2)
            wait_until(pid_file.with_suffix(".2").exists)
            new = psutil.Process(int(pid_file.with_suffix(".2").read_text()))
            try:
                wait_until(lambda: len(new.children()) == 2)
                callers.go_on()
                old.terminate()
                assert old.wait(timeout=20) == 0
                callers.go_on()
                callers.is_over.set()
                callers.check()
                # The new one tells of itself, once the old one has left the address.
                wait_until(lambda: counted(metrics_port) > 0)
            finally:
                new.terminate()
                new.wait(timeout=20)
    callers.check_lost()
    assert callers.refused == 0


def test_max_requests_fails_no_request(tmp_path: Path, metrics_port: int) -> None:
    options = ("--workers", "2", "--max-requests", "60", "--max-requests-jitter", "30")
    with running_server(tmp_path, *options, TOKENHOUSE_METRICS_ADDRESS=f"127.0.0.1:{metrics_port}") as server:
        seen = set(server.workers())
        with called(server) as callers:
            deadline = time.monotonic() + 60
            while len(seen) < 12:
                assert time.monotonic() < deadline
                seen |= server.workers()
                time.sleep(0.05)
        callers.check()
        callers.check_lost()
        assert callers.refused == 0
        wait_until(lambda: counted(metrics_port) == len(callers.tokens))


def test_kill_9_of_a_worker_fails_only_what_it_held(server: RunningServer, metrics_port: int) -> None:
    with called(server) as callers:
        held: set[int] = set()
        for _ in range(4):
            wait_until(lambda: len(server.workers()) == 2)
            victim = psutil.Process(max(server.workers()))
            # It accepts nothing more, and what it holds can be counted.
            victim.suspend()
            held |= {one.raddr.port for one in victim.net_connections("tcp") if one.raddr}
            victim.kill()
            wait_until(lambda victim=victim: not victim.is_running())
            callers.go_on()
    assert callers.wrong == []
    assert {lost.port for lost in callers.lost} <= held
    assert callers.refused == 0
    issued = [event["jti"] for event in server.events() if event["event"] == "TokenIssued"]
    assert len(callers.tokens) <= len(issued) <= len(callers.tokens) + len(callers.lost)
    wait_until(lambda: counted(metrics_port) >= len(issued))
    for token in callers.tokens[-50:]:
        server.verify(token)
