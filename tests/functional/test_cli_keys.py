"""``flask keys``: what people and scripts see of it."""

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
from unit.harness import Harness, open_harness

from app.keyring.validation import find_unsafe_changes

NOON = "2026-01-31T12:00:00Z"
LIST_HEADER = "kid\talg\tstate\tsince\tuntil\tnext\ttokens_signed\tlast_signed_at"
KID = re.compile(r"[A-Za-z0-9_-]{43}")


@pytest.fixture
def harness(tmp_path: Path, clock: SettableClock) -> Iterator[Harness]:
    """Without a key ring."""
    with open_harness(tmp_path, clock, migrated=False, with_key=False) as made:
        yield made


def data(done: Result) -> Any:
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def refusal_line(done: Result) -> str:
    """The last line, of a command that shows something before it refuses."""
    assert done.exit_code == 1
    return done.stderr.splitlines()[-1].removeprefix("Error: ")


def refusal(done: Result) -> str:
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    return done.stderr.removeprefix("Error: ").removesuffix("\n")


def states(harness: Harness) -> dict[str, str]:
    return {key["kid"]: key["state"] for key in data(harness.run("keys", "list", "--json"))}


def standby_of(harness: Harness) -> str:
    (kid,) = [kid for kid, state in states(harness).items() if state == "announced"]
    return kid


def test_the_first_key_signs_at_once_and_gets_a_standby(harness: Harness) -> None:
    harness.clock.advance(microseconds=999_999)
    done = harness.run("keys", "generate", "--json")
    made = data(done)
    assert KID.fullmatch(made["kid"])
    assert made == {
        "kid": made["kid"],
        "alg": "RS256",
        "state": "signing",
        "since": NOON,
        "until": "2026-05-01T12:00:00Z",
        "next": "retiring",
        "published_at": NOON,
        "signs_from": NOON,
        "signs_until": None,
        "revoked_at": None,
        "jwks_max_age": "5m",
        "bits": 2048,
    }
    assert done.stderr == f"{made['kid']} signs from {NOON} on.\n"
    first, second = data(harness.run("keys", "list", "--json"))
    uncounted = {"tokens_signed": None, "first_signed_at": None, "last_signed_at": None}
    assert first == made | uncounted
    assert KID.fullmatch(second["kid"])
    assert second == first | {
        "kid": second["kid"],
        "state": "announced",
        "until": "2026-05-01T12:00:00Z",
        "next": "signing",
        "signs_from": "2026-05-01T12:00:00Z",
    }


def test_a_further_key_is_announced_first(harness: Harness) -> None:
    first = data(harness.run("keys", "generate", "--json"))
    harness.clock.advance(days=1)
    second = data(harness.run("keys", "generate", "--json"))
    assert (second["state"], second["published_at"], second["signs_from"]) == (
        "announced",
        "2026-02-01T12:00:00Z",
        "2026-02-08T12:00:00Z",
    )
    harness.clock.advance(days=7, seconds=-1)
    assert states(harness)[first["kid"]] == "signing"
    harness.clock.advance(seconds=1)
    assert (states(harness)[first["kid"]], states(harness)[second["kid"]]) == ("retiring", "signing")
    harness.clock.advance(hours=24, seconds=59)
    assert states(harness)[first["kid"]] == "retiring"
    harness.clock.advance(seconds=1)
    assert states(harness)[first["kid"]] == "gone"


@pytest.mark.parametrize(
    ("settings", "waits"),
    [
        ({"key_announce": "0", "jwks_max_age": "1s"}, 4),
        ({"key_announce": "1s", "jwks_max_age": "1s"}, 4),
        ({"key_announce": "5m", "jwks_max_age": "5m"}, 303),
        ({"key_announce": "7d", "jwks_max_age": "5m"}, 604800),
        ({"key_announce": "1s", "jwks_max_age": "5m", "keyring_propagation": "10m"}, 901),
        ({"key_announce": "1d", "jwks_max_age": "1d", "keyring_propagation": "0"}, 86401),
    ],
)
def test_a_key_is_never_announced_for_less_than_the_safe_time(
    tmp_path: Path, clock: SettableClock, settings: dict[str, str], waits: int
) -> None:
    """Cache time, propagation, and a second, since times are whole ones."""
    with open_harness(tmp_path, clock, migrated=False, **settings) as harness:
        made = data(harness.run("keys", "generate", "--json"))
        assert made["signs_from"] == (clock() + timedelta(seconds=waits)).strftime("%Y-%m-%dT%H:%M:%SZ")


def test_without_json_generate_only_talks(harness: Harness) -> None:
    done = harness.run("keys", "generate")
    assert (done.exit_code, done.stdout) == (0, "")
    assert " signs from " in done.stderr


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_rsa_keys_may_be_longer_and_the_standby_is_alike(harness: Harness, bits: int) -> None:
    assert data(harness.run("keys", "generate", "--bits", str(bits), "--json"))["bits"] == bits
    assert [key["bits"] for key in data(harness.run("keys", "list", "--json"))] == [bits, bits]


@pytest.mark.parametrize("bits", ["1024", "2047", "x", "", "8192"])
def test_other_lengths_are_refused(harness: Harness, bits: str) -> None:
    done = harness.run("keys", "generate", "--bits", bits)
    assert done.exit_code != 0
    assert "2048" in done.stderr
    assert list(harness.folder.glob("*.pem")) == []


def test_a_list_without_keys_is_empty(harness: Harness) -> None:
    assert data(harness.run("keys", "list", "--json")) == []
    assert harness.run("keys", "list").stdout == f"{LIST_HEADER}\n"


def test_a_list_in_a_pipe_is_tab_separated(harness: Harness) -> None:
    kid = data(harness.run("keys", "generate", "--json"))["kid"]
    spring = "2026-05-01T12:00:00Z"
    assert harness.run("keys", "list").stdout == (
        f"{LIST_HEADER}\n"
        f"{kid}\tRS256\tsigning\t{NOON}\t{spring}\tretiring\t\t\n"
        f"{standby_of(harness)}\tRS256\tannounced\t{NOON}\t{spring}\tsigning\t\t\n"
    )


# rotate


def test_rotate_moves_the_standby_to_the_safe_time_and_announces_the_next(harness: Harness) -> None:
    first = data(harness.run("keys", "generate", "--json"))["kid"]
    standby = standby_of(harness)
    harness.clock.advance(days=3)
    done = harness.run("keys", "rotate", "--json")
    assert done.stderr.startswith(f"{standby} signs from 2026-02-07T12:00:00Z on.\n")
    rotated = {key["kid"]: key for key in data(done)}
    assert rotated[first]["until"] == "2026-02-07T12:00:00Z"
    (third,) = rotated.keys() - {first, standby}
    assert (rotated[third]["published_at"], rotated[third]["signs_from"]) == (
        "2026-02-03T12:00:00Z",
        "2026-05-08T12:00:00Z",
    )


def test_rotate_after_the_announcement_takes_but_the_time_that_workers_need(harness: Harness) -> None:
    harness.run("keys", "generate")
    standby = standby_of(harness)
    harness.clock.advance(days=8)
    harness.run("keys", "rotate")
    harness.clock.advance(seconds=3)
    assert states(harness)[standby] == "signing"


def test_a_second_rotate_is_refused_with_the_earliest_time(harness: Harness) -> None:
    harness.run("keys", "generate")
    standby = standby_of(harness)
    harness.run("keys", "rotate")
    before = (harness.folder / "keyring.toml").read_bytes()
    assert refusal(harness.run("keys", "rotate")) == (
        f"{standby} signs from 2026-02-07T12:00:00Z on, and sooner is not safe: nothing was changed"
    )
    assert (harness.folder / "keyring.toml").read_bytes() == before


def test_rotate_shows_the_timeline_to_people(harness: Harness) -> None:
    first = data(harness.run("keys", "generate", "--json"))["kid"]
    standby = standby_of(harness)
    shown = harness.run("keys", "rotate").stdout
    assert f"2026-02-07T12:00:00Z  {standby} signs\n" in shown
    assert f"2026-02-07T12:00:00Z  {first} retires\n" in shown
    assert f"2026-02-08T12:01:00Z  {first} leaves the JWKS\n" in shown


def test_rotate_if_due_changes_nothing_before_its_time(harness: Harness) -> None:
    harness.run("keys", "generate")
    ring = harness.folder / "keyring.toml"
    before = ring.read_bytes(), ring.stat().st_mtime_ns
    for _ in range(3):
        done = harness.run("keys", "rotate", "--if-due")
        assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    assert (ring.read_bytes(), ring.stat().st_mtime_ns) == before


def test_a_rotation_is_planned_for_a_time_that_is_safe(harness: Harness) -> None:
    harness.run("keys", "generate")
    standby = standby_of(harness)
    before = (harness.folder / "keyring.toml").read_bytes()
    assert refusal(harness.run("keys", "rotate", "--at", "2026-02-07T11:59:59Z")) == (
        f"{standby} would sign from 2026-02-07T11:59:59Z on, before verifiers know it: the earliest safe time is "
        "2026-02-07T12:00:00Z"
    )
    assert (harness.folder / "keyring.toml").read_bytes() == before
    planned = {
        key["kid"]: key for key in data(harness.run("keys", "rotate", "--at", "2026-03-01T13:00:00+01:00", "--json"))
    }
    assert planned[standby]["signs_from"] == "2026-03-01T12:00:00Z"
    assert [key["signs_from"] for key in planned.values()][2] == "2026-05-30T12:00:00Z"
    assert len(planned) == 3
    told = refusal(harness.run("keys", "rotate", "--at", "2026-06-01T12:00:00Z"))
    assert told.endswith(f"signs from 2026-05-30T12:00:00Z on: {standby} must sign before it")
    # Another time, as long as it is safe.
    later = data(harness.run("keys", "rotate", "--at", "2026-02-07T12:00:00Z", "--json"))
    assert {key["signs_from"] for key in later if key["kid"] == standby} == {"2026-02-07T12:00:00Z"}
    assert len(later) == 3


@pytest.mark.parametrize("at", ["soon", "2026-03-01", "2026-03-01T12:00:00", ""])
def test_a_time_without_a_zone_is_refused(harness: Harness, at: str) -> None:
    harness.run("keys", "generate")
    done = harness.run("keys", "rotate", "--at", at)
    assert done.exit_code == 2
    assert "must be a date and time with a zone, such as 2026-01-31T12:00:00Z" in done.stderr
    assert harness.run("keys", "rotate", "--at", "2026-03-01T12:00:00Z", "--if-due").exit_code == 1


def test_prune_removes_what_has_been_gone_for_long_and_nothing_else(harness: Harness) -> None:
    first = data(harness.run("keys", "generate", "--json"))["kid"]
    harness.run("keys", "revoke", first, "--yes")
    harness.clock.advance(days=29)
    done = harness.run("keys", "prune", "--json")
    assert (data(done), done.stderr) == ([], "No key has been gone or revoked for 30 days.\n")
    assert (harness.folder / f"{first}.pem").exists()
    harness.clock.advance(days=1)
    done = harness.run("keys", "prune", "--json")
    assert (data(done), done.stderr) == ([first], f"{first} was removed.\n")
    assert not (harness.folder / f"{first}.pem").exists()
    assert first not in states(harness)
    assert data(harness.run("keys", "prune", "--json")) == []


def test_what_must_be_all_the_same_says_what_it_breaks_and_asks(harness: Harness) -> None:
    harness.run("keys", "generate")
    standby = standby_of(harness)
    ring = harness.folder / "keyring.toml"
    before = ring.read_bytes()
    told = refusal(harness.run("keys", "rotate", "--unsafe"))
    assert told == (
        "until 2026-01-31T12:05:03Z a verifier may have a JWKS without the key that signs, and refuse its tokens, "
        "which are all fresh ones: say --yes"
    )
    assert ring.read_bytes() == before
    old = harness.services.keys.manager.backend.read()
    done = harness.run("keys", "rotate", "--unsafe", "--yes", "--json")
    assert {key["kid"]: key["signs_from"] for key in data(done)}[standby] == "2026-01-31T12:00:03Z"
    assert "unsafe = true" in ring.read_text()
    warning = (
        f"Warning: {standby} signs from 2026-01-31T12:00:03Z on, as --unsafe said: until 2026-01-31T12:05:03Z a "
        "verifier may have a JWKS without it, and refuse its tokens.\n"
    )
    assert warning in done.stderr
    # Workers take it, and `check` warns.
    now = harness.clock()
    assert (
        find_unsafe_changes(old, harness.services.keys.manager.backend.read(), now, harness.services.keys.manager.rules)
        == []
    )
    checked = harness.run("keys", "check")
    assert (checked.exit_code, warning in checked.stderr) == (0, True)
    harness.clock.advance(seconds=3)
    assert states(harness)[standby] == "signing"


def test_unsafe_at_a_time_and_where_nothing_is_broken(harness: Harness) -> None:
    harness.run("keys", "generate")
    standby = standby_of(harness)
    assert refusal(harness.run("keys", "rotate", "--unsafe", "--at", "2026-01-31T12:05:02Z")).startswith("until 2026-")
    over = harness.run("keys", "rotate", "--unsafe", "--yes", "--at", "2026-01-31T11:00:00Z")
    assert refusal(over).startswith("2026-01-31T11:00:00Z is over: the earliest")
    assert harness.run("keys", "rotate", "--unsafe", "--if-due").exit_code == 1
    # Sooner than TOKENHOUSE_KEY_ANNOUNCE wishes, and every verifier that caches as it was told knows the key.
    done = harness.run("keys", "rotate", "--unsafe", "--at", "2026-01-31T12:05:03Z", "--json")
    assert {key["kid"]: key["signs_from"] for key in data(done)}[standby] == "2026-01-31T12:05:03Z"
    assert "unsafe" not in (harness.folder / "keyring.toml").read_text()


@pytest.mark.parametrize("value", ["1", '"yes"'])
def test_unsafe_in_a_ring_is_true_or_false(harness: Harness, value: str) -> None:
    harness.run("keys", "generate")
    with (harness.folder / "keyring.toml").open("a") as ring:
        ring.write(f"unsafe = {value}\n")
    assert refusal(harness.run("keys", "list")).endswith("unsafe must be true or false")


def test_rotate_if_due_keeps_keys_in_turn_for_years(harness: Harness) -> None:
    """Each key signs for its 90 days, a standby is always announced, and old keys leave the ring with their files."""
    harness.run("keys", "generate")
    signers = []
    for _ in range(365):
        harness.clock.advance(days=2)
        assert harness.run("keys", "rotate", "--if-due").exit_code == 0
        listed = data(harness.run("keys", "list", "--json"))
        (signing,) = [key["kid"] for key in listed if key["state"] == "signing"]
        assert [key for key in listed if key["state"] == "announced"]
        if signing not in signers:
            signers.append(signing)
    assert len(signers) == 9
    assert len(listed) <= 3
    assert {path.stem for path in harness.folder.glob("*.pem")} == {key["kid"] for key in listed}


def test_rotate_without_keys_says_what_to_do(harness: Harness) -> None:
    for arguments in (["rotate"], ["rotate", "--if-due"]):
        assert refusal(harness.run("keys", *arguments)) == (
            "the key ring has no key that may sign now: `flask keys generate` makes one"
        )


# revoke


def test_revoke_puts_the_standby_in_its_place_at_once(harness: Harness) -> None:
    first = data(harness.run("keys", "generate", "--json"))["kid"]
    standby = standby_of(harness)
    harness.clock.advance(days=8)
    done = harness.run("keys", "revoke", first, "--yes")
    assert done.exit_code == 0
    assert done.stderr == (
        f"{first} leaves the JWKS of each worker when it sees this, within 2 s; "
        "it breaks up to 86400 s of live tokens.\n"
        f"{standby} signs.\n"
    )
    after = states(harness)
    assert (after.pop(first), after.pop(standby)) == ("revoked", "signing")
    assert list(after.values()) == ["announced"]
    published = [key.kid for key in harness.services.keys.manager.backend.read().published_keys(harness.clock())]
    assert first not in published


def test_revoke_asks_for_yes_and_says_what_it_breaks(harness: Harness) -> None:
    first = data(harness.run("keys", "generate", "--json"))["kid"]
    standby = standby_of(harness)
    before = (harness.folder / "keyring.toml").read_bytes()
    assert refusal(harness.run("keys", "revoke", first)) == (
        f"revoking {first} cannot be undone and breaks up to 86400 s of live tokens: say --yes"
    )
    assert refusal(harness.run("keys", "revoke", standby)) == (
        f"revoking {standby} cannot be undone and breaks no live token: say --yes"
    )
    assert (harness.folder / "keyring.toml").read_bytes() == before


def test_revoking_a_retiring_key_says_what_is_left_of_its_tokens(harness: Harness) -> None:
    first = data(harness.run("keys", "generate", "--json"))["kid"]
    harness.clock.advance(days=90, hours=24)
    assert refusal(harness.run("keys", "revoke", first)) == (
        f"revoking {first} cannot be undone and breaks up to 60 s of live tokens: say --yes"
    )


def test_the_harm_is_what_the_longest_lifetime_allows(tmp_path: Path, clock: SettableClock) -> None:
    with open_harness(tmp_path, clock, access_token_lifetime="10m") as harness:
        (key,) = harness.services.keys.manager.backend.read().keys
        assert "breaks up to 600 s of live tokens" in refusal(harness.run("keys", "revoke", key.kid))
        harness.register("a", access_token_lifetime=300)
        assert "breaks up to 600 s of live tokens" in refusal(harness.run("keys", "revoke", key.kid))
        harness.register("b", access_token_lifetime=7200)
        assert "breaks up to 7200 s of live tokens" in refusal(harness.run("keys", "revoke", key.kid))


def test_revoking_twice_is_once(harness: Harness) -> None:
    first = data(harness.run("keys", "generate", "--json"))["kid"]
    harness.run("keys", "revoke", first, "--yes")
    before = (harness.folder / "keyring.toml").read_bytes()
    done = harness.run("keys", "revoke", first, "--yes")
    assert (done.exit_code, done.stderr) == (0, f"{first} was revoked at {NOON} already.\n")
    assert (harness.folder / "keyring.toml").read_bytes() == before


def test_a_standby_that_nobody_knows_yet_signs_in_an_emergency_with_a_warning(harness: Harness) -> None:
    first = data(harness.run("keys", "generate", "--json"))["kid"]
    standby = standby_of(harness)
    told = harness.run("keys", "revoke", first, "--yes").stderr
    assert told.splitlines()[2] == (
        "Warning: no standby had been announced for long enough. Until 2026-01-31T12:05:03Z a verifier may have a "
        f"JWKS without {standby}, and refuse fresh tokens."
    )


def test_a_revoked_standby_is_replaced(harness: Harness) -> None:
    first = data(harness.run("keys", "generate", "--json"))["kid"]
    standby = standby_of(harness)
    harness.run("keys", "revoke", standby, "--yes")
    after = states(harness)
    assert (after.pop(first), after.pop(standby)) == ("signing", "revoked")
    assert list(after.values()) == ["announced"]


def test_a_key_that_is_not_there_is_not_revoked(harness: Harness) -> None:
    harness.run("keys", "generate")
    assert refusal(harness.run("keys", "revoke", "x", "--yes")) == "there is no key 'x': `flask keys list` shows all"


# check


def test_check_shows_the_next_year_and_is_content_with_what_commands_make(harness: Harness) -> None:
    harness.run("keys", "generate")
    done = harness.run("keys", "check")
    assert done.exit_code == 0
    assert done.stderr == f"the key ring {harness.folder}/keyring.toml is safe.\n"
    lanes = done.stdout.splitlines()
    assert lanes[0].split() == ["2026-01-31", "2027-01-31"]
    assert lanes[1].split()[1].startswith("SSSS")
    assert lanes[2].split()[1].startswith("····")


def test_check_refuses_a_step_that_is_too_early_with_the_earliest_safe_time(harness: Harness) -> None:
    harness.run("keys", "generate")
    standby = standby_of(harness)
    ring = harness.folder / "keyring.toml"
    ring.write_text(ring.read_text().replace("signs_from = 2026-05-01T12:00:00Z", "signs_from = 2026-01-31T12:05:02Z"))
    done = harness.run("keys", "check")
    assert done.exit_code == 1
    assert (
        f"Error: {standby} would sign from 2026-01-31T12:05:02Z on, before verifiers know it: it is published at "
        f"{NOON}, and the earliest safe time is 2026-01-31T12:05:03Z\n"
    ) in done.stderr
    ring.write_text(ring.read_text().replace("12:05:02Z", "12:05:03Z"))
    assert harness.run("keys", "check").exit_code == 0


def test_check_refuses_a_ring_without_a_signing_key(harness: Harness) -> None:
    harness.run("keys", "generate")
    harness.clock.advance(days=-1)
    assert "the key ring has no key that may sign now: the first may sign from" in harness.run("keys", "check").stderr


def test_check_sees_that_nothing_will_sign(harness: Harness) -> None:
    harness.run("keys", "generate")
    ring = harness.folder / "keyring.toml"
    ring.write_text(f"{ring.read_text()}signs_until = 2027-01-01T00:00:00Z\n")
    first = ring.read_text().index("[[keys]]")
    second = ring.read_text().index("[[keys]]", first + 1)
    ring.write_text(f"{ring.read_text()[:second]}signs_until = 2026-12-01T00:00:00Z\n{ring.read_text()[second:]}")
    done = harness.run("keys", "check")
    assert done.exit_code == 1
    assert done.stderr.endswith("Error: no key may sign from 2027-01-01T00:00:00Z on\n")


def test_check_looks_at_a_file_that_is_named(harness: Harness, tmp_path_factory: pytest.TempPathFactory) -> None:
    harness.run("keys", "generate")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for path in harness.folder.glob("*[lm]"):
        (elsewhere / path.name).write_bytes(path.read_bytes())
        (elsewhere / path.name).chmod(0o600)
    done = harness.run("keys", "check", str(elsewhere / "keyring.toml"))
    assert done.stderr == f"the key ring {elsewhere}/keyring.toml is safe.\n"
    assert refusal(harness.run("keys", "check", "nowhere.toml")).startswith("there is no file ")


def test_check_compares_a_file_with_the_ring_that_is_in_use(
    harness: Harness, tmp_path_factory: pytest.TempPathFactory
) -> None:
    first = data(harness.run("keys", "generate", "--json"))["kid"]
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for path in harness.folder.glob("*[lm]"):
        (elsewhere / path.name).write_bytes(path.read_bytes())
        (elsewhere / path.name).chmod(0o600)
    # Whole in itself: but the key that signs now would be gone.
    text = (elsewhere / "keyring.toml").read_text()
    head, one, two = text.split("[[keys]]")
    two = two.replace("signs_from = 2026-05-01T12:00:00Z", f"signs_from = {NOON}")
    (elsewhere / "keyring.toml").write_text(f"{head}[[keys]]{two}")
    done = harness.run("keys", "check", str(elsewhere / "keyring.toml"), "--json")
    fault = f"{first} would leave the JWKS while tokens of it are alive: the earliest safe time is 2026-05-02T12:01:00Z"
    told = json.loads(done.stdout)
    assert (done.exit_code, told["is_safe"], told["faults"]) == (1, False, [fault])
    assert len(told["keys"]) == 1
    assert done.stderr.endswith(f"Error: {fault}\n")
    assert one


def test_every_command_has_json(harness: Harness) -> None:
    first = data(harness.run("keys", "generate", "--json"))["kid"]
    assert data(harness.run("keys", "check", "--json")) == {
        "is_safe": True,
        "faults": [],
        "warnings": [],
        "keys": data(harness.run("keys", "rotate", "--if-due", "--json")),
    }
    jwk = data(harness.run("keys", "export", first, "--json"))
    assert (jwk["kid"], jwk["kty"], sorted(jwk)) == (first, "RSA", ["alg", "e", "kid", "kty", "n", "use"])
    moved = data(harness.run("keys", "move", str(harness.folder / "copy" / "keyring.toml"), "--json"))
    assert moved[0]["kid"] == first


def test_check_draws_a_picture(harness: Harness) -> None:
    harness.run("keys", "generate")
    picture = harness.folder / "timeline.svg"
    assert harness.run("keys", "check", "--svg", str(picture)).exit_code == 0
    titles = re.findall("<title>(.*)</title>", picture.read_text())
    first, standby = harness.services.keys.manager.backend.read().keys
    assert titles[1:] == [
        f"{first.kid}: signing from 2026-01-31 12:00 to 2026-05-01 12:00 UTC",
        f"{first.kid}: retiring from 2026-05-01 12:00 to 2026-05-02 12:01 UTC",
        f"{standby.kid}: announced from 2026-01-31 12:00 to 2026-05-01 12:00 UTC",
        f"{standby.kid}: signing from 2026-05-01 12:00 to 2027-01-31 12:00 UTC",
    ]
    assert refusal_line(harness.run("keys", "check", "--svg", "/proc/nowhere.svg")).startswith(
        "/proc/nowhere.svg cannot be written: "
    )


# Other algorithms


@pytest.mark.parametrize(("alg", "bits"), [("PS256", 2048), ("ES256", 256), ("EdDSA", 256)])
def test_a_safe_way_from_one_algorithm_to_another(tmp_path: Path, clock: SettableClock, alg: str, bits: int) -> None:
    with open_harness(tmp_path, clock, migrated=False, with_key=False) as harness:
        old = data(harness.run("keys", "generate", "--json"))["kid"]
        made = harness.run("keys", "generate", "--alg", alg, "--json")
        new = data(made)
        assert (new["alg"], new["bits"], new["state"]) == (alg, bits, "announced")
        assert "Some verifiers refuse a JWKS with keys of several algorithms" in made.stderr
    with open_harness(tmp_path, clock, migrated=False, with_key=False, signing_alg=alg) as harness:
        # Too early: the server would not start, and says until when to wait.
        assert refusal_line(harness.run("keys", "check")) == (
            f"the key ring has no {alg} key that may sign now: the first may sign from 2026-02-07T12:00:00+00:00 on; "
            "keep TOKENHOUSE_SIGNING_ALG=RS256 until then"
        )
        clock.advance(days=7)
        assert harness.services.keys.manager.backend.read().signing_key(clock()).kid == new["kid"]
        assert harness.run("keys", "check").exit_code == 0
        assert harness.run("keys", "rotate", "--if-due").exit_code == 0
        question = f"Every server must run with TOKENHOUSE_SIGNING_ALG={alg} before RS256 is retired"
        assert (
            refusal(harness.run("keys", "retire", "RS256"))
            == f"{question[0].lower()}{question[1:]}: say --yes when it is so"
        )
        done = harness.run("keys", "retire", "RS256", "--yes")
        assert done.stderr == (
            "RS256 keys sign no more from 2026-02-07T12:00:03Z on, and leave the JWKS at 2026-02-08T12:01:03Z.\n"
        )
        clock.advance(hours=24, seconds=62)
        assert states(harness)[old] == "retiring"
        clock.advance(seconds=1)
        assert states(harness)[old] == "gone"
        assert {key.alg for key in harness.services.keys.manager.backend.read().published_keys(clock())} == {alg}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["retire", "RS256", "--yes"], "RS256 is what signs (TOKENHOUSE_SIGNING_ALG): set another first"),
        (["retire", "ES256", "--yes"], "the key ring has no ES256 key in use"),
    ],
)
def test_what_signs_is_not_retired(harness: Harness, arguments: list[str], told: str) -> None:
    harness.run("keys", "generate")
    assert refusal(harness.run("keys", *arguments)) == told


def test_a_first_key_of_another_algorithm_is_refused(harness: Harness) -> None:
    assert refusal(harness.run("keys", "generate", "--alg", "ES256")) == (
        "a first key signs at once, so it must be of RS256 (TOKENHOUSE_SIGNING_ALG)"
    )
    assert not (harness.folder / "keyring.toml").exists()


# A clock that is wrong


def test_a_clock_that_was_set_back_is_noticed(harness: Harness) -> None:
    harness.run("keys", "generate")
    before = (harness.folder / "keyring.toml").read_bytes()
    harness.clock.advance(hours=-1)
    for arguments in (["rotate"], ["rotate", "--if-due"], ["generate"]):
        assert refusal(harness.run("keys", *arguments)) == (
            "the clock says 2026-01-31T11:00:00Z, and the ring was changed at 2026-01-31T12:00:00Z: one of the two is "
            "wrong. Set the clock right; nothing was changed"
        )
    assert (harness.folder / "keyring.toml").read_bytes() == before
    assert {path.name for path in harness.folder.glob("*.pem")} == {
        f"{key.kid}.pem" for key in harness.services.keys.manager.backend.read().keys
    }


# move


def test_a_ring_moves_into_the_database_and_back(tmp_path: Path, clock: SettableClock, database_url: str) -> None:
    key = f"e1:{'k' * 40}"
    with open_harness(tmp_path, clock, with_key=False, database_url=database_url, encryption_keys=key) as harness:
        harness.run("keys", "generate")
        listed = states(harness)
        done = harness.run("keys", "move", "database")
        assert done.exit_code == 0, done.stderr
        assert done.stderr.startswith("2 keys were copied from the key ring ")
        assert harness.run("keys", "move", "database").exit_code == 0
    with open_harness(
        tmp_path, clock, with_key=False, database_url=database_url, encryption_keys=key, keyring="database"
    ) as harness:
        assert states(harness) == listed
        assert harness.run("keys", "move", "database").exit_code == 1
        assert harness.run("keys", "move", str(tmp_path / "back" / "keyring.toml")).exit_code == 0
        assert (tmp_path / "back" / "keyring.toml").stat().st_mode & 0o777 == 0o600
        harness.run("keys", "generate")
        assert refusal(harness.run("keys", "move", str(tmp_path / "keyring.toml"))) == (
            f"the key ring {tmp_path}/keyring.toml has keys of its own: nothing was changed"
        )


def test_a_ring_does_not_move_into_a_variable(harness: Harness) -> None:
    harness.run("keys", "generate")
    assert "is static" in refusal(harness.run("keys", "move", "env:KEYS"))


# export


def test_a_public_key_is_exported_as_pem(harness: Harness) -> None:
    kid = data(harness.run("keys", "generate", "--json"))["kid"]
    done = harness.run("keys", "export", "--", kid)
    assert (done.exit_code, done.stderr) == (0, "")
    key = harness.services.keys.manager.backend.read().keys[0]
    assert load_pem_public_key(done.stdout.encode()) == key.private_key.public_key()
    assert done.stdout.startswith("-----BEGIN PUBLIC KEY-----\n")
    assert done.stdout.endswith("-----END PUBLIC KEY-----\n")


def test_a_key_whose_name_begins_with_a_hyphen_is_exported_too(harness: Harness) -> None:
    kid = data(harness.run("keys", "generate", "--json"))["kid"]
    ring = harness.folder / "keyring.toml"
    ring.write_text(ring.read_text().replace(f'kid = "{kid}"', 'kid = "-0abc"'))
    assert harness.run("keys", "export", "-0abc").stdout.startswith("-----BEGIN PUBLIC KEY-----\n")


@pytest.mark.parametrize("kid", ["nowhere", "", "é", "\udcff", "../keyring.toml"])
def test_a_key_that_is_not_there_is_refused(harness: Harness, kid: str) -> None:
    harness.run("keys", "generate")
    assert refusal(harness.run("keys", "export", kid)) == f"there is no key {kid!r}: `flask keys list` shows all"


def test_an_export_without_a_ring_says_what_to_do(harness: Harness) -> None:
    told = refusal(harness.run("keys", "export", "x"))
    assert told == f"there is no key ring at {harness.folder}/keyring.toml: `flask keys generate` makes one"


@pytest.mark.parametrize("verb", [["list"], ["generate"], ["export", "x"]])
@pytest.mark.parametrize("content", [b"keys =", b"\xff", b"other = 1", b"[[keys]]\n"])
def test_a_ring_that_is_broken_is_one_line_and_stays_as_it_is(
    harness: Harness, verb: list[str], content: bytes
) -> None:
    ring = harness.folder / "keyring.toml"
    ring.write_bytes(content)
    told = refusal(harness.run("keys", *verb))
    assert str(ring) in told
    assert ring.read_bytes() == content
    assert [path.name for path in harness.folder.glob("*.pem")] == []


@pytest.mark.parametrize("folder", ["/proc/nowhere", "/dev/null"])
def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path, clock: SettableClock, folder: str) -> None:
    with open_harness(tmp_path, clock, migrated=False, with_key=False, keyring=f"{folder}/keyring.toml") as harness:
        told = refusal(harness.run("keys", "generate"))
        assert told.startswith(f"the key ring {folder}/keyring.toml cannot be written, and is as it was: ")


def test_keys_are_encrypted_where_there_is_a_passphrase(tmp_path: Path, clock: SettableClock) -> None:
    with open_harness(tmp_path, clock, migrated=False, with_key=False, keyring_passphrase="correct horse") as harness:
        kid = data(harness.run("keys", "generate", "--json"))["kid"]
        assert b"ENCRYPTED" in (tmp_path / f"{kid}.pem").read_bytes()
        assert len(data(harness.run("keys", "list", "--json"))) == 2
    with open_harness(tmp_path, clock, migrated=False, with_key=False) as harness:
        assert refusal(harness.run("keys", "list")).endswith(
            "cannot be parsed as a private key in PEM with TOKENHOUSE_KEYRING_PASSPHRASE"
        )


def test_no_command_shows_a_private_key(harness: Harness) -> None:
    kid = data(harness.run("keys", "generate", "--json"))["kid"]
    pem = (harness.folder / f"{kid}.pem").read_text().splitlines()[1]
    for arguments in (["list"], ["list", "--json"], ["export", "--", kid]):
        done = harness.run("keys", *arguments)
        assert pem not in done.output
        assert "PRIVATE" not in done.output


# A real process


def test_real_commands_make_and_export_a_key(tmp_path: Path) -> None:
    installation = Installation(tmp_path / "new")
    made = installation.flask_json("keys", "generate")
    assert abs(datetime.fromisoformat(made["signs_from"]) - datetime.now(UTC)) < timedelta(minutes=2)
    assert [key["state"] for key in installation.flask_json("keys", "list")] == ["signing", "announced"]
    done = installation.flask("keys", "export", "--", made["kid"])
    assert done.stdout.startswith("-----BEGIN PUBLIC KEY-----\n")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").glob("*[lm]")}
    assert set(modes.values()) == {0o600}
    assert {"keyring.toml", f"{made['kid']}.pem"} <= modes.keys()
    read = subprocess.run(
        ["openssl", "rsa", "-pubin", "-noout", "-text"], input=done.stdout, capture_output=True, text=True, check=True
    )
    assert "Public-Key: (2048 bit)" in read.stdout
