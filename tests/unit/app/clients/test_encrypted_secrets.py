"""Secrets that are read again: bound to their place, renewed with a new key, and kept as the method needs them."""

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from conftest import SettableClock
from pydantic import SecretStr
from sqlalchemy import select
from support.assertions import form
from support.server import NewClient
from unit.harness import Harness, open_harness

from app.clients.encrypted_secrets import EncryptedSecrets
from app.config.values import IdentifiedKey
from app.crypto.encryption import DecryptionError
from app.database.models import ClientSecretRow, db
from app.errors import ManagementError

K1, K2 = f"k1:{'1' * 40}", f"k2:{'2' * 40}"
METHOD = "client_secret_jwt"
SECRET = "a-secret-of-more-than-32-characters"


@contextmanager
def opened(folder: Path, clock: SettableClock, keys: str = K1, *, first: bool = False) -> Iterator[Harness]:
    """The same installation, with these keys."""
    settings = {"secret_peppers": f"p1:{'p' * 40}"} | ({"encryption_keys": keys} if keys else {})
    with open_harness(folder, clock, migrated=first, with_key=first, **settings) as harness:
        yield harness


def stored(harness: Harness) -> ClientSecretRow:
    with harness.app.app_context():
        row = db.session.scalars(select(ClientSecretRow)).one()
        db.session.expunge(row)
        return row


def ask(harness: Harness, client: NewClient, secret: str | None = None) -> int:
    """Ask for a token with an assertion; the status."""
    now = int(harness.clock().timestamp())
    claims = {"iss": client.client_id, "sub": client.client_id, "aud": harness.settings.issuer}
    claims |= {"iat": now, "exp": now + 60, "jti": uuid.uuid4().hex}
    signed = jwt.encode(claims, secret or client.secret, "HS256")
    return harness.app.test_client().post("/oauth/token", data=form(signed)).status_code


def by_body(harness: Harness, client: NewClient) -> int:
    data = {"grant_type": "client_credentials", "client_id": client.client_id, "client_secret": client.secret}
    return harness.app.test_client().post("/oauth/token", data=data).status_code


def keys(*pairs: str) -> list[IdentifiedKey]:
    return [IdentifiedKey(key_id, SecretStr(value)) for key_id, _, value in (pair.partition(":") for pair in pairs)]


def test_it_is_encrypted_for_its_client_and_its_id_alone() -> None:
    encrypted_secrets = EncryptedSecrets(keys(K1))
    key_id, encrypted = encrypted_secrets.encrypt("a", "s-1", SECRET)
    assert SECRET.encode() not in encrypted
    row: Any = SimpleNamespace(secret_id="s-1", encryption_key_id=key_id, encrypted=encrypted)
    assert encrypted_secrets.decrypt("a", row) == SECRET
    assert encrypted_secrets.decrypt_or_dummy("a", row) == (SECRET, True)
    for client_id, secret_id in (("b", "s-1"), ("a", "s-2"), ("1 of a", "s-")):
        moved: Any = SimpleNamespace(secret_id=secret_id, encryption_key_id=key_id, encrypted=encrypted)
        with pytest.raises(DecryptionError):
            encrypted_secrets.decrypt(client_id, moved)
        other, is_its_own = encrypted_secrets.decrypt_or_dummy(client_id, moved)
        assert (other != SECRET, is_its_own) == (True, False)


def test_nobodys_secret_is_random_and_nobodys() -> None:
    nothing: Any = SimpleNamespace(secret_id=None, encryption_key_id=None, encrypted=None)
    found = [EncryptedSecrets(keys(*given)).decrypt_or_dummy("", nothing) for given in ((K1,), (K1,), ())]
    assert len({secret for secret, _ in found}) == 3
    assert {is_its_own for _, is_its_own in found} == {False}


def test_the_database_keeps_no_digest_of_it_and_no_other_way_lets_it_in(tmp_path: Path, clock: SettableClock) -> None:
    with opened(tmp_path, clock, first=True) as harness:
        client = harness.register("c", secret=SECRET, token_endpoint_auth_method=METHOD)
        row = stored(harness)
        assert (row.digest, row.pepper_id, row.encryption_key_id) == (b"", "", "k1")
        assert (ask(harness, client), by_body(harness, client), ask(harness, client, "x" * 40)) == (200, 401, 401)


def test_a_new_key_takes_over_with_use_and_the_old_one_may_leave(tmp_path: Path, clock: SettableClock) -> None:
    with opened(tmp_path, clock, first=True) as harness:
        client = harness.register("c", secret=SECRET, token_endpoint_auth_method=METHOD)
    with opened(tmp_path, clock, f"{K2},{K1}") as harness:
        assert (
            harness.run("clients", "secrets", "--by-encryption-key", "--json").stdout
            == json.dumps(
                [
                    {"encryption_key_id": "k2", "secrets": 0, "state": "newest"},
                    {"encryption_key_id": "k1", "secrets": 1, "state": "old"},
                ],
                indent=2,
            )
            + "\n"
        )
        assert ask(harness, client) == 200
        harness.verifier.last_used.flush()
        assert stored(harness).encryption_key_id == "k2"
        assert ask(harness, client) == 200
    with opened(tmp_path, clock, K2) as harness:
        assert ask(harness, client) == 200


@pytest.mark.parametrize("left", ["", K2, f"k1:{'9' * 40}"])
def test_where_its_key_is_missing_it_is_refused_and_comes_back(
    tmp_path: Path, clock: SettableClock, left: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(tmp_path, clock, first=True) as harness:
        client = harness.register("c", secret=SECRET, token_endpoint_auth_method=METHOD)
    with opened(tmp_path, clock, left) as harness:
        assert ask(harness, client) == 401
        told = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
        reason = "assertion_signature" if left.startswith("k1") else "unreadable_secret"
        assert [event["reason"] for event in told if event["event"] == "TokenRefused"] == [reason]
        if not left.startswith("k1"):
            shown = harness.run("clients", "secrets", "--by-encryption-key")
            assert "k1" in shown.stdout
            assert "until TOKENHOUSE_ENCRYPTION_KEYS has it again" in shown.stderr
        changed = harness.run("clients", "update", "c", "--auth-method", "client_secret")
        assert changed.exit_code == 1
        assert "cannot be read: the key 'k1'" in changed.stderr
    with opened(tmp_path, clock) as harness:
        assert ask(harness, client) == 200


def test_who_has_no_key_gets_no_such_client_and_is_not_told_of_the_method(tmp_path: Path, clock: SettableClock) -> None:
    with opened(tmp_path, clock, "", first=True) as harness:
        done = harness.run("clients", "create", "C", "--auth-method", METHOD)
        assert done.exit_code == 1
        assert "TOKENHOUSE_ENCRYPTION_KEYS is not set" in done.stderr
        assert METHOD not in harness.services.oauth.metadata["token_endpoint_auth_methods_supported"]
        assert "HS256" not in harness.services.oauth.metadata["token_endpoint_auth_signing_alg_values_supported"]
        assert harness.run("clients", "list", "--json").stdout.strip() == "[]"


def test_a_secret_that_is_too_short_for_a_mac_is_refused(tmp_path: Path, clock: SettableClock) -> None:
    with opened(tmp_path, clock, first=True) as harness:
        short = "x" * 31
        done = harness.run("clients", "create", "C", "--auth-method", METHOD, "--secret-file", "-", stdin=short)
        assert (done.exit_code, done.stdout) == (1, "")
        assert "must be 32 characters or more" in done.stderr
        assert short not in done.stderr
        client = harness.register("c", token_endpoint_auth_method=METHOD)
        assert harness.run("clients", "rotate-secret", "c", "--secret-file", "-", stdin=short).exit_code == 1
        assert ask(harness, client) == 200


def test_a_client_goes_from_a_mac_to_its_secret_and_not_back_with_the_same_one(
    tmp_path: Path, clock: SettableClock
) -> None:
    with opened(tmp_path, clock, first=True) as harness:
        client = harness.register("c", secret=SECRET, token_endpoint_auth_method=METHOD)
        there = harness.run("clients", "update", "c", "--auth-method", "client_secret")
        assert (there.exit_code, "Warning" in there.stderr) == (0, False)
        row = stored(harness)
        assert (row.encrypted, row.encryption_key_id, row.pepper_id) == (None, None, "p1")
        assert (ask(harness, client), by_body(harness, client)) == (401, 200)
        back = harness.run("clients", "update", "c", "--auth-method", METHOD)
        assert back.exit_code == 0
        assert back.stderr.splitlines()[-1] == (
            "Warning: it has no secret that works with client_secret_jwt: `flask clients rotate-secret c` makes one."
        )
        assert (ask(harness, client), by_body(harness, client)) == (401, 401)
        new = json.loads(harness.run("clients", "rotate-secret", "c", "--json").stdout)
        assert ask(harness, NewClient("c", new["client_secret"])) == 200


def test_of_many_ended_secrets_those_that_work_are_tried(tmp_path: Path, clock: SettableClock) -> None:
    with opened(tmp_path, clock, first=True) as harness:
        client = harness.register("c", secret=SECRET, token_endpoint_auth_method=METHOD)
        with harness.app.app_context():
            for number in range(40):
                harness.services.clients.secrets.rotate("c", overlap=harness.clock() - harness.clock())
                clock.advance(seconds=1)
                if number % 2:
                    newest = harness.services.clients.repository.find("c").secrets[-1]
                    harness.services.clients.secrets.revoke("c", newest.secret_id)
            last, _ = harness.services.clients.secrets.rotate("c", overlap=harness.clock() - harness.clock())
        assert ask(harness, NewClient("c", last.secret)) == 200
        assert ask(harness, client) == 401


def test_no_secret_is_shown_again(tmp_path: Path, clock: SettableClock) -> None:
    with opened(tmp_path, clock, first=True) as harness:
        harness.register("c", secret=SECRET, token_endpoint_auth_method=METHOD)
        for words in (("show", "c"), ("show", "c", "--json"), ("secrets", "c"), ("list", "--json")):
            assert SECRET not in harness.run("clients", *words).output
        with harness.app.app_context(), pytest.raises(ManagementError) as caught:
            harness.services.clients.secrets.rotate("c", overlap=clock() - clock(), secret="y" * 20)
        assert "y" * 20 not in str(caught.value)
