"""To a caller who has not authenticated, every refusal is the same answer; only the audit log tells them apart."""

import secrets
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
import requests
from support.server import Answer, NewClient, RunningServer

from app.database.engine import begin_writing
from app.database.models import ClientRow, db

GRANT = "client_credentials"


def unknown(server: RunningServer) -> NewClient:  # noqa: ARG001 - One of the makers.
    return NewClient("nobody-at-all", "ths_a-secret-of-nobody")


def wrong_secret(server: RunningServer) -> NewClient:
    return NewClient(server.create_client().client_id, "ths_a-wrong-secret")


def another_clients_secret(server: RunningServer) -> NewClient:
    return NewClient(server.create_client().client_id, server.create_client().secret)


def expired(server: RunningServer) -> NewClient:
    return server.create_client(secret_expires_after=timedelta(seconds=-1))


def disabled(server: RunningServer) -> NewClient:
    client = server.create_client()
    with server.context():
        server.services.clients.repository.disable(client.client_id)
    return client


def deleted(server: RunningServer) -> NewClient:
    client = server.create_client()
    with server.context():
        server.services.clients.repository.delete(client.client_id)
    return client


def revoked_secret(server: RunningServer) -> NewClient:
    client = server.create_client()
    with server.context():
        begin_writing(db.session)
        row = db.session.get(ClientRow, client.client_id)
        assert row is not None
        row.secrets[0].revoked_at = datetime.now(UTC)
        db.session.commit()
    return client


def digested_with_a_lost_pepper(server: RunningServer) -> NewClient:
    client = server.create_client()
    with server.context():
        begin_writing(db.session)
        row = db.session.get(ClientRow, client.client_id)
        assert row is not None
        row.secrets[0].pepper_id, row.secrets[0].digest = "lost", secrets.token_bytes(32)
        db.session.commit()
    return client


def of_basic_only(server: RunningServer) -> NewClient:
    return server.create_client(token_endpoint_auth_method="client_secret_basic")


def of_body_only(server: RunningServer) -> NewClient:
    return server.create_client(token_endpoint_auth_method="client_secret_post")


Maker = Callable[[RunningServer], NewClient]

REASONS: dict[Maker, str] = {
    unknown: "unknown_client",
    wrong_secret: "wrong_secret",
    another_clients_secret: "wrong_secret",
    expired: "expired_secret",
    disabled: "disabled_client",
    deleted: "deleted_client",
    revoked_secret: "revoked_secret",
    digested_with_a_lost_pepper: "wrong_secret",
}


def by_basic(server: RunningServer, client: NewClient) -> requests.Response:
    return server.post_token(headers={"Authorization": client.basic})


def by_body(server: RunningServer, client: NewClient) -> requests.Response:
    return server.post_token(
        {"grant_type": GRANT, "client_id": client.client_id, "client_secret": client.secret},
    )


CASES = [
    *((maker, ask, reason) for maker, reason in REASONS.items() for ask in (by_basic, by_body)),
    (of_body_only, by_basic, "other_method_registered"),
    (of_basic_only, by_body, "other_method_registered"),
]


def visible(response: requests.Response | Answer) -> tuple[int, bytes, list[tuple[str, str]]]:
    """All that a caller sees, but for what is another in every answer."""
    volatile = {"Date", "X-Request-ID"}
    headers = [(name, value) for name, value in response.headers.items() if name not in volatile]
    return response.status_code, response.content, headers


def test_that_answer_is_exactly_this(server: RunningServer) -> None:
    status, content, headers = visible(by_basic(server, unknown(server)))
    assert status == 401
    assert content == b'{"error":"invalid_client","error_description":"Client authentication failed."}'
    assert sorted(headers) == [
        ("Cache-Control", "no-store"),
        ("Connection", "keep-alive"),
        ("Content-Length", "78"),
        ("Content-Type", "application/json"),
        ("Pragma", "no-cache"),
        ("Server", "tokenhouse"),
        (
            "WWW-Authenticate",
            'Basic realm="tokenhouse", error="invalid_client", error_description="Client authentication failed."',
        ),
        ("X-Content-Type-Options", "nosniff"),
    ]


@pytest.mark.parametrize(
    ("maker", "ask", "reason"), CASES, ids=[f"{maker.__name__}-{ask.__name__}" for maker, ask, _ in CASES]
)
def test_every_refused_authentication_is_the_same_answer(
    server: RunningServer, maker: Maker, ask: Callable[[RunningServer, NewClient], requests.Response], reason: str
) -> None:
    response = ask(server, maker(server))
    assert visible(response) == visible(by_basic(server, unknown(server)))
    assert server.event_of(response)["reason"] == reason


def test_malformed_credentials_are_the_same_answer_too(server: RunningServer) -> None:
    expected = visible(by_basic(server, unknown(server)))
    for authorization in ("Basic", "Basic !!!", "Basic bm8tY29sb24=", "Basic /////w==", "Bearer x", "x"):
        assert visible(server.post_token(headers={"Authorization": authorization})) == expected
    assert visible(server.post_token()) == expected
    assert visible(server.post_token({"grant_type": GRANT, "client_id": "\0", "client_secret": "\x7f"})) == expected


@pytest.mark.parametrize("maker", [*REASONS, of_body_only], ids=lambda maker: maker.__name__)
def test_what_else_is_wrong_in_the_request_shows_only_to_an_authenticated_client(
    server: RunningServer, maker: Maker
) -> None:
    client = maker(server)
    expected = visible(by_basic(server, unknown(server)))
    for extra in (
        "scope=a%22",
        "scope=never-granted",
        "resource=https://never.example",
        f"client_id={client.client_id}",
    ):
        response = server.post_token(f"grant_type={GRANT}&{extra}", headers={"Authorization": client.basic})
        assert visible(response) == expected


def test_a_client_without_the_grant_is_not_told_apart_before_it_has_authenticated(server: RunningServer) -> None:
    without_grant = NewClient(server.create_client(grant_types=()).client_id, "ths_a-wrong-secret")
    assert visible(by_basic(server, without_grant)) == visible(by_basic(server, unknown(server)))
    assert visible(by_body(server, without_grant)) == visible(by_body(server, unknown(server)))
