"""Drive a server with wrk, and tell what came of it."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from subjects import FORM, Subject

SCRIPT = Path(__file__).with_name("request.lua")


@dataclass(frozen=True)
class Load:
    """What one run gave. ``refused`` are answers of 400 and above, ``failed`` those that never came."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    refused: int
    failed: int
    cpu_seconds: float

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.requests / self.seconds

    @property
    def cpu_us(self) -> float:
        """CPU microseconds of the server for each answer."""
        return self.cpu_seconds / self.requests * 1e6 if self.requests else 0.0


def require_wrk() -> None:
    """End with a clear line where there is no wrk."""
    if shutil.which("wrk") is None:
        sys.exit("bench: wrk is not installed. On Debian and Ubuntu: apt-get install wrk")


def drive(  # noqa: PLR0913 - What wrk can be told.
    subject: Subject,
    *,
    connections: int,
    seconds: float,
    pause_ms: float = 0.0,
    authorizations: Sequence[str] | None = None,
    path: str = "/oauth/token",
    form: str = FORM,
) -> Load:
    """Ask for tokens on so many kept connections, each of which pauses between two requests if it is told."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as headers:
        headers.write("".join(f"{one}\n" for one in authorizations or subject.authorizations))
        headers.flush()
        told = {"BENCH_FORM": form, "BENCH_AUTHORIZATIONS": headers.name, "BENCH_PAUSE_MS": f"{pause_ms:.3f}"}
        url = subject.token_url if path == "/oauth/token" else f"{subject.url}{path}"
        return _run(subject, url, connections, seconds, told)


def fetch(subject: Subject, path: str, *, connections: int, seconds: float, etag: str | None = None) -> Load:
    """Fetch a document."""
    told = {"BENCH_ETAG": etag} if etag else {}
    return _run(subject, f"{subject.url}{path}", connections, seconds, told)


def _run(subject: Subject, url: str, connections: int, seconds: float, told: dict[str, str]) -> Load:
    before = subject.cpu_seconds()
    threads = min(2, connections)
    command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds:g}s", "-s", str(SCRIPT), url]
    done = subprocess.run(command, env={**os.environ, **told}, capture_output=True, text=True, check=False)
    spent = subject.cpu_seconds() - before
    try:
        found = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        sys.exit(f"bench: wrk failed: {done.stdout}{done.stderr}")
    return Load(cpu_seconds=spent, **found)
