"""What must be kept readable: encrypted with the first key, decrypted with any, for what it belongs to alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from app.config.values import IdentifiedKey
from app.crypto.encryption import DecryptionError, Encrypter

OLD = IdentifiedKey(id="e1", value=SecretStr("o" * 40))
NEW = IdentifiedKey(id="e2", value=SecretStr("n" * 40))


@given(clear=st.binary(max_size=5000), belongs_to=st.text(max_size=40))
def test_what_was_encrypted_is_read_again(clear: bytes, belongs_to: str) -> None:
    key_id, encrypted = Encrypter([NEW, OLD]).encrypt(clear, bound_to=belongs_to)
    assert key_id == "e2"
    assert len(encrypted) == len(clear) + 28
    assert Encrypter([OLD, NEW]).decrypt("e2", encrypted, bound_to=belongs_to) == clear


def test_the_same_is_never_encrypted_alike() -> None:
    encrypter = Encrypter([OLD])
    assert len({encrypter.encrypt(b"a key", bound_to="k") for _ in range(100)}) == 100


@pytest.mark.parametrize("change", [0, 11, 12, 20, -1])
def test_a_ciphertext_that_was_changed_is_refused(change: int) -> None:
    _, encrypted = Encrypter([OLD]).encrypt(b"a private key", bound_to="k")
    changed = bytearray(encrypted)
    changed[change] ^= 1
    with pytest.raises(DecryptionError, match="the key 'e1' of TOKENHOUSE_ENCRYPTION_KEYS does not decrypt it"):
        Encrypter([OLD]).decrypt("e1", bytes(changed), bound_to="k")


@pytest.mark.parametrize("encrypted", [b"", b"x", b"x" * 12, b"x" * 27])
def test_what_is_too_short_is_refused(encrypted: bytes) -> None:
    with pytest.raises(DecryptionError):
        Encrypter([OLD]).decrypt("e1", encrypted, bound_to="k")


def test_a_ciphertext_is_worth_nothing_elsewhere() -> None:
    _, encrypted = Encrypter([OLD]).encrypt(b"a private key", bound_to="one")
    with pytest.raises(DecryptionError):
        Encrypter([OLD]).decrypt("e1", encrypted, bound_to="other")


def test_a_key_of_the_same_id_and_another_value_reads_nothing() -> None:
    _, encrypted = Encrypter([OLD]).encrypt(b"a private key", bound_to="k")
    with pytest.raises(DecryptionError):
        Encrypter([IdentifiedKey(id="e1", value=NEW.value)]).decrypt("e1", encrypted, bound_to="k")


def test_a_key_that_has_left_the_settings_is_named() -> None:
    _, encrypted = Encrypter([OLD]).encrypt(b"a private key", bound_to="k")
    with pytest.raises(DecryptionError, match="the key 'e1' is not in TOKENHOUSE_ENCRYPTION_KEYS"):
        Encrypter([NEW]).decrypt("e1", encrypted, bound_to="k")


def test_without_keys_nothing_is_encrypted() -> None:
    with pytest.raises(DecryptionError, match="TOKENHOUSE_ENCRYPTION_KEYS is not set"):
        Encrypter([]).encrypt(b"a private key", bound_to="k")
