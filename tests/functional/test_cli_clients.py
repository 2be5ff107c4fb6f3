"""``flask clients`` and how commands speak: data on standard output, talk on standard error, one line for a failure.

Most run in this process; those where the process itself matters (bytes, streams, the status) start a real ``flask``.
"""

import contextlib
import fcntl
import json
import os
import re
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from click.testing import Result
from conftest import SettableClock
from sqlalchemy import insert, select
from sqlalchemy.engine import make_url
from support import postgres
from support.server import FLASK, Installation, run
from unit.harness import Harness, open_harness

from app.config.values import PROJECT_FOLDER
from app.database.engine import writing_engine
from app.database.models import ClientRow, db
from app.errors import StartError
from app.types import Credentials

POST = "client_secret_post"
NOON = "2026-01-31T12:00:00Z"
SECRET = "an-imported-secret-of-some-length"


@pytest.fixture
def harness(tmp_path: Path, clock: SettableClock) -> Iterator[Harness]:
    with open_harness(tmp_path, clock) as made:
        yield made


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """One that is migrated and has a key; tests share it and make clients of their own."""
    made = Installation(tmp_path_factory.mktemp("installation"))
    made.prepare()
    return made


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


# create


def test_create_prints_one_object_of_the_contract(harness: Harness) -> None:
    made = data(harness.run("clients", "create", "Nightly reports", "--json"))
    secret = made["client_secret"]
    assert re.fullmatch(r"ths_[A-Za-z0-9_-]{49}", secret)
    assert re.fullmatch(r"nightly-reports-[a-z2-7]{20}", made["client_id"])
    assert list(made.items()) == [
        ("client_id", made["client_id"]),
        ("client_secret", secret),
        ("client_name", "Nightly reports"),
        ("token_endpoint_auth_method", "client_secret"),
        ("grant_types", ["client_credentials"]),
        ("scope", ""),
        ("audiences", []),
        ("access_token_lifetime", None),
        ("client_secret_expires_at", 0),
    ]
    assert works(harness, made["client_id"], secret)


def test_create_takes_every_field(harness: Harness) -> None:
    arguments = ["--client-id", "reports", "--scope", "read write", "--scope", "read audit", "--lifetime", "15m"]
    arguments += ["--audience", "https://a.example", "--audience", "urn:b", "--auth-method", "client_secret_post"]
    arguments += ["--grant-type", "client_credentials", "--contact", "ops@example.com", "--contact", "+49 30 1"]
    arguments += ["--description", "Größe", "--label", "team=a", "--label", "empty=", "--label", "eq=a=b"]
    made = data(harness.run("clients", "create", "Reports", *arguments, "--secret-expires", "90d", "--json"))
    del made["client_secret"]
    assert made == {
        "client_id": "reports",
        "client_name": "Reports",
        "token_endpoint_auth_method": "client_secret_post",
        "grant_types": ["client_credentials"],
        "scope": "read write audit",
        "audiences": ["https://a.example", "urn:b"],
        "access_token_lifetime": 900,
        "client_secret_expires_at": int(harness.clock().timestamp()) + 90 * 86400,
    }
    shown = data(harness.run("clients", "show", "reports", "--json"))
    assert shown["contacts"] == ["ops@example.com", "+49 30 1"]
    assert (shown["description"], shown["labels"]) == ("Größe", {"team": "a", "empty": "", "eq": "a=b"})


def test_create_for_people_prints_the_secret_and_a_line_to_try(harness: Harness) -> None:
    done = harness.run("clients", "create", "Reports", "--client-id", "reports")
    assert done.exit_code == 0
    fields = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in done.stdout.splitlines())
    assert list(fields) == [
        "client_id",
        "client_secret",
        "client_name",
        "token_endpoint_auth_method",
        "grant_types",
        "client_secret_expires_at",
    ]
    assert "The secret is shown this once." in done.stderr
    curl = f"curl -u reports:{fields['client_secret']} -d grant_type=client_credentials"
    assert f"{curl} {harness.settings.issuer}/oauth/token" in done.stderr


def test_no_command_shows_a_secret_again(harness: Harness) -> None:
    secret = data(harness.run("clients", "create", "Reports", "--client-id", "reports", "--json"))["client_secret"]
    for arguments in (
        ["list"],
        ["list", "--json"],
        ["show", "reports"],
        ["show", "reports", "--json"],
        ["update", "reports", "--name", "x", "--json"],
    ):
        done = harness.run("clients", *arguments)
        assert done.exit_code == 0
        assert secret not in done.output
        assert secret[:-4] not in done.output


@pytest.mark.parametrize("name", ["", "   ", "a\nb", "a\tb", "\x1b[31mred", "x" * 1001])
def test_a_name_is_one_line(harness: Harness, name: str) -> None:
    assert refusal(harness.run("clients", "create", name)) == "name must be 1 to 1000 printable characters in one line"
    assert ids(harness) == []


@pytest.mark.parametrize("name", ["Größe", "名前", "😀", "a'; DROP TABLE clients;--", "x" * 1000, "[bold]x[/bold]"])
def test_a_name_is_anything_printable(harness: Harness, name: str) -> None:
    assert data(harness.run("clients", "create", name, "--json"))["client_name"] == name
    assert name in harness.run("clients", "list").stdout


@pytest.mark.parametrize("client_id", ["", "é", "a\n", "x" * 256, "a\tb"])
def test_an_id_of_other_characters_is_refused(harness: Harness, client_id: str) -> None:
    told = refusal(harness.run("clients", "create", "A", "--client-id", client_id))
    assert told == "client id must be 1 to 255 characters of printable ASCII"


def test_an_id_with_a_colon_is_taken_with_a_warning(harness: Harness) -> None:
    done = harness.run("clients", "create", "A", "--client-id", "urn:a:b", "--json")
    assert data(done)["client_id"] == "urn:a:b"
    assert done.stderr == (
        "Warning: Basic cannot carry an id with a colon raw: form-encode it, or send it in the body.\n"
    )
    assert harness.run("clients", "create", "A", "--client-id", "a-b", "--json").stderr == ""


def test_an_id_that_is_taken_or_reads_like_another_is_refused(harness: Harness) -> None:
    harness.run("clients", "create", "A", "--client-id", "a b")
    assert refusal(harness.run("clients", "create", "A", "--client-id", "a b")) == (
        "client id 'a b' is taken, or was: ids are never reused"
    )
    assert refusal(harness.run("clients", "create", "A", "--client-id", "a+b")) == (
        "client id 'a+b' reads like 'a b' when it is form-encoded: choose another"
    )
    assert ids(harness) == ["a b"]


@pytest.mark.parametrize("client_id", ["x" * 255, "-x", "--json", " ", '"\\', "a%00b"])
def test_an_odd_id_works_everywhere(harness: Harness, client_id: str) -> None:
    assert data(harness.run("clients", "create", "A", f"--client-id={client_id}", "--json"))["client_id"] == client_id
    for verb in ("show", "disable", "enable"):
        assert harness.run("clients", verb, "--", client_id).exit_code == 0
    assert harness.run("clients", "delete", "--yes", "--", client_id).exit_code == 0


@pytest.mark.parametrize("scope", ["a  b", " a", 'a"b', "a\\b", "é", "a\nb"])
def test_a_bad_scope_is_refused(harness: Harness, scope: str) -> None:
    told = refusal(harness.run("clients", "create", "A", "--scope", scope))
    assert told == (
        f"scope {scope!r} must be tokens of printable ASCII without quote and backslash, one space between them"
    )
    assert ids(harness) == []


def test_the_servers_own_scopes_are_refused(harness: Harness) -> None:
    told = refusal(harness.run("clients", "create", "A", "--scope", "read tokenhouse:admin"))
    assert told == "scope 'tokenhouse:admin': scopes that begin with 'tokenhouse:' are this server's own"


@pytest.mark.parametrize("audience", ["api", "https://a.example/#x", "https://a b", "é:x"])
def test_a_bad_audience_is_refused(harness: Harness, audience: str) -> None:
    told = refusal(harness.run("clients", "create", "A", "--audience", audience))
    assert told == f"audience {audience!r} must be an absolute URI without a fragment"


@pytest.mark.parametrize(
    ("lifetime", "told"),
    [
        ("0", "must be from 1s to 24h"),
        ("0s", "must be from 1s to 24h"),
        ("1w", "must be a duration such as 90s, 15m, 24h or 7d"),
        ("-1", "must be a duration such as 90s, 15m, 24h or 7d"),
        ("", "must be a duration such as 90s, 15m, 24h or 7d"),
    ],
)
def test_a_bad_lifetime_is_refused(harness: Harness, lifetime: str, told: str) -> None:
    assert misuse(harness.run("clients", "create", "A", "--lifetime", lifetime)) == (
        f"Error: Invalid value for '--lifetime': {told}"
    )


def test_a_life_that_defeats_caches_is_warned_of(harness: Harness) -> None:
    warning = (
        "Warning: tokens live for 9m. A caller that replaces them five minutes early, as many do, asks for one again "
        "and again: have it replace them at half of their life.\n"
    )
    assert harness.run("clients", "create", "A", "--client-id", "a", "--lifetime", "9m", "--json").stderr == warning
    assert harness.run("clients", "create", "B", "--client-id", "b", "--lifetime", "10m", "--json").stderr == ""
    assert harness.run("clients", "update", "b", "--lifetime", "9m").stderr.endswith(f"expire.\n{warning}")
    assert "Warning" not in harness.run("clients", "update", "b", "--description", "x").stderr


@pytest.mark.parametrize("lifetime", ["25h", "86401", "7d"])
def test_a_lifetime_of_more_than_a_day_is_refused(harness: Harness, lifetime: str) -> None:
    assert refusal(harness.run("clients", "create", "A", "--lifetime", lifetime)) == "lifetime must be from 1s to 1d"


def test_a_bad_label_is_refused(harness: Harness) -> None:
    assert refusal(harness.run("clients", "create", "A", "--label", "team")) == "label 'team' must be K=V"
    assert refusal(harness.run("clients", "create", "A", "--label", "=a")).startswith("label must be 1 to")
    assert refusal(harness.run("clients", "create", "A", "--label", "team=a\nb")).startswith("label team must be 0 to")


def test_what_the_registries_do_not_list_is_no_choice(harness: Harness) -> None:
    assert "is not one of 'client_secret', 'client_secret_basic', 'client_secret_post'" in misuse(
        harness.run("clients", "create", "A", "--auth-method", "none")
    )
    assert "is not one of 'client_credentials', 'none'" in misuse(
        harness.run("clients", "create", "A", "--grant-type", "password")
    )


def test_a_client_may_have_no_grant(harness: Harness) -> None:
    made = data(harness.run("clients", "create", "A", "--grant-type", "none", "--json"))
    assert made["grant_types"] == []
    assert not works(harness, made["client_id"], made["client_secret"])
    both = harness.run("clients", "create", "B", "--grant-type", "none", "--grant-type", "client_credentials")
    assert refusal(both) == "--grant-type none goes with no other grant type"
    twice = harness.run("clients", "create", "C", *["--grant-type", "client_credentials"] * 2, "--json")
    assert data(twice)["grant_types"] == ["client_credentials"]
    assert data(harness.run("clients", "create", "D", *["--grant-type", "none"] * 2, "--json"))["grant_types"] == []


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--scope", [" ".join(f"s{n}" for n in range(1001))]),
        ("--audience", [f"urn:{n}" for n in range(1001)]),
        ("--contact", [f"c{n}" for n in range(1001)]),
        ("--label", [f"k{n}=v" for n in range(1001)]),
    ],
)
def test_more_than_a_thousand_of_anything_is_refused(harness: Harness, option: str, values: list[str]) -> None:
    arguments = [argument for value in values for argument in (option, value)]
    assert refusal(harness.run("clients", "create", "A", *arguments)) == (
        "a client has at most 1000 scopes, audiences, resources to introspect, contacts or labels"
    )


# Secrets from and to files


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (SECRET, SECRET),
        (f"{SECRET}\n", SECRET),
        (f"{SECRET}\r\n", SECRET),
        (f" {SECRET} \n", f" {SECRET} "),
        ("x" * 4096, "x" * 4096),
    ],
)
@pytest.mark.parametrize("from_standard_input", [True, False])
def test_a_secret_is_taken_over_without_its_newline(
    harness: Harness, content: str, secret: str, *, from_standard_input: bool
) -> None:
    file = harness.folder / "secret"
    file.write_bytes(content.encode())
    source, stdin = ("-", content.encode()) if from_standard_input else (str(file), None)
    arguments = ["clients", "create", "A", "--client-id", "a", "--secret-file", source, "--json"]
    done = harness.run(*arguments, stdin=stdin)
    assert data(done)["client_secret"] == secret
    assert done.stderr == ""
    assert harness.verifier.verify_secret([Credentials("a", secret)], "client_secret_basic").client.client_id == "a"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"x" * 15,
        b"x" * 15 + b"\n",
        b"x" * 16 + b"\n\n",
        b"x" * 4097,
        b"x" * 16 + b"\x00",
        "é".encode() * 16,
    ],
)
def test_a_secret_that_is_too_short_or_of_other_characters_is_refused(harness: Harness, content: bytes) -> None:
    done = harness.run("clients", "create", "A", "--secret-file", "-", stdin=content)
    assert refusal(done) == "the secret must be 16 to 4096 characters of printable ASCII"
    assert ids(harness) == []


@pytest.mark.parametrize(("length", "warned"), [(16, True), (31, True), (32, False)])
def test_a_short_secret_is_taken_with_a_warning(harness: Harness, length: int, *, warned: bool) -> None:
    done = harness.run("clients", "create", "A", "--secret-file", "-", "--json", stdin="x" * length)
    warning = "Warning: the secret has under 32 characters; a generated one is safer.\n"
    assert data(done)["client_secret"] == "x" * length
    assert done.stderr == (warning if warned else "")


def test_a_secret_file_that_cannot_be_read_is_refused(harness: Harness) -> None:
    missing = harness.folder / "nowhere"
    assert refusal(harness.run("clients", "create", "A", "--secret-file", str(missing))) == (
        f"the secret file {missing} cannot be read: No such file or directory"
    )
    assert refusal(harness.run("clients", "create", "A", "--secret-file", str(harness.folder))) == (
        f"the secret file {harness.folder} cannot be read: Is a directory"
    )
    assert refusal(harness.run("clients", "create", "A", "--secret-file", "-", stdin=b"\xff" * 32)) == (
        "the secret file - cannot be read: it is not UTF-8 text"
    )


def test_a_secret_goes_into_a_new_file_for_its_owner_and_nowhere_else(harness: Harness) -> None:
    file = harness.folder / "secret"
    before = os.umask(0)
    try:
        done = harness.run("clients", "create", "A", "--secret-out", str(file), "--json")
    finally:
        os.umask(before)
    made = data(done)
    secret = file.read_text().removesuffix("\n")
    assert re.fullmatch(r"ths_[A-Za-z0-9_-]{49}", secret)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "client_secret" not in made
    assert secret not in done.output
    assert works(harness, made["client_id"], secret)
    for_people = harness.run("clients", "create", "B", "--secret-out", str(harness.folder / "other"))
    assert (harness.folder / "other").read_text().strip() not in for_people.output


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "folder"])
def test_a_secret_is_never_written_over_another_file(harness: Harness, kind: str) -> None:
    target, file = harness.folder / "target", harness.folder / "secret"
    if kind == "file":
        file.write_text("mine")
    elif kind == "folder":
        file.mkdir()
    else:
        if kind == "link":
            target.write_text("mine")
        file.symlink_to(target)
    told = refusal(harness.run("clients", "create", "A", "--secret-out", str(file)))
    assert told == f"{file} exists, and a secret is never written over another file"
    assert ids(harness) == []
    assert [path.read_text() for path in (target, file) if path.is_file()] in (["mine"], ["mine", "mine"], [])


def test_a_place_that_cannot_be_written_makes_no_client(harness: Harness) -> None:
    for path, cause in [
        (harness.folder / "nowhere" / "secret", "No such file or directory"),
        (Path("/proc/secret"), None),
    ]:
        told = refusal(harness.run("clients", "create", "A", "--secret-out", str(path)))
        assert told.startswith(f"{path} cannot be written: ")
        assert cause is None or told.endswith(cause)
    assert ids(harness) == []


def test_a_client_that_cannot_be_made_leaves_no_file(harness: Harness) -> None:
    file = harness.folder / "secret"
    harness.run("clients", "create", "A", "--client-id", "a")
    refusal(harness.run("clients", "create", "A", "--client-id", "a", "--secret-out", str(file)))
    refusal(harness.run("clients", "create", "A", "--scope", "a  b", "--secret-out", str(file)))
    assert not file.exists()


@pytest.mark.parametrize("expires", ["0", "0s"])
def test_a_secret_that_is_born_expired_is_refused(harness: Harness, expires: str) -> None:
    assert (
        refusal(harness.run("clients", "create", "A", "--secret-expires", expires))
        == "--secret-expires must be 1s or more"
    )


# list and show


def test_list_prints_an_array(harness: Harness) -> None:
    assert data(harness.run("clients", "list", "--json")) == []
    harness.register("a", scope=("read",))
    harness.clock.advance(seconds=1)
    harness.register("b")
    assert ids(harness) == ["a", "b"]
    (first, _) = data(harness.run("clients", "list", "--json"))
    assert first == data(harness.run("clients", "show", "a", "--json"))


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
        "assertion_audience": None,
        "access_token_lifetime": None,
        "contacts": [],
        "labels": {},
        "created_at": NOON,
        "updated_at": NOON,
        "disabled_at": None,
        "tokens_not_before": None,
        "last_used_at": None,
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


# update


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
    assert data(harness.run("clients", "show", "a", "--json")) == changed


def test_update_with_an_empty_value_clears(harness: Harness) -> None:
    harness.register(
        "a",
        scope=("r",),
        audiences=("urn:a",),
        labels={"k": "v"},
        contacts=("c",),
        description="d",
        access_token_lifetime=5,
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
        "--description",
        "",
        "--lifetime",
        "default",
    ]
    changed = data(harness.run("clients", "update", "a", *arguments, "--json"))
    assert (changed["scope"], changed["audiences"], changed["contacts"], changed["labels"]) == ("", [], [], {})
    assert (changed["description"], changed["access_token_lifetime"]) == ("", None)


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
        ["--audience", "x"],
        ["--lifetime", "2d"],
        ["--label", "x"],
    ):
        refusal(harness.run("clients", "update", "a", *arguments))
    assert data(harness.run("clients", "show", "a", "--json")) == before


# disable, enable, delete


def test_disable_and_enable_work_at_once_and_twice(harness: Harness) -> None:
    made = harness.register("a")
    for _ in range(2):
        done = harness.run("clients", "disable", "a")
        assert (done.exit_code, done.stdout) == (0, "")
        assert done.stderr == (
            "a gets no more tokens, and those that it has are dead: introspection says so at once. Verifiers that work "
            "offline accept them until they expire, or until they read the revocation feed.\n"
        )
        assert not works(harness, "a", made.secret)
    shown = data(harness.run("clients", "show", "a", "--json"))
    assert (shown["disabled_at"], shown["tokens_not_before"]) == (NOON, NOON)
    # Tokens of the second in which others were taken back would be dead too.
    harness.clock.advance(seconds=1)
    for _ in range(2):
        assert harness.run("clients", "enable", "a").stderr == "a gets tokens again. Those that it had stay dead.\n"
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


# The database


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["show", "a"],
        ["create", "A"],
        ["update", "a", "--name", "b"],
        ["disable", "a"],
        ["delete", "a", "--yes"],
    ],
)
def test_a_database_that_was_not_migrated_is_one_line(
    tmp_path: Path, clock: SettableClock, arguments: list[str]
) -> None:
    with open_harness(tmp_path, clock, migrated=False) as harness:
        assert refusal(harness.run("clients", *arguments)) == (
            "the database cannot be used (OperationalError: unable to open database file): "
            "is TOKENHOUSE_DATABASE_URL right, has `flask db upgrade` run?"
        )


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://user:hidden-password@127.0.0.1:1/nowhere",
        "postgresql+psycopg://user:hidden-password@/nowhere?host=/nowhere",
        "sqlite:////proc/nowhere/t.db",
        "sqlite:////dev/null/t.db",
    ],
)
def test_a_database_that_cannot_be_reached_is_one_line(tmp_path: Path, clock: SettableClock, url: str) -> None:
    with open_harness(tmp_path, clock, migrated=False, with_key=False, database_url=url) as harness:
        for arguments in (["list"], ["create", "A", "--secret-out", str(tmp_path / "secret")]):
            told = refusal(harness.run("clients", *arguments))
            assert told.startswith("the database cannot be used (OperationalError: ")
            assert "is TOKENHOUSE_DATABASE_URL right, " in told
            assert "hidden-password" not in told
    assert not (tmp_path / "secret").exists()


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path, clock: SettableClock) -> None:
    (tmp_path / "tokenhouse.db").write_bytes(b"this is no database at all, whatever its name may say" * 100)
    with open_harness(tmp_path, clock, migrated=False, with_key=False) as harness:
        assert refusal(harness.run("clients", "list")).startswith(
            "the database cannot be used (DatabaseError: file is not a database): "
        )


def test_help_tells_what_each_command_does(harness: Harness) -> None:
    done = harness.run("clients", "--help")
    assert done.exit_code == 0
    for verb in ("create", "list", "show", "update", "disable", "enable", "delete"):
        assert re.search(rf"^  {verb} +[A-Z].*\.$", done.stdout, re.MULTILINE)
        assert harness.run("clients", verb, "--help").exit_code == 0


# A real process


def test_a_script_makes_uses_and_ends_a_client(installation: Installation) -> None:
    made = installation.flask_json("clients", "create", "A script", "--scope", "read")
    shown = installation.flask_json("clients", "show", made["client_id"])
    assert (shown["client_name"], shown["scope"], shown["secrets"][0]["last_four"]) == (
        "A script",
        "read",
        made["client_secret"][-4:],
    )
    done = installation.flask("clients", "delete", made["client_id"], "--yes")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", f"{made['client_id']} was deleted.\n")


def test_a_failure_is_a_status_and_one_line(installation: Installation) -> None:
    done = installation.flask("clients", "show", "nobody")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: there is no client 'nobody': `flask clients list` shows all\n"


def test_a_secret_comes_from_a_real_pipe(installation: Installation) -> None:
    done = installation.flask(
        "clients", "create", "Piped", "--secret-file", "-", "--json", stdin=f"{SECRET}\n".encode()
    )
    assert json.loads(done.stdout)["client_secret"] == SECRET
    assert done.stderr == ""


NO_UTF_8 = os.fsdecode(b"\xff\xfe")


@pytest.mark.parametrize(
    "arguments",
    [
        ["create", NO_UTF_8],
        ["create", "A", "--client-id", NO_UTF_8],
        ["create", "A", "--scope", NO_UTF_8],
        ["create", "A", "--audience", f"urn:{NO_UTF_8}"],
        ["create", "A", "--label", f"{NO_UTF_8}=x"],
        ["create", "A", "--label", NO_UTF_8],
        ["create", "A", "--description", NO_UTF_8],
        ["create", "A", "--secret-file", NO_UTF_8],
        ["create", "A", "--secret-out", f"/nowhere/{NO_UTF_8}"],
        ["show", NO_UTF_8],
        ["disable", NO_UTF_8],
        ["update", NO_UTF_8, "--name", "x"],
        ["delete", NO_UTF_8, "--yes"],
    ],
    ids=lambda arguments: "-".join(argument for argument in arguments if argument.isascii()),
)
def test_an_argument_that_is_not_utf_8_is_refused_with_one_line(harness: Harness, arguments: list[str]) -> None:
    refusal(harness.run("clients", *arguments))
    assert ids(harness) == []


def test_an_argument_that_is_not_utf_8_is_refused_by_the_real_process(installation: Installation) -> None:
    for arguments in (["show", NO_UTF_8], ["create", "A", "--secret-file", NO_UTF_8]):
        done = installation.flask("clients", *arguments)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("Error: ")
        assert done.stderr.count("\n") == 1


def test_names_of_all_scripts_are_printed_where_the_locale_knows_none(installation: Installation) -> None:
    installation.create_client("Größe 名前 😀", client_id="unicode")
    environment = {**installation.environment, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    for arguments in (["list"], ["show", "unicode"], ["show", "unicode", "--json"]):
        done = subprocess.run(
            [sys.executable, "-m", "flask", "clients", *arguments],
            env=environment,
            cwd=PROJECT_FOLDER,
            capture_output=True,
            check=False,
            timeout=60,
        )
        assert b"Traceback" not in done.stderr
        assert done.returncode == 0, done.stderr


def test_a_reader_that_goes_away_is_no_traceback(installation: Installation) -> None:
    command = f"{sys.executable} -m flask clients create Lost --json | true"
    done = subprocess.run(
        ["sh", "-c", command],
        env=installation.environment,
        cwd=PROJECT_FOLDER,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert b"Traceback" not in done.stderr


def test_wrong_settings_stop_a_command_with_one_line_for_each(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    installation.environment |= {
        "TOKENHOUSE_ISSUER": "tokens",
        "TOKENHOUSE_LOG_LEVEL": "loud",
        "TOKENHOUSE_DEFAULT_AUDIENCE": "urn:a",
    }
    done = installation.flask("clients", "list")
    assert (done.returncode, done.stdout) == (4, "")
    lines = done.stderr.removeprefix("tokenhouse: ").splitlines()
    assert [line.split(" ")[0] for line in lines] == ["TOKENHOUSE_ISSUER", "TOKENHOUSE_LOG_LEVEL"]


def test_db_upgrade_works_and_then_the_clients_do(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    for _ in range(2):
        done = installation.flask("db", "upgrade")
        assert (done.returncode, done.stdout) == (0, "")
        assert "Traceback" not in done.stderr
    assert installation.flask_json("clients", "list") == []


@pytest.mark.parametrize(
    "url", ["sqlite:////proc/nowhere/t.db", "postgresql+psycopg://u:hidden-password@127.0.0.1:1/n"]
)
def test_db_upgrade_without_a_database_is_one_line(tmp_path: Path, url: str) -> None:
    done = Installation(tmp_path, TOKENHOUSE_DATABASE_URL=url).flask("db", "upgrade")
    assert done.returncode != 0
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert "hidden-password" not in done.stderr
    assert done.stderr.count("\n") == 1


# .env and the flask command


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of its own, so that its ``.env`` is not this one's."""
    for name in ("app", "config", "migrations"):
        shutil.copytree(PROJECT_FOLDER / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT_FOLDER / "wsgi.py", tmp_path)
    return tmp_path


def settings_seen_by_flask(checkout: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TOKENHOUSE_", "FLASK_"))}
    (checkout / "wsgi.py").write_text(
        (checkout / "wsgi.py").read_text()
        + "\n@app.cli.command('seen')\ndef seen() -> None:\n"
        + "    s = app.extensions['tokenhouse'].settings\n    print(s.config, s.issuer, s.log_level)\n"
    )
    return subprocess.run(
        [sys.executable, "-m", "flask", "seen"],
        env={**inherited, **variables},
        cwd=checkout,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


DOTENV = (
    "TOKENHOUSE_CONFIG=development\nTOKENHOUSE_ISSUER=http://localhost:9000\n"
    f"TOKENHOUSE_LOG_LEVEL=debug\nTOKENHOUSE_SECRET_PEPPERS=dev1:{'d' * 32}\n"
)


def test_the_flask_command_uses_dotenv_where_nothing_else_is_said(checkout: Path) -> None:
    (checkout / ".env").write_text(DOTENV)
    assert settings_seen_by_flask(checkout).stdout == "development http://localhost:9000 debug\n"


def test_the_environment_wins_over_dotenv_in_the_flask_command(checkout: Path) -> None:
    (checkout / ".env").write_text(DOTENV)
    seen = settings_seen_by_flask(checkout, TOKENHOUSE_ISSUER="http://localhost:7000", TOKENHOUSE_LOG_LEVEL="debug")
    assert seen.stdout == "development http://localhost:7000 debug\n"


def test_a_production_flask_command_never_mixes_in_developments_values(checkout: Path) -> None:
    (checkout / ".env").write_text(DOTENV)
    given = {"TOKENHOUSE_CONFIG": "production", "TOKENHOUSE_ISSUER": "https://tokens.example.com"}
    seen = settings_seen_by_flask(checkout, **given, TOKENHOUSE_SECRET_PEPPERS="p1:" + "p" * 32)
    assert seen.stdout == "production https://tokens.example.com info\n"
    refused = settings_seen_by_flask(checkout, **given)
    assert (refused.returncode, refused.stdout) == (4, "")
    assert refused.stderr.startswith("tokenhouse: TOKENHOUSE_SECRET_PEPPERS is required")


def test_a_variable_whose_name_is_not_utf_8_is_nobodys_business(installation: Installation) -> None:
    environment = {os.fsencode(name): os.fsencode(value) for name, value in installation.environment.items()}
    done = subprocess.run(
        [sys.executable, "-m", "flask", "clients", "list"],
        env={**environment, b"\xff": b"1"},
        cwd=PROJECT_FOLDER,
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


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


# What a person can copy


def test_the_line_to_paste_authenticates_as_the_client_must(installation: Installation) -> None:
    for method in ("client_secret", "client_secret_basic", "client_secret_post"):
        told = installation.flask("clients", "create", "A service", "--auth-method", method).stderr
        (line,) = [line for line in told.splitlines() if line.startswith("  curl ")]
        assert ("client_secret=" in line) is (method == "client_secret_post")


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


# .env of a checkout where `make run` ran


def test_a_servers_issuer_does_not_become_development_without_a_word(checkout: Path) -> None:
    (checkout / ".env").write_text(DOTENV)
    seen = settings_seen_by_flask(checkout, TOKENHOUSE_ISSUER="https://tokens.example.com")
    assert seen.stdout == "development https://tokens.example.com debug\n"
    assert "for production set TOKENHOUSE_CONFIG=production" in seen.stderr
    meant = settings_seen_by_flask(
        checkout, TOKENHOUSE_ISSUER="https://tokens.example.com", TOKENHOUSE_CONFIG="development"
    )
    assert (meant.stdout, meant.stderr) == (seen.stdout, "")


# What is wrong with a database


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_each_fault_of_a_database_has_a_message_of_its_own(tmp_path: Path, database_url: str) -> None:
    def told(url: str, *command: str) -> str:
        done = Installation(tmp_path, TOKENHOUSE_DATABASE_URL=url).flask(*(command or ("clients", "list")))
        assert (done.returncode, done.stdout) == (1, "")
        return done.stderr.removeprefix("Error: ").rstrip("\n")

    name = make_url(database_url).database
    assert told(database_url) == (
        'the database cannot be used (UndefinedTable 42P01: relation "clients" does not exist): is it the right one, '
        "and has `flask db upgrade` run?"
    )
    nowhere = database_url.replace(str(name), "nowhere")
    assert 'FATAL:  database "nowhere" does not exist' in told(nowhere)
    assert "does not exist): is it the right one" in told(nowhere, "db", "upgrade")
    assert "Connection refused" in told("postgresql+psycopg://u:hidden-password@127.0.0.1:1/n")
    assert told(f"sqlite:///{tmp_path}/nothing.db") == (
        "the database cannot be used (OperationalError: unable to open database file): is TOKENHOUSE_DATABASE_URL "
        "right, has `flask db upgrade` run?"
    )
    with pytest.raises(StartError, match="must have user and password percent-encoded: @ is %40") as caught:
        Installation(tmp_path, TOKENHOUSE_DATABASE_URL="postgresql+psycopg://u:hidden@password@127.0.0.1/n")
    assert "hidden" not in str(caught.value)


def test_a_wrong_password_is_said_and_a_right_one_with_every_character_is_taken(tmp_path: Path) -> None:
    server = postgres.start(tmp_path / "postgres")
    postgres.ask_for_passwords(server, tmp_path / "postgres", "locked")
    password = "p@ss/w:o%r+d?"
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE locked LOGIN PASSWORD '{password}'")
        connection.execute("CREATE DATABASE locked OWNER locked")
    host = make_url(server.get_uri()).query["host"]

    def upgrade(given: str) -> subprocess.CompletedProcess[str]:
        url = f"postgresql+psycopg://locked:{quote(given, safe='')}@/locked?host={host}"
        return Installation(tmp_path, TOKENHOUSE_DATABASE_URL=url).flask("db", "upgrade")

    refused = upgrade("hidden-and-wrong")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "password authentication failed for user" in refused.stderr
    assert "is the password in TOKENHOUSE_DATABASE_URL right?" in refused.stderr
    assert "hidden" not in refused.stderr
    assert upgrade(password).returncode == 0
    postgres.stop(server)


def test_db_upgrade_makes_folder_and_file_for_their_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "t.db"
    done = Installation(tmp_path, TOKENHOUSE_DATABASE_URL=f"sqlite:///{path}").flask("db", "upgrade")
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


# Filters, and very many clients


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
    assert listed == [data(several.run("clients", "show", one, "--json")) for one in ("a", "b", "c")]
    assert [len(client["secrets"]) for client in listed] == [2, 1, 1]
    assert several.run("clients", "list", "--json", "--name", "nothing").stdout == "[]\n"


@pytest.mark.parametrize("option", [["--limit", "0"], ["--limit", "x"], ["--label", "no-equals"], ["--state", "on"]])
def test_a_filter_that_cannot_be_meant_is_refused(several: Harness, option: list[str]) -> None:
    done = several.run("clients", "list", *option)
    assert done.exit_code != 0
    assert done.stdout == ""


@pytest.mark.parametrize(
    "words", [["--help"], ["clients", "create", "--help"], ["keys", "--help"], ["db", "upgrade", "--help"]]
)
def test_help_needs_no_settings(words: list[str]) -> None:
    done = run(FLASK, *words, environment={"PATH": os.environ["PATH"], "TOKENHOUSE_CONFIG": "production"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: {' '.join(['flask', *words[:-1]])}")


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_command_that_has_nothing_to_log_does_not_wait_for_slow_libraries(
    installation: Installation, log_format: str
) -> None:
    slow = ("structlog", "psycopg", "alembic", "gunicorn", "rich", "sqlalchemy.dialects.postgresql")
    program = (
        "import sys\n"
        "from app.cli.main import cli\n"
        "cli.main(['clients', 'list', '--json'], standalone_mode=False)\n"
        f"print([name for name in {slow} if name in sys.modules])\n"
    )
    environment = {**installation.environment, "TOKENHOUSE_LOG_FORMAT": log_format}
    done = run(sys.executable, "-c", program, environment=environment)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[]")


def test_flask_help_says_what_this_is(installation: Installation) -> None:
    done = installation.flask("--help")
    assert done.stdout.splitlines()[2] == "  Tokenhouse: clients, signing keys and the database of this token server."
    assert [line.split()[0] for line in done.stdout.partition("Commands:\n")[2].splitlines()] == [
        "clients",
        "db",
        "doctor",
        "explain",
        "keys",
        "routes",
        "run",
        "shell",
        "tokens",
    ]
