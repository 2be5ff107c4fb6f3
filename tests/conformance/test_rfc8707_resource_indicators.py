"""RFC 8707: a token is for the resources that the request names, and for no others."""

import jwt
import pytest
import requests
from conformance.expected import Granted, Refusal, assert_answer, assert_refused, refusal, target_not_granted
from support.server import NewClient, RunningServer

RESOURCES = tuple(f"https://api-{number}.example.com/{'x' * 100}" for number in range(95))
NO_URI = refusal(400, "invalid_target", "A resource must be an absolute URI without a fragment.")
NO_AUDIENCE = refusal(400, "invalid_target", "An audience must be a URI or the name of an API.")
TOO_MANY = refusal(400, "invalid_target", "The token would have more than 8192 characters: request fewer resources.")


@pytest.fixture(scope="module")
def wide(server: RunningServer) -> NewClient:
    return server.create_client(audiences=RESOURCES)


def post(server: RunningServer, client: NewClient, *resources: str, **parameters: str) -> requests.Response:
    body = [("grant_type", "client_credentials"), *parameters.items(), *(("resource", each) for each in resources)]
    return server.post_token(body, headers={"Authorization": client.basic})


A, B = "https://a.example.com/v1", "https://b.example.com"


@pytest.fixture(scope="module")
def client(server: RunningServer) -> NewClient:
    return server.create_client(audiences=(A, B, "orders", "urn:example:c"))


@pytest.mark.parametrize(
    ("parameters", "aud"),
    [
        ([("resource", "HTTPS://A.EXAMPLE.COM/v1")], A),
        ([("resource", "https://a.example.com:443/v1")], A),
        ([("resource", "https://a.example.com/x/../v1")], A),
        ([("resource", "https://a.example.com/%761")], A),
        ([("resource", f"{B}/")], B),
        ([("resource", f"{B}/"), ("resource", B)], B),
        ([("resource", f"{B}:443"), ("resource", A)], [B, A]),
        ([("audience", A)], A),
        ([("audience", "orders")], "orders"),
        ([("audience", f"{A} orders")], [A, "orders"]),
        ([("audience", A), ("audience", "orders")], [A, "orders"]),
        ([("audience", "orders"), ("resource", A)], [A, "orders"]),
        ([("audience", f"{B}/"), ("resource", B)], B),
        ([("audience", "")], A),
        ([("audience", " ")], A),
        ([("audience", ""), ("resource", B)], B),
        ([("resource", "URN:example:c")], "urn:example:c"),
    ],
)
def test_2_an_api_is_named_by_resource_and_by_audience(
    server: RunningServer, client: NewClient, parameters: list[tuple[str, str]], aud: str | list[str]
) -> None:
    body = [("grant_type", "client_credentials"), *parameters]
    answer = server.post_token(body, headers={"Authorization": client.basic})
    assert_answer(answer, Granted(scope=None))
    claims = jwt.decode(answer.json()["access_token"], options={"verify_signature": False})
    assert claims["aud"] == aud
    assert server.event_of(answer)["audience"] == ([aud] if isinstance(aud, str) else aud)


@pytest.mark.parametrize(
    ("parameters", "expected", "reason"),
    [
        ([("resource", "orders")], NO_URI, "malformed_resource"),
        ([("resource", "https://a.example.com/v2")], target_not_granted("https://a.example.com/v2"), None),
        ([("audience", "payments")], target_not_granted("payments"), None),
        ([("audience", "Orders")], target_not_granted("Orders"), None),
        ([("audience", f"{A} payments")], target_not_granted("payments"), None),
        ([("audience", "https://a.example.com/v1#x")], NO_AUDIENCE, "malformed_audience"),
        ([("audience", '"orders"')], NO_AUDIENCE, "malformed_audience"),
        ([("audience", "*")], NO_AUDIENCE, "malformed_audience"),
    ],
)
def test_2_any_other_api_is_invalid_target(
    server: RunningServer, client: NewClient, parameters: list[tuple[str, str]], expected: Refusal, reason: str | None
) -> None:
    body = [("grant_type", "client_credentials"), *parameters]
    answer = server.post_token(body, headers={"Authorization": client.basic})
    assert_refused(answer, expected)
    assert server.event_of(answer)["reason"] == (reason or "resource_not_granted")


def test_2_the_longest_token_that_is_issued_can_be_introspected_and_revoked(
    server: RunningServer, wide: NewClient
) -> None:
    answers = [post(server, wide, *RESOURCES[:number]) for number in range(35, 60)]
    issued = [answer.json()["access_token"] for answer in answers if answer.status_code == 200]
    assert 0 < len(issued) < len(answers)
    for answer in answers[len(issued) :]:
        assert_refused(answer, TOO_MANY)
        assert server.event_of(answer)["reason"] == "token_too_long"
    longest = issued[-1]
    assert 8000 < len(longest) <= 8192
    assert len(jwt.decode(longest, options={"verify_signature": False})["aud"]) == 34 + len(issued)
    assert server.is_active(wide, longest)
    headers = {"Authorization": wide.basic}
    revoked = requests.post(f"{server.url}/oauth/revoke", {"token": longest}, headers=headers, timeout=10)
    assert (revoked.status_code, revoked.json()) == (200, {})
    assert not server.is_active(wide, longest)
