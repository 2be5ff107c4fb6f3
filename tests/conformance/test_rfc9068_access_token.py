"""RFC 9068 (the access token) and RFC 8707 (the resources that it is for)."""

import base64
import json
import re
import time
from collections.abc import Sequence
from typing import Any

import pytest
from conformance.expected import Granted, assert_answer, target_not_granted
from support.server import RunningServer

ISSUER = "https://tokens.example.com"
A, B, C = "https://a.example.com/v1", "https://b.example.com", "urn:example:c"


def part(token: str, index: int) -> dict[str, Any]:
    encoded = token.split(".")[index]
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(encoded + "=" * (-len(encoded) % 4)))
    return decoded


def fetch(server: RunningServer, resources: Sequence[str], audiences: Sequence[str] = (A, B, C)) -> Any:
    client = server.create_client(audiences=tuple(audiences), scope=("read", "write"))
    body = [("grant_type", "client_credentials"), *(("resource", resource) for resource in resources)]
    return server.post_token(body, headers={"Authorization": client.basic})


def test_2_1_the_header_is_exactly_this(server: RunningServer) -> None:
    token = server.get_token(server.create_client())["access_token"]
    (key,) = server.jwks()["keys"]
    assert part(token, 0) == {"alg": "RS256", "typ": "at+jwt", "kid": key["kid"]}


def test_2_2_the_claims_are_exactly_these(server: RunningServer) -> None:
    client = server.create_client(scope=("read", "write"), audiences=(A,))
    before = int(time.time())
    token = server.get_token(client, scope="write read")["access_token"]
    claims = server.verify(token, audience=A)
    iat = claims["iat"]
    assert claims == {
        "iss": ISSUER,
        "sub": client.client_id,
        "client_id": client.client_id,
        "aud": A,
        "iat": iat,
        "exp": iat + 3600,
        "jti": claims["jti"],
        "scope": "write read",
    }
    assert type(iat) is int
    assert type(claims["exp"]) is int
    assert before <= iat <= int(time.time())
    assert re.fullmatch(r"[A-Za-z0-9_-]{22}", claims["jti"])


def test_2_2_a_token_without_scope_has_no_scope_claim(server: RunningServer) -> None:
    token = server.get_token(server.create_client())["access_token"]
    assert set(part(token, 1)) == {"iss", "sub", "client_id", "aud", "iat", "exp", "jti"}


def test_the_token_is_a_compact_jws_of_three_parts_without_padding(server: RunningServer) -> None:
    token = server.get_token(server.create_client())["access_token"]
    assert re.fullmatch(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{342}", token)


@pytest.mark.parametrize(
    ("audiences", "resources", "aud"),
    [
        ((), (), ISSUER),
        ((A,), (), A),
        ((A, B, C), (), A),
        ((A, B, C), (A,), A),
        ((A, B, C), (C,), C),
        ((A, B, C), (B, A), [B, A]),
        ((A, B, C), (A, B, C), [A, B, C]),
        ((A, B, C), (B, B), B),
        ((A, B, C), (B, A, B), [B, A]),
        ((A, B, C), ("", B, ""), B),
        ((A, B, C), ("",), A),
    ],
    ids=[
        "none registered, the default",
        "one registered",
        "none asked, the first",
        "the first asked",
        "another asked",
        "two asked, in order, a list",
        "all asked",
        "one asked twice, a string",
        "a repeated one once",
        "empty ones are absent",
        "an empty one alone",
    ],
)
def test_3_aud_is_what_was_asked_for(
    server: RunningServer, audiences: tuple[str, ...], resources: tuple[str, ...], aud: str | list[str]
) -> None:
    response = fetch(server, resources, audiences)
    assert_answer(response, Granted())
    token = response.json()["access_token"]
    assert part(token, 1)["aud"] == aud
    for audience in [aud] if isinstance(aud, str) else aud:
        server.verify(token, audience)


@pytest.mark.parametrize(
    ("audiences", "resources"),
    [
        ((A, B), (C,)),
        ((A, B), (A, C)),
        ((A, B), (C, A)),
        ((), (A,)),
        ((A, B), (f"{A}/",)),
        ((A, B), ("https://a.example.com/V1",)),
        ((A, B), (f"{A}/more",)),
        ((A, B), ("https://a.example.com",)),
        ((A, B), (f"{A},{B}",)),
        ((A, B), (f"{ISSUER}/admin/v1",)),
    ],
)
def test_8707_2_a_resource_that_was_not_granted_is_invalid_target(
    server: RunningServer, audiences: tuple[str, ...], resources: tuple[str, ...]
) -> None:
    refused = [resource for resource in dict.fromkeys(resources) if resource not in audiences]
    assert_answer(fetch(server, resources, audiences), target_not_granted(*refused))


@pytest.mark.parametrize(
    "resource",
    [f"{A}#fragment", f"{A}#", "/v1", "a.example.com", "https://", "not a uri", f"{A} ", f"{A} {B}", "réseau:x", "\0"],
)
def test_8707_2_a_resource_that_is_no_absolute_uri_without_fragment_is_invalid_target(
    server: RunningServer, resource: str
) -> None:
    response = fetch(server, (resource,))
    assert (response.status_code, response.json()["error"]) == (400, "invalid_target")


def test_8707_2_a_client_without_audiences_may_not_name_the_default_one(server: RunningServer) -> None:
    assert_answer(fetch(server, (ISSUER,), ()), target_not_granted(ISSUER))
