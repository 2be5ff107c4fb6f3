"""What tests of commands share: data on standard output, talk on standard error, one line for a failure."""

import json
from typing import Any

from click.testing import Result
from unit.harness import Harness


def data(done: Result) -> Any:
    """What a command that must work printed as JSON; it said nothing else on standard output."""
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def refusal(done: Result, status: int = 1) -> str:
    """One line that says why, and nothing on standard output."""
    assert done.exit_code == status, (done.stdout, done.stderr, done.exception)
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("Error: ").removesuffix("\n")


def misuse(done: Result) -> str:
    """The last line of click's three."""
    assert done.exit_code == 2
    assert done.stdout == ""
    return done.stderr.splitlines()[-1]


def ids(harness: Harness) -> list[str]:
    return [client["client_id"] for client in data(harness.run("clients", "list", "--json"))]


def works(harness: Harness, client_id: str, secret: str) -> bool:
    found = harness.app.test_client().post(
        "/oauth/token",
        data={"grant_type": "client_credentials", "client_id": client_id, "client_secret": secret},
    )
    return found.status_code == 200
