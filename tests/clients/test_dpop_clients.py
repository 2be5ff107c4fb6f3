"""DPoP with other people's clients, at a server that demands nonces and at one that does not."""

from collections.abc import Iterator
from typing import Any

import pytest
from authlib.integrations.requests_client import OAuth2Session as AuthlibSession
from clients.relay import AUDIENCE, Harness, running_house
from clients.test_node_clients import node
from clients.test_node_clients import pytestmark as needs_node
from joserfc import jwt
from joserfc.jwk import ECKey
from requests_oauth2client import DPoPKey, DPoPToken, validate_dpop_proof
from requests_oauth2client import OAuth2Client as R2cClient
from support.assertions import signer
from support.dpop import TOKEN_ENDPOINT, proof_claims, sign_proof
from support.server import NewClient

NONCES = {"plain": "0", "nonces": "5m"}


@pytest.fixture(scope="module", params=NONCES)
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Harness]:
    folder = tmp_path_factory.mktemp(f"dpop-{request.param}")
    with running_house(folder, TOKENHOUSE_DPOP_NONCE_LIFETIME=NONCES[request.param]) as harness:
        yield harness


@pytest.fixture
def dpop_client(house: Harness, monkeypatch: pytest.MonkeyPatch) -> NewClient:
    """A client that must use DPoP."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    house.sent()
    return house.register(sender_constraints=("dpop",))


def demands_nonces(house: Harness) -> bool:
    return house.server.settings.dpop_nonce_lifetime > 0


def test_requests_oauth2client_gets_bound_tokens(house: Harness, dpop_client: NewClient) -> None:
    client = R2cClient(house.token_url, (dpop_client.client_id, dpop_client.secret), testing=True)
    key = DPoPKey.generate(alg="ES256")
    for _ in range(2):
        token = client.client_credentials(dpop=True, dpop_key=key)
        assert isinstance(token, DPoPToken)
        assert house.verified(token.access_token)["cnf"] == {"jkt": key.dpop_jkt}
    # The first attempt of all had no nonce.
    assert len(house.sent()) == (3 if demands_nonces(house) else 2)


def test_authlib_gets_bound_tokens_with_a_proof_in_a_header(house: Harness, dpop_client: NewClient) -> None:
    """It knows no DPoP: its caller signs the proof, here with the library of the same authors."""
    key = ECKey.generate_key("P-256")

    def proof(nonce: str | None = None) -> dict[str, str]:
        header = {"typ": "dpop+jwt", "alg": "ES256", "jwk": key.as_dict(private=False)}
        return {"DPoP": jwt.encode(header, proof_claims(htu=house.token_url, nonce=nonce), key)}

    with AuthlibSession(dpop_client.client_id, dpop_client.secret) as session:
        nonces: list[str] = []
        session.register_compliance_hook("access_token_response", lambda answer: keep_nonce(answer, nonces))
        if demands_nonces(house):
            with pytest.raises(Exception, match="use_dpop_nonce"):
                session.fetch_token(house.token_url, grant_type="client_credentials", headers=accepting(proof()))
        nonce = nonces[-1] if nonces else None
        headers = accepting(proof(nonce))
        token = session.fetch_token(house.token_url, grant_type="client_credentials", headers=headers)
    assert token["token_type"] == "DPoP"
    assert house.verified(token["access_token"])["cnf"] == {"jkt": key.thumbprint()}


def accepting(headers: dict[str, str]) -> dict[str, str]:
    """Headers of one's own replace Authlib's."""
    form = "application/x-www-form-urlencoded;charset=UTF-8"
    return {"Accept": "application/json", "Content-Type": form, **headers}


def keep_nonce(answer: Any, nonces: list[str]) -> Any:
    nonces += [answer.headers["DPoP-Nonce"]] if "DPoP-Nonce" in answer.headers else []
    return answer


@pytest.mark.node
@needs_node[1]
def test_openid_client_and_oauth4webapi_get_bound_tokens_and_an_api_accepts_them(
    house: Harness, dpop_client: NewClient
) -> None:
    told = node("dpop.mjs", issuer=house.url, audience=AUDIENCE, id=dpop_client.client_id, secret=dpop_client.secret)
    for answer in told["byOpenid"]:
        assert answer["token_type"] == "dpop"
        assert house.verified(answer["access_token"])["cnf"] == {"jkt": told["jkt"]}
    assert house.verified(told["byWebapi"]["access_token"])["cnf"] == {"jkt": told["webapiJkt"]}
    assert told["claims"]["cnf"] == {"jkt": told["webapiJkt"]}
    assert told["stolen"]["code"] == "OAUTH_JWT_CLAIM_COMPARISON_FAILED"


def test_requests_oauth2client_accepts_the_proofs_of_these_tests() -> None:
    """What the tests of this project sign is a proof to others too."""
    assert validate_dpop_proof(sign_proof(signer("ES256")), algs=["ES256"], htm="POST", htu=TOKEN_ENDPOINT)
