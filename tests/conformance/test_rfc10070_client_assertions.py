"""RFC 10070: the issuer is the only audience of a client assertion.

An audience that another server can choose, such as the URL of an endpoint, lets it lure an assertion out of a client
and use it here (CVE-2025-27370, CVE-2025-27371).
"""

from typing import Any

import jwt
import pytest
import requests
from conformance.expected import INVALID_CLIENT, assert_refused
from support.assertions import ISSUER, Signer, claims_of, form, signer
from support.server import RunningServer

from app.clients.fields import ClientFields

ENDPOINTS = [f"{ISSUER}/oauth/{name}" for name in ("token", "introspect", "revoke", "revocations")]
SIGNER = signer("ES256")
SECRET = "a-secret-that-is-the-key-of-a-mac-12345"


@pytest.fixture(scope="module", params=["private_key_jwt", "client_secret_jwt"])
def client(request: pytest.FixtureRequest, server: RunningServer) -> Any:
    """Signs claims as a new client of each method."""
    method, audience = request.param, {"assertion_audience": "issuer"}
    keys = {"jwks": {"keys": [SIGNER.jwk | {"kid": SIGNER.kid}]}} if method == "private_key_jwt" else {}
    fields = ClientFields("Strict", token_endpoint_auth_method=method, auth_fields={**audience, **keys})
    with server.context():
        secret = None if keys else SECRET
        row, _ = server.services.clients.repository.register(fields, with_secret=not keys, secret=secret)
        client_id = row.client_id

    def sign(audience: Any, **header: Any) -> str:
        claims = claims_of(client_id, audience)
        return SIGNER.sign(claims, **header) if keys else jwt.encode(claims, SECRET, "HS256", headers=header)

    return sign


@pytest.mark.parametrize("audience", [ISSUER, [ISSUER]], ids=str)
@pytest.mark.parametrize("header", [{"typ": "client-authentication+jwt"}, {"typ": "JWT"}], ids=str)
def test_an_assertion_for_the_issuer_is_accepted(
    server: RunningServer, client: Any, audience: Any, header: dict[str, Any]
) -> None:
    assert server.post_token(form(client(audience, **header))).status_code == 200


@pytest.mark.parametrize(
    "audience",
    [
        *ENDPOINTS,
        [ISSUER, ENDPOINTS[0]],
        [ENDPOINTS[0]],
        f"{ISSUER}/",
        "https://attacker.example",
        [ISSUER, "https://attacker.example"],
        [],
    ],
    ids=str,
)
def test_any_other_audience_is_rejected(server: RunningServer, client: Any, audience: Any) -> None:
    response = server.post_token(form(client(audience)))
    assert_refused(response, INVALID_CLIENT)
    event = server.event_of(response)
    assert event["reason"] == "assertion_audience"
    assert event["detail"].startswith("aud ")


@pytest.mark.parametrize("path", ["/oauth/introspect", "/oauth/revoke"])
def test_so_it_is_at_every_endpoint(server: RunningServer, client: Any, path: str) -> None:
    def status(audience: str) -> int:
        body = {"token": "x", **form(client(audience))}
        return requests.post(f"{server.url}{path}", data=body, timeout=10).status_code

    assert status(f"{ISSUER}{path}") == status(ENDPOINTS[0]) == 401
    assert status(ISSUER) == 200


def test_a_client_that_was_made_before_may_name_the_token_endpoint(server: RunningServer) -> None:
    keys = {"jwks": {"keys": [SIGNER.jwk | {"kid": SIGNER.kid}]}}
    fields = ClientFields("Old", token_endpoint_auth_method="private_key_jwt", auth_fields=keys)
    with server.context():
        client_id = server.services.clients.repository.register(fields, with_secret=False)[0].client_id
    for audience in (ISSUER, ENDPOINTS[0]):
        assert server.post_token(form(SIGNER.sign(claims_of(client_id, audience)))).status_code == 200
    assert server.post_token(form(SIGNER.sign(claims_of(client_id, ENDPOINTS[1])))).status_code == 401


def test_an_assertion_that_was_lured_out_by_another_server_is_worthless(server: RunningServer, client: Any) -> None:
    """The other server names our token endpoint as its own, or as its issuer: the client signs for that."""
    for lured in (
        client(ENDPOINTS[0]),
        client(["https://attacker.example", ISSUER]),
        client("https://attacker.example"),
    ):
        assert_refused(server.post_token(form(lured)), INVALID_CLIENT)


def test_a_stranger_learns_nothing_from_the_audience(server: RunningServer) -> None:
    stranger = Signer("ES256", signer("ES256").key)
    sent = [form(stranger.sign(claims_of("nobody", audience))) for audience in (ISSUER, ENDPOINTS[0])]
    assert len({server.post_token(body).content for body in sent}) == 1
