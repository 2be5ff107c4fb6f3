"""``flask clients create``: what it takes, prints and refuses, and the files of its secrets."""

import os
import re
import stat
from pathlib import Path

import pytest
from functional.commands import data, ids, misuse, refusal, works
from support.server import Installation
from unit.harness import Harness

from app.audiences import AUDIENCE_RULE
from app.types import Credentials

SECRET = "an-imported-secret-of-some-length"


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
    arguments += ["--claim", "tenant=acme", "--claim", 'roles=["reader"]']
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
    assert shown["claims"] == {"tenant": "acme", "roles": ["reader"]}
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


@pytest.mark.parametrize(
    ("claim", "told"),
    [
        ("tenant", "--claim must be NAME=VALUE"),
        ("sub=admin", "'sub' is a registered claim name: choose another name"),
        (f"a={'x' * 1020}", "all claims together must have at most 1024 bytes as JSON"),
    ],
)
def test_a_claim_that_is_not_allowed_is_refused(harness: Harness, claim: str, told: str) -> None:
    assert refusal(harness.run("clients", "create", "A", "--claim", claim)) == told
    assert ids(harness) == []


def test_the_servers_own_scopes_are_refused(harness: Harness) -> None:
    told = refusal(harness.run("clients", "create", "A", "--scope", "read tokenhouse:admin"))
    assert told == "scope 'tokenhouse:admin': scopes that begin with 'tokenhouse:' are this server's own"


@pytest.mark.parametrize("audience", ["an api", "https://a.example/#x", "https://a b", "é:x"])
def test_a_bad_audience_is_refused(harness: Harness, audience: str) -> None:
    told = refusal(harness.run("clients", "create", "A", "--audience", audience))
    assert told == f"audience {audience!r} {AUDIENCE_RULE}"


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


def test_a_secret_that_was_given_is_not_printed(harness: Harness) -> None:
    secret = "a-secret-from-elsewhere-of-some-length"
    for command in (("create", "A", "--client-id", "a"), ("rotate-secret", "a")):
        done = harness.run("clients", *command, "--secret-file", "-", stdin=secret)
        assert done.exit_code == 0
        assert secret not in done.stdout + done.stderr


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


def test_the_line_to_paste_authenticates_as_the_client_must(installation: Installation) -> None:
    for method in ("client_secret", "client_secret_basic", "client_secret_post"):
        told = installation.flask("clients", "create", "A service", "--auth-method", method).stderr
        (line,) = [line for line in told.splitlines() if line.startswith("  curl ")]
        assert ("client_secret=" in line) is (method == "client_secret_post")
