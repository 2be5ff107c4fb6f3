"""Nobody reads the audit log, or its disk is full: tokens go on, and nothing is torn or lost without a word."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests
from support.server import NewClient, RunningServer, free_port, wait_until

from app.config.values import PROJECT_FOLDER

PATIENCE_SECONDS = 30
MANY = 600
"""More lines than a pipe holds."""


class Unread:
    """A server whose standard output is a pipe that a test reads when it likes."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.server = RunningServer(folder, **settings)
        self.server.prepare()
        self.client: NewClient = self.server.create_client(scope=("x" * 200,))
        self.server.port = free_port()
        self.reading, writing = os.pipe()
        os.set_blocking(self.reading, False)
        self.server.stderr_path = folder / "stderr.log"
        with self.server.stderr_path.open("wb") as stderr:
            self.server.process = subprocess.Popen(
                [sys.executable, "-m", "gunicorn", "--config", "config/gunicorn.py", "--workers", "2", "wsgi:app"],
                env={**self.server.environment, "HOST": "127.0.0.1", "PORT": str(self.server.port)},
                cwd=PROJECT_FOLDER,
                stdout=writing,
                stderr=stderr,
                start_new_session=True,
            )
        os.close(writing)
        self.server._wait_until_it_answers()  # noqa: SLF001 - What start would do.

    def read(self) -> bytes:
        found = b""
        while True:
            try:
                piece = os.read(self.reading, 1 << 20)
            except BlockingIOError:
                return found
            if not piece:
                return found
            found += piece

    def read_to_the_end(self) -> list[dict[str, Any]]:
        """Stop the server and read all that it has to say."""
        found = self.read()
        self.server.process.terminate()
        while self.server.process.poll() is None:
            found += self.read()
            time.sleep(0.01)
        found += self.read()
        return [json.loads(line) for line in found.splitlines()]

    def ask(self, many: int = MANY) -> dict[int, int]:
        """So many token requests at once, by status."""
        headers = {"Authorization": self.client.basic}
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: self.server.post_token(headers=headers).status_code, range(many)))
        return {status: answers.count(status) for status in set(answers)}

    def ready(self) -> dict[str, str]:
        checks: dict[str, str] = requests.get(f"{self.server.url}/readyz", timeout=10).json()["checks"]
        return checks


@pytest.fixture
def unread(tmp_path: Path) -> Iterator[Unread]:
    made = Unread(tmp_path)
    yield made
    made.server.stop()
    os.close(made.reading)


def issued(events: list[dict[str, Any]]) -> int:
    return sum(event["event"] == "TokenIssued" for event in events)


def test_a_reader_that_stalls_costs_no_token_and_no_line(unread: Unread) -> None:
    assert unread.ask() == {200: MANY}
    wait_until(lambda: all(unread.ready()["audit_log"] == "degraded" for _ in range(8)))
    assert requests.get(f"{unread.server.url}/readyz", timeout=10).status_code == 200
    told = "the audit log takes no lines (its reader is slow): lines are queued"
    wait_until(lambda: unread.server.stderr_path.read_text().count(told) == 2)
    assert unread.ask(20) == {200: 20}
    assert issued(unread.read_to_the_end()) == MANY + 20


def test_at_the_end_what_waits_is_written(unread: Unread) -> None:
    assert unread.ask() == {200: MANY}
    assert issued(unread.read_to_the_end()) == MANY


def test_no_log_no_token_where_that_is_the_rule(tmp_path: Path) -> None:
    required = Unread(tmp_path, TOKENHOUSE_AUDIT_LOG_REQUIRED="true")
    try:
        statuses = required.ask()
        assert set(statuses) == {200, 503}
        wait_until(lambda: all(required.ready()["audit_log"] == "degraded" for _ in range(8)))
        assert required.ask(20) == {503: 20}
        found = [required.read()]

        def goes_on() -> bool:
            found.append(required.read())
            return required.ask(8) == {200: 8}

        wait_until(goes_on)
        events = [json.loads(line) for line in b"".join(found).splitlines()]
        assert {event["reason"] for event in events if event["event"] == "TokenRefused"} == {"audit_log_stalled"}
    finally:
        required.server.stop()
        os.close(required.reading)


def test_a_closed_standard_output_is_one_clear_line(tmp_path: Path) -> None:
    server = RunningServer(tmp_path)
    server.prepare()
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m gunicorn --config config/gunicorn.py --bind 127.0.0.1:0 wsgi:app >&-"],
        env=server.environment,
        cwd=PROJECT_FOLDER,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("tokenhouse: ")]
    assert told == [
        "tokenhouse: standard output is closed, and the audit log is written there: `>/dev/null` throws it away"
    ]
    assert "Traceback" not in done.stderr
