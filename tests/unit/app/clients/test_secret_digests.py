"""Secrets: how they look, and that a digest belongs to one client, one secret and one pepper."""

import hashlib
import hmac
import re
import zlib
from base64 import urlsafe_b64decode

from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from app.clients.secret_digests import SecretDigester, checksum, generate_secret, is_vschar
from app.config.values import IdentifiedKey
from app.types import Credentials

OLD, NEW = IdentifiedKey("old", SecretStr("o" * 32)), IdentifiedKey("new", SecretStr("n" * 32))


def test_a_generated_secret_has_a_prefix_256_random_bits_and_a_checksum() -> None:
    secret = generate_secret()
    found = re.fullmatch(r"(ths_([A-Za-z0-9_-]{43}))([A-Za-z0-9_-]{6})", secret)
    assert found
    assert len(urlsafe_b64decode(found[2] + "=")) == 32
    assert int.from_bytes(urlsafe_b64decode(found[3] + "==")) == zlib.crc32(found[1].encode())


def test_a_checksum_is_known_and_of_constant_length() -> None:
    assert checksum("ths_") == "fBsUHw"
    assert checksum("") == "AAAAAA"


def test_generated_secrets_differ() -> None:
    assert len({generate_secret() for _ in range(1000)}) == 1000


@given(st.text(max_size=20))
def test_ids_and_secrets_keep_to_printable_ascii(text: str) -> None:
    assert is_vschar(text) is all(0x20 <= ord(character) <= 0x7E for character in text)


def test_a_digest_is_a_keyed_hash_of_the_id_and_the_secret() -> None:
    pepper_id, digest = SecretDigester([NEW, OLD]).digest(Credentials("an-id", "a-secret"))
    assert pepper_id == "new"
    assert digest == hmac.digest(b"n" * 32, b"an-id\0a-secret", hashlib.sha256)


def test_all_peppers_digest_at_every_comparison() -> None:
    credentials = Credentials("an-id", "a-secret")
    assert SecretDigester([NEW, OLD]).digest_with_all(credentials) == {
        "new": hmac.digest(b"n" * 32, b"an-id\0a-secret", hashlib.sha256),
        "old": hmac.digest(b"o" * 32, b"an-id\0a-secret", hashlib.sha256),
    }


@given(*[st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=4)] * 4)
def test_no_two_pairs_of_id_and_secret_share_a_digest(one_id: str, one: str, other_id: str, other: str) -> None:
    digester = SecretDigester([NEW])
    same = digester.digest(Credentials(one_id, one)) == digester.digest(Credentials(other_id, other))
    assert same is ((one_id, one) == (other_id, other))
