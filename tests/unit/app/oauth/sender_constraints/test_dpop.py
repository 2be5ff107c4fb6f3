"""DPoP proofs of token requests: each check of RFC 9449 section 4.3, nonces, and how long a proof is remembered."""

import base64
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SettableClock
from hypothesis import given
from hypothesis import strategies as st
from joserfc.jwk import ECKey
from support.assertions import by_hand, signed_as_ed25519, signer
from support.dpop import TOKEN_ENDPOINT, proof_claims, sign_proof
from support.token_request import Request
from unit.harness import Harness, open_harness

from app.config.values import parse_keys
from app.errors import InvalidDpopProof, OAuthError, UseDpopNonce
from app.oauth.replay_store import JTI_MAX_CHARACTERS, REMEMBERED_LONGER_SECONDS, SKEW_SECONDS
from app.oauth.sender_constraints.dpop import PROOF_SECONDS, Dpop, Nonces, check_target, read_proof

SIGNER, RSA = signer("ES256"), signer("RS256")
PEPPERS = parse_keys(f"p1:{'p' * 40}")
NONCE_SECONDS = 300
NO_JTI = f"jti is not a string of 1 to {JTI_MAX_CHARACTERS} characters"
NO_JWT = "proof_invalid", "the header is not a JWT, or it is repeated"
NO_PROOF = "proof_invalid", "typ is not dpop+jwt"
NO_ALG = "proof_invalid", "alg must be RS256, PS256, ES256, EdDSA, Ed25519"
NOT_SIGNED = "proof_invalid", "the signature does not match jwk"
NO_JWK = "proof_invalid", "jwk is not a JSON object"


@pytest.fixture
def harness(tmp_path: Path, clock: SettableClock) -> Iterator[Harness]:
    with open_harness(tmp_path, clock) as made:
        yield made


@pytest.fixture
def with_nonces(tmp_path: Path, clock: SettableClock) -> Iterator[Harness]:
    with open_harness(tmp_path, clock, dpop_nonce_lifetime=f"{NONCE_SECONDS}s") as made:
        yield made


def now(harness: Harness) -> int:
    return int(harness.clock().timestamp())


def confirm(harness: Harness, proof: str | None) -> dict[str, str]:
    with harness.app.app_context():
        return Dpop(harness.services.oauth).confirm(_request(proof))


def _request(proof: str | None) -> Request:
    return Request({}, environ={} if proof is None else {"HTTP_DPOP": proof})


def refused(harness: Harness, proof: str | None) -> tuple[str, str | None]:
    """Reason and detail, which the log has."""
    with pytest.raises(InvalidDpopProof) as caught:
        confirm(harness, proof)
    assert caught.value.description == InvalidDpopProof.description
    return caught.value.reason, caught.value.detail


def reason_to_refuse(proof: str) -> tuple[str, str | None]:
    with pytest.raises(InvalidDpopProof) as caught:
        read_proof(proof)
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize("alg", ["RS256", "PS256", "ES256", "EdDSA"])
def test_a_token_is_bound_to_the_thumbprint_of_the_key(harness: Harness, alg: str) -> None:
    keys = signer(alg)
    assert confirm(harness, sign_proof(keys, iat=now(harness))) == {"jkt": keys.kid}


def test_ed25519_is_eddsa(harness: Harness) -> None:
    """RFC 9864 section 2.2, whatever the key says of itself."""
    keys = signer("EdDSA")
    for jwk in (keys.jwk, keys.jwk | {"alg": "Ed25519"}, keys.jwk | {"alg": "EdDSA"}):
        header = {"typ": "dpop+jwt", "jwk": jwk}
        proof = signed_as_ed25519(keys, header, proof_claims(iat=now(harness)))
        assert confirm(harness, proof) == {"jkt": keys.kid}


@pytest.mark.parametrize(
    "header",
    [
        {"typ": "application/dpop+jwt"},
        {"typ": "DPoP+JWT"},
        {"jwk": SIGNER.jwk | {"kid": "any", "use": "sig", "alg": "ES256"}},
        {"kid": "any"},
    ],
)
def test_a_header_may_say_the_same_in_other_words(header: dict[str, Any]) -> None:
    assert read_proof(f" {sign_proof(SIGNER, header)}\t").jkt == SIGNER.kid


@pytest.mark.parametrize("iat", [-PROOF_SECONDS - SKEW_SECONDS, -0.5, SKEW_SECONDS, SKEW_SECONDS - 0.5])
def test_a_proof_may_be_a_little_old_or_of_a_clock_that_is_ahead(harness: Harness, iat: float) -> None:
    assert confirm(harness, sign_proof(SIGNER, iat=now(harness) + iat)) == {"jkt": SIGNER.kid}


@pytest.mark.parametrize(
    ("iat", "detail"),
    [
        (-PROOF_SECONDS - SKEW_SECONDS - 1, "iat is in the past"),
        (-PROOF_SECONDS - SKEW_SECONDS - 0.5, "iat is in the past"),
        (SKEW_SECONDS + 1, "iat is in the future"),
        (SKEW_SECONDS + 0.5, "iat is in the future"),
        (10**300, "iat is in the future"),
        (-1e300, "iat is in the past"),
    ],
)
def test_an_old_proof_and_one_of_the_future_are_refused(harness: Harness, iat: float, detail: str) -> None:
    assert refused(harness, sign_proof(SIGNER, iat=now(harness) + iat)) == ("proof_stale", detail)


@pytest.mark.parametrize(
    ("proof", "expected"),
    [
        ("", NO_JWT),
        ("no.jws", NO_JWT),
        ("a.b.c", NO_JWT),
        (by_hand({"typ": "dpop+jwt"}, [1]), NO_JWT),
        (by_hand({"typ": "dpop+jwt"}, {}, b""), NO_JWT),
        (f"{sign_proof(SIGNER)},{sign_proof(SIGNER)}", NO_JWT),
        (sign_proof(SIGNER, jti="x" * 8192), NO_JWT),
        (sign_proof(SIGNER, {"typ": "JWT"}), NO_PROOF),
        (by_hand({"alg": "ES256", "jwk": SIGNER.jwk}, proof_claims()), NO_PROOF),
        (by_hand({"typ": "dpop+jwt", "crit": ["x"]}, proof_claims()), ("proof_invalid", "crit names extensions")),
        (by_hand({"typ": "dpop+jwt", "alg": "none"}, proof_claims()), NO_ALG),
        (by_hand({"typ": "dpop+jwt", "alg": "HS256"}, proof_claims()), NO_ALG),
        (by_hand({"typ": "dpop+jwt", "alg": ["ES256"]}, proof_claims()), NO_ALG),
        (by_hand({"typ": "dpop+jwt", "alg": "ES256"}, proof_claims()), NO_JWK),
        (by_hand({"typ": "dpop+jwt", "alg": "ES256", "jwk": "x"}, proof_claims()), NO_JWK),
        (sign_proof(SIGNER, jti=None), ("proof_invalid", NO_JTI)),
        (sign_proof(SIGNER, jti=""), ("proof_invalid", NO_JTI)),
        (sign_proof(SIGNER, jti=7), ("proof_invalid", NO_JTI)),
        (sign_proof(SIGNER, iat=None), ("proof_invalid", "iat is not a number")),
        (sign_proof(SIGNER, {"jwk": signer("ES256").jwk}), NOT_SIGNED),
        (sign_proof(SIGNER)[:-4] + "AAAA", NOT_SIGNED),
    ],
    ids=itertools.count(),
)
def test_an_invalid_proof_is_refused(proof: str, expected: tuple[str, str | None]) -> None:
    assert reason_to_refuse(proof) == expected


def key_fault(jwk: dict[str, Any], alg: str = "ES256") -> str:
    reason, detail = reason_to_refuse(by_hand({"typ": "dpop+jwt", "alg": alg, "jwk": jwk}, proof_claims()))
    assert reason == "proof_invalid"
    return str(detail)


def test_a_key_must_be_public_and_fit() -> None:
    pair = ECKey.generate_key("P-256")
    assert key_fault(dict(pair.as_dict(private=True))) == "jwk is private (d): register its public half only"
    assert key_fault({"kty": "oct", "k": "c2VjcmV0"}) == "jwk is private (k): register its public half only"
    assert key_fault({"kty": "oct"}) == "jwk: kty must be RSA, EC, OKP"
    assert key_fault(SIGNER.jwk | {"use": "enc"}) == "jwk is not for signatures (use, key_ops)"
    assert key_fault(dict(ECKey.generate_key("P-384").as_dict(private=False))).endswith("or an Ed25519 key")
    assert key_fault(SIGNER.jwk | {"y": SIGNER.jwk["x"]}) == "jwk is no valid EC key"
    assert key_fault(SIGNER.jwk, "RS256") == "jwk is not for this alg"
    assert key_fault(SIGNER.jwk, "Ed25519") == "jwk is not for this alg"
    assert key_fault(SIGNER.jwk | {"alg": "ES512"}) == "jwk: alg must be ES256 for EC, or be left out"
    assert key_fault(RSA.jwk | {"alg": "PS256"}, "RS256") == "jwk is not for this alg"
    assert key_fault({"kty": "RSA", "n": "AQAB" * 43, "e": "AQAB"}, "RS256").startswith("jwk has 1025 bits")


def test_of_a_private_key_the_log_has_only_the_names_of_its_members() -> None:
    private = dict(ECKey.generate_key("P-256").as_dict(private=True))
    assert private["d"] not in key_fault(private)


@pytest.mark.parametrize(
    "htu",
    [
        TOKEN_ENDPOINT,
        f"{TOKEN_ENDPOINT}?grant_type=x#part",
        "HTTPS://Tokens.Example.COM/oauth/token",
        "https://tokens.example.com:443/oauth/token",
        "https://tokens.example.com/%6fauth/%74oken",
        "https://tokens.example.com/other/../oauth/./token",
    ],
)
def test_the_same_url_may_be_written_in_other_ways(htu: str) -> None:
    check_target({"htm": "POST", "htu": htu}, "POST", TOKEN_ENDPOINT)


@pytest.mark.parametrize(
    "htu",
    [
        None,
        7,
        [TOKEN_ENDPOINT],
        "",
        "/oauth/token",
        "http://tokens.example.com/oauth/token",
        "https://tokens.example.com:8443/oauth/token",
        "https://tokens.example.com/oauth/token/",
        "https://tokens.example.com/oauth/Token",
        "https://tokens.example.com/oauth%2Ftoken",
        "https://tokens.example.com//oauth/token",
        "https://tokens.example.com/oauth/introspect",
        "https://tokens.example.com.evil.example/oauth/token",
        "https://user@tokens.example.com/oauth/token",
        "https://tokens.example.com:99999/oauth/token",
        "https://[tokens/oauth/token",
        "https://tokens.example.com//[oauth/token",
        "https://tokens.example.com/%5B/../oauth/%",
    ],
)
def test_another_url_is_another_request(htu: object) -> None:
    with pytest.raises(InvalidDpopProof) as caught:
        check_target({"htm": "POST", "htu": htu}, "POST", TOKEN_ENDPOINT)
    assert caught.value.reason == "proof_other_request"
    assert caught.value.detail == "htu is not the URL of the token endpoint in the metadata"


@pytest.mark.parametrize("htm", [None, "GET", "post", "", ["POST"]])
def test_another_method_is_another_request(htm: object) -> None:
    with pytest.raises(InvalidDpopProof, match="proof") as caught:
        check_target({"htm": htm, "htu": TOKEN_ENDPOINT}, "POST", TOKEN_ENDPOINT)
    assert caught.value.detail == "htm is not the method of the request"


@given(st.text(), st.text(alphabet="/.:[]@%#?ab5B"))
def test_no_other_text_is_the_url(text: str, more: str) -> None:
    """Of a text that a test does not write to match, nothing matches, and nothing fails."""
    for htu in (text, f"https://tokens.example.com/{more}", f"https:{more}"):
        with pytest.raises(InvalidDpopProof):
            check_target({"htm": "POST", "htu": htu}, "POST", TOKEN_ENDPOINT)


def test_a_proof_is_accepted_once_and_another_key_may_have_the_same_jti(harness: Harness) -> None:
    proof = sign_proof(SIGNER, iat=now(harness), jti="same")
    confirm(harness, proof)
    assert refused(harness, proof) == ("proof_replayed", None)
    assert refused(harness, sign_proof(SIGNER, iat=now(harness), jti="same")) == ("proof_replayed", None)
    other = signer("ES256")
    assert confirm(harness, sign_proof(other, iat=now(harness), jti="same")) == {"jkt": other.kid}


def test_a_proof_is_remembered_as_long_as_it_could_be_used(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(harness.services.oauth.replay_store, "use", lambda *arguments: asked.append(arguments) or True)
    iat = now(harness) + 0.5
    confirm(harness, sign_proof(SIGNER, iat=iat, jti="a"))
    until = now(harness) + 1 + PROOF_SECONDS + SKEW_SECONDS + REMEMBERED_LONGER_SECONDS
    assert asked == [(f"dpop {SIGNER.kid}", "a", now(harness), until)]


def test_a_client_that_must_send_a_proof_and_sent_none_is_refused(harness: Harness) -> None:
    assert refused(harness, None) == ("proof_missing", None)


def asked_for_nonce(harness: Harness, proof: str) -> tuple[str, str | None]:
    """The nonce that comes with the refusal, and the detail for the log."""
    request = _request(proof)
    with harness.app.app_context(), pytest.raises(UseDpopNonce) as caught:
        Dpop(harness.services.oauth).confirm(request)
    ((name, nonce),) = request.response_headers
    assert (name, caught.value.reason) == ("DPoP-Nonce", "proof_nonce")
    return nonce, caught.value.detail


def test_a_nonce_is_demanded_and_stands_for_the_time(with_nonces: Harness) -> None:
    nonce, detail = asked_for_nonce(with_nonces, sign_proof(SIGNER, iat=now(with_nonces)))
    assert detail == "nonce is missing"
    # The clock of the caller does not matter then.
    assert confirm(with_nonces, sign_proof(SIGNER, iat=7, nonce=nonce)) == {"jkt": SIGNER.kid}


@pytest.mark.parametrize("nonce", ["", "x", "é", 7, ["x"], "A" * 30, base64.urlsafe_b64encode(bytes(22)).decode()])
def test_an_unknown_nonce_is_answered_with_a_new_one(with_nonces: Harness, nonce: object) -> None:
    good, detail = asked_for_nonce(with_nonces, sign_proof(SIGNER, nonce=nonce))
    assert detail == "nonce is not valid now"
    confirm(with_nonces, sign_proof(SIGNER, nonce=good))


def test_a_nonce_ends(with_nonces: Harness, clock: SettableClock) -> None:
    nonce, _ = asked_for_nonce(with_nonces, sign_proof(SIGNER))
    clock.advance(seconds=NONCE_SECONDS)
    confirm(with_nonces, sign_proof(SIGNER, nonce=nonce))
    clock.advance(seconds=1)
    asked_for_nonce(with_nonces, sign_proof(SIGNER, nonce=nonce))


def test_a_nonce_from_a_machine_whose_clock_is_ahead_is_accepted(with_nonces: Harness, clock: SettableClock) -> None:
    clock.advance(seconds=SKEW_SECONDS)
    nonce, _ = asked_for_nonce(with_nonces, sign_proof(SIGNER))
    clock.advance(seconds=-SKEW_SECONDS)
    confirm(with_nonces, sign_proof(SIGNER, nonce=nonce))
    clock.advance(seconds=-1)
    asked_for_nonce(with_nonces, sign_proof(SIGNER, nonce=nonce))


def test_a_proof_with_a_nonce_is_accepted_once_while_the_nonce_is_valid(
    with_nonces: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    nonce, _ = asked_for_nonce(with_nonces, sign_proof(SIGNER))
    proof = sign_proof(SIGNER, nonce=nonce)
    confirm(with_nonces, proof)
    assert refused(with_nonces, proof) == ("proof_replayed", None)
    asked: list[Any] = []
    store = with_nonces.services.oauth.replay_store
    monkeypatch.setattr(store, "use", lambda *arguments: asked.append(arguments) or True)
    confirm(with_nonces, sign_proof(SIGNER, nonce=nonce, iat=7, jti="b"))
    until = now(with_nonces) + NONCE_SECONDS + SKEW_SECONDS + REMEMBERED_LONGER_SECONDS
    assert asked == [(f"dpop {SIGNER.kid}", "b", now(with_nonces), until)]


def test_every_answer_to_a_proof_brings_the_next_nonce(with_nonces: Harness, clock: SettableClock) -> None:
    first, _ = asked_for_nonce(with_nonces, sign_proof(SIGNER))
    clock.advance(seconds=1)
    request = _request(sign_proof(SIGNER, nonce=first))
    with with_nonces.app.app_context():
        Dpop(with_nonces.services.oauth).confirm(request)
    ((_, second),) = request.response_headers
    assert second != first
    confirm(with_nonces, sign_proof(SIGNER, nonce=second))


@given(st.integers(0, 2**40), st.binary(max_size=40))
def test_only_our_nonces_are_recognized(time: int, other: bytes) -> None:
    nonces = Nonces(PEPPERS, NONCE_SECONDS)
    assert nonces.issued_at(nonces.create(time)) == time
    assert nonces.issued_at(base64.urlsafe_b64encode(other).rstrip(b"=").decode()) is None


def test_a_nonce_of_an_old_pepper_counts_and_one_of_another_installation_does_not() -> None:
    new_and_old = parse_keys(f"p2:{'q' * 40},p1:{'p' * 40}")
    nonce = Nonces(PEPPERS, NONCE_SECONDS).create(7)
    assert Nonces(new_and_old, NONCE_SECONDS).issued_at(nonce) == 7
    assert Nonces(parse_keys(f"p1:{'r' * 40}"), NONCE_SECONDS).issued_at(nonce) is None


def test_a_changed_time_is_noticed() -> None:
    nonces = Nonces(PEPPERS, NONCE_SECONDS)
    raw = bytearray(base64.urlsafe_b64decode(nonces.create(7) + "=="))
    raw[5] += 1
    assert nonces.issued_at(base64.urlsafe_b64encode(raw).rstrip(b"=").decode()) is None


def test_no_error_quotes_the_proof() -> None:
    proof = sign_proof(SIGNER, jti="x" * (JTI_MAX_CHARACTERS + 1), mark="quoted")
    with pytest.raises(OAuthError) as caught:
        read_proof(proof)
    assert "xxx" not in json.dumps([caught.value.reason, caught.value.detail, caught.value.description])
