"""``flask clients update``, ``disable``, ``enable`` and ``delete``."""

import json
import os
import subprocess
import sys

import pytest
from functional.commands import data, ids, refusal, works
from support.assertions import signer
from support.server import Installation
from unit.harness import Harness

from app.config.values import PROJECT_FOLDER

NOON = "2026-01-31T12:00:00Z"


def test_update_replaces_whole_fields_and_keeps_the_rest(harness: Harness) -> None:
    harness.register("a", scope=("read", "write"), audiences=("urn:a",), labels={"team": "x"}, contacts=("c",))
    harness.clock.advance(hours=1)
    arguments = ["--scope", "audit", "--lifetime", "90", "--name", "New", "--description", "d", "--label", "k=v"]
    done = harness.run("clients", "update", "a", *arguments, "--grant-type", "none", "--json")
    changed = data(done)
    assert done.stderr.startswith("a was changed. Tokens that it has keep what they say until they expire.\nWarning: ")
    assert changed["scope"] == "audit"
    assert changed["labels"] == {"k": "v"}
    assert (changed["access_token_lifetime"], changed["client_name"], changed["description"]) == (90, "New", "d")
    assert (changed["audiences"], changed["contacts"], changed["grant_types"]) == (["urn:a"], ["c"], [])
    assert (changed["created_at"], changed["updated_at"]) == (NOON, "2026-01-31T13:00:00Z")
    assert data(harness.run("clients", "show", "a", "--json")) == {**changed, "tokens": {}}


def test_what_tokens_must_be_bound_to_is_set_and_taken_back(harness: Harness) -> None:
    made = data(harness.run("clients", "create", "A", "--client-id", "a", "--require-dpop", "--json"))
    assert made["client_id"] == "a"
    for arguments, expected in (
        (["--name", "B"], True),
        (["--no-require-dpop"], False),
        (["--description", "d"], False),
        (["--require-dpop"], True),
        (["--auth-method", "private_key_jwt", "--jwks-file", "-"], True),
        (["--bind-certificate"], True),
    ):
        keys = json.dumps(signer("ES256").jwk)
        changed = data(harness.run("clients", "update", "a", *arguments, "--json", stdin=keys))
        assert changed["dpop_bound_access_tokens"] is expected
        assert data(harness.run("clients", "show", "a", "--json"))["dpop_bound_access_tokens"] is expected
    assert changed["tls_client_certificate_bound_access_tokens"] is True
    assert "dpop_bound_access_tokens  " in harness.run("clients", "show", "a").stdout


def test_update_with_an_empty_value_clears(harness: Harness) -> None:
    harness.register(
        "a",
        scope=("r",),
        audiences=("urn:a",),
        labels={"k": "v"},
        contacts=("c",),
        description="d",
        access_token_lifetime=5,
        claims={"tenant": "acme"},
    )
    arguments = [
        "--scope",
        "",
        "--audience",
        "",
        "--contact",
        "",
        "--label",
        "",
        "--claim",
        "",
        "--description",
        "",
        "--lifetime",
        "default",
    ]
    changed = data(harness.run("clients", "update", "a", *arguments, "--json"))
    assert (changed["scope"], changed["audiences"], changed["contacts"], changed["labels"]) == ("", [], [], {})
    assert changed["claims"] == {}
    assert (changed["description"], changed["access_token_lifetime"]) == ("", None)


def test_update_sets_and_clears_a_limit_of_its_own(harness: Harness) -> None:
    harness.register("a")
    assert data(harness.run("clients", "update", "a", "--limit", "100/minute", "--json"))["rate_limit"] == "100/minute"
    assert data(harness.run("clients", "update", "a", "--name", "b", "--json"))["rate_limit"] == "100/minute"
    for cleared in ("default", ""):
        harness.run("clients", "update", "a", "--limit", "5/hour")
        assert data(harness.run("clients", "update", "a", "--limit", cleared, "--json"))["rate_limit"] is None
    wrong = harness.run("clients", "update", "a", "--limit", "100 a minute")
    assert wrong.exit_code == 2
    assert "must be a number and a unit such as 20/minute: second, minute, hour or day; or default" in " ".join(
        wrong.stderr.split()
    )


def test_create_takes_a_limit(harness: Harness) -> None:
    client_id = data(harness.run("clients", "create", "a", "--limit", "7/second", "--json"))["client_id"]
    assert data(harness.run("clients", "show", client_id, "--json"))["rate_limit"] == "7/second"


def test_update_without_json_only_talks(harness: Harness) -> None:
    harness.register("a")
    done = harness.run("clients", "update", "a", "--name", "b")
    assert (done.exit_code, done.stdout) == (0, "")


def test_update_needs_something_to_change(harness: Harness) -> None:
    harness.register("a")
    assert refusal(harness.run("clients", "update", "a")) == (
        "nothing to change: `flask clients update --help` shows what can be"
    )


def test_a_bad_update_changes_nothing(harness: Harness) -> None:
    harness.register("a", scope=("read",))
    before = data(harness.run("clients", "show", "a", "--json"))
    for arguments in (
        ["--name", ""],
        ["--name", "b", "--scope", "a  b"],
        ["--audience", "an api"],
        ["--lifetime", "2d"],
        ["--label", "x"],
        ["--claim", "sub=x"],
    ):
        refusal(harness.run("clients", "update", "a", *arguments))
    assert data(harness.run("clients", "show", "a", "--json")) == before


def test_disable_and_enable_work_at_once_and_twice(harness: Harness) -> None:
    made = harness.register("a")
    for _ in range(2):
        done = harness.run("clients", "disable", "a")
        assert (done.exit_code, done.stdout) == (0, "")
        assert done.stderr == (
            "a gets no more tokens, and its tokens are revoked: introspection says so at once. Verifiers that work "
            "offline accept them until they expire, or until they read the revocation feed.\n"
        )
        assert not works(harness, "a", made.secret)
    shown = data(harness.run("clients", "show", "a", "--json"))
    assert (shown["disabled_at"], shown["tokens_not_before"]) == (NOON, NOON)
    # Tokens that are issued within the second of a revocation are revoked too.
    harness.clock.advance(seconds=1)
    for _ in range(2):
        assert harness.run("clients", "enable", "a").stderr == "a gets tokens again. Its old ones stay revoked.\n"
        assert works(harness, "a", made.secret)


def test_delete_must_be_said_twice(harness: Harness) -> None:
    made = harness.register("a")
    assert refusal(harness.run("clients", "delete", "a", stdin="y\n")) == "deleting 'a' cannot be undone: say --yes"
    assert works(harness, "a", made.secret)
    done = harness.run("clients", "delete", "a", "--yes")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "a was deleted.\n")
    assert not works(harness, "a", made.secret)
    assert ids(harness) == []
    assert refusal(harness.run("clients", "create", "A", "--client-id", "a")).endswith("ids are never reused")


@pytest.mark.parametrize("verb", [["show"], ["update", "--name", "x"], ["disable"], ["enable"], ["delete", "--yes"]])
def test_a_client_that_is_not_there_is_refused(harness: Harness, verb: list[str]) -> None:
    harness.register("gone")
    harness.run("clients", "delete", "gone", "--yes")
    for client_id in ("nobody", "gone", "GONE", "é", ""):
        assert refusal(harness.run("clients", *verb, client_id)) == (
            f"there is no client {client_id!r}: `flask clients list` shows all"
        )


@pytest.mark.parametrize(("answer", "deleted"), [(b"y\n", True), (b"n\n", False), (b"\n", False)])
def test_a_person_is_asked_before_a_client_is_deleted(
    installation: Installation, answer: bytes, *, deleted: bool
) -> None:
    made = installation.create_client("Doomed")
    terminal, end = os.openpty()
    try:
        os.write(terminal, answer)
        done = subprocess.run(
            [sys.executable, "-m", "flask", "clients", "delete", made.client_id],
            env=installation.environment,
            cwd=PROJECT_FOLDER,
            stdin=end,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    finally:
        os.close(terminal)
        os.close(end)
    assert done.stdout == ""
    assert done.stderr.startswith(f"Delete {made.client_id} (Doomed) for good? [y/N]: ")
    assert (done.returncode == 0) is deleted
    assert (installation.flask("clients", "show", made.client_id).returncode == 0) is not deleted


def test_nobody_waits_while_a_person_thinks(installation: Installation) -> None:
    doomed, other = installation.create_client("Doomed"), installation.create_client("Other")
    terminal, end = os.openpty()
    asking = subprocess.Popen(
        [sys.executable, "-m", "flask", "clients", "delete", doomed.client_id],
        env=installation.environment,
        cwd=PROJECT_FOLDER,
        stdin=end,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert asking.stderr is not None
    try:
        asked = asking.stderr.read(len("Delete "))
        assert asked == "Delete "
        assert {client["client_id"] for client in installation.flask_json("clients", "list")} >= {doomed.client_id}
        assert installation.flask("clients", "disable", other.client_id).returncode == 0
        os.write(terminal, b"y\n")
        assert asking.wait(timeout=30) == 0
    finally:
        asking.kill()
        asking.stderr.close()
        os.close(terminal)
        os.close(end)
    assert installation.flask("clients", "show", doomed.client_id).returncode != 0
