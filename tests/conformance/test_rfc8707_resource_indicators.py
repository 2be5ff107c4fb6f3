"""RFC 8707: a token is for the resources that the request names, and for no others."""

import jwt
import pytest
import requests
from conformance.expected import assert_refused, refusal
from support.server import NewClient, RunningServer

RESOURCES = tuple(f"https://api-{number}.example.com/{'x' * 100}" for number in range(95))
TOO_MANY = refusal(400, "invalid_target", "The token would have more than 8192 characters: request fewer resources.")


@pytest.fixture(scope="module")
def wide(server: RunningServer) -> NewClient:
    return server.create_client(audiences=RESOURCES)


def post(server: RunningServer, client: NewClient, *resources: str, **parameters: str) -> requests.Response:
    body = [("grant_type", "client_credentials"), *parameters.items(), *(("resource", each) for each in resources)]
    return server.post_token(body, headers={"Authorization": client.basic})


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
