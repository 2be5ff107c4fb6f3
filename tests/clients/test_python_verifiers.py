"""JWT libraries and resource servers of the Python world verify tokens with what the metadata names."""

from collections.abc import Iterator
from typing import Any

import jwt
import pytest
import requests
from authlib.integrations.flask_oauth2 import ResourceProtector, current_token
from authlib.oauth2.rfc8414 import AuthorizationServerMetadata
from authlib.oauth2.rfc9068 import JWTBearerTokenValidator
from clients.relay import AUDIENCE, Harness
from flask import Flask
from flask.testing import FlaskClient
from joserfc import jwt as joserfc_jwt
from joserfc.errors import BadSignatureError, InvalidClaimError
from joserfc.jwk import KeySet

SECONDS = 10
REQUIRED = ["iss", "sub", "aud", "exp", "iat", "jti", "client_id", "scope"]


@pytest.fixture
def access_token(harness: Harness) -> str:
    token: str = harness.server.get_token(harness.register())["access_token"]
    return token


def with_other_signature(access_token: str) -> str:
    """The same claims, signed by nobody."""
    head, claims, signature = access_token.split(".")
    return f"{head}.{claims}.{signature[99::-1]}{signature[100:]}"


@pytest.mark.parametrize("name", ["oauth-authorization-server", "openid-configuration"])
def test_authlib_finds_the_metadata_valid(harness: Harness, name: str) -> None:
    document = requests.get(f"{harness.url}/.well-known/{name}", timeout=SECONDS).json()
    metadata = AuthorizationServerMetadata(document)
    metadata.validate()
    assert (metadata.issuer, metadata.token_endpoint, metadata.jwks_uri) == (
        harness.url,
        harness.token_url,
        harness.jwks_url,
    )
    assert metadata.grant_types_supported == ["client_credentials"]
    assert metadata.token_endpoint_auth_methods_supported == [
        "client_secret_basic",
        "client_secret_post",
        "client_secret_jwt",
        "private_key_jwt",
    ]


def test_pyjwt_finds_the_key_and_verifies(harness: Harness, access_token: str) -> None:
    keys = jwt.PyJWKClient(harness.jwks_url)
    for _ in range(2):
        found = jwt.decode_complete(
            access_token,
            keys.get_signing_key_from_jwt(access_token),
            algorithms=["RS256"],
            issuer=harness.url,
            audience=AUDIENCE,
            options={"require": REQUIRED},
        )
        assert found["payload"] == harness.verified(access_token)
        assert found["header"] == {"typ": "at+jwt", "alg": "RS256", "kid": harness.server.jwks()["keys"][0]["kid"]}
    assert [sent.target for sent in harness.sent()] == ["/.well-known/jwks.json"]


def test_pyjwt_refuses_another_audience_another_issuer_and_another_signature(
    harness: Harness, access_token: str
) -> None:
    key = jwt.PyJWKClient(harness.jwks_url).get_signing_key_from_jwt(access_token)
    good = {"algorithms": ["RS256"], "issuer": harness.url, "audience": AUDIENCE}
    with pytest.raises(jwt.InvalidAudienceError):
        jwt.decode(access_token, key, **good | {"audience": harness.url})
    with pytest.raises(jwt.InvalidIssuerError):
        jwt.decode(access_token, key, **good | {"issuer": f"{harness.url}/"})
    with pytest.raises(jwt.InvalidSignatureError):
        jwt.decode(with_other_signature(access_token), key, **good)


def test_pyjwt_says_that_there_is_no_such_key(harness: Harness) -> None:
    stranger = jwt.encode({"sub": "x"}, "k" * 32, algorithm="HS256", headers={"kid": "another"})
    with pytest.raises(jwt.PyJWKClientError, match="Unable to find a signing key"):
        jwt.PyJWKClient(harness.jwks_url).get_signing_key_from_jwt(stranger)


def test_joserfc_verifies_with_the_key_set(harness: Harness, access_token: str) -> None:
    keys = KeySet.import_key_set(requests.get(harness.jwks_url, timeout=SECONDS).json())
    token = joserfc_jwt.decode(access_token, keys, algorithms=["RS256"])
    wanted = {name: {"essential": True} for name in REQUIRED}
    wanted["iss"] |= {"value": harness.url}
    wanted["aud"] |= {"value": AUDIENCE}
    joserfc_jwt.JWTClaimsRegistry(**wanted).validate(token.claims)
    assert token.claims == harness.verified(access_token)
    with pytest.raises(InvalidClaimError, match="aud"):
        joserfc_jwt.JWTClaimsRegistry(**wanted | {"aud": {"value": harness.url}}).validate(token.claims)
    with pytest.raises(BadSignatureError):
        joserfc_jwt.decode(with_other_signature(access_token), keys, algorithms=["RS256"])


class Validator(JWTBearerTokenValidator):
    """Authlib's validator of RFC 9068 access tokens, with the keys from the metadata."""

    def get_jwks(self) -> KeySet:
        metadata = requests.get(f"{self.issuer}/.well-known/oauth-authorization-server", timeout=SECONDS).json()
        return KeySet.import_key_set(requests.get(metadata["jwks_uri"], timeout=SECONDS).json())


@pytest.fixture
def api(harness: Harness) -> Iterator[FlaskClient]:
    """A resource server that wants the scope ``read`` at one path and ``delete`` at another."""
    protected = ResourceProtector()
    protected.register_token_validator(Validator(harness.url, AUDIENCE))
    app = Flask("api")

    @app.get("/read")
    @protected("read")
    def read() -> dict[str, Any]:
        return dict(current_token)

    @app.get("/delete")
    @protected("delete")
    def delete() -> dict[str, Any]:
        return dict(current_token)

    with app.test_client() as client:
        yield client


def test_a_resource_server_of_authlib_lets_a_token_in(harness: Harness, api: FlaskClient, access_token: str) -> None:
    answer = api.get("/read", headers={"Authorization": f"Bearer {access_token}"})
    assert (answer.status_code, answer.json) == (200, harness.verified(access_token))


def test_a_resource_server_of_authlib_refuses_for_want_of_scope(api: FlaskClient, access_token: str) -> None:
    answer = api.get("/delete", headers={"Authorization": f"Bearer {access_token}"})
    assert (answer.status_code, answer.json["error"]) == (403, "insufficient_scope")


def test_a_resource_server_of_authlib_refuses_a_token_for_another_audience(harness: Harness, api: FlaskClient) -> None:
    elsewhere = harness.server.get_token(harness.register(audiences=("https://other.example.com",)))["access_token"]
    answer = api.get("/read", headers={"Authorization": f"Bearer {elsewhere}"})
    assert (answer.status_code, answer.json["error"]) == (401, "invalid_token")


def test_a_resource_server_of_authlib_refuses_another_signature(api: FlaskClient, access_token: str) -> None:
    answer = api.get("/read", headers={"Authorization": f"Bearer {with_other_signature(access_token)}"})
    assert (answer.status_code, answer.json["error"]) == (401, "invalid_token")
