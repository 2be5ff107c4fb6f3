"""How tests start the whole programs of ``examples/``, and read what these count."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from examples.stage import EXAMPLES, Stage
from support.server import NewClient, free_port, wait_until

PYTHON = Path(sys.executable)
PROGRAMS = EXAMPLES / "programs"
NODE_MODULES = Path(__file__).parent.parent / "clients" / "node" / "node_modules"


@dataclass
class Service:
    """A program that answers requests."""

    stage: Stage
    command: Sequence[str]
    folder: Path
    environment: dict[str, str]
    port: int
    log: Path
    caller: NewClient
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(self.answers)

    def answers(self) -> bool:
        with contextlib.suppress(requests.ConnectionError):
            return requests.get(f"{self.url}/healthz", timeout=10).status_code == 200
        return False

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process
        with contextlib.suppress(ProcessLookupError):
            (os.kill if number == signal.SIGTERM else os.killpg)(self.process.pid, number)
        return self.process.wait(timeout=30)

    def token(self) -> str:
        return str(self.stage.server.get_token(self.caller)["access_token"])

    def get(self, token: str | None, path: str = "/orders") -> requests.Response:
        fields = {"Authorization": f"Bearer {token}"} if token is not None else {}
        return requests.get(f"{self.url}{path}", headers=fields, timeout=60)

    def get_many(self, count: int) -> list[int]:
        """As many calls at once; their statuses."""
        token = self.token()
        begin = threading.Barrier(count)

        def call(_: int) -> int:
            begin.wait()
            return self.get(token).status_code

        with ThreadPoolExecutor(count) as threads:
            return list(threads.map(call, range(count)))

    def counted(self) -> dict[str, float]:
        return read_counts(self.get(None, "/metrics").text)


def read_counts(text: str) -> dict[str, float]:
    """Outbound requests, by target and outcome, as a metrics system reads them."""
    found = re.findall(r"^outbound_request_duration_seconds_count\{(.+)\} (\S+)$", text, re.MULTILINE)
    counts = {}
    for labels, value in found:
        named = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        counts[f"{named['target']} {named['outcome']}"] = float(value)
    return counts


def check_nothing_secret(stage: Stage, client: NewClient, said: str) -> None:
    """Neither the secret nor a token, nor what a token's signature ends with."""
    assert client.secret not in said
    assert client.basic not in said
    for token in stage.answered.tokens:
        assert token[-40:] not in said


def microservice(_: Path, port: int) -> tuple[list[str], Path]:
    gunicorn = str(PYTHON.parent / "gunicorn")
    options = ["--worker-class", "gthread", "--threads", "32", "--graceful-timeout", "5", "--no-control-socket"]
    return [gunicorn, *options, "--bind", f"127.0.0.1:{port}", "microservice:app"], PROGRAMS


def express(folder: Path, _: int) -> tuple[list[str], Path]:
    return ["node", "server.mjs"], install_node("express", folder)


def install_node(example: str, folder: Path) -> Path:
    """An example of Node in a folder of its own, as after `npm install`; where it lies."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if not NODE_MODULES.is_dir():
        pytest.skip("npm has not installed the packages of Node: `make test` does")
    home = folder / example
    shutil.copytree(EXAMPLES / example, home)
    (home / "node_modules").symlink_to(NODE_MODULES)
    return home


SERVICES = {"microservice": microservice, "express": express}


@contextlib.contextmanager
def running_service(stage: Stage, name: str, folder: Path, **client_fields: Any) -> Iterator[Service]:
    """A service that is started, logs all that it can, and has said nothing secret at the end."""
    client, port = stage.client(**client_fields), free_port()
    command, home = SERVICES[name](folder, port)
    environment = stage.environment(client, PORT=str(port), LOG_LEVEL="DEBUG", PYTHONDONTWRITEBYTECODE="1")
    service = Service(stage, command, home, environment, port, folder / "log", stage.client())
    service.start()
    try:
        yield service
    finally:
        service.stop(signal.SIGKILL)
    said = service.log.read_text()
    check_nothing_secret(stage, client, said)
    check_nothing_secret(stage, service.caller, said)
