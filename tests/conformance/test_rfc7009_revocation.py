"""RFC 7009: a client takes its own tokens back; whatever else it sends is answered in the same way."""

from typing import Any

import pytest
import requests
from conformance.expected import (
    INVALID_CLIENT,
    METHOD_NOT_ALLOWED,
    NOT_A_FORM,
    OTHER_CLIENTS_TOKEN,
    Refusal,
    assert_refused,
    in_query,
    missing,
    repeated,
)
from support.server import NewClient, RunningServer, basic

PATH = "/oauth/revoke"
API = "https://api.example"


@pytest.fixture(scope="module")
def client(server: RunningServer) -> NewClient:
    return server.create_client(audiences=(API,))


@pytest.fixture(scope="module")
def api(server: RunningServer) -> NewClient:
    return server.create_client(grant_types=(), introspects=(API,))


def revoke(server: RunningServer, who: NewClient, token: str, **more: Any) -> requests.Response:
    response = requests.post(
        f"{server.url}{PATH}", {"token": token, **more}, headers={"Authorization": who.basic}, timeout=10
    )
    assert (response.status_code, response.json()) == (200, {})
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    return response


def is_active(server: RunningServer, who: NewClient, token: str) -> bool:
    headers = {"Authorization": who.basic}
    answer = requests.post(f"{server.url}/oauth/introspect", {"token": token}, headers=headers, timeout=10).json()
    return bool(answer["active"])


@pytest.mark.parametrize("hint", [None, "access_token", "refresh_token", "anything"])
def test_2_1_a_token_that_is_taken_back_is_dead_at_once_and_others_live(
    server: RunningServer, client: NewClient, api: NewClient, hint: str | None
) -> None:
    token, other = (server.get_token(client)["access_token"] for _ in range(2))
    event = server.event_of(revoke(server, client, token, **({"token_type_hint": hint} if hint else {})))
    told = {name: event[name] for name in ("event", "client_id", "was_live", "jti")}
    jti = server.verify(token, API)["jti"]
    assert told == {"event": "TokenRevoked", "client_id": client.client_id, "was_live": True, "jti": jti}
    assert [is_active(server, api, one) for one in (token, other)] == [False, True]
    # Twice is once.
    assert server.event_of(revoke(server, client, token))["reason"] == "revoked_token"


def test_2_1_another_clients_token_is_left_alone_and_its_caller_told(
    server: RunningServer, client: NewClient, api: NewClient
) -> None:
    token = server.get_token(client)["access_token"]
    for who in (api, server.create_client()):
        answer = requests.post(
            f"{server.url}{PATH}", {"token": token}, headers={"Authorization": who.basic}, timeout=10
        )
        assert (answer.status_code, answer.json()) == OTHER_CLIENTS_TOKEN
        event = server.event_of(answer)
        told = {name: event[name] for name in ("event", "endpoint", "client_id", "error", "reason")}
        assert told == {
            "event": "RequestRefused",
            "endpoint": "revocation",
            "client_id": who.client_id,
            "error": "invalid_grant",
            "reason": "other_clients_token",
        }
    assert is_active(server, api, token)
    # Once it is dead it is nobody's, and 200 for all.
    revoke(server, client, token)
    assert server.event_of(revoke(server, api, token))["reason"] == "revoked_token"


def test_2_2_an_unknown_token_is_answered_in_the_same_way(server: RunningServer, client: NewClient) -> None:
    token = server.get_token(client)["access_token"]
    for unknown in ("x", "a.b.c", token[:-2], f"{token}.", "é", "x" * 15000):
        assert server.event_of(revoke(server, client, unknown))["was_live"] is False


@pytest.mark.parametrize(
    ("body", "query", "headers", "expected"),
    [
        ("", "", {}, missing("token")),
        ("token=", "", {}, missing("token")),
        ("token=a&token=a", "", {}, repeated("token")),
        ("", "token=a", {}, in_query("token")),
        ("token=a", "", {"Content-Type": "text/plain"}, NOT_A_FORM),
        ("token=a", "", {"Authorization": ""}, INVALID_CLIENT),
        ("token=a", "", {"Authorization": basic("nobody", "x" * 40)}, INVALID_CLIENT),
    ],
)
def test_2_1_a_request_is_read_as_strictly_as_at_the_token_endpoint(  # noqa: PLR0913, PLR0917 - A table's columns.
    server: RunningServer, client: NewClient, body: str, query: str, headers: dict[str, str], expected: Refusal
) -> None:
    given = {"Content-Type": "application/x-www-form-urlencoded", "Authorization": client.basic, **headers}
    response = requests.post(
        f"{server.url}{PATH}?{query}", body, headers={name: value for name, value in given.items() if value}, timeout=10
    )
    assert_refused(response, expected)
    event = server.event_of(response)
    assert (event["event"], event["endpoint"]) == ("RequestRefused", "revocation")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_2_1_only_post_is_answered(server: RunningServer, method: str) -> None:
    response = requests.request(method, f"{server.url}{PATH}", timeout=10)
    assert response.headers["Allow"] == "POST"
    assert_refused(response, METHOD_NOT_ALLOWED)
