"""RFC 6749 section 4.4: the client credentials grant, the only one."""

import pytest
from conformance.expected import (
    INVALID_CLIENT,
    UNAUTHORIZED_CLIENT,
    UNSUPPORTED_GRANT,
    Granted,
    Refusal,
    assert_answer,
    missing,
)
from support.server import RunningServer


@pytest.mark.parametrize(
    ("grant_type", "answer"),
    [
        ("client_credentials", Granted()),
        ("client%5Fcredentials", Granted()),
        ("Client_Credentials", UNSUPPORTED_GRANT),
        ("client_credentials+", UNSUPPORTED_GRANT),
        ("+client_credentials", UNSUPPORTED_GRANT),
        ("client_credentials%00", UNSUPPORTED_GRANT),
        ("client_credentials%0A", UNSUPPORTED_GRANT),
        ("client_credentials,client_credentials", UNSUPPORTED_GRANT),
        ("authorization_code", UNSUPPORTED_GRANT),
        ("password", UNSUPPORTED_GRANT),
        ("refresh_token", UNSUPPORTED_GRANT),
        ("implicit", UNSUPPORTED_GRANT),
        ("urn:ietf:params:oauth:grant-type:jwt-bearer", UNSUPPORTED_GRANT),
        ("urn:ietf:params:oauth:grant-type:device_code", UNSUPPORTED_GRANT),
        ("%C3%A9", UNSUPPORTED_GRANT),
        ("", missing("grant_type")),
    ],
)
def test_4_4_2_the_grant_type_is_client_credentials(
    server: RunningServer, grant_type: str, answer: Granted | Refusal
) -> None:
    client = server.create_client(scope=("read", "write"))
    response = server.post_token(f"grant_type={grant_type}", headers={"Authorization": client.basic})
    assert_answer(response, answer)


def test_4_4_the_client_must_authenticate(server: RunningServer) -> None:
    assert_answer(server.post_token({"grant_type": "client_credentials", "client_id": "anybody"}), INVALID_CLIENT)


def test_4_4_a_client_without_the_grant_is_refused_only_once_it_has_authenticated(server: RunningServer) -> None:
    client = server.create_client(grant_types=())
    assert_answer(server.post_token(headers={"Authorization": client.basic}), UNAUTHORIZED_CLIENT)
    wrong = {"grant_type": "client_credentials", "client_id": client.client_id, "client_secret": "wrong"}
    assert_answer(server.post_token(wrong), INVALID_CLIENT)


def test_4_4_3_no_refresh_token_comes_even_when_asked_for(server: RunningServer) -> None:
    client = server.create_client(scope=("read", "offline_access"))
    answer = server.get_token(client, scope="read offline_access", access_type="offline")
    assert list(answer) == ["access_token", "token_type", "expires_in", "scope"]
