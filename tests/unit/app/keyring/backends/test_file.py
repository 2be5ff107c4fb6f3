"""The key ring in a file: what is refused and in which words, and that writing leaves the old ring or the new one."""

import os
import shutil
import stat
import subprocess
import sys
import tomllib
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import RSAKey
from support.keys import add_key

from app.config.values import PROJECT_FOLDER
from app.errors import ManagementError, StartError
from app.keyring.backends.file import FileKeyring, write_private_file
from app.keyring.serialization import public_pem

T0 = datetime(2026, 1, 1, tzinfo=UTC)
PASSPHRASE = "correct horse"


def private_key(kind: str = "2048") -> Any:
    """The same for each test of this process."""
    return _make(kind)


@cache
def _make(kind: str) -> Any:
    makers: dict[str, Any] = {
        "EC": lambda: ec.generate_private_key(ec.SECP256R1()),
        "Ed25519": ed25519.Ed25519PrivateKey.generate,
        "DSA": lambda: dsa.generate_private_key(2048),
    }
    return makers[kind]() if kind in makers else rsa.generate_private_key(65537, int(kind))


@cache
def pem_of(kind: str = "2048", passphrase: str | None = None, encoding: str = "PKCS8") -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if passphrase:
        encryption = serialization.BestAvailableEncryption(passphrase.encode())
    pem: bytes = private_key(kind).private_bytes(
        serialization.Encoding.PEM, getattr(serialization.PrivateFormat, encoding), encryption
    )
    return pem


def entry(**fields: str) -> str:
    """A ``[[keys]]`` table; each value as it is written in TOML, empty to leave the field out."""
    good = {
        "kid": '"a"',
        "alg": '"RS256"',
        "private_key": '"a.pem"',
        "published_at": "2026-01-01T00:00:00Z",
        "signs_from": "2026-01-01T00:00:00Z",
    }
    lines = [f"{name} = {value}" for name, value in {**good, **fields}.items() if value]
    return "\n".join(["[[keys]]", *lines, ""])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A ring of one good key."""
    write_pem(tmp_path / "a.pem", pem_of())
    (tmp_path / "keyring.toml").write_text(entry())
    return tmp_path / "keyring.toml"


def write_pem(path: Path, pem: bytes, mode: int = 0o600) -> None:
    path.write_bytes(pem)
    path.chmod(mode)


def refusal(path: Path, passphrase: str | None = None) -> str:
    """One clear line, always."""
    with pytest.raises(StartError) as caught:
        FileKeyring(path, passphrase).read()
    told = str(caught.value)
    assert "\n" not in told
    return told


def files(folder: Path) -> dict[str, bytes]:
    return {found.name: found.read_bytes() for found in folder.iterdir() if found.is_file() and found.suffix != ".lock"}


# Reading


def test_a_good_ring_is_read(path: Path) -> None:
    (found,) = FileKeyring(path).read().keys
    assert (found.kid, found.alg, found.published_at, found.signs_from, found.revoked_at) == (
        "a",
        "RS256",
        T0,
        T0,
        None,
    )
    assert found.private_key.private_numbers() == private_key().private_numbers()


def test_times_of_other_zones_are_read_as_utc(path: Path) -> None:
    times = {"published_at": "2026-01-01T01:00:00+01:00", "signs_from": "2026-01-01T01:00:00.5+01:00"}
    path.write_text(entry(**times, revoked_at="2026-01-01 00:00:01Z"))
    (found,) = FileKeyring(path).read().keys
    assert found.published_at == T0
    assert found.signs_from == T0 + timedelta(milliseconds=500)
    assert found.revoked_at == T0 + timedelta(seconds=1)
    assert found.published_at.tzinfo is UTC


@pytest.mark.parametrize("encoding", ["PKCS8", "TraditionalOpenSSL"])
@pytest.mark.parametrize("kind", ["2048", "3072"])
def test_pem_of_either_form_is_read(path: Path, encoding: str, kind: str) -> None:
    write_pem(path.parent / "a.pem", pem_of(kind, encoding=encoding))
    (found,) = FileKeyring(path).read().keys
    assert found.private_key.key_size == int(kind)


@pytest.mark.parametrize("encoding", ["PKCS8", "TraditionalOpenSSL"])
def test_an_encrypted_key_is_read_with_its_passphrase(path: Path, encoding: str) -> None:
    write_pem(path.parent / "a.pem", pem_of(passphrase=PASSPHRASE, encoding=encoding))
    assert FileKeyring(path, PASSPHRASE).read().keys[0].kid == "a"


def test_a_clear_key_is_read_where_there_is_a_passphrase_for_others(path: Path) -> None:
    assert FileKeyring(path, PASSPHRASE).read().keys[0].kid == "a"


def test_a_pem_file_is_named_relative_to_the_ring_or_absolutely(path: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    write_pem(tmp_path / "sub" / "b.pem", pem_of())
    path.write_text(entry(private_key='"sub/b.pem"') + entry(kid='"b"', private_key=f'"{tmp_path}/a.pem"'))
    assert len(FileKeyring(path).read().keys) == 2


def test_a_link_to_a_private_file_is_followed(path: Path) -> None:
    (path.parent / "a.pem").rename(path.parent / "..2026.pem")
    (path.parent / "a.pem").symlink_to("..2026.pem")
    assert FileKeyring(path).read().keys[0].kid == "a"


# Refusals


def test_no_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "keyring.toml") == (
        f"there is no key ring at {tmp_path}/keyring.toml: `flask keys generate` makes one"
    )


@pytest.mark.parametrize("content", ["", "# nothing yet\n", "keys = []\n"])
def test_an_empty_ring_is_refused(path: Path, content: str) -> None:
    path.write_text(content)
    assert refusal(path) == f"the key ring {path} has no keys: `flask keys generate` makes one"


@pytest.mark.parametrize("content", [b"keys =", b"[[keys", b"\xff\xfe", b"a b c", b"kid = 1\nkid = 2", b"\x00"])
def test_a_file_that_is_not_toml_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert refusal(path).startswith(f"the key ring {path} cannot be read: ")


def test_a_folder_in_place_of_the_ring_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keyring.toml").mkdir()
    told = refusal(tmp_path / "keyring.toml")
    assert told.startswith(f"the key ring {tmp_path}/keyring.toml cannot be read: ")
    assert "Is a directory" in told


@pytest.mark.parametrize(
    "content",
    ["keys = 1", 'keys = "a"', "keys = [1]", "[keys]\na = 1", "other = 1", "[[key]]\n", "version = 1\n" + entry()],
)
def test_a_file_of_another_form_is_refused(path: Path, content: str) -> None:
    path.write_text(content)
    assert refusal(path) == f"the key ring {path} may hold written_at and [[keys]] tables only"


@pytest.mark.parametrize("name", ["kid", "alg", "private_key", "published_at", "signs_from"])
def test_a_field_that_is_missing_is_named(path: Path, name: str) -> None:
    path.write_text(entry() + entry(**{"kid": '"b"', name: ""}))
    assert refusal(path) == f"key 2 of the key ring {path} lacks {name}"


def test_all_fields_that_are_missing_are_named_at_once(path: Path) -> None:
    path.write_text("[[keys]]\n")
    assert refusal(path) == f"key 1 of the key ring {path} lacks alg, kid, private_key, published_at, signs_from"


def test_unknown_fields_are_refused(path: Path) -> None:
    path.write_text(entry(sings_from="1", colour='"red"'))
    assert refusal(path) == (
        f"key 1 of the key ring {path} has the unknown colour, sings_from; "
        "allowed: alg, jwks_max_age, kid, private_key, published_at, revoked_at, signs_from, signs_until, unsafe"
    )


@pytest.mark.parametrize("kid", ['""', '"a b"', '"a/b"', '"é"', f'"{"x" * 129}"', "1", "true", '["a"]', '"a\\n"'])
def test_a_kid_of_other_characters_is_refused(path: Path, kid: str) -> None:
    path.write_text(entry(kid=kid))
    assert refusal(path) == f"key 1 of the key ring {path}: kid must be 1 to 128 characters of A-Z a-z 0-9 . _ ~ -"


@pytest.mark.parametrize("alg", ['"HS256"', '"none"', '"rs256"', '"RS512"', "1", "[]"])
def test_another_algorithm_is_refused(path: Path, alg: str) -> None:
    path.write_text(entry(alg=alg))
    assert refusal(path) == f"key 1 of the key ring {path}: alg must be RS256, PS256, ES256, EdDSA"


@pytest.mark.parametrize("name", ["published_at", "signs_from", "revoked_at"])
@pytest.mark.parametrize(
    "value", ["2026-01-01T00:00:00", "2026-01-01", "00:00:00", '"2026-01-01T00:00:00Z"', "1767225600", "true"]
)
def test_a_time_without_a_zone_is_refused(path: Path, name: str, value: str) -> None:
    path.write_text(entry(**{name: value}))
    assert refusal(path) == (
        f"key 1 of the key ring {path}: {name} must be a date and time with a zone, such as 2026-01-31T12:00:00Z"
    )


@pytest.mark.parametrize("value", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"])
@pytest.mark.parametrize("name", ["published_at", "signs_from", "revoked_at"])
def test_a_time_that_utc_cannot_say_is_refused(path: Path, name: str, value: str) -> None:
    path.write_text(entry(**{name: value}))
    assert refusal(path).startswith(f"key 1 of the key ring {path}: {name} must be ")


def test_a_key_that_would_sign_before_it_is_published_is_refused(path: Path) -> None:
    path.write_text(entry(published_at="2026-01-01T00:00:01Z"))
    assert refusal(path) == f"key 1 of the key ring {path}: signs_from must not be before published_at"


def test_a_kid_that_stands_twice_is_refused(path: Path) -> None:
    path.write_text(entry() + entry())
    assert refusal(path) == "the key ring has kid 'a' twice: each key needs a kid of its own"


READ = "may be read by others: `chmod 600 {pem}`"
FOREIGN = "belongs to another user (number 65534): `chown root {pem}`"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604, 0o610, 0o602, 0o777])
def test_a_private_key_that_others_may_touch_is_refused(path: Path, mode: int) -> None:
    pem = path.parent / "a.pem"
    pem.chmod(mode)
    assert refusal(path) == f"key 1 of the key ring {path}: {pem} may be read by others: `chmod 600 {pem}`"


@pytest.mark.parametrize(
    ("mode", "owner", "group", "told"),
    [
        (0o440, "mine", "mine", None),
        (0o400, "others", "mine", FOREIGN),
        (0o440, "others", "mine", FOREIGN),
        (0o640, "others", "mine", FOREIGN),
        (0o640, "mine", "mine", READ),
        (0o440, "mine", "others", READ),
        (0o440, "others", "others", READ),
        (0o460, "others", "mine", READ),
        (0o444, "others", "mine", READ),
    ],
)
def test_a_mounted_secret_is_roots_or_ours_and_may_be_read_by_our_group(
    path: Path, mode: int, owner: str, group: str, told: str | None
) -> None:
    pem = path.parent / "a.pem"
    if {owner, group} != {"mine"} and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(pem, 65534 if owner == "others" else -1, 65534 if group == "others" else -1)
    pem.chmod(mode)
    if told is None:
        assert FileKeyring(path).read().keys[0].kid == "a"
    else:
        assert refusal(path) == f"key 1 of the key ring {path}: {pem} {told.format(pem=pem)}"


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_a_ring_that_others_may_change_is_refused(path: Path, mode: int) -> None:
    path.chmod(mode)
    assert refusal(path) == (
        f"the key ring {path} decides which keys sign: {path} may be changed by others (mode {mode:04o}): "
        f"`chmod go-w {path}`"
    )


def test_a_ring_of_another_user_is_refused(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    os.chown(path, 65534, -1)
    assert refusal(path) == f"the key ring {path} decides which keys sign: {path} {FOREIGN.format(pem=path)}"


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o700])
def test_a_private_key_that_only_its_owner_may_touch_is_read(path: Path, mode: int) -> None:
    (path.parent / "a.pem").chmod(mode)
    assert FileKeyring(path).read().keys[0].kid == "a"


def test_a_private_key_that_is_not_there_is_refused(path: Path) -> None:
    (path.parent / "a.pem").unlink()
    told = f"key 1 of the key ring {path}: {path.parent}/a.pem cannot be read: No such file or directory"
    assert refusal(path) == told
    (path.parent / "a.pem").symlink_to("nowhere")
    assert refusal(path) == told


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_a_folder_in_place_of_a_private_key_is_refused(path: Path, mode: int) -> None:
    (path.parent / "a.pem").unlink()
    (path.parent / "a.pem").mkdir()
    (path.parent / "a.pem").chmod(mode)
    assert refusal(path) == f"key 1 of the key ring {path}: {path.parent}/a.pem cannot be read: Is a directory"


@pytest.mark.parametrize("value", ["1", "true", '["a.pem"]', '""', '"a\\u0000.pem"', f'"{"x" * 5000}"'])
def test_a_private_key_is_the_name_of_a_file(path: Path, value: str) -> None:
    path.write_text(entry(private_key=value))
    assert refusal(path).startswith(f"key 1 of the key ring {path}: ")


@pytest.mark.parametrize(
    "pem", [b"", b"junk", b"\xff\x00", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_file_that_is_no_private_key_is_refused(path: Path, pem: bytes) -> None:
    write_pem(path.parent / "a.pem", pem)
    assert refusal(path) == (
        f"key 1 of the key ring {path}: {path.parent}/a.pem cannot be parsed as a private key in PEM"
    )


def test_a_public_key_is_refused(path: Path) -> None:
    public = private_key().public_key()
    write_pem(
        path.parent / "a.pem",
        public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
    )
    assert refusal(path).endswith("a.pem cannot be parsed as a private key in PEM")


def test_a_key_that_is_cut_is_refused_and_never_quoted(path: Path) -> None:
    pem = pem_of()
    write_pem(path.parent / "a.pem", pem[: len(pem) // 2])
    told = refusal(path)
    assert told.endswith("a.pem cannot be parsed as a private key in PEM")
    assert pem.decode()[40:60] not in told


@pytest.mark.parametrize("passphrase", [None, "wrong", ""])
@pytest.mark.parametrize("encoding", ["PKCS8", "TraditionalOpenSSL"])
def test_an_encrypted_key_without_its_passphrase_is_refused(path: Path, passphrase: str | None, encoding: str) -> None:
    write_pem(path.parent / "a.pem", pem_of(passphrase=PASSPHRASE, encoding=encoding))
    assert refusal(path, passphrase) == (
        f"key 1 of the key ring {path}: {path.parent}/a.pem cannot be parsed as a private key in PEM "
        "with TOKENHOUSE_KEYRING_PASSPHRASE"
    )


@pytest.mark.parametrize("kind", ["EC", "Ed25519", "DSA"])
def test_a_key_of_another_kind_is_refused(path: Path, kind: str) -> None:
    write_pem(path.parent / "a.pem", pem_of(kind))
    assert refusal(path) == f"key 1 of the key ring {path}: {path.parent}/a.pem must hold an RSA key for RS256"


@pytest.mark.parametrize("kind", ["1024", "2040"])
def test_a_weak_rsa_key_is_refused(path: Path, kind: str) -> None:
    write_pem(path.parent / "a.pem", pem_of(kind))
    assert refusal(path) == (
        f"key 1 of the key ring {path}: {path.parent}/a.pem has {kind} bits; an RSA key needs 2048 or more"
    )


@given(
    st.dictionaries(
        st.sampled_from(["kid", "alg", "private_key", "published_at", "signs_from", "revoked_at", "x"]),
        st.sampled_from(
            ['"a"', '""', "1", "-1.5", "nan", "true", "[]", "{}", "1979-05-27", '"\\u0000"', "2026-01-01T00:00:00Z"]
        ),
    )
)
def test_whatever_an_entry_holds_is_read_or_refused_with_one_line(tmp_path: Path, fields: dict[str, str]) -> None:
    (tmp_path / "keyring.toml").write_text(entry(**fields))
    write_pem(tmp_path / "a.pem", pem_of())
    try:
        FileKeyring(tmp_path / "keyring.toml").read()
    except StartError as error:
        assert "\n" not in str(error)  # noqa: PT017 - Either is right.


@given(st.binary(max_size=200))
def test_whatever_the_file_holds_is_refused_with_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "keyring.toml").write_bytes(content)
    assert refusal(tmp_path / "keyring.toml").startswith(("the key ring ", "key 1 of the key ring "))


# Writing


def generate(path: Path, passphrase: str | None = None, *, days: int = 0) -> Any:
    return add_key(FileKeyring(path, passphrase), published_at=T0, signs_from=T0 + timedelta(days=days))


def test_a_generated_key_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "keyring.toml"
    made = generate(path, days=7)
    (found,) = FileKeyring(path).read().keys
    assert (found.kid, found.alg, found.published_at, found.signs_from) == (
        made.kid,
        "RS256",
        T0,
        T0 + timedelta(days=7),
    )
    assert found.private_key.private_numbers() == made.private_key.private_numbers()
    numbers = found.private_key.public_key().public_numbers()
    assert (found.private_key.key_size, numbers.e) == (2048, 65537)


def test_a_generated_kid_is_the_thumbprint_of_rfc_7638(tmp_path: Path) -> None:
    made = generate(tmp_path / "keyring.toml")
    assert made.kid == RSAKey.import_key({name: made.public_jwk[name] for name in ("kty", "n", "e")}).thumbprint()
    assert len(made.kid) == 43


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_generated_files_are_for_their_owner_only(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "new" / "keyring.toml"
    before = os.umask(umask)
    try:
        generate(path)
    finally:
        os.umask(before)
    modes = {found.name: stat.S_IMODE(found.stat().st_mode) for found in path.parent.iterdir()}
    assert set(modes.values()) == {0o600}
    assert set(modes) == {"keyring.toml", "keyring.lock", f"{FileKeyring(path).read().keys[0].kid}.pem"}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_key_is_encrypted_where_there_is_a_passphrase(tmp_path: Path) -> None:
    made = generate(tmp_path / "keyring.toml", PASSPHRASE)
    pem = (tmp_path / f"{made.kid}.pem").read_bytes()
    assert pem.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    assert FileKeyring(tmp_path / "keyring.toml", PASSPHRASE).read().keys[0].kid == made.kid
    assert refusal(tmp_path / "keyring.toml").endswith("with TOKENHOUSE_KEYRING_PASSPHRASE")


def test_what_people_wrote_into_the_ring_survives_a_new_key(path: Path) -> None:
    written = "# Ours.\n\n" + entry(kid='"a" # the first') + "# The end.\n"
    path.write_text(written)
    made = generate(path)
    assert path.read_text().startswith(written.rstrip("\n"))
    assert [found.kid for found in FileKeyring(path).read().keys] == ["a", made.kid]


@pytest.mark.parametrize("content", ["", "# nothing yet\n", "keys = []\n", "keys = [ # none\n]\n"])
def test_a_ring_without_keys_gets_its_first(path: Path, content: str) -> None:
    path.write_text(content)
    assert FileKeyring(path).is_empty() is True
    made = generate(path)
    assert [found.kid for found in FileKeyring(path).read().keys] == [made.kid]
    assert FileKeyring(path).is_empty() is False


def test_a_ring_with_keys_in_one_line_gets_another(path: Path) -> None:
    inline = ", ".join(line for line in entry().splitlines()[1:])
    path.write_text(f"keys = [{{ {inline} }}]\n")
    made = generate(path)
    assert [found.kid for found in FileKeyring(path).read().keys] == ["a", made.kid]


def test_a_ring_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert FileKeyring(tmp_path / "nowhere" / "keyring.toml").is_empty() is True


def test_a_new_ring_says_what_it_is(tmp_path: Path) -> None:
    generate(tmp_path / "keyring.toml")
    assert (tmp_path / "keyring.toml").read_text().startswith("# Signing keys and their times. ")


def test_times_are_written_in_whole_seconds_of_utc(tmp_path: Path) -> None:
    moment = T0 + timedelta(microseconds=999_999)
    add_key(FileKeyring(tmp_path / "keyring.toml"), published_at=moment, signs_from=moment)
    (written,) = tomllib.loads((tmp_path / "keyring.toml").read_text())["keys"]
    assert (written["published_at"], written["signs_from"]) == (T0, T0)
    assert written["published_at"].utcoffset() == timedelta()


@pytest.mark.parametrize("content", [b"keys =", b"\xff", b"other = 1\n", b"keys = 1\n"])
def test_a_ring_that_is_broken_gets_no_key(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    before = files(path.parent)
    with pytest.raises((StartError, ManagementError)) as caught:
        generate(path)
    assert "\n" not in str(caught.value)
    assert files(path.parent) == before


def test_a_ring_that_cannot_be_written_is_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(path.parent)
    replace = Path.replace

    def fail(self: Path, target: Path) -> Path:
        if target == path:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ManagementError) as caught:
        generate(path)
    assert str(caught.value) == f"the key ring {path} cannot be written, and is as it was: No space left on device"
    assert files(path.parent) == before


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def killed(_self: Path, _target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_private_file(path, b"new")
    assert files(tmp_path) == {"file": b"old"}
    write_private_file(path, b"new")
    assert files(tmp_path) == {"file": b"new"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"mine")
    (tmp_path / "file").symlink_to(target)
    write_private_file(tmp_path / "file", b"new")
    assert target.read_bytes() == b"mine"


@pytest.mark.parametrize("folder", ["/proc/tokenhouse", "/dev/null"])
def test_a_place_where_nothing_can_be_written_is_refused(folder: str) -> None:
    with pytest.raises(ManagementError) as caught:
        generate(Path(folder) / "keyring.toml")
    assert str(caught.value).startswith(f"the key ring {folder}/keyring.toml cannot be written, and is as it was: ")


def test_keys_that_are_generated_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    code = (
        "import sys; from datetime import UTC, datetime; from pathlib import Path\n"
        "sys.path.append('tests')\n"
        "from support.keys import add_key\n"
        "from app.keyring.backends.file import FileKeyring\n"
        "sys.stdin.read()\n"
        "now = datetime.now(UTC)\n"
        "print(add_key(FileKeyring(Path(sys.argv[1])), published_at=now, signs_from=now).kid)\n"
    )
    path = tmp_path / "keyring.toml"
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": PROJECT_FOLDER}
    started = [subprocess.Popen([sys.executable, "-c", code, str(path)], **pipes) for _ in range(4)]
    for process in started:
        process.stdin.close()
    kids = {process.stdout.read().strip() for process in started}
    assert [process.wait() for process in started] == [0] * 4
    for process in started:
        process.stdout.close()
    assert len(kids) == 4
    assert {found.kid for found in FileKeyring(path).read().keys} == kids


def test_the_public_half_is_exported_as_pem(path: Path) -> None:
    (found,) = FileKeyring(path).read().keys
    loaded = serialization.load_pem_public_key(public_pem(found).encode())
    assert isinstance(loaded, rsa.RSAPublicKey)
    assert loaded.public_numbers() == private_key().public_key().public_numbers()
    assert "PRIVATE" not in public_pem(found)


# The example and the process


def test_the_example_is_a_ring_once_it_has_its_keys(tmp_path: Path) -> None:
    shutil.copy(PROJECT_FOLDER / "config/keyring.example.toml", tmp_path / "keyring.toml")
    names = [key["private_key"] for key in tomllib.loads((tmp_path / "keyring.toml").read_text())["keys"]]
    assert refusal(tmp_path / "keyring.toml").endswith(f"{names[0]} cannot be read: No such file or directory")
    for name in names:
        write_pem(tmp_path / name, pem_of())
    ring = FileKeyring(tmp_path / "keyring.toml").read()
    assert len(ring.keys) == 2
    assert ring.signing_key(datetime(2026, 3, 31, tzinfo=UTC)) == ring.keys[0]
    assert ring.signing_key(datetime(2026, 4, 1, tzinfo=UTC)) == ring.keys[1]


def test_the_example_names_every_field_and_its_comments_are_fields_too(tmp_path: Path) -> None:
    text = (PROJECT_FOLDER / "config/keyring.example.toml").read_text().replace("# revoked_at", "revoked_at")
    (tmp_path / "keyring.toml").write_text(text)
    for key in tomllib.loads(text)["keys"]:
        write_pem(tmp_path / key["private_key"], pem_of())
    assert FileKeyring(tmp_path / "keyring.toml").read().keys[1].revoked_at == datetime(2026, 5, 1, tzinfo=UTC)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_leftover_in_the_place_of_the_temporary_file_is_not_written_to(tmp_path: Path, kind: str) -> None:
    target, leftover = tmp_path / "target", tmp_path / f".file.{os.getpid()}.new"
    target.write_bytes(b"another's")
    if kind == "link":
        leftover.symlink_to(target)
    else:
        os.link(target, leftover)
    write_private_file(tmp_path / "file", b"new")
    assert ((tmp_path / "file").read_bytes(), target.read_bytes()) == (b"new", b"another's")
    assert not leftover.exists()
