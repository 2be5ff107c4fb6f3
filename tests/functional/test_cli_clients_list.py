"""``flask clients list`` and ``show``: what they print for people and for scripts, and the filters."""

import contextlib
import fcntl
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SettableClock
from functional.commands import data, ids
from sqlalchemy import insert, select
from support.server import Installation
from unit.harness import Harness, open_harness

from app.config.values import PROJECT_FOLDER
from app.database.engine import writing_engine
from app.database.models import ClientRow, db

POST = "client_secret_post"
NOON = "2026-01-31T12:00:00Z"
SECRET = "an-imported-secret-of-some-length"


def test_list_prints_an_array(harness: Harness) -> None:
    assert data(harness.run("clients", "list", "--json")) == []
    harness.register("a", scope=("read",))
    harness.clock.advance(seconds=1)
    harness.register("b")
    assert ids(harness) == ["a", "b"]
    (first, _) = data(harness.run("clients", "list", "--json"))
    assert {**first, "tokens": {}} == data(harness.run("clients", "show", "a", "--json"))


def test_the_wasteful_are_listed(harness: Harness) -> None:
    made = {client_id: harness.register(client_id) for client_id in ("modest", "wasteful")}
    caller = harness.app.test_client()
    for client_id in ["modest"] + ["wasteful"] * 300:
        headers = {"Authorization": made[client_id].basic}
        caller.post("/oauth/token", data={"grant_type": "client_credentials"}, headers=headers)
    harness.services.clients.usage.flush()
    listed = data(harness.run("clients", "list", "--wasteful", "--json"))
    assert [client["client_id"] for client in listed] == ["wasteful"]
    assert data(harness.run("clients", "show", "wasteful", "--json"))["tokens"] == {NOON[:10]: 300}


def test_list_in_a_pipe_is_tab_separated(harness: Harness) -> None:
    harness.register("a", client_name="A b", scope=("r", "w"), audiences=("urn:a", "urn:b"), access_token_lifetime=5400)
    harness.register("b")
    harness.run("clients", "disable", "b")
    assert harness.run("clients", "list").stdout == (
        "client_id\tname\tstate\tscope\taudiences\tlifetime\tcreated\tlast_used\n"
        f"a\tA b\tenabled\tr w\turn:a urn:b\t90m\t{NOON}\t\n"
        f"b\tA service\tdisabled\t\t\tdefault\t{NOON}\t\n"
    )


def test_show_prints_everything_but_secrets(harness: Harness) -> None:
    harness.register("a", secret=SECRET)
    shown = data(harness.run("clients", "show", "a", "--json"))
    secret_id = shown["secrets"][0]["id"]
    assert re.fullmatch(r"s-[a-z2-7]{12}", secret_id)
    assert shown == {
        "client_id": "a",
        "client_name": "A service",
        "description": "",
        "state": "enabled",
        "token_endpoint_auth_method": "client_secret",
        "grant_types": ["client_credentials"],
        "scope": "",
        "audiences": [],
        "introspects": [],
        "keys": [],
        "jwks_uri": None,
        "certificates": [],
        "assertion_audience": None,
        "assertion_style": None,
        "legacy_assertion_at": None,
        "access_token_lifetime": None,
        "dpop_bound_access_tokens": False,
        "tls_client_certificate_bound_access_tokens": False,
        "rate_limit": None,
        "contacts": [],
        "labels": {},
        "claims": {},
        "apis": [],
        "created_at": NOON,
        "updated_at": NOON,
        "limited_at": None,
        "disabled_at": None,
        "tokens_not_before": None,
        "last_used_at": None,
        "tokens": {},
        "secrets": [
            {
                "id": secret_id,
                "last_four": "ngth",
                "state": "valid",
                "origin": "imported",
                "pepper": "p1",
                "encryption_key": None,
                "created_at": NOON,
                "expires_at": None,
                "last_used_at": None,
                "revoked_at": None,
            }
        ],
    }


def test_show_for_people_leaves_out_what_is_empty(harness: Harness) -> None:
    harness.register("a", labels={"team": "x"}, secret=SECRET)
    names = [line.split("  ")[0] for line in harness.run("clients", "show", "a").stdout.splitlines()]
    assert names == [
        "client_id",
        "client_name",
        "state",
        "token_endpoint_auth_method",
        "grant_types",
        "labels",
        "created_at",
        "updated_at",
        "secret id",
        "secret last_four",
        "secret state",
        "secret origin",
        "secret pepper",
        "secret created_at",
    ]


def on_a_terminal(installation: Installation, *arguments: str) -> tuple[str, str]:
    """Run ``flask …`` on a terminal of 80 columns: what it shows there, and what it says on standard error."""
    terminal, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with tempfile.TemporaryFile() as talk:
        running = subprocess.Popen(
            [sys.executable, "-m", "flask", *arguments],
            env={**installation.environment, "TERM": "xterm", "PAGER": "cat"},
            cwd=PROJECT_FOLDER,
            stdout=end,
            stdin=end,
            stderr=talk,
        )
        os.close(end)
        shown = b""
        with contextlib.suppress(OSError):
            while piece := os.read(terminal, 65536):
                shown += piece
        os.close(terminal)
        assert running.wait(timeout=60) == 0
        talk.seek(0)
        return shown.decode(), talk.read().decode()


def test_an_id_is_never_cut(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    installation.prepare()
    client_id = installation.create_client("A service with a rather long name", scope=("a" * 60, "b" * 60)).client_id
    shown, _ = on_a_terminal(installation, "clients", "list")
    assert client_id in shown
    assert shown.count("a") > 60


def test_a_table_is_as_long_as_a_person_reads_and_says_so(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    installation.prepare()
    first = installation.create_client(client_id="c0").client_id
    with installation.context(), writing_engine(db.engine).begin() as connection:
        columns = dict(connection.execute(select(*ClientRow.__table__.c)).mappings().one())
        others = [{**columns, "client_id": f"c{n}", "form_decoded_id": f"c{n}"} for n in range(1, 1001)]
        connection.execute(insert(ClientRow), others)
    shown, told = on_a_terminal(installation, "clients", "list")
    assert first in shown
    assert len(re.findall(r"^c[0-9]+ ", shown, re.MULTILINE)) == 1000
    assert told.endswith("These are the 1000 oldest: --limit shows more, filters show fewer.\n")
    shown, told = on_a_terminal(installation, "clients", "list", "--limit", "1001")
    assert len(re.findall(r"^c[0-9]+ ", shown, re.MULTILINE)) == 1001
    assert "oldest" not in told


@pytest.fixture
def several(tmp_path: Path, clock: SettableClock, database_url: str) -> Iterator[Harness]:
    with open_harness(tmp_path, clock, with_key=False, database_url=database_url) as made:
        made.register("a", client_name="Billing 100%", labels={"team": "a", "env": "prod"})
        clock.advance(seconds=1)
        made.register("b", client_name="billing_x", labels={"team": "b"}, token_endpoint_auth_method=POST)
        clock.advance(seconds=1)
        made.register("c", client_name="Größe", labels={"team": "a"})
        made.run("clients", "disable", "c")
        made.run("clients", "rotate-secret", "a")
        yield made


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], ["a", "b", "c"]),
        (["--limit", "2"], ["a", "b"]),
        (["--name", "BILL"], ["a", "b"]),
        (["--name", "%"], ["a"]),
        (["--name", "_"], ["b"]),
        (["--name", "öß"], ["c"]),
        (["--label", "team=a"], ["a", "c"]),
        (["--label", "team=a", "--label", "env=prod"], ["a"]),
        (["--label", "team="], []),
        (["--label", 'te"am=a'], []),
        (["--state", "disabled"], ["c"]),
        (["--state", "enabled", "--limit", "1"], ["a"]),
        (["--auth-method", "client_secret_post"], ["b"]),
        (["--name", "billing", "--state", "disabled"], []),
    ],
)
def test_clients_are_found_by_what_they_are(several: Harness, options: list[str], found: list[str]) -> None:
    listed = data(several.run("clients", "list", "--json", *options))
    assert [client["client_id"] for client in listed] == found
    lines = several.run("clients", "list", *options).stdout.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["client_id", *found]


def test_a_list_says_of_each_client_what_show_does(several: Harness) -> None:
    done = several.run("clients", "list", "--json")
    listed = data(done)
    assert done.stdout == json.dumps(listed, indent=2) + "\n"
    shown = [data(several.run("clients", "show", one, "--json")) for one in ("a", "b", "c")]
    # What each gets in a day is not read for all of them.
    assert [{**client, "tokens": {}} for client in listed] == shown
    assert [len(client["secrets"]) for client in listed] == [2, 1, 1]
    assert several.run("clients", "list", "--json", "--name", "nothing").stdout == "[]\n"


@pytest.mark.parametrize("option", [["--limit", "0"], ["--limit", "x"], ["--label", "no-equals"], ["--state", "on"]])
def test_a_filter_that_cannot_be_meant_is_refused(several: Harness, option: list[str]) -> None:
    done = several.run("clients", "list", *option)
    assert done.exit_code != 0
    assert done.stdout == ""
