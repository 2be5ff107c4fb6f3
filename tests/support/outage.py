"""Callers, and what a server says of itself, while its database is away."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import requests
from conformance.expected import refusal
from support.server import NewClient, RunningServer

UNAVAILABLE = refusal(503, "server_error", "The server cannot handle the request right now.")
CALLERS = 6


@dataclass
class Load:
    """Callers that fetch tokens all the time."""

    server: RunningServer
    client: NewClient
    statuses: Counter[int] = field(default_factory=Counter)
    slowest: float = 0.0
    _over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator["Load"]:
        threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()
            for thread in threads:
                thread.join(60)

    def _call(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            self.statuses[self.server.post_token(headers={"Authorization": self.client.basic}).status_code] += 1
            self.slowest = max(self.slowest, time.monotonic() - began)
            # One caller is as busy as ten jobs; more would only fill this machine.
            time.sleep(0.02)


def health(server: RunningServer) -> set[tuple[int, str]]:
    answers = [requests.get(f"{server.url}/readyz", timeout=10) for _ in range(8)]
    return {(answer.status_code, answer.json()["checks"]["database"]) for answer in answers}
