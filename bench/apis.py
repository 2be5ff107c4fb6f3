"""What APIs cost a token, in one process: the client from its row, the policy's decision, and the record of the use.

Run it on a quiet machine: `.venv/bin/python bench/apis.py 2>/dev/null`; migrations log to standard error.
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from conftest import SettableClock
from timing import microseconds
from unit.harness import Harness, open_harness

from app.apis.fields import ApiFields
from app.clients.authentication import to_client
from app.oauth.policy import grant

CALLS = 50_000
SCOPES = ("read", "write", "delete")


def open_with(harness: Harness, apis: int) -> Any:
    """Return the row of a client that may call so many APIs, as a token request reads it."""
    client = harness.register(scope=() if apis else SCOPES, audiences=() if apis else ("https://own.example.com",))
    with harness.app.app_context():
        repository = harness.services.apis.repository
        for number in range(apis):
            name = f"api-{apis}-{number}"
            repository.create(ApiFields(name, f"https://{name}.example.com", SCOPES, claims={"plan": "gold"}))
            repository.grant(name, client.client_id, None)
        return harness.verifier.find(client.client_id).rows[0]


def measure(harness: Harness, name: str, apis: int, resources: Sequence[str]) -> None:
    """Print what a token costs a client with so many APIs."""
    row, policy, usage = open_with(harness, apis), harness.services.oauth.server.policy, harness.services.apis.usage
    client = to_client(row)
    granted = grant(client, scope=None, resources=resources, policy=policy)
    scope = " ".join(granted.scope)
    parts = (
        microseconds(lambda: to_client(row), CALLS),
        microseconds(lambda: grant(client, scope=None, resources=resources, policy=policy), CALLS),
        microseconds(lambda: usage.record(client.client_id, granted.apis, scope), CALLS) if granted.apis else 0,
    )
    print(f"{name:>34}  {'  '.join(f'{part:5.2f}' for part in parts)}  {sum(parts):5.2f} µs")


def main() -> None:
    """Measure."""
    print(f"{'':>34}  {'row':>5}  {'grant':>5}  {'use':>5}  {'all':>5}")
    with tempfile.TemporaryDirectory() as folder, open_harness(Path(folder), SettableClock()) as harness:
        measure(harness, "no APIs", 0, [])
        measure(harness, "no APIs, a resource", 0, ["https://own.example.com"])
        measure(harness, "1 API", 1, [])
        measure(harness, "3 APIs, a resource", 3, ["https://api-3-1.example.com"])
        measure(harness, "10 APIs, an equivalent resource", 10, ["HTTPS://API-10-9.example.com:443/"])
        measure(harness, "100 APIs, a resource", 100, ["https://api-100-99.example.com"])


if __name__ == "__main__":
    main()
