"""Key sets as others publish them: what can be used is read, what cannot is named, a private key is refused."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed448
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from support.assertions import Signer, signer

from app.crypto.key_set import MOST_KEYS, MOST_NAMED, KeySet, read_key_set
from app.errors import ManagementError

RSA, EC, ED = signer("RS256"), signer("ES256"), signer("EdDSA")
P384 = ECKey.generate_key("P-384")


def kids(raw: bytes | dict[str, Any]) -> list[str]:
    return [key["kid"] for key in read(raw).jwks["keys"]]


def read(raw: bytes | dict[str, Any]) -> KeySet:
    return read_key_set(raw if isinstance(raw, bytes) else json.dumps(raw).encode())


def refusal(raw: bytes | dict[str, Any]) -> str:
    with pytest.raises(ManagementError) as caught:
        read(raw)
    return str(caught.value)


def pem(key: Any, form: Any = serialization.PublicFormat.SubjectPublicKeyInfo) -> bytes:
    return bytes(key.public_bytes(serialization.Encoding.PEM, form))


def certificate(one: Signer) -> bytes:
    issued = datetime(2026, 1, 1, tzinfo=UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "client.example.com")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(1)
    builder = builder.not_valid_before(issued).not_valid_after(issued + timedelta(days=1))
    signing = None if one.alg == "EdDSA" else hashes.SHA256()
    made = builder.public_key(one.key.public_key).sign(one.key.private_key, signing)
    return made.public_bytes(serialization.Encoding.PEM)


def test_keys_that_cannot_be_used_are_skipped_and_named() -> None:
    found = read(
        {
            "keys": [
                None,
                "text",
                {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AA", "kid": "pq"},
                EC.jwk | {"use": "enc", "kid": "enc-1"},
                P384.as_dict(private=False) | {"kid": "p384"},
                RSA.jwk | {"kid": "good"},
                OKPKey.generate_key("X25519").as_dict(private=False) | {"kid": "a\nb"},
                {"kid": "x" * 41},
            ]
        }
    )
    assert [key["kid"] for key in found.jwks["keys"]] == ["good"]
    curves = "must be an RSA key, an EC key on P-256 or an Ed25519 key"
    assert found.skipped == (
        "key 1 is no JSON object",
        "key 2 is no JSON object",
        "key 3 (pq): kty must be RSA, EC, OKP",
        "key 4 (enc-1) is not for signatures (use, key_ops)",
        f"key 5 (p384) {curves}",
        f"key 7 {curves}",
        "key 8: kty must be RSA, EC, OKP",
    )


def test_a_set_without_a_key_that_can_be_used_is_refused_with_every_reason() -> None:
    assert refusal({"keys": [None, EC.jwk | {"use": "enc"}]}) == (
        "the key set holds no key that can be used: key 1 is no JSON object; key 2 is not for signatures (use, key_ops)"
    )
    assert refusal({"keys": [None] * (MOST_NAMED + 2)}).endswith("; key 10 is no JSON object; and 2 more")


@pytest.mark.parametrize("one", [RSA.key, EC.key, OctKey.generate_key(256)], ids=["RSA", "EC", "oct"])
def test_a_set_with_a_private_key_is_refused_whole(one: Any) -> None:
    leaked = {"keys": [ED.jwk, one.as_dict(private=True) | {"kid": "leaked", "use": "enc"}]}
    assert refusal(leaked).startswith("key 2 (leaked) is private (")


def test_one_kid_may_stand_on_several_keys_and_the_same_key_twice_is_one() -> None:
    other = signer("ES256")
    keys = [one.jwk | {"kid": "2026"} for one in (RSA, EC, ED, other)]
    found = read({"keys": [*keys, keys[1], keys[1] | {"use": "sig"}]})
    assert [(key["kid"], key["kty"]) for key in found.jwks["keys"]] == [
        ("2026", "RSA"),
        ("2026", "EC"),
        ("2026", "OKP"),
        ("2026", "EC"),
    ]
    assert found.skipped == ()


def test_a_single_jwk_and_a_byte_order_mark_are_accepted() -> None:
    for raw in (json.dumps(EC.jwk), json.dumps({"keys": [EC.jwk]})):
        assert kids(b"\xef\xbb\xbf" + raw.encode()) == kids(raw.encode()) == [EC.kid]


def test_a_pem_file_gives_all_its_public_keys() -> None:
    text = b"\n".join(
        [
            b"\xef\xbb\xbfBag Attributes\n    friendlyName: a key\n",
            pem(RSA.key.public_key),
            b"-- the next one --",
            pem(EC.key.public_key).replace(b"\n", b"\r\n"),
            certificate(ED),
            pem(RSAKey.generate_key(2048).public_key, serialization.PublicFormat.PKCS1),
        ]
    )
    found = kids(text)
    assert (found[:3], len(found)) == ([RSA.kid, EC.kid, ED.kid], 4)


def test_what_is_no_key_in_a_pem_file_is_skipped_and_named() -> None:
    broken = b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"
    unknown = pem(ed448.Ed448PrivateKey.generate().public_key())
    found = read(b"".join([broken, unknown, pem(P384.public_key), pem(EC.key.public_key)]))
    assert [key["kid"] for key in found.jwks["keys"]] == [EC.kid]
    assert found.skipped == (
        "key 1 is no valid public key in PEM",
        "key 2 is of a kind that is not known here",
        "key 3 must be an RSA key, an EC key on P-256 or an Ed25519 key",
    )
    assert refusal(broken) == "key 1 is no valid public key in PEM"


@pytest.mark.parametrize("form", [serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL])
def test_a_pem_file_with_a_private_key_is_refused_whole(form: serialization.PrivateFormat) -> None:
    private = EC.key.private_key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    assert refusal(pem(RSA.key.public_key) + private) == ("the file holds a private key: register its public half only")


@pytest.mark.parametrize(
    ("raw", "cause"),
    [
        (b"", "this is no JWK set, no JWK and no public key in PEM"),
        (b"<html>", "this is no JWK set, no JWK and no public key in PEM"),
        (b"\xff", "the key set is not UTF-8 text"),
        (b"[" * 100_000, "this is no JWK set, no JWK and no public key in PEM"),
        (b"[]", 'the key set must be a JSON object with "keys", a list of objects'),
        (b'{"keys": null}', 'the key set must be a JSON object with "keys", a list of objects'),
        (b'{"keys": []}', "the key set must hold 1 to 100 keys"),
        (json.dumps({"keys": [EC.jwk] * 101}).encode(), "the key set must hold 1 to 100 keys"),
        (
            json.dumps({"keys": [ED.jwk | {"kid": str(number)} for number in range(MOST_KEYS + 1)]}).encode(),
            "the key set holds 17 keys that can be used, and 16 is the most",
        ),
    ],
    ids=map(str, range(9)),
)
def test_anything_else_is_refused_with_what_is_allowed(raw: bytes, cause: str) -> None:
    assert refusal(raw) == cause


@given(st.binary(max_size=200) | st.text().map(str.encode))
def test_whatever_it_is_it_is_read_or_refused(raw: bytes) -> None:
    assert refusal(raw)


@given(
    st.lists(st.sampled_from([RSA.jwk, EC.jwk, ED.jwk, None, "x", EC.jwk | {"use": "enc"}, {"kty": "oct"}]), min_size=1)
)
def test_a_set_is_read_key_by_key(keys: list[Any]) -> None:
    """Each key counts or is named, whatever stands beside it."""
    usable = {key["kty"] for key in keys if key in (RSA.jwk, EC.jwk, ED.jwk)}
    if not usable or len(keys) > 100:
        assert refusal({"keys": keys})
        return
    found = read({"keys": keys})
    assert {key["kty"] for key in found.jwks["keys"]} == usable
    assert len(found.skipped) == min(MOST_NAMED, sum(key not in (RSA.jwk, EC.jwk, ED.jwk) for key in keys))
