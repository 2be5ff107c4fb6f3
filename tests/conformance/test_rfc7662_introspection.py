"""RFC 7662: who may ask, what is told of a live token, and that of all else nothing is told; RFC 9701: signed."""

import json
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import jwt
import pytest
import requests
from conformance.expected import (
    ANY_REPEATED,
    INVALID_CLIENT,
    METHOD_NOT_ALLOWED,
    NOT_A_FORM,
    OTHER_CLIENT_ID,
    SEVERAL_AUTHENTICATIONS,
    Refusal,
    assert_refused,
    in_query,
    missing,
    repeated,
)
from support.server import Installation, NewClient, RunningServer, basic

from app.clients.authentication import to_client
from app.tokens.issuer import AccessTokenIssuer

PATH = "/oauth/introspect"
API, OTHER_API = "https://api.example", "https://other.example"
INACTIVE = {"active": False}


class Household(NamedTuple):
    """Who asks, and about whose tokens."""

    caller: NewClient
    gateway: NewClient
    api: NewClient
    other_api: NewClient


@pytest.fixture(scope="module")
def harness(server: RunningServer) -> Household:
    return Household(
        caller=server.create_client("A caller", scope=("read", "write"), audiences=(API, OTHER_API)),
        gateway=server.create_client("A gateway", grant_types=(), introspects=("*",)),
        api=server.create_client("An API", grant_types=(), introspects=(API, "urn:unused")),
        other_api=server.create_client("Another API", grant_types=(), introspects=(OTHER_API,)),
    )


@pytest.fixture(scope="module")
def token(server: RunningServer, harness: Household) -> str:
    return str(server.get_token(harness.caller, resource=API, scope="read")["access_token"])


def ask(server: RunningServer, who: NewClient, token: str, **more: Any) -> requests.Response:
    headers = {"Authorization": who.basic, **more.pop("headers", {})}
    return requests.post(f"{server.url}{PATH}", {"token": token, **more}, headers=headers, timeout=10)


def told(server: RunningServer, who: NewClient, token: str, **more: Any) -> dict[str, Any]:
    response = ask(server, who, token, **more)
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    answer: dict[str, Any] = response.json()
    return answer


@pytest.mark.parametrize("who", ["caller", "gateway", "api"])
def test_2_2_a_live_token_is_told_in_full(server: RunningServer, harness: Household, token: str, who: str) -> None:
    claims = server.verify(token, API)
    assert told(server, getattr(harness, who), token) == {
        "active": True,
        "token_type": "Bearer",
        "scope": "read",
        "client_id": harness.caller.client_id,
        "sub": harness.caller.client_id,
        "iss": "https://tokens.example.com",
        "aud": API,
        "iat": claims["iat"],
        "exp": claims["exp"],
        "jti": claims["jti"],
    }


def test_2_2_claims_by_configuration_are_told_too(server: RunningServer, harness: Household) -> None:
    client = server.create_client(audiences=(API,), claims={"tenant": "acme", "roles": ["reader"]})
    answer = told(server, harness.api, server.get_token(client)["access_token"])
    assert (answer["active"], answer["tenant"], answer["roles"]) == (True, "acme", ["reader"])
    assert "scope" not in answer


def test_2_2_of_several_audiences_one_is_enough(server: RunningServer, harness: Household) -> None:
    body = [("grant_type", "client_credentials"), ("resource", API), ("resource", OTHER_API)]
    token = server.post_token(body, headers={"Authorization": harness.caller.basic}).json()["access_token"]
    for who in (harness.api, harness.other_api):
        assert told(server, who, token)["aud"] == [API, OTHER_API]


def test_2_2_a_token_without_scope_has_none(server: RunningServer, harness: Household) -> None:
    client = server.create_client(audiences=(API,))
    answer = told(server, harness.api, server.get_token(client)["access_token"])
    assert answer["active"]
    assert "scope" not in answer


def test_4_somebody_elses_resource_is_nobodys_business(server: RunningServer, harness: Household, token: str) -> None:
    stranger = server.create_client("A stranger")
    for who in (harness.other_api, stranger):
        assert told(server, who, token) == INACTIVE


def part(token: str, place: int, **changes: Any) -> str:
    """``token`` with another header or payload, and the old signature."""
    parts = token.split(".")
    value = json.loads(urlsafe_b64decode(parts[place] + "==")) | changes
    parts[place] = urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()
    return ".".join(parts)


def unsigned(token: str) -> str:
    return part(token, 0, alg="none").rpartition(".")[0] + "."


def signed_with_the_public_key(server: RunningServer, token: str) -> str:
    """What a verifier accepts that takes the algorithm from the token and the key from the JWKS."""
    header = jwt.get_unverified_header(token)
    claims = jwt.decode(token, options={"verify_signature": False})
    modulus = next(key["n"] for key in server.jwks()["keys"] if key["kid"] == header["kid"])
    return jwt.encode(claims, modulus, algorithm="HS256", headers={**header, "alg": "HS256"})


def test_2_2_whatever_is_no_live_token_of_ours_is_inactive(
    server: RunningServer, harness: Household, token: str, tmp_path: Path
) -> None:
    other = Installation(tmp_path, TOKENHOUSE_ISSUER="https://tokens.example.com")
    other.prepare()
    other.create_client(client_id="c", audiences=(API,))
    foreign = other.flask("tokens", "issue", "c").stdout.strip()
    assert foreign.count(".") == 2
    ours = [
        "x",
        "ths_a-secret-that-was-pasted-into-the-wrong-field",
        "a.b.c",
        "é" * 100,
        "x" * 15000,
        token[:-1],
        token + "A",
        f" {token}",
        f"Bearer {token}",
        token.replace(".", "..", 1),
        part(token, 0, typ="JWT"),
        part(token, 0, kid="another"),
        part(token, 1, scope="read write"),
        part(token, 1, iss="https://evil.example"),
        part(token, 1, exp=2**40),
        unsigned(token),
        signed_with_the_public_key(server, token),
        foreign,
    ]
    for wrong in ours:
        assert told(server, harness.gateway, wrong) == INACTIVE, wrong


def test_2_2_an_expired_token_is_inactive(server: RunningServer, harness: Household) -> None:
    def issued(ago: timedelta) -> str:
        with server.context():
            here = server.services
            client = to_client(here.clients.repository.find(harness.caller.client_id))
            issuer = AccessTokenIssuer(here.settings.issuer, here.keys.active.signing_key, lambda: here.clock() - ago)
            return issuer(client=client, scope="read", audiences=(API,), expires_in=3600)["access_token"]

    assert told(server, harness.gateway, issued(timedelta(minutes=59)))["active"]
    for seconds in (3600, 3601, 2**25):
        assert told(server, harness.gateway, issued(timedelta(seconds=seconds))) == INACTIVE


@pytest.mark.parametrize("command", [["disable"], ["delete", "--yes"]])
def test_2_2_a_token_of_a_client_that_has_gone_is_inactive_and_stays_so(
    server: RunningServer, harness: Household, command: list[str]
) -> None:
    client = server.create_client(audiences=(API,))
    token = server.get_token(client)["access_token"]
    assert told(server, harness.api, token)["active"]
    verb, *options = command
    assert server.flask("clients", verb, client.client_id, *options).returncode == 0
    assert told(server, harness.api, token) == INACTIVE
    if verb == "disable":
        assert server.flask("clients", "enable", client.client_id).returncode == 0
        assert told(server, harness.api, token) == INACTIVE
        assert told(server, harness.api, server.get_token(client)["access_token"])["active"]


@pytest.mark.parametrize("hint", ["access_token", "refresh_token", "anything", "é"])
def test_2_1_a_hint_is_only_a_hint(server: RunningServer, harness: Household, token: str, hint: str) -> None:
    assert told(server, harness.api, token, token_type_hint=hint)["active"]


REFUSALS: list[tuple[str, str, str, dict[str, str], Refusal]] = [
    ("no token", "", "", {}, missing("token")),
    ("an empty one", "token=", "", {}, missing("token")),
    ("two", "token=a&token=b", "", {}, repeated("token")),
    ("two hints", "token=a&token_type_hint=b&token_type_hint=c", "", {}, repeated("token_type_hint")),
    ("anything twice", "token=a&x=1&x=2", "", {}, ANY_REPEATED),
    ("in the query", "", "token=a", {}, in_query("token")),
    ("a hint in the query", "token=a", "token_type_hint=b", {}, in_query("token_type_hint")),
    ("a secret in the query", "token=a", "client_secret=b", {}, in_query("client_secret")),
    ("both authentications", "token=a&client_id=b&client_secret=c", "", {}, SEVERAL_AUTHENTICATIONS),
    ("another id", "token=a&client_id=b", "", {}, OTHER_CLIENT_ID),
    ("JSON", '{"token": "a"}', "", {"Content-Type": "application/json"}, NOT_A_FORM),
    ("nobody", "token=a", "", {"Authorization": ""}, INVALID_CLIENT),
    ("a bearer token", "token=a", "", {"Authorization": "Bearer a"}, INVALID_CLIENT),
    ("an unknown client", "token=a", "", {"Authorization": basic("nobody", "x" * 40)}, INVALID_CLIENT),
]


@pytest.mark.parametrize(("body", "query", "headers", "expected"), [case[1:] for case in REFUSALS])
def test_2_1_a_request_is_read_as_strictly_as_at_the_token_endpoint(  # noqa: PLR0913, PLR0917 - A table's columns.
    server: RunningServer, harness: Household, body: str, query: str, headers: dict[str, str], expected: Refusal
) -> None:
    given = {"Content-Type": "application/x-www-form-urlencoded", "Authorization": harness.api.basic, **headers}
    response = requests.post(
        f"{server.url}{PATH}?{query}", body, headers={name: value for name, value in given.items() if value}, timeout=10
    )
    assert_refused(response, expected)
    event = server.event_of(response)
    assert (event["event"], event["endpoint"]) == ("RequestRefused", "introspection")


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_2_1_only_post_is_answered(server: RunningServer, method: str) -> None:
    response = requests.request(method, f"{server.url}{PATH}?token=a", timeout=10)
    assert response.status_code == 405
    assert response.headers["Allow"] == "POST"
    if method != "HEAD":
        assert_refused(response, METHOD_NOT_ALLOWED)


def test_2_1_a_client_may_authenticate_in_the_body(server: RunningServer, harness: Household, token: str) -> None:
    body = {"token": token, "client_id": harness.api.client_id, "client_secret": harness.api.secret}
    assert requests.post(f"{server.url}{PATH}", body, timeout=10).json()["active"]


def test_4_a_resource_server_gets_no_tokens(server: RunningServer, harness: Household) -> None:
    response = server.post_token(headers={"Authorization": harness.gateway.basic})
    assert response.json()["error"] == "unauthorized_client"


def test_the_audit_log_says_who_asked_and_why_the_answer_was_no(
    server: RunningServer, harness: Household, token: str
) -> None:
    jti = server.verify(token, API)["jti"]
    facts = {"event": "TokenIntrospected", "outcome": "answered"}
    cases = [
        (harness.api, token, {"active": True, "jti": jti}),
        (harness.other_api, token, {"active": False, "reason": "not_for_this_caller", "jti": jti}),
        (harness.api, "x", {"active": False, "reason": "malformed_token"}),
        (harness.api, part(token, 1, scope="write"), {"active": False, "reason": "wrong_signature"}),
    ]
    for who, asked, more in cases:
        event = server.event_of(ask(server, who, asked))
        assert all(event.pop(name) for name in ("time", "request_id", "source_address", "duration_ms"))
        assert event == {**facts, "client_id": who.client_id, "server": server.settings.server_name, **more}
        assert token.rpartition(".")[2] not in json.dumps(event)


# RFC 9701.

SIGNED = "application/token-introspection+jwt"


@pytest.fixture(scope="module")
def keys(server: RunningServer) -> dict[str, Any]:
    return {key["kid"]: jwt.PyJWK(key).key for key in server.jwks()["keys"]}


@pytest.mark.parametrize("is_live", [True, False])
def test_rfc9701_5_the_answer_is_signed_for_who_asks_so(
    server: RunningServer, harness: Household, token: str, keys: dict[str, Any], *, is_live: bool
) -> None:
    response = ask(server, harness.api, token if is_live else "x", headers={"Accept": SIGNED})
    assert response.status_code == 200
    assert response.headers["Content-Type"] == SIGNED
    assert response.headers["Cache-Control"] == "no-store"
    header = jwt.get_unverified_header(response.text)
    assert header == {"typ": "token-introspection+jwt", "alg": "RS256", "kid": header["kid"]}
    claims = jwt.decode(
        response.text,
        keys[header["kid"]],
        algorithms=["RS256"],
        audience=harness.api.client_id,
        issuer="https://tokens.example.com",
    )
    assert claims == {
        "iss": "https://tokens.example.com",
        "aud": harness.api.client_id,
        "iat": claims["iat"],
        "token_introspection": told(server, harness.api, token) if is_live else INACTIVE,
    }
    assert 0 <= time.time() - claims["iat"] < 60


def test_rfc9701_8_1_the_answer_is_no_access_token(server: RunningServer, harness: Household, token: str) -> None:
    signed = ask(server, harness.api, token, headers={"Accept": SIGNED}).text
    assert told(server, harness.gateway, signed) == INACTIVE


@pytest.mark.parametrize(
    ("accept", "is_signed"),
    [
        (SIGNED, True),
        (SIGNED.upper(), True),
        (f"{SIGNED};q=0.9, application/json;q=0.5", True),
        (f"{SIGNED}, application/json", True),
        (f"application/json, {SIGNED}", False),
        (f"{SIGNED};q=0, */*", False),
        (f"{SIGNED};q=0.5, application/json", False),
        (f"*/*, {SIGNED}", True),
        ("*/*", False),
        ("application/*", False),
        ("application/jwt", False),
        ("text/html", False),
        ("", False),
        ("é;;;,,,", False),
    ],
)
def test_rfc9701_4_accept_decides(
    server: RunningServer, harness: Household, token: str, accept: str, *, is_signed: bool
) -> None:
    response = ask(server, harness.api, token, headers={"Accept": accept.encode("latin-1")})
    assert response.status_code == 200
    assert response.headers["Content-Type"] == (SIGNED if is_signed else "application/json")


def test_rfc9701_5_a_refusal_is_json(server: RunningServer) -> None:
    response = requests.post(f"{server.url}{PATH}", {"token": "a"}, headers={"Accept": SIGNED}, timeout=10)
    assert_refused(response, INVALID_CLIENT)
