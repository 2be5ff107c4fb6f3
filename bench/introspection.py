"""What introspection costs beside the caller's authentication and the worker, and what the revocation feed costs.

Run it on a machine that does nothing else, with wrk: `.venv/bin/python bench/introspection.py [--revocations 100000]`.
"""

import argparse
import gzip
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import requests
from load import drive, require_wrk
from sqlalchemy import insert
from subjects import Subject, tokenhouse
from support.server import NewClient, RunningServer, running_server

from app.database.models import RevokedTokenRow, db

ROUNDS = 3
SECONDS = 4
API = "https://api.example.com"
PATH = "/oauth/introspect"


def introspection(subject: Subject) -> None:
    """Print the CPU of each kind of answer, medians of interleaved rounds at 16 connections."""
    headers = {"Authorization": subject.authorizations[0]}
    token = requests.post(subject.token_url, {"grant_type": "client_credentials"}, headers=headers, timeout=10).json()
    forms = {
        "a live token": f"token={token['access_token']}",
        "no token in the request: refused after authenticating": "token_type_hint=access_token",
        "what is no token": "token=x",
    }
    found: dict[str, list[float]] = {kind: [] for kind in forms}
    for number in range(ROUNDS + 1):
        for kind, form in forms.items():
            cost = drive(subject, connections=16, seconds=SECONDS, path=PATH, form=form).cpu_us
            if number:
                found[kind].append(cost)
    median = {kind: statistics.median(costs) for kind, costs in found.items()}
    for kind, costs in found.items():
        print(f"{median[kind]:6.0f} us [{min(costs):.0f}-{max(costs):.0f}]  {kind}")
    live, refused, _ = median.values()
    print(f"{live - refused:6.0f} us beside the caller's authentication and the worker")


def _pss_mib(server: RunningServer) -> list[float]:
    parent = psutil.Process(server.process.pid)
    return [one.memory_full_info().pss / 2**20 for one in (parent, *parent.children())]


def _timed(what: str, ask: Callable[[], requests.Response]) -> requests.Response:
    began = time.perf_counter()
    answer = ask()
    print(
        f"{(time.perf_counter() - began) * 1000:8.1f} ms  {what}: {answer.status_code}, {len(answer.content):,} bytes"
    )
    return answer


def feed(server: RunningServer, revocations: int, clients: int) -> None:
    """Print size, time and memory of the feed with so many live revocations of so many clients."""
    now = datetime.now(UTC)
    exp = int((now + timedelta(hours=1)).timestamp())
    with server.context(), db.engine.begin() as connection:
        for start in range(0, revocations, 10_000):
            rows = [
                {
                    "jti": secrets.token_urlsafe(16),
                    "client_id": f"c-{n % clients}",
                    "audiences": [API],
                    "exp": exp,
                    "revoked_at": now,
                }
                for n in range(start, min(start + 10_000, revocations))
            ]
            connection.execute(insert(RevokedTokenRow), rows)
    reader = server.create_client(grant_types=(), introspects=(API,))
    owner = server.create_client(audiences=(API,))
    with requests.Session() as caller:
        caller.headers["Authorization"] = reader.basic
        url = f"{server.url}/oauth/revocations"
        caller.get(f"{server.url}/livez", timeout=60)
        memory = ", ".join(f"{pss:.0f}" for pss in _pss_mib(server))
        print(f"{revocations:,} live revocations of {clients:,} clients; PSS {memory} MiB")
        first = _timed("made anew", lambda: caller.get(url, timeout=60))
        print(f"{len(gzip.compress(first.content)):,} bytes if it were compressed")
        _timed("again", lambda: caller.get(url, timeout=60))
        tag = {"If-None-Match": first.headers["ETag"]}
        _timed("again, not modified", lambda: caller.get(url, headers=tag, timeout=60))
        _revoke(server, owner)
        _timed("after one more was taken back", lambda: caller.get(url, headers=tag, timeout=60))
        later = int(now.timestamp()) // 300 * 300
        _timed("only what has changed", lambda: caller.get(url, params={"since": later}, timeout=60))
        print(f"PSS {', '.join(f'{pss:.0f}' for pss in _pss_mib(server))} MiB")


def _revoke(server: RunningServer, owner: NewClient) -> None:
    body = {"token": server.get_token(owner)["access_token"]}
    headers = {"Authorization": owner.basic}
    _timed("to take one back", lambda: requests.post(f"{server.url}/oauth/revoke", body, headers=headers, timeout=60))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--revocations", type=int, default=100_000)
    parser.add_argument("--clients", type=int, help="whose they are; default: each another's")
    parser.add_argument("--feed-only", action="store_true")
    options = parser.parse_args()
    if not options.feed_only:
        require_wrk()
        with tokenhouse() as subject:
            introspection(subject)
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder), "--workers", "1") as server:
        feed(server, options.revocations, options.clients or options.revocations)


if __name__ == "__main__":
    main()
