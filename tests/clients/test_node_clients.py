"""OAuth clients and verifiers of the Node world: each program in ``node/`` runs once and tells what it saw."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote_plus

import pytest
from clients.relay import AUDIENCE, CHALLENGE, REFUSED, Harness
from support.assertions import signer

pytestmark = [
    pytest.mark.node,
    pytest.mark.skipif(not (shutil.which("node") and shutil.which("npm")), reason="Node.js or npm is not installed"),
]

PROGRAMS = Path(__file__).parent / "node"
FORM_UTF8 = "application/x-www-form-urlencoded;charset=UTF-8"
CHALLENGES = [{"scheme": "basic", "parameters": {"realm": "tokenhouse", **REFUSED}}]
NOT_GRANTED = {"error": "invalid_scope", "error_description": "The client was not granted: delete"}


@pytest.fixture(scope="module", autouse=True)
def _installed() -> None:
    assert (PROGRAMS / "node_modules").is_dir(), "tests/clients/node is not installed: run make test"


def node(program: str, **task: str) -> Any:
    """Run a program with its task, which may hold secrets, on standard input; the object that it prints."""
    done = subprocess.run(
        ["node", program], cwd=PROGRAMS, input=json.dumps(task), capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stderr[:2000]) == (0, ""), done.stderr[:2000]
    return json.loads(done.stdout)


def encoded_to_the_last_hyphen(text: str) -> str:
    """Encode as openid-client and oauth4webapi do: whatever is no letter and no digit."""
    return "".join(found if found not in "-_.~" else f"%{ord(found):02X}" for found in quote_plus(text))


def test_axios_gets_tokens_by_basic_and_by_the_body(harness: Harness) -> None:
    client = harness.register_awkward_for_raw()
    told = node(
        "axios.mjs", tokenUrl=harness.token_url, jwksUrl=harness.jwks_url, id=client.client_id, secret=client.secret
    )
    sent = [request for request in harness.sent() if request.method == "POST"]
    for way in ("basic", "body", "object"):
        harness.check_answer(told.pop(way), client)
    refused = {"name": "AxiosError", "code": "ERR_BAD_REQUEST"}
    no_form = "The content type must be application/x-www-form-urlencoded."
    assert told == {
        "wrongSecret": refused | {"status": 401, "data": REFUSED, "challenge": CHALLENGE},
        "excessiveScope": refused | {"status": 400, "data": NOT_GRANTED},
        "multipart": refused | {"status": 400, "data": {"error": "invalid_request", "error_description": no_form}},
        "unchangedKeys": 304,
    }
    raw = f"{client.client_id}:{client.secret}"
    assert [request.credentials for request in sent[:3]] == [raw, None, raw]
    assert [request.headers["content-type"].lower() for request in sent[:2]] == [FORM_UTF8.lower()] * 2


def test_fetch_gets_tokens_by_basic_by_the_body_and_from_a_stream(harness: Harness) -> None:
    client = harness.register_awkward_for_raw()
    told = node(
        "fetch.mjs", tokenUrl=harness.token_url, jwksUrl=harness.jwks_url, id=client.client_id, secret=client.secret
    )
    sent = harness.sent()
    for answer in (told["basic"].pop("body"), told["body"].pop("body"), told.pop("streamed")):
        harness.check_answer(answer, client)
    granted = {"status": 200, "contentType": "application/json", "cacheControl": "no-store", "challenge": None}
    assert told == {
        "basic": granted,
        "body": granted,
        "wrongSecret": granted | {"status": 401, "challenge": CHALLENGE, "body": REFUSED},
        "keys": {"status": 200, "origin": "*", "body": harness.server.jwks()},
    }
    chunked = [request for request in sent if request.headers.get("transfer-encoding") == "chunked"]
    assert [request.body for request in chunked] == [b"grant_type=client_credentials&scope=read%20write"]
    assert {request.headers["content-type"] for request in sent if request.method == "POST"} == {
        FORM_UTF8,
        "application/x-www-form-urlencoded",
    }


def test_openid_client_discovers_and_gets_tokens_by_basic_and_by_the_body(harness: Harness) -> None:
    client = harness.register_awkward_for_encoded()
    told = node("openid_client.mjs", issuer=harness.url, id=client.client_id, secret=client.secret)
    sent = harness.sent()
    harness.check_answer(lower_type(told.pop("basic")), client, scope="write read")
    harness.check_answer(lower_type(told.pop("body")), client)
    assert told.pop("oidc") == told.pop("oauth2")
    assert told == {
        "wrongSecret": {
            "name": "WWWAuthenticateChallengeError",
            "code": "OAUTH_WWW_AUTHENTICATE_CHALLENGE",
            "status": 401,
            "cause": CHALLENGES,
        },
        "excessiveScope": {
            "name": "ResponseBodyError",
            "code": "OAUTH_RESPONSE_BODY_ERROR",
            "status": 400,
            "error": "invalid_scope",
        },
    }
    discoveries = {"/.well-known/openid-configuration", "/.well-known/oauth-authorization-server"}
    assert {request.target for request in sent if request.method == "GET"} == discoveries
    basic, body = [request for request in sent if request.method == "POST"][:2]
    assert basic.credentials == ":".join(map(encoded_to_the_last_hyphen, (client.client_id, client.secret)))
    assert (basic.headers["content-type"], basic.headers["accept"]) == (FORM_UTF8, "application/json")
    assert dict(parse_qsl(body.body.decode())) == {
        "grant_type": "client_credentials",
        "client_id": client.client_id,
        "client_secret": client.secret,
    }


def test_oauth4webapi_gets_tokens_and_validates_them_as_a_resource_server(harness: Harness) -> None:
    client = harness.register_awkward_for_encoded()
    told = node("oauth4webapi.mjs", issuer=harness.url, audience=AUDIENCE, id=client.client_id, secret=client.secret)
    sent = harness.sent()
    granted = told.pop("basic")
    harness.check_answer(lower_type(granted), client)
    harness.check_answer(lower_type(told.pop("body")), client, scope="read")
    assert told == {
        "oidcIsTheSame": True,
        "claims": harness.verified(granted["access_token"]),
        "wrongAudience": {"name": "OperationProcessingError", "code": "OAUTH_JWT_CLAIM_COMPARISON_FAILED"},
        "wrongSecret": {
            "name": "WWWAuthenticateChallengeError",
            "code": "OAUTH_WWW_AUTHENTICATE_CHALLENGE",
            "status": 401,
            "challenges": CHALLENGES,
        },
        "excessiveScope": {
            "name": "ResponseBodyError",
            "code": "OAUTH_RESPONSE_BODY_ERROR",
            "status": 400,
            **NOT_GRANTED,
        },
    }
    basic = next(request for request in sent if request.method == "POST")
    assert basic.credentials == ":".join(map(encoded_to_the_last_hyphen, (client.client_id, client.secret)))


def test_simple_oauth2_gets_tokens_by_both_readings_of_basic_and_by_the_body(harness: Harness) -> None:
    raw, encoded = harness.register_awkward_for_raw(), harness.register_awkward_for_encoded()
    assert raw.secret == encoded.secret
    ids = {"rawId": raw.client_id, "encodedId": encoded.client_id}
    told = node("simple_oauth2.mjs", issuer=harness.url, secret=raw.secret, **ids)
    sent = harness.sent()
    harness.check_answer(told.pop("strict"), encoded)
    harness.check_answer(told.pop("loose"), raw)
    harness.check_answer(told.pop("body"), encoded, scope="read")
    assert told == {
        "wrongSecret": {"message": "Response Error: 401 UNAUTHORIZED", "status": 401, "payload": REFUSED},
        "excessiveScope": {"message": "Response Error: 400 BAD REQUEST", "status": 400, "payload": NOT_GRANTED},
    }
    assert [request.credentials for request in sent[:3]] == [
        f"{quote_plus(encoded.client_id)}:{quote_plus(encoded.secret)}",
        f"{raw.client_id}:{raw.secret}",
        None,
    ]


def test_jose_verifies_and_refuses(harness: Harness) -> None:
    access_token = harness.server.get_token(harness.register())["access_token"]
    told = node("jose.mjs", **verification(harness, access_token))
    sent = harness.sent()
    unexpected = {"code": "ERR_JWT_CLAIM_VALIDATION_FAILED", "reason": "check_failed"}
    assert told == {
        "payload": harness.verified(access_token),
        "protectedHeader": {"typ": "at+jwt", "alg": "RS256", "kid": harness.server.jwks()["keys"][0]["kid"]},
        "again": True,
        "wrongAudience": unexpected | {"claim": "aud"},
        "wrongIssuer": unexpected | {"claim": "iss"},
        "wrongType": unexpected | {"claim": "typ"},
        "missingClaim": unexpected | {"claim": "nbf", "reason": "missing"},
        "afterwards": {"code": "ERR_JWT_EXPIRED", "claim": "exp", "reason": "check_failed"},
        "forged": {"code": "ERR_JWS_SIGNATURE_VERIFICATION_FAILED"},
    }
    assert [request.target for request in sent] == ["/.well-known/jwks.json"]


def test_jsonwebtoken_verifies_and_refuses_with_the_keys_of_jwks_rsa(harness: Harness) -> None:
    access_token = harness.server.get_token(harness.register())["access_token"]
    told = node("jsonwebtoken.mjs", **verification(harness, access_token))
    refused = {"name": "JsonWebTokenError"}
    assert told == {
        "payload": harness.verified(access_token),
        "header": {"typ": "at+jwt", "alg": "RS256", "kid": harness.server.jwks()["keys"][0]["kid"]},
        "again": True,
        "wrongAudience": refused | {"message": f"jwt audience invalid. expected: {harness.url}"},
        "wrongIssuer": refused | {"message": f"jwt issuer invalid. expected: {harness.url}/"},
        "afterwards": "TokenExpiredError",
        "forged": refused | {"message": "invalid signature"},
        "unknownKey": {
            "name": "SigningKeyNotFoundError",
            "message": "Unable to find a signing key that matches 'another'",
        },
    }


def verification(harness: Harness, access_token: str) -> dict[str, str]:
    """The task of a verifier: a good token, and the same claims with another signature."""
    head, claims, signature = access_token.split(".")
    return {
        "issuer": harness.url,
        "audience": AUDIENCE,
        "jwksUrl": harness.jwks_url,
        "accessToken": access_token,
        "forgedToken": f"{head}.{claims}.{signature[99::-1]}{signature[100:]}",
    }


def lower_type(answer: dict[str, Any]) -> dict[str, Any]:
    """See that the client wrote the token's type in lower case, as these two do, and write it as it was sent."""
    assert answer["token_type"] == "bearer"
    return answer | {"token_type": "Bearer"}


def _told(harness: Harness, token: str) -> dict[str, Any]:
    """What introspection says of a live token."""
    return {"active": True, "token_type": "Bearer", **harness.verified(token)}


def test_openid_client_introspects_and_revokes(harness: Harness) -> None:
    client = harness.register_awkward_for_raw()
    reader = harness.register(grant_types=(), audiences=(), introspects=(AUDIENCE,))
    token = harness.server.get_token(client)["access_token"]
    told = node(
        "openid_client_tokens.mjs",
        issuer=harness.url,
        id=client.client_id,
        secret=client.secret,
        readerId=reader.client_id,
        readerSecret=reader.secret,
        token=token,
    )
    live = [_told(harness, token)] * 3
    assert told["before"] == told["leftAlone"] == live
    assert told["refused"] == {"error": "invalid_grant", "status": 400}
    assert told["after"] == [{"active": False}] * 3
    assert told["wrongSecret"] == {"name": "WWWAuthenticateChallengeError", "status": 401}


def test_oauth4webapi_introspects_with_a_signed_answer_and_revokes(harness: Harness) -> None:
    client = harness.register_awkward_for_raw()
    reader = harness.register(grant_types=(), audiences=(), introspects=("*",))
    token = harness.server.get_token(client)["access_token"]
    told = node(
        "oauth4webapi_tokens.mjs",
        issuer=harness.url,
        id=client.client_id,
        secret=client.secret,
        readerId=reader.client_id,
        readerSecret=reader.secret,
        token=token,
    )
    signed = "application/token-introspection+jwt"
    assert told == {
        "before": {"type": signed, "answer": _told(harness, token)},
        "after": {"type": signed, "answer": {"active": False}},
    }


@pytest.mark.parametrize("style", ["issuer", "any"])
@pytest.mark.parametrize("alg", ["RS256", "ES256"])
def test_openid_client_and_oauth4webapi_sign_assertions(harness: Harness, alg: str, style: str) -> None:
    one, other = signer(alg), signer(alg)
    client_id = harness.register_keyed(one, assertion_audience=style)
    keys = [json.dumps(key.key.as_dict(private=True) | {"kid": one.kid}) for key in (one, other)]
    audience = harness.token_url if style == "any" else ""
    given = {"jwk": keys[0], "otherJwk": keys[1], "alg": alg, "audience": audience}
    told = node("private_key_jwt.mjs", issuer=harness.url, id=client_id, **given)
    for way in ("granted", "again", "byOauth4webapi"):
        claims = harness.verified(told[way]["access_token"])
        assert claims["sub"] == client_id
    assert told["introspected"]["active"] is True
    assert told["otherKey"] == {"name": "WWWAuthenticateChallengeError", "status": 401}


def test_openid_client_and_oauth4webapi_sign_assertions_with_a_secret(harness: Harness) -> None:
    made = harness.register(token_endpoint_auth_method="client_secret_jwt")
    told = node("client_secret_jwt.mjs", issuer=harness.url, id=made.client_id, secret=made.secret)
    for way in ("granted", "again", "byOauth4webapi"):
        assert harness.verified(told[way]["access_token"])["sub"] == made.client_id
    assert told["introspected"]["active"] is True
    assert told["otherSecret"] == {"name": "WWWAuthenticateChallengeError", "status": 401}
