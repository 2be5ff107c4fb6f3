"""``flask keys``: list, generate, export."""

import json
import re
import stat
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from conftest import SettableClock
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from support.server import Installation
from unit.house import House, open_house

NOON = "2026-01-31T12:00:00Z"
KID = re.compile(r"[A-Za-z0-9_-]{43}")


@pytest.fixture
def house(tmp_path: Path, clock: SettableClock) -> Iterator[House]:
    """Without a key ring."""
    with open_house(tmp_path, clock, migrated=False, with_key=False) as made:
        yield made


def data(done: Result) -> Any:
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def refusal(done: Result) -> str:
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("Error: ").removesuffix("\n")


def test_the_first_key_signs_at_once(house: House) -> None:
    house.clock.advance(microseconds=999_999)
    done = house.run("keys", "generate", "--json")
    made = data(done)
    assert KID.fullmatch(made["kid"])
    assert made == {
        "kid": made["kid"],
        "alg": "RS256",
        "state": "signing",
        "published_at": NOON,
        "signs_from": NOON,
        "revoked_at": None,
        "bits": 2048,
    }
    assert done.stderr == f"{made['kid']} signs from {NOON} on. A running server knows it after a restart.\n"
    assert data(house.run("keys", "list", "--json")) == [made]


def test_a_further_key_is_announced_first(house: House) -> None:
    first = data(house.run("keys", "generate", "--json"))
    house.clock.advance(days=1)
    second = data(house.run("keys", "generate", "--json"))
    assert (second["state"], second["published_at"], second["signs_from"]) == (
        "announced",
        "2026-02-01T12:00:00Z",
        "2026-02-08T12:00:00Z",
    )
    house.clock.advance(days=7)
    states = {key["kid"]: key["state"] for key in data(house.run("keys", "list", "--json"))}
    assert states == {first["kid"]: "signing", second["kid"]: "announced"} or states == {
        first["kid"]: "retiring",
        second["kid"]: "signing",
    }


@pytest.mark.parametrize(
    ("announce", "max_age", "waits"), [("0", "1s", 61), ("1s", "1s", 61), ("5m", "5m", 360), ("7d", "5m", 604800)]
)
def test_a_key_is_never_announced_for_less_than_the_safe_time(
    tmp_path: Path, clock: SettableClock, announce: str, max_age: str, waits: int
) -> None:
    if announce == "0":
        announce = "1s"
    with open_house(tmp_path, clock, migrated=False, key_announce=announce, jwks_max_age=max_age) as house:
        made = data(house.run("keys", "generate", "--json"))
        assert made["signs_from"] == (clock() + timedelta(seconds=waits)).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_without_json_generate_only_talks(house: House) -> None:
    done = house.run("keys", "generate")
    assert (done.exit_code, done.stdout) == (0, "")
    assert " signs from " in done.stderr


def test_a_list_without_keys_is_empty(house: House) -> None:
    assert data(house.run("keys", "list", "--json")) == []
    assert house.run("keys", "list").stdout == "kid\talg\tstate\tpublished_at\tsigns_from\n"


def test_a_list_in_a_pipe_is_tab_separated(house: House) -> None:
    kid = data(house.run("keys", "generate", "--json"))["kid"]
    assert house.run("keys", "list").stdout == (
        f"kid\talg\tstate\tpublished_at\tsigns_from\n{kid}\tRS256\tsigning\t{NOON}\t{NOON}\n"
    )


def test_a_public_key_is_exported_as_pem(house: House) -> None:
    kid = data(house.run("keys", "generate", "--json"))["kid"]
    done = house.run("keys", "export", "--", kid)
    assert (done.exit_code, done.stderr) == (0, "")
    (key,) = house.services.ring().keys
    assert load_pem_public_key(done.stdout.encode()) == key.private_key.public_key()
    assert done.stdout.startswith("-----BEGIN PUBLIC KEY-----\n")
    assert done.stdout.endswith("-----END PUBLIC KEY-----\n")


def test_a_key_whose_name_begins_with_a_hyphen_is_exported_too(house: House) -> None:
    kid = data(house.run("keys", "generate", "--json"))["kid"]
    ring = house.folder / "keyring.toml"
    ring.write_text(ring.read_text().replace(f'kid = "{kid}"', 'kid = "-0abc"'))
    assert house.run("keys", "export", "-0abc").stdout.startswith("-----BEGIN PUBLIC KEY-----\n")


@pytest.mark.parametrize("kid", ["nowhere", "", "é", "\udcff", "../keyring.toml"])
def test_a_key_that_is_not_there_is_refused(house: House, kid: str) -> None:
    house.run("keys", "generate")
    assert refusal(house.run("keys", "export", kid)) == f"there is no key {kid!r}: `flask keys list` shows all"


def test_an_export_without_a_ring_says_what_to_do(house: House) -> None:
    told = refusal(house.run("keys", "export", "x"))
    assert told == f"there is no key ring at {house.folder}/keyring.toml: `flask keys generate` makes one"


@pytest.mark.parametrize("verb", [["list"], ["generate"], ["export", "x"]])
@pytest.mark.parametrize("content", [b"keys =", b"\xff", b"other = 1", b"[[keys]]\n"])
def test_a_ring_that_is_broken_is_one_line_and_stays_as_it_is(house: House, verb: list[str], content: bytes) -> None:
    ring = house.folder / "keyring.toml"
    ring.write_bytes(content)
    told = refusal(house.run("keys", *verb))
    assert str(ring) in told
    assert ring.read_bytes() == content
    assert [path.name for path in house.folder.glob("*.pem")] == []


@pytest.mark.parametrize("folder", ["/proc/nowhere", "/dev/null"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, clock: SettableClock, folder: str) -> None:
    with open_house(tmp_path, clock, migrated=False, with_key=False, keyring=f"{folder}/keyring.toml") as house:
        told = refusal(house.run("keys", "generate"))
        assert told.startswith(f"the key ring {folder}/keyring.toml cannot be written: ")


def test_keys_are_encrypted_where_there_is_a_passphrase(tmp_path: Path, clock: SettableClock) -> None:
    with open_house(tmp_path, clock, migrated=False, with_key=False, keyring_passphrase="correct horse") as house:
        kid = data(house.run("keys", "generate", "--json"))["kid"]
        assert b"ENCRYPTED" in (tmp_path / f"{kid}.pem").read_bytes()
        assert len(data(house.run("keys", "list", "--json"))) == 1
    with open_house(tmp_path, clock, migrated=False, with_key=False) as house:
        assert refusal(house.run("keys", "list")).endswith(
            "cannot be parsed as a private key in PEM with TOKENHOUSE_KEYRING_PASSPHRASE"
        )


def test_no_command_shows_a_private_key(house: House) -> None:
    kid = data(house.run("keys", "generate", "--json"))["kid"]
    pem = (house.folder / f"{kid}.pem").read_text().splitlines()[1]
    for arguments in (["list"], ["list", "--json"], ["export", "--", kid]):
        done = house.run("keys", *arguments)
        assert pem not in done.output
        assert "PRIVATE" not in done.output


# A real process


def test_real_commands_make_and_export_a_key(tmp_path: Path) -> None:
    installation = Installation(tmp_path / "new")
    made = installation.flask_json("keys", "generate")
    assert abs(datetime.fromisoformat(made["signs_from"]) - datetime.now(UTC)) < timedelta(minutes=2)
    assert [key["state"] for key in installation.flask_json("keys", "list")] == ["signing"]
    done = installation.flask("keys", "export", "--", made["kid"])
    assert done.stdout.startswith("-----BEGIN PUBLIC KEY-----\n")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").glob("*[lm]")}
    assert modes == {"keyring.toml": 0o600, f"{made['kid']}.pem": 0o600}
    read = subprocess.run(
        ["openssl", "rsa", "-pubin", "-noout", "-text"], input=done.stdout, capture_output=True, text=True, check=True
    )
    assert "Public-Key: (2048 bit)" in read.stdout
