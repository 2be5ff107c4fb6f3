"""The locks: every release that is installed, with its digests, as the ranges of setup.cfg allow."""

import configparser
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from app.config.values import PROJECT_FOLDER

SETUP = configparser.ConfigParser()
SETUP.read(PROJECT_FOLDER / "setup.cfg")
EXTRAS = SETUP["options.extras_require"]
SERVER, TESTS, DEVELOPMENT = (PROJECT_FOLDER / f"requirements{which}.txt" for which in ("", "-test", "-dev"))
LOCKS = {SERVER: ["build", "otel"], TESTS: ["build", "otel", "test", "check"], DEVELOPMENT: list(EXTRAS)}
_ENTRY = re.compile(r"(?P<requirement>[^\n\\]+?) \\\n(?P<digests>(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)")


def entries(lock: Path) -> list[Requirement]:
    text = "".join(line for line in lock.read_text().splitlines(keepends=True) if not line.startswith("#"))
    assert not _ENTRY.sub("", text), f"{lock.name} has lines that are no release with digests"
    return [Requirement(found["requirement"]) for found in _ENTRY.finditer(text)]


def wanted(extra: str) -> list[Requirement]:
    lines = (SETUP["options"]["install_requires"] if extra == "" else EXTRAS[extra]).splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_pins_every_requirement_within_its_range(lock: Path) -> None:
    pinned = {canonicalize_name(entry.name): entry for entry in entries(lock)}
    assert [str(entry) for entry in pinned.values() if not re.fullmatch(r"==[^*,]+", str(entry.specifier))] == []
    for requirement in (each for extra in ["", *LOCKS[lock]] for each in wanted(extra)):
        (pin,) = pinned[canonicalize_name(requirement.name)].specifier
        assert requirement.specifier.contains(pin.version, prereleases=True), requirement


def test_the_locks_agree() -> None:
    server, tests, development = ({(each.name, str(each.specifier)) for each in entries(lock)} for lock in LOCKS)
    assert server < tests < development


@pytest.mark.parametrize("name", ["Makefile", "Dockerfile"])
def test_nothing_is_installed_without_a_digest(name: str) -> None:
    commands = re.findall(r"pip install (.+)", (PROJECT_FOLDER / name).read_text())
    assert commands
    assert [one for one in commands if "--require-hashes" not in one and "--no-deps" not in one] == []
