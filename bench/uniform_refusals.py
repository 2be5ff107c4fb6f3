"""Whether refusals tell by their time what they do not tell by their words.

Sends unknown client, wrong secret, expired secret, disabled and deleted client, interleaved in random order, to a real
server with one worker, over one kept connection, and prints the median of each and how far it lies from the first. Run
it on a quiet machine: `.venv/bin/python bench/uniform_refusals.py [requests of each kind, 10000 unless given]`.
"""

import http.client
import random
import statistics
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from support.server import RunningServer, basic, running_server

BODY = "grant_type=client_credentials"
WARM_UP = 200


def credentials(server: RunningServer) -> dict[str, str]:
    """An ``Authorization`` header for each kind of refusal; ids and secrets are equally long."""
    made = {
        kind: server.create_client(client_id=f"client-{kind:_<12}")
        for kind in ("wrong", "expired", "disabled", "deleted")
    }
    expired = server.create_client(client_id="client-expiring____", secret_expires_after=timedelta(microseconds=1))
    with server.context():
        server.services.clients.disable(made["disabled"].client_id)
        server.services.clients.delete(made["deleted"].client_id)
    return {
        "unknown client": basic("client-unknown_____", made["wrong"].secret),
        "wrong secret": basic(made["wrong"].client_id, made["disabled"].secret),
        "expired secret": expired.basic,
        "disabled client": made["disabled"].basic,
        "deleted client": made["deleted"].basic,
    }


def ask(connection: http.client.HTTPConnection, authorization: str) -> float:
    """Send one request that must be refused; seconds until its answer was read."""
    headers = {"Authorization": authorization, "Content-Type": "application/x-www-form-urlencoded"}
    started = time.perf_counter()
    connection.request("POST", "/oauth/token", BODY, headers)
    response = connection.getresponse()
    response.read()
    took = time.perf_counter() - started
    assert response.status == 401, response.status  # noqa: S101 - Anything else would be no measurement.
    return took


def main() -> None:
    """Measure and print."""
    of_each = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder, running_server(Path(folder), "--workers", "1") as server:
        headers = credentials(server)
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        for kind in list(headers) * WARM_UP:
            ask(connection, headers[kind])
        took: dict[str, list[float]] = {kind: [] for kind in headers}
        for _ in range(of_each):
            for kind in random.sample(list(headers), len(headers)):
                took[kind].append(ask(connection, headers[kind]))
    first = statistics.median(took["unknown client"])
    print(f"{of_each} requests of each kind, interleaved; medians in microseconds")
    for kind, seconds in took.items():
        median = statistics.median(seconds)
        print(f"{kind:<16} {median * 1e6:8.1f}  {100 * (median / first - 1):+6.2f} %")


if __name__ == "__main__":
    main()
