"""RFC 9449: tokens bound to the key of a DPoP proof."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jwt
import pytest
import requests
from conformance.expected import (
    INVALID_CLIENT,
    UNAUTHORIZED_CLIENT,
    Granted,
    assert_answer,
    assert_refused,
    refusal,
    scope_not_granted,
)
from joserfc.jwk import ECKey
from support.assertions import claims_of, form, signer
from support.dpop import sign_proof
from support.server import NewClient, RunningServer, running_server

SIGNER = signer("ES256")
INVALID_PROOF = refusal(400, "invalid_dpop_proof", "The DPoP proof is missing, is invalid, or was used before.")
USE_NONCE = refusal(400, "use_dpop_nonce", "The DPoP proof must contain the nonce of the DPoP-Nonce header.")


@pytest.fixture(scope="module")
def client(server: RunningServer) -> NewClient:
    return server.create_client(scope=("read", "write"))


@pytest.fixture(scope="module")
def strict(server: RunningServer) -> NewClient:
    return server.create_client(sender_constraints=("dpop",))


@pytest.fixture(scope="module")
def with_nonces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("with_nonces")
    with running_server(folder, "--workers", "2", TOKENHOUSE_DPOP_NONCE_LIFETIME="5m") as running:
        yield running


def post(server: RunningServer, client: NewClient, proof: str, **parameters: str) -> requests.Response:
    body = {"grant_type": "client_credentials", **parameters}
    return server.post_token(body, headers={"Authorization": client.basic, "DPoP": proof})


def bound_token(server: RunningServer, client: NewClient, proof: str) -> str:
    answer = post(server, client, proof)
    assert answer.status_code == 200, answer.text
    assert answer.json()["token_type"] == "DPoP"
    return str(answer.json()["access_token"])


def assert_proof_refused(server: RunningServer, answer: requests.Response, reason: str) -> None:
    assert_refused(answer, INVALID_PROOF)
    event = server.event_of(answer)
    assert (event["event"], event["reason"], event["error"]) == ("TokenRefused", reason, "invalid_dpop_proof")
    assert event["client_id"]


@pytest.mark.parametrize("alg", ["RS256", "PS256", "ES256", "EdDSA"])
def test_5_a_request_with_a_proof_gets_a_token_for_its_key(server: RunningServer, client: NewClient, alg: str) -> None:
    keys = signer(alg)
    answer = post(server, client, sign_proof(keys))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body == {
        "access_token": body["access_token"],
        "token_type": "DPoP",
        "expires_in": 3600,
        "scope": "read write",
    }
    assert server.verify(body["access_token"])["cnf"] == {"jkt": keys.kid}
    assert server.event_of(answer)["cnf"] == {"jkt": keys.kid}
    assert "DPoP-Nonce" not in answer.headers


def test_5_a_request_without_a_proof_gets_a_bearer_token(server: RunningServer, client: NewClient) -> None:
    answer = server.post_token(headers={"Authorization": client.basic})
    assert_answer(answer, Granted())
    assert "cnf" not in server.verify(answer.json()["access_token"])
    assert "cnf" not in server.event_of(answer)


def test_5_1_the_metadata_name_the_algorithms(server: RunningServer) -> None:
    metadata = requests.get(f"{server.url}/.well-known/oauth-authorization-server", timeout=10).json()
    assert metadata["dpop_signing_alg_values_supported"] == ["RS256", "PS256", "ES256", "EdDSA", "Ed25519"]


def test_5_2_a_client_that_must_send_proofs_gets_no_bearer_token(server: RunningServer, strict: NewClient) -> None:
    answer = server.post_token(headers={"Authorization": strict.basic})
    assert_proof_refused(server, answer, "proof_missing")
    assert bound_token(server, strict, sign_proof(SIGNER))


def test_6_2_introspection_shows_the_key(server: RunningServer, client: NewClient) -> None:
    token = bound_token(server, client, sign_proof(SIGNER))
    headers = {"Authorization": client.basic}
    described = requests.post(f"{server.url}/oauth/introspect", {"token": token}, headers=headers, timeout=10).json()
    assert (described["token_type"], described["cnf"]) == ("DPoP", {"jkt": SIGNER.kid})


def private_proof() -> str:
    pair = ECKey.generate_key("P-256")
    return sign_proof(SIGNER, {"jwk": dict(pair.as_dict(private=True))})


def mac_proof() -> str:
    claims = jwt.decode(sign_proof(SIGNER), options={"verify_signature": False})
    jwk = {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U"}
    return jwt.encode(claims, "secret" * 7, "HS256", headers={"typ": "dpop+jwt", "jwk": jwk})


WRONG: dict[str, tuple[Any, str]] = {
    "empty": (lambda: "", "proof_invalid"),
    "no JWT": (lambda: "proof", "proof_invalid"),
    "an access token's type": (lambda: sign_proof(SIGNER, {"typ": "at+jwt"}), "proof_invalid"),
    "a MAC": (mac_proof, "proof_invalid"),
    "no jwk": (lambda: sign_proof(SIGNER, {"jwk": None, "kid": "x"}), "proof_invalid"),
    "a private jwk": (private_proof, "proof_invalid"),
    "another's jwk": (lambda: sign_proof(SIGNER, {"jwk": signer("ES256").jwk}), "proof_invalid"),
    "no jti": (lambda: sign_proof(SIGNER, jti=None), "proof_invalid"),
    "no iat": (lambda: sign_proof(SIGNER, iat=None), "proof_invalid"),
    "no htm": (lambda: sign_proof(SIGNER, htm=None), "proof_other_request"),
    "another method": (lambda: sign_proof(SIGNER, htm="GET"), "proof_other_request"),
    "no htu": (lambda: sign_proof(SIGNER, htu=None), "proof_other_request"),
    "another server": (lambda: sign_proof(SIGNER, htu="https://evil.example/oauth/token"), "proof_other_request"),
    "an old one": (lambda: sign_proof(SIGNER, iat=int(time.time()) - 600), "proof_stale"),
    "one of the future": (lambda: sign_proof(SIGNER, iat=int(time.time()) + 600), "proof_stale"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_4_3_a_proof_that_fails_a_check_is_refused(server: RunningServer, client: NewClient, kind: str) -> None:
    make, reason = WRONG[kind]
    assert_proof_refused(server, post(server, client, make()), reason)


def test_4_3_two_headers_are_refused(server: RunningServer, client: NewClient) -> None:
    proofs = [b"DPoP: " + sign_proof(SIGNER).encode() for _ in range(2)]
    answer = server.send_form(b"grant_type=client_credentials", b"Authorization: " + client.basic.encode(), *proofs)
    assert_refused(answer, INVALID_PROOF)
    assert server.event_of(answer)["reason"] == "proof_invalid"


def test_11_1_a_proof_is_accepted_once_by_all_workers(server: RunningServer, client: NewClient) -> None:
    proof = sign_proof(SIGNER)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(server, client, proof), range(16)))
    assert sorted(answer.status_code for answer in answers) == [200] + [400] * 15
    for answer in answers:
        if answer.status_code == 400:
            assert_proof_refused(server, answer, "proof_replayed")


def test_a_request_that_is_refused_for_something_else_uses_no_proof_up(
    server: RunningServer, client: NewClient
) -> None:
    proof = sign_proof(SIGNER)
    assert_refused(post(server, NewClient(client.client_id, "wrong"), proof), INVALID_CLIENT)
    assert_refused(post(server, NewClient("nobody", "x" * 30), proof), INVALID_CLIENT)
    assert_refused(post(server, client, proof, scope="admin"), scope_not_granted("admin"))
    assert bound_token(server, client, proof)


def test_a_client_without_the_grant_is_told_so_first(server: RunningServer) -> None:
    client = server.create_client(grant_types=(), sender_constraints=("dpop",))
    assert_refused(server.post_token(headers={"Authorization": client.basic}), UNAUTHORIZED_CLIENT)


def test_without_authentication_the_proof_does_not_matter(server: RunningServer, client: NewClient) -> None:
    for nobody in (NewClient(client.client_id, "wrong"), NewClient("nobody", "x" * 30)):
        assert_refused(post(server, nobody, "no proof"), INVALID_CLIENT)


def test_a_client_that_signs_assertions_gets_bound_tokens_too(server: RunningServer) -> None:
    server.create_signing_client("signs-and-proves", SIGNER)
    key = signer("EdDSA")
    answer = server.post_token(form(SIGNER.sign(claims_of("signs-and-proves"))), headers={"DPoP": sign_proof(key)})
    assert answer.status_code == 200, answer.text
    assert server.verify(answer.json()["access_token"])["cnf"] == {"jkt": key.kid}


def test_other_endpoints_need_no_proof(server: RunningServer, strict: NewClient) -> None:
    token = bound_token(server, strict, sign_proof(SIGNER))
    headers = {"Authorization": strict.basic}
    described = requests.post(f"{server.url}/oauth/introspect", {"token": token}, headers=headers, timeout=10)
    assert described.json()["active"] is True
    revoked = requests.post(f"{server.url}/oauth/revoke", {"token": token}, headers=headers, timeout=10)
    assert revoked.status_code == 200


def test_8_a_nonce_is_handed_out_and_required(with_nonces: RunningServer) -> None:
    client = with_nonces.create_client()
    refused = post(with_nonces, client, sign_proof(SIGNER))
    assert_refused(refused, USE_NONCE)
    assert with_nonces.event_of(refused)["reason"] == "proof_nonce"
    nonce = refused.headers["DPoP-Nonce"]
    # Any worker takes it, for many requests, whatever the caller's clock says.
    for iat in (None, 7, int(time.time()) + 7200):
        claims = {} if iat is None else {"iat": iat}
        for _ in range(4):
            answer = post(with_nonces, client, sign_proof(SIGNER, nonce=nonce, **claims))
            assert answer.status_code == 200, answer.text
            assert answer.headers["DPoP-Nonce"]


def test_8_2_an_answer_brings_the_next_nonce(with_nonces: RunningServer) -> None:
    client = with_nonces.create_client()
    nonce = post(with_nonces, client, sign_proof(SIGNER)).headers["DPoP-Nonce"]
    for _ in range(3):
        answer = post(with_nonces, client, sign_proof(SIGNER, nonce=nonce))
        assert answer.status_code == 200
        nonce = answer.headers["DPoP-Nonce"]


def test_8_an_error_that_is_not_about_the_nonce_brings_one_too(with_nonces: RunningServer) -> None:
    client = with_nonces.create_client()
    answer = post(with_nonces, client, sign_proof(SIGNER, htm="GET"))
    assert_refused(answer, INVALID_PROOF)
    assert answer.headers["DPoP-Nonce"]


def test_8_a_bearer_request_gets_no_nonce(with_nonces: RunningServer) -> None:
    client = with_nonces.create_client()
    answer = with_nonces.post_token(headers={"Authorization": client.basic})
    assert answer.status_code == 200
    assert "DPoP-Nonce" not in answer.headers
