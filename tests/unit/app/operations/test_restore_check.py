"""What the audit log says and a restored database does not: each restriction is repeated, and what is lost is named."""

import gzip
import json
import shutil
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import SettableClock
from support.keys import generate_long_ago
from unit.harness import Harness, open_harness

from app.config.values import format_time
from app.database.models import db
from app.operations.doctor_servers import registry_of
from app.tokens.revocations import RevokedToken


class Restored:
    """An installation whose database is put back to a backup."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.log = harness.folder / "audit.log"
        self._lines: list[str] = []

    def run(self, *arguments: str) -> Any:
        done = self.harness.run(*arguments)
        assert done.exit_code == 0, done.stderr
        self.harness.clock.advance(seconds=2)
        return done

    def say(self, event: str, **facts: Any) -> None:
        """A line of a server."""
        self._lines.append(json.dumps({"time": format_time(self.harness.clock()), "event": event, **facts}))

    def back_up(self) -> None:
        self._settle()
        shutil.copy(self.harness.folder / "tokenhouse.db", self.harness.folder / "backup")

    def restore(self) -> None:
        """Write the log of what came after, and put the backup back."""

        def write(time: datetime, event: str, facts: dict[str, Any]) -> None:
            self._lines.append(json.dumps({"time": format_time(time), "event": event, **facts}))

        self.harness.services.audit.outbox.drain(write)
        self._settle()
        self.log.write_text("".join(f"{line}\n" for line in self._lines))
        for path in self.harness.folder.glob("tokenhouse.db*"):
            path.unlink()
        shutil.copy(self.harness.folder / "backup", self.harness.folder / "tokenhouse.db")

    def _settle(self) -> None:
        with self.harness.app.app_context():
            db.session.remove()
            db.engine.dispose()

    def check(self, *options: str) -> dict[str, str]:
        """The outcome of each difference."""
        done = self.harness.run("restore-check", "--audit", str(self.log), *options, "--json")
        assert "Traceback" not in done.stderr
        return {row["what"]: row["outcome"] for row in json.loads(done.stdout)}


@pytest.fixture
def restored(tmp_path: Path, clock: SettableClock) -> Iterator[Restored]:
    key = {"encryption_keys": f"k1:{'e0f1a2b3c4d5' * 3}", "keyring": "database"}
    with open_harness(tmp_path, clock, with_key=False, **key) as harness:
        generate_long_ago(harness.services.keys.manager)
        made = Restored(harness)
        for client_id in ("a", "b"):
            made.run("clients", "create", client_id.upper(), "--client-id", client_id)
        yield made


def secret_of(restored: Restored, client_id: str) -> str:
    (secret,) = json.loads(restored.run("clients", "secrets", client_id, "--json").stdout)
    return str(secret["id"])


def test_nothing_is_missing_where_nothing_was_restored(restored: Restored) -> None:
    restored.run("clients", "disable", "a")
    restored.say("TokenIssued", client_id="a", jti="jti-1")
    restored.back_up()
    restored.restore()
    assert restored.check() == {}
    done = restored.harness.run("restore-check", "--audit", str(restored.log))
    assert (done.exit_code, done.stderr) == (0, "The database has everything that the log says.\n")


Do = Callable[[Restored], str]


def disable(restored: Restored) -> str:
    restored.run("clients", "disable", "a")
    return "client a was disabled at 2026-01-31T12:00:04Z"


def disable_and_enable(restored: Restored) -> str:
    disable(restored)
    restored.run("clients", "enable", "a")
    return "all tokens of client a were revoked at 2026-01-31T12:00:04Z"


def delete(restored: Restored) -> str:
    restored.run("clients", "disable", "a")
    restored.run("clients", "delete", "a", "--yes")
    return "client a was deleted at 2026-01-31T12:00:06Z"


def revoke_tokens(restored: Restored) -> str:
    restored.run("tokens", "revoke", "--client", "a")
    return "all tokens of client a were revoked at 2026-01-31T12:00:04Z"


def revoke_secret(restored: Restored) -> str:
    secret_id = secret_of(restored, "a")
    restored.run("clients", "revoke-secret", "a", secret_id)
    return f"secret {secret_id} of client a was ended at 2026-01-31T12:00:06Z"


def revoke_key(restored: Restored) -> str:
    kid = restored.harness.services.keys.manager.backend.read().keys[0].kid
    restored.run("keys", "revoke", kid, "--yes")
    return f"key {kid} was revoked at 2026-01-31T12:00:04Z"


def revoke_a_token(restored: Restored) -> str:
    token = RevokedToken("jti-1", "a", ("urn:a",), int(restored.harness.clock().timestamp()) + 600)
    restored.harness.services.tokens.revocations.revoke(token)
    restored.say("TokenRevoked", client_id="a", was_live=True, jti="jti-1")
    return "token jti-1 of client a was revoked at 2026-01-31T12:00:04Z"


@pytest.mark.parametrize(
    "do", [disable, disable_and_enable, delete, revoke_tokens, revoke_secret, revoke_key, revoke_a_token]
)
def test_each_restriction_is_repeated_once(restored: Restored, do: Do) -> None:
    restored.back_up()
    what = do(restored)
    restored.restore()
    assert restored.harness.run("restore-check", "--audit", str(restored.log), "--dry-run").exit_code == 1
    found = {name: outcome for name, outcome in restored.check().items() if outcome != "lost"}
    assert found == {what: "repeated"}
    assert set(restored.check().values()) <= {"lost"}


def test_what_was_created_is_named_as_lost(restored: Restored) -> None:
    restored.back_up()
    restored.run("clients", "create", "New", "--client-id", "new")
    restored.run("clients", "rotate-secret", "a")
    restored.run("clients", "update", "b", "--description", "changed", "--scope", "x")
    restored.run("clients", "create", "Gone", "--client-id", "gone")
    restored.run("clients", "delete", "gone", "--yes")
    restored.say("KeyRingChanged", change="generated", kids=["lost-kid"])
    restored.say("KeyRingChanged", change="generated", kids=["pruned-kid"])
    restored.say("KeyRingChanged", change="pruned", kids=["pruned-kid"])
    restored.restore()
    found = restored.check()
    assert set(found.values()) == {"lost"}
    (secret,) = (what for what in found if what.startswith("secret "))
    assert secret.endswith(" of client a was created at 2026-01-31T12:00:06Z and is lost: its callers are refused")
    assert found.keys() - {secret} == {
        "client new was created at 2026-01-31T12:00:04Z and is lost",
        "client b was updated at 2026-01-31T12:00:08Z, and has the former description, scope",
        "key lost-kid was created at 2026-01-31T12:00:14Z and is lost: tokens that it signed are refused",
    }
    # Nothing can be done about it, so it is no failure.
    assert restored.harness.run("restore-check", "--audit", str(restored.log), "--dry-run").exit_code == 0


def test_a_token_that_has_expired_since_is_left(restored: Restored) -> None:
    restored.back_up()
    restored.say("TokenIssued", client_id="a", jti="jti-1", audience=["urn:a"], expires_in=60)
    revoke_a_token(restored)
    restored.restore()
    restored.harness.clock.advance(seconds=62)
    assert restored.check() == {}


def test_what_was_issued_says_until_when_it_is_revoked(restored: Restored) -> None:
    restored.back_up()
    restored.say("TokenIssued", client_id="a", jti="jti-1", audience=["urn:a", "urn:b"], expires_in=600)
    issued = int(restored.harness.clock().timestamp())
    revoke_a_token(restored)
    restored.restore()
    restored.check()
    assert restored.harness.services.tokens.revocations.live() == [
        ("jti-1", issued + 601, frozenset({"urn:a", "urn:b"}))
    ]


def test_wrapped_and_compressed_lines_are_read_in_any_order(restored: Restored) -> None:
    restored.back_up()
    what = disable(restored)
    restored.restore()
    lines = restored.log.read_text().splitlines()
    restored.log.write_text("no JSON\n{\n[]\n" + json.dumps({"event": "ClientChanged", "time": "yesterday"}) + "\n")
    with gzip.open(restored.log.with_suffix(".2.gz"), "wt") as file:
        file.writelines(json.dumps({"log": line, "stream": "stdout"}) + "\n" for line in reversed(lines))
    assert restored.check(str(restored.log.with_suffix(".2.gz"))) == {what: "repeated"}


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b", b"no gzip"])
def test_a_log_that_is_cut_is_one_line(restored: Restored, content: bytes) -> None:
    path = restored.harness.folder / "audit.log.gz"
    path.write_bytes(content)
    done = restored.harness.run("restore-check", "--audit", str(path))
    what = f"the log {path} cannot be read: " if content else f"no line of the audit log in {path}: "
    assert done.exit_code == 1
    assert done.stderr.startswith(f"Error: {what}")
    assert done.stderr.count("\n") == 1


def test_other_files_do_not_count_as_checked(restored: Restored) -> None:
    restored.back_up()
    with restored.harness.app.app_context():
        registry_of(restored.harness.services).record()
    path = restored.harness.folder / "access.log"
    path.write_text('GET / 200\n{"event": "ClientChanged", "time": "yesterday"}\n{"time": "2026-01-31T12:00:04Z"}\n')
    for options in ([], ["--dry-run"]):
        done = restored.harness.run("restore-check", "--audit", str(path), *options)
        assert (done.exit_code, done.stderr) == (
            1,
            f"Error: no line of the audit log in {path}: give the files that the servers wrote it to\n",
        )
    with restored.harness.app.app_context():
        (row,) = registry_of(restored.harness.services).servers()
        assert row.checked_at is None
