"""RFC 7517 (the JWK set), RFC 7518 section 6.3 (RSA members) and RFC 7638 (the thumbprint that is the ``kid``)."""

import base64
import hashlib
import json
from collections.abc import Iterator

import jwt
import pytest
import requests
from support.server import RunningServer

PRIVATE_MEMBERS = {"d", "p", "q", "dp", "dq", "qi", "oth", "k"}


@pytest.fixture(scope="module")
def two_keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose ring holds a signing key and an announced one."""
    server = RunningServer(tmp_path_factory.mktemp("two-keys"))
    server.prepare()
    generated = server.flask("keys", "generate")
    assert generated.returncode == 0, generated.stderr
    server.start()
    yield server
    server.stop()


def decode(member: str) -> bytes:
    return base64.urlsafe_b64decode(member + "=" * (-len(member) % 4))


def test_5_the_set_is_an_object_with_one_member(two_keys: RunningServer) -> None:
    document = two_keys.jwks()
    assert list(document) == ["keys"]
    assert len(document["keys"]) == 2


def test_4_every_key_has_exactly_the_public_members(two_keys: RunningServer) -> None:
    for key in two_keys.jwks()["keys"]:
        assert set(key) == {"kty", "kid", "use", "alg", "n", "e"}
        assert (key["kty"], key["use"], key["alg"]) == ("RSA", "sig", "RS256")
        assert all(type(value) is str for value in key.values())


def test_9_2_no_private_member_is_shown(two_keys: RunningServer) -> None:
    document = requests.get(f"{two_keys.url}/.well-known/jwks.json", timeout=10)
    assert not PRIVATE_MEMBERS & {member for key in document.json()["keys"] for member in key}
    for pem in two_keys.folder.glob("*.pem"):
        numbers = two_keys.services.keys.active.backend.read()
        assert all(str(key.private_key.private_numbers().d) not in document.text for key in numbers.keys)
        assert pem.read_text().splitlines()[1] not in document.text


def test_4_5_every_kid_is_another_one(two_keys: RunningServer) -> None:
    kids = [key["kid"] for key in two_keys.jwks()["keys"]]
    assert len(set(kids)) == len(kids)


def test_7638_3_the_kid_is_the_thumbprint_computed_by_hand(two_keys: RunningServer) -> None:
    for key in two_keys.jwks()["keys"]:
        hashed = f'{{"e":"{key["e"]}","kty":"RSA","n":"{key["n"]}"}}'.encode()
        assert key["kid"] == base64.urlsafe_b64encode(hashlib.sha256(hashed).digest()).rstrip(b"=").decode()


def test_7638_3_1_our_way_of_hashing_gives_the_thumbprint_of_the_rfc() -> None:
    n = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknj"
        "hMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQ"
        "vRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzK"
        "nqDKgw"
    )
    hashed = json.dumps({"e": "AQAB", "kty": "RSA", "n": n}, separators=(",", ":"), sort_keys=True).encode()
    thumbprint = base64.urlsafe_b64encode(hashlib.sha256(hashed).digest()).rstrip(b"=")
    assert thumbprint == b"NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


def test_7518_6_3_1_n_and_e_are_base64url_of_the_shortest_octets(two_keys: RunningServer) -> None:
    for key in two_keys.jwks()["keys"]:
        assert "=" not in key["n"] + key["e"]
        assert key["e"] == "AQAB"
        n = decode(key["n"])
        assert n[0] != 0
        assert int.from_bytes(n).bit_length() == 2048


def test_an_announced_key_is_published_and_does_not_sign(two_keys: RunningServer) -> None:
    listed = {key["state"]: key["kid"] for key in two_keys.flask_json("keys", "list")}
    assert set(listed) == {"signing", "announced"}
    client = two_keys.create_client()
    signers = {jwt.get_unverified_header(two_keys.get_token(client)["access_token"])["kid"] for _ in range(20)}
    assert signers == {listed["signing"]}
    assert [key["kid"] for key in two_keys.jwks()["keys"]] == [listed["signing"], listed["announced"]]


def test_8_5_2_the_media_type_is_json(server: RunningServer) -> None:
    response = requests.get(f"{server.url}/.well-known/jwks.json", timeout=10)
    assert (response.status_code, response.headers["Content-Type"]) == (200, "application/json")
