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
from unit.house import House, open_house

from app.clients.encrypted_secrets import ReadableSecrets
from app.config.values import IdentifiedKey
from app.crypto.encryption import DecryptionError
from app.database.models import ClientSecretRow, db
from app.errors import ManagementError

K1, K2 = f"k1:{'1' * 40}", f"k2:{'2' * 40}"
METHOD = "client_secret_jwt"
SECRET = "a-secret-of-more-than-32-characters"


@contextmanager
def opened(folder: Path, clock: SettableClock, keys: str = K1, *, first: bool = False) -> Iterator[House]:
    """The same installation, with these keys."""
    settings = {"secret_peppers": f"p1:{'p' * 40}"} | ({"encryption_keys": keys} if keys else {})
    with open_house(folder, clock, migrated=first, with_key=first, **settings) as house:
        yield house


def stored(house: House) -> ClientSecretRow:
    with house.app.app_context():
        row = db.session.scalars(select(ClientSecretRow)).one()
        db.session.expunge(row)
        return row


def ask(house: House, client: NewClient, secret: str | None = None) -> int:
    """Ask for a token with an assertion; the status."""
    now = int(house.clock().timestamp())
    claims = {"iss": client.client_id, "sub": client.client_id, "aud": house.settings.issuer}
    claims |= {"iat": now, "exp": now + 60, "jti": uuid.uuid4().hex}
    signed = jwt.encode(claims, secret or client.secret, "HS256")
    return house.app.test_client().post("/oauth/token", data=form(signed)).status_code


def by_body(house: House, client: NewClient) -> int:
    data = {"grant_type": "client_credentials", "client_id": client.client_id, "client_secret": client.secret}
    return house.app.test_client().post("/oauth/token", data=data).status_code


def keys(*pairs: str) -> list[IdentifiedKey]:
    return [IdentifiedKey(key_id, SecretStr(value)) for key_id, _, value in (pair.partition(":") for pair in pairs)]


def test_it_is_encrypted_for_its_client_and_its_id_alone() -> None:
    readable = ReadableSecrets(keys(K1))
    key_id, encrypted = readable.encrypt("a", "s-1", SECRET)
    assert SECRET.encode() not in encrypted
    row: Any = SimpleNamespace(secret_id="s-1", encryption_key_id=key_id, encrypted=encrypted)
    assert readable.read("a", row) == SECRET
    assert readable.read_or_dummy("a", row) == (SECRET, True)
    for client_id, secret_id in (("b", "s-1"), ("a", "s-2"), ("1 of a", "s-")):
        moved: Any = SimpleNamespace(secret_id=secret_id, encryption_key_id=key_id, encrypted=encrypted)
        with pytest.raises(DecryptionError):
            readable.read(client_id, moved)
        other, is_its_own = readable.read_or_dummy(client_id, moved)
        assert (other != SECRET, is_its_own) == (True, False)


def test_nobodys_secret_is_random_and_nobodys() -> None:
    nothing: Any = SimpleNamespace(secret_id=None, encryption_key_id=None, encrypted=None)
    found = [ReadableSecrets(keys(*given)).read_or_dummy("", nothing) for given in ((K1,), (K1,), ())]
    assert len({secret for secret, _ in found}) == 3
    assert {is_its_own for _, is_its_own in found} == {False}


def test_the_database_keeps_no_digest_of_it_and_no_other_way_lets_it_in(tmp_path: Path, clock: SettableClock) -> None:
    with opened(tmp_path, clock, first=True) as house:
        client = house.register("c", secret=SECRET, token_endpoint_auth_method=METHOD)
        row = stored(house)
        assert (row.digest, row.pepper_id, row.encryption_key_id) == (b"", "", "k1")
        assert (ask(house, client), by_body(house, client), ask(house, client, "x" * 40)) == (200, 401, 401)


def test_a_new_key_takes_over_with_use_and_the_old_one_may_leave(tmp_path: Path, clock: SettableClock) -> None:
    with opened(tmp_path, clock, first=True) as house:
        client = house.register("c", secret=SECRET, token_endpoint_auth_method=METHOD)
    with opened(tmp_path, clock, f"{K2},{K1}") as house:
        assert (
            house.run("clients", "secrets", "--by-encryption-key", "--json").stdout
            == json.dumps(
                [
                    {"encryption_key_id": "k2", "secrets": 0, "state": "newest"},
                    {"encryption_key_id": "k1", "secrets": 1, "state": "old"},
                ],
                indent=2,
            )
            + "\n"
        )
        assert ask(house, client) == 200
        house.verifier.marks.flush()
        assert stored(house).encryption_key_id == "k2"
        assert ask(house, client) == 200
    with opened(tmp_path, clock, K2) as house:
        assert ask(house, client) == 200


@pytest.mark.parametrize("left", ["", K2, f"k1:{'9' * 40}"])
def test_where_its_key_is_missing_it_is_refused_and_comes_back(
    tmp_path: Path, clock: SettableClock, left: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with opened(tmp_path, clock, first=True) as house:
        client = house.register("c", secret=SECRET, token_endpoint_auth_method=METHOD)
    with opened(tmp_path, clock, left) as house:
        assert ask(house, client) == 401
        told = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
        reason = "assertion_signature" if left.startswith("k1") else "unreadable_secret"
        assert [event["reason"] for event in told if event["event"] == "TokenRefused"] == [reason]
        if not left.startswith("k1"):
            shown = house.run("clients", "secrets", "--by-encryption-key")
            assert "k1" in shown.stdout
            assert "until TOKENHOUSE_ENCRYPTION_KEYS has it again" in shown.stderr
        changed = house.run("clients", "update", "c", "--auth-method", "client_secret")
        assert changed.exit_code == 1
        assert "cannot be read: the key 'k1'" in changed.stderr
    with opened(tmp_path, clock) as house:
        assert ask(house, client) == 200


def test_who_has_no_key_gets_no_such_client_and_is_not_told_of_the_method(tmp_path: Path, clock: SettableClock) -> None:
    with opened(tmp_path, clock, "", first=True) as house:
        done = house.run("clients", "create", "C", "--auth-method", METHOD)
        assert done.exit_code == 1
        assert "TOKENHOUSE_ENCRYPTION_KEYS is not set" in done.stderr
        assert METHOD not in house.services.oauth.metadata["token_endpoint_auth_methods_supported"]
        assert "HS256" not in house.services.oauth.metadata["token_endpoint_auth_signing_alg_values_supported"]
        assert house.run("clients", "list", "--json").stdout.strip() == "[]"


def test_a_secret_that_is_too_short_for_a_mac_is_refused(tmp_path: Path, clock: SettableClock) -> None:
    with opened(tmp_path, clock, first=True) as house:
        short = "x" * 31
        done = house.run("clients", "create", "C", "--auth-method", METHOD, "--secret-file", "-", stdin=short)
        assert (done.exit_code, done.stdout) == (1, "")
        assert "must be 32 characters or more" in done.stderr
        assert short not in done.stderr
        client = house.register("c", token_endpoint_auth_method=METHOD)
        assert house.run("clients", "rotate-secret", "c", "--secret-file", "-", stdin=short).exit_code == 1
        assert ask(house, client) == 200


def test_a_client_goes_from_a_mac_to_its_secret_and_not_back_with_the_same_one(
    tmp_path: Path, clock: SettableClock
) -> None:
    with opened(tmp_path, clock, first=True) as house:
        client = house.register("c", secret=SECRET, token_endpoint_auth_method=METHOD)
        there = house.run("clients", "update", "c", "--auth-method", "client_secret")
        assert (there.exit_code, "Warning" in there.stderr) == (0, False)
        row = stored(house)
        assert (row.encrypted, row.encryption_key_id, row.pepper_id) == (None, None, "p1")
        assert (ask(house, client), by_body(house, client)) == (401, 200)
        back = house.run("clients", "update", "c", "--auth-method", METHOD)
        assert back.exit_code == 0
        assert back.stderr.splitlines()[-1] == (
            "Warning: it has no secret that works with client_secret_jwt: `flask clients rotate-secret c` makes one."
        )
        assert (ask(house, client), by_body(house, client)) == (401, 401)
        new = json.loads(house.run("clients", "rotate-secret", "c", "--json").stdout)
        assert ask(house, NewClient("c", new["client_secret"])) == 200


def test_of_many_ended_secrets_those_that_work_are_tried(tmp_path: Path, clock: SettableClock) -> None:
    with opened(tmp_path, clock, first=True) as house:
        client = house.register("c", secret=SECRET, token_endpoint_auth_method=METHOD)
        with house.app.app_context():
            for number in range(40):
                house.services.clients.secrets.rotate("c", overlap=house.clock() - house.clock())
                clock.advance(seconds=1)
                if number % 2:
                    newest = house.services.clients.repository.find("c").secrets[-1]
                    house.services.clients.secrets.revoke("c", newest.secret_id)
            last, _ = house.services.clients.secrets.rotate("c", overlap=house.clock() - house.clock())
        assert ask(house, NewClient("c", last.secret)) == 200
        assert ask(house, client) == 401


def test_no_secret_is_shown_again(tmp_path: Path, clock: SettableClock) -> None:
    with opened(tmp_path, clock, first=True) as house:
        house.register("c", secret=SECRET, token_endpoint_auth_method=METHOD)
        for words in (("show", "c"), ("show", "c", "--json"), ("secrets", "c"), ("list", "--json")):
            assert SECRET not in house.run("clients", *words).output
        with house.app.app_context(), pytest.raises(ManagementError) as caught:
            house.services.clients.secrets.rotate("c", overlap=clock() - clock(), secret="y" * 20)
        assert "y" * 20 not in str(caught.value)
