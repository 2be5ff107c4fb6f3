"""``flask clients secrets``, ``rotate-secret``, ``revoke-secret`` and the reports, as people and scripts see them."""

import json
import re
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from conftest import SettableClock
from support.server import FLASK, Installation, run
from unit.harness import Harness, open_harness

from app.config.values import PROJECT_FOLDER
from app.types import Credentials

NOON = "2026-01-31T12:00:00Z"
WEEK_LATER = "2026-02-07T12:00:00Z"
STILL_IN_USE = 3
SECRET = "an-imported-secret-of-some-length"


@pytest.fixture
def harness(tmp_path: Path, clock: SettableClock) -> Iterator[Harness]:
    """Without keys, which secrets do not need."""
    with open_harness(tmp_path, clock, with_key=False) as made:
        yield made


def data(done: Result) -> Any:
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def refusal(done: Result, status: int = 1) -> str:
    assert (done.exit_code, done.stdout) == (status, "")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("Error: ").removesuffix("\n")


def use(harness: Harness, secret: str, address: str = "192.0.2.1") -> None:
    with harness.app.app_context():
        harness.verifier.verify_secret([Credentials("a", secret)], "client_secret_basic", address)
        harness.verifier.last_used.flush()


def secrets_of(harness: Harness) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = data(harness.run("clients", "secrets", "a", "--json"))
    return found


def test_secrets_are_shown_but_never_themselves(harness: Harness) -> None:
    made = harness.register("a", expires_after=timedelta(days=90))
    use(harness, made.secret)
    harness.clock.advance(minutes=1)
    use(harness, made.secret, "2001:db8::1")
    (shown,) = secrets_of(harness)
    assert shown == {
        "id": shown["id"],
        "last_four": made.secret[-4:],
        "state": "expiring",
        "origin": "generated",
        "pepper": "p1",
        "encryption_key": None,
        "created_at": NOON,
        "expires_at": "2026-05-01T12:00:00Z",
        "last_used_at": "2026-01-31T12:01:00Z",
        "revoked_at": None,
        "used_from": [
            {
                "source_address": "2001:db8::1",
                "first_used_at": "2026-01-31T12:01:00Z",
                "last_used_at": "2026-01-31T12:01:00Z",
            },
            {"source_address": "192.0.2.1", "first_used_at": NOON, "last_used_at": NOON},
        ],
    }
    assert harness.run("clients", "secrets", "a").stdout == (
        "id\tlast_four\tstate\tcreated_at\texpires_at\tlast_used_at\trevoked_at\tused_from\n"
        f"{shown['id']}\t{made.secret[-4:]}\texpiring\t{NOON}\t2026-05-01T12:00:00Z\t2026-01-31T12:01:00Z\t\t"
        "2001:db8::1, 192.0.2.1\n"
    )


def test_secrets_asks_whose(harness: Harness) -> None:
    assert refusal(harness.run("clients", "secrets")) == (
        "say whose secrets: `flask clients secrets ID`, or --by-pepper"
    )
    assert refusal(harness.run("clients", "secrets", "nobody")) == (
        "there is no client 'nobody': `flask clients list` shows all"
    )


def test_rotate_gives_a_new_secret_and_the_old_one_a_week(harness: Harness) -> None:
    made = harness.register("a")
    harness.clock.advance(microseconds=1)
    done = harness.run("clients", "rotate-secret", "a", "--json")
    rotated = data(done)
    old, new = secrets_of(harness)
    assert rotated == {
        "client_id": "a",
        "client_secret": rotated["client_secret"],
        "secret_id": new["id"],
        "client_secret_expires_at": 0,
        "older_secrets": [{name: value for name, value in old.items() if name != "used_from"}],
    }
    assert (old["expires_at"], old["state"], new["expires_at"], new["state"]) == (
        WEEK_LATER,
        "expiring",
        None,
        "valid",
    )
    use(harness, made.secret)
    use(harness, rotated["client_secret"])


def test_people_are_told_until_when_the_old_one_works(harness: Harness) -> None:
    made = harness.register("a")
    harness.clock.advance(microseconds=1)
    done = harness.run("clients", "rotate-secret", "a", "--overlap", "2d", "--secret-expires", "90d")
    old = secrets_of(harness)[0]["id"]
    assert done.stderr == (
        f"\nThe secret is shown this once.\n{old} (…{made.secret[-4:]}) works until 2026-02-02T12:00:00Z.\n"
    )
    assert re.search(r"^client_secret_expires_at +1777636800$", done.stdout, re.MULTILINE)


def test_a_secret_goes_to_a_file_of_its_own(harness: Harness) -> None:
    harness.register("a")
    out = harness.folder / "secret"
    rotated = data(harness.run("clients", "rotate-secret", "a", "--secret-out", str(out), "--json"))
    assert "client_secret" not in rotated
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    use(harness, out.read_text().removesuffix("\n"))
    assert "exists" in refusal(harness.run("clients", "rotate-secret", "a", "--secret-out", str(out)))
    assert len(secrets_of(harness)) == 2


def test_a_rotation_that_is_refused_leaves_no_file(harness: Harness) -> None:
    harness.register("a")
    for _ in range(9):
        assert harness.run("clients", "rotate-secret", "a").exit_code == 0
    out = harness.folder / "secret"
    assert refusal(harness.run("clients", "rotate-secret", "a", "--secret-out", str(out))).startswith(
        "'a' has 10 secrets that work, and 10 is the most"
    )
    assert not out.exists()


def test_a_secret_is_taken_over_from_elsewhere(harness: Harness) -> None:
    harness.register("a")
    done = harness.run("clients", "rotate-secret", "a", "--secret-file", "-", stdin="sixteen-letters!\n")
    assert done.exit_code == 0
    assert "Warning: the secret has under 32 characters" in done.stderr
    use(harness, "sixteen-letters!")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--quiet", "1d"], "--quiet goes with --finish"),
        (["--secret-expires", "0"], "--secret-expires must be 1s or more"),
        (
            ["--finish", "--secret-out", "x"],
            "--finish makes no secret: --secret-file, --secret-expires and --secret-out do not go with it",
        ),
        (["--secret-file", "nowhere"], "the secret file nowhere cannot be read: "),
    ],
)
def test_options_that_cannot_be_meant_are_refused(harness: Harness, arguments: list[str], told: str) -> None:
    harness.register("a")
    assert refusal(harness.run("clients", "rotate-secret", "a", *arguments)).startswith(told)
    assert len(secrets_of(harness)) == 1


@pytest.mark.parametrize("overlap", ["-1", "x", "", "1.5d", "99999999999999d"])
def test_an_overlap_that_is_no_duration_is_refused(harness: Harness, overlap: str) -> None:
    harness.register("a")
    assert harness.run("clients", "rotate-secret", "a", "--overlap", overlap).exit_code != 0
    assert len(secrets_of(harness)) == 1


def test_finish_waits_for_silence_and_says_who_makes_noise(harness: Harness) -> None:
    made = harness.register("a")
    old_id = secrets_of(harness)[0]["id"]
    harness.clock.advance(microseconds=1)
    harness.run("clients", "rotate-secret", "a")
    use(harness, made.secret, "198.51.100.7")
    assert refusal(harness.run("clients", "rotate-secret", "a", "--finish"), STILL_IN_USE) == (
        f"'a' may still use {old_id} (…{made.secret[-4:]}) from 198.51.100.7 since 2026-01-31T12:00:00Z until "
        "2026-01-31T12:00:00Z. Nothing was retired"
    )
    # A nightly job that still has the old one may be hours late, and is heard all the same.
    harness.clock.advance(hours=30)
    assert harness.run("clients", "rotate-secret", "a", "--finish").exit_code == STILL_IN_USE
    harness.clock.advance(minutes=2)
    done = harness.run("clients", "rotate-secret", "a", "--finish", "--json")
    assert [secret["id"] for secret in data(done)] == [old_id]
    assert done.stderr == (
        f"{old_id} (…{made.secret[-4:]}) is revoked.\nWarning: the secret that is left has never been used.\n"
    )
    assert [secret["state"] for secret in secrets_of(harness)] == ["revoked", "valid"]
    assert harness.run("clients", "rotate-secret", "a", "--finish").stderr == (
        "a has no older secret that works: there is nothing to finish.\n"
    )


@pytest.mark.parametrize("option", ["--quiet", "--overlap"])
def test_how_long_silence_must_be_is_said(harness: Harness, option: str) -> None:
    harness.register("a")
    harness.run("clients", "rotate-secret", "a")
    harness.clock.advance(hours=2)
    assert harness.run("clients", "rotate-secret", "a", "--finish", option, "2h").exit_code == STILL_IN_USE
    assert harness.run("clients", "rotate-secret", "a", "--finish", option, "1h").exit_code == 0


def test_revoke_ends_one_and_warns_of_the_last(harness: Harness) -> None:
    made = harness.register("a")
    rotated = data(harness.run("clients", "rotate-secret", "a", "--json"))
    old_id = next(secret["id"] for secret in secrets_of(harness) if secret["id"] != rotated["secret_id"])
    done = harness.run("clients", "revoke-secret", "a", old_id)
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == f"{old_id} (…{made.secret[-4:]}) is revoked.\n"
    last = harness.run("clients", "revoke-secret", "a", rotated["secret_id"], "--json")
    assert data(last)["state"] == "revoked"
    assert "Warning: a has no secret that works: `flask clients rotate-secret` makes one." in last.stderr
    assert refusal(harness.run("clients", "revoke-secret", "a", "s-nothing")) == (
        "'a' has no secret 's-nothing': `flask clients secrets a` shows all"
    )


def test_peppers_are_counted(tmp_path: Path, clock: SettableClock) -> None:
    old, new = f"p1:{'o' * 40}", f"p2:{'n' * 40}"
    with open_harness(tmp_path, clock, secret_peppers=old) as harness:
        made = harness.register("a")
        harness.register("b")
    with open_harness(tmp_path, clock, secret_peppers=f"{new},{old}") as harness:
        assert harness.run("clients", "secrets", "--by-pepper").stdout == (
            "pepper_id\tsecrets\tstate\np2\t0\tnewest\np1\t2\told\n"
        )
        use(harness, made.secret)
        assert data(harness.run("clients", "secrets", "--by-pepper", "--json")) == [
            {"pepper_id": "p2", "secrets": 1, "state": "newest"},
            {"pepper_id": "p1", "secrets": 1, "state": "old"},
        ]
        assert data(harness.run("clients", "secrets", "b", "--by-pepper", "--json"))[1]["secrets"] == 1
    with open_harness(tmp_path, clock, secret_peppers=new) as harness:
        done = harness.run("clients", "secrets", "--by-pepper")
        assert done.stdout == "pepper_id\tsecrets\tstate\np2\t1\tnewest\np1\t1\tmissing\n"
        assert done.stderr == (
            "Warning: secrets of a missing pepper are refused until TOKENHOUSE_SECRET_PEPPERS has it again.\n"
        )


def test_reports_name_the_clients_that_need_a_look(harness: Harness) -> None:
    harness.register("a", secret=SECRET)
    harness.register("soon", expires_after=timedelta(days=120))
    harness.clock.advance(days=100)
    harness.register("new")
    use(harness, SECRET)

    def listed(*arguments: str) -> list[str]:
        return [client["client_id"] for client in data(harness.run("clients", "list", *arguments, "--json"))]

    assert listed() == ["a", "soon", "new"]
    assert listed("--unused-for", "90d") == ["soon"]
    assert listed("--secrets-older-than", "90d") == ["a", "soon"]
    assert listed("--expiring-in", "30d") == ["soon"]
    assert listed("--expiring-in", "19d") == []
    assert listed("--secrets-older-than", "90d", "--expiring-in", "30d", "--unused-for", "1y") == []
    assert harness.run("clients", "list", "--unused-for", "soon").exit_code == 2
    lines = harness.run("clients", "list").stdout.splitlines()
    assert lines[1].split("\t")[-1] == "2026-05-11T12:00:00Z"


def test_real_commands_rotate_finish_and_revoke(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    assert installation.flask("db", "upgrade").returncode == 0
    client_id = installation.flask_json("clients", "create", "A service")["client_id"]
    rotated = installation.flask_json("clients", "rotate-secret", client_id, "--overlap", "1h")
    assert rotated["client_secret"].startswith("ths_")
    states = [secret["state"] for secret in installation.flask_json("clients", "secrets", client_id)]
    assert states == ["expiring", "valid"]
    done = installation.flask("clients", "rotate-secret", client_id, "--finish")
    assert done.returncode == STILL_IN_USE
    assert "may still use" in done.stderr
    assert rotated["client_secret"] not in installation.flask("clients", "secrets", client_id).stdout


# A secret that cannot be handed over must not be


def full(*arguments: str, installation: Installation) -> subprocess.CompletedProcess[str]:
    """Run ``flask …`` where standard output is a full disk, and no file may grow either."""

    def leave_no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    with Path("/dev/full").open("w") as stdout:
        return subprocess.run(
            [sys.executable, "-m", "flask", *arguments],
            env=installation.environment,
            cwd=PROJECT_FOLDER,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
            preexec_fn=leave_no_room,
        )


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_on_a_full_disk_no_secret_is_made_that_nobody_has(tmp_path: Path, database_url: str) -> None:
    installation = Installation(tmp_path, TOKENHOUSE_DATABASE_URL=database_url)
    assert installation.flask("db", "upgrade").returncode == 0
    out = tmp_path / "secret"
    for options, told in (
        (["--secret-out", str(out)], f"Error: {out} cannot be written: File too large. Nothing was changed\n"),
        (["--json"], "Error: standard output cannot be written: No space left on device\n"),
        ([], "Error: standard output cannot be written: No space left on device\n"),
    ):
        done = full("clients", "create", "A service", *options, installation=installation)
        assert (done.returncode, done.stderr) == (1, told)
        assert installation.flask_json("clients", "list") == []
        assert not out.exists()
    client_id = installation.flask_json("clients", "create", "A service")["client_id"]
    before = installation.flask_json("clients", "secrets", client_id)
    for options in (["--secret-out", str(out)], ["--json"], []):
        done = full("clients", "rotate-secret", client_id, *options, installation=installation)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert installation.flask_json("clients", "secrets", client_id) == before
    assert not out.exists()


def test_a_secret_that_was_shown_counts_though_its_reader_leaves(tmp_path: Path) -> None:
    """``flask … 2>&1 | head -n 2``: the reader goes after the line with the secret, or before the rest is said."""
    installation = Installation(tmp_path)
    assert installation.flask("db", "upgrade").returncode == 0
    for command in ("clients create A --client-id c", "clients rotate-secret c"):
        shown = run("sh", "-c", f"{FLASK} {command} 2>&1 | head -n 2", environment=installation.environment).stdout
        (secret,) = re.findall(r"^client_secret +(ths_\S+)$", shown, re.MULTILINE)
        with installation.context():
            credentials = [Credentials("c", secret)]
            assert (
                installation.services.clients.authenticator.verify_secret(
                    credentials, "client_secret_basic"
                ).client.client_id
                == "c"
            )
