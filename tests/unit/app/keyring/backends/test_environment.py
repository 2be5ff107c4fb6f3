"""A key ring in an environment variable: read, never written, never quoted."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SettableClock
from unit.harness import open_harness

from app.errors import ManagementError, StartError
from app.keyring.backends.environment import EnvironmentKeyring
from app.keyring.serialization import to_pem


@pytest.fixture
def written(tmp_path: Path, clock: SettableClock) -> Callable[..., str]:
    """A ring as such a variable holds it, of a ring in a file."""

    def write(passphrase: str | None = None) -> str:
        with open_harness(tmp_path, clock, migrated=False, with_key=False) as harness:
            ring, _ = harness.services.keys.manager.generate()
        entries = [
            f'[[keys]]\nkid = "{key.kid}"\nalg = "RS256"\n'
            f"published_at = {key.published_at:%Y-%m-%dT%H:%M:%SZ}\nsigns_from = {key.signs_from:%Y-%m-%dT%H:%M:%SZ}\n"
            f'private_key = """\n{to_pem(key.private_key, passphrase.encode() if passphrase else None).decode()}"""\n'
            for key in ring.keys
        ]
        return "\n".join(entries)

    return write


def test_it_signs_with_what_the_variable_holds(
    written: Callable[..., str], clock: SettableClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEYS", written())
    with open_harness(tmp_path, clock, with_key=False, keyring="env:MY_KEYS") as harness:
        assert len(harness.services.keys.active().keys) == 2
        client = harness.register("a")
        form = {"grant_type": "client_credentials", "client_id": "a", "client_secret": client.secret}
        assert harness.app.test_client().post("/oauth/token", data=form).status_code == 200
        with pytest.raises(ManagementError, match=r"the key ring in \$MY_KEYS is static: change the variable"):
            harness.services.keys.manager.rotate()


def test_its_keys_may_be_encrypted(written: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEYS", written("correct horse"))
    assert len(EnvironmentKeyring("MY_KEYS", "correct horse").read().keys) == 2
    with pytest.raises(StartError, match="cannot be parsed as a private key in PEM with TOKENHOUSE_KEYRING_PASSPHRASE"):
        EnvironmentKeyring("MY_KEYS", "wrong").read()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "has no keys"),
        ("", "has no keys"),
        ("-----BEGIN PRIVATE KEY-----\nhidden", "is not TOML"),
        ("hidden = 1", "may hold written_at and [[keys]] tables only"),
        ("[[keys]]\nkid = 'k'", "lacks alg, private_key, published_at, signs_from"),
        (
            (
                "[[keys]]\nkid = 'k'\nalg = 'RS256'\npublished_at = 2026-01-01T00:00:00Z\n"
                "signs_from = 2026-01-01T00:00:00Z\nprivate_key = 'hidden'"
            ),
            "private_key cannot be parsed as a private key in PEM",
        ),
        (
            (
                "[[keys]]\nkid = 'k'\nalg = 'RS256'\npublished_at = 2026-01-01T00:00:00Z\n"
                "signs_from = 2026-01-01T00:00:00Z\nprivate_key = 7"
            ),
            "private_key must be a private key in PEM",
        ),
    ],
)
def test_what_is_wrong_is_one_line_that_quotes_nothing(
    content: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is None:
        monkeypatch.delenv("MY_KEYS", raising=False)
    else:
        monkeypatch.setenv("MY_KEYS", content)
    with pytest.raises(StartError) as caught:
        EnvironmentKeyring("MY_KEYS").read()
    assert told in str(caught.value)
    assert str(caught.value).startswith(("the key ring in $MY_KEYS", "key 1 of the key ring in $MY_KEYS"))
    assert "hidden" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_it_allows_for_a_deployment(tmp_path: Path, clock: SettableClock) -> None:
    with open_harness(tmp_path, clock, migrated=False, with_key=False, keyring="env:MY_KEYS") as harness:
        rules = harness.services.keys.manager.rules
        assert (rules.propagation_seconds, rules.skew_seconds) == (300, 60)
