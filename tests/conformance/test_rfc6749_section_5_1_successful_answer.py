"""RFC 6749 section 5.1: the answer with a token, to the byte."""

import json

from conformance.expected import GRANT
from support.server import RunningServer


def test_5_1_headers_and_members_are_exactly_these(server: RunningServer) -> None:
    client = server.create_client(scope=("read", "write"))
    response = server.post_token(headers={"Authorization": client.basic})
    assert response.status_code == 200
    volatile = {
        name: response.headers.pop(name) for name in ("Date", "X-Request-ID", "Connection") if name in response.headers
    }
    assert len(volatile["X-Request-ID"]) == 32
    assert dict(response.headers) == {
        "Server": "tokenhouse",
        "Content-Type": "application/json",
        "Content-Length": str(len(response.content)),
        "Cache-Control": "no-store",
        "Pragma": "no-cache",
        "X-Content-Type-Options": "nosniff",
    }
    token = response.json()["access_token"]
    compact = json.dumps(
        {"access_token": token, "token_type": "Bearer", "expires_in": 3600, "scope": "read write"},
        separators=(",", ":"),
    )
    assert response.content == compact.encode()


def test_5_1_expires_in_is_an_integer_and_the_lifetime_of_the_token(server: RunningServer) -> None:
    answer = server.get_token(server.create_client(access_token_lifetime=61))
    assert type(answer["expires_in"]) is int
    claims = server.verify(answer["access_token"])
    assert claims["exp"] - claims["iat"] == answer["expires_in"] == 61


def test_5_1_the_answer_is_the_same_whatever_accept_says(server: RunningServer) -> None:
    client = server.create_client(scope=("read", "write"))
    for accept in ("text/html, image/gif, */*; q=.2", "application/xml", "", "application/json;q=0"):
        response = server.post_token(GRANT, headers={"Authorization": client.basic, "Accept": accept})
        assert (response.status_code, response.headers["Content-Type"]) == (200, "application/json")


def test_5_1_every_token_is_another_one(server: RunningServer) -> None:
    client = server.create_client()
    tokens = [server.get_token(client)["access_token"] for _ in range(5)]
    assert len({server.verify(token)["jti"] for token in tokens}) == 5
