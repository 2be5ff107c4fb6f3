"""RFC 6749 section 5.2: every error code with its status, its challenge, and exactly this JSON."""

import json
import re
from typing import NamedTuple

import pytest
from conformance.expected import (
    BODY_TOO_LONG,
    CHALLENGE,
    GRANT,
    INVALID_CLIENT,
    MALFORMED_FORM,
    MALFORMED_SCOPE,
    NOT_A_FORM,
    OTHER_CLIENT_ID,
    SEVERAL_AUTHENTICATIONS,
    UNAUTHORIZED_CLIENT,
    UNSUPPORTED_GRANT,
    Refusal,
    assert_refused,
    in_query,
    missing,
    repeated,
    scope_not_granted,
    target_not_granted,
)
from support.server import RunningServer

DESCRIPTION = re.compile(r"[\x20-\x21\x23-\x5B\x5D-\x7E]+")


class Case(NamedTuple):
    clause: str
    body: str
    answer: Refusal
    query: str = ""
    content_type: str = "application/x-www-form-urlencoded"
    grants: tuple[str, ...] = ("client_credentials",)


CASES = [
    Case("invalid_request: missing parameter", "", missing("grant_type")),
    Case("invalid_request: repeated parameter", f"{GRANT}&scope=a&scope=b", repeated("scope")),
    Case("invalid_request: parameter in the query", GRANT, in_query("scope"), "scope=a"),
    Case("invalid_request: several authentications", f"{GRANT}&client_secret=x", SEVERAL_AUTHENTICATIONS),
    Case("invalid_request: another client_id", f"{GRANT}&client_id=x", OTHER_CLIENT_ID),
    Case("invalid_request: not a form", "{}", NOT_A_FORM, content_type="application/json"),
    Case("invalid_request: not UTF-8", f"{GRANT}&x=%FF", MALFORMED_FORM),
    Case("unauthorized_client", GRANT, UNAUTHORIZED_CLIENT, grants=()),
    Case("unsupported_grant_type", "grant_type=password", UNSUPPORTED_GRANT),
    Case("invalid_scope: malformed", f"{GRANT}&scope=a%22b", MALFORMED_SCOPE),
    Case("invalid_scope: not granted", f"{GRANT}&scope=admin+read", scope_not_granted("admin")),
    Case("invalid_target", f"{GRANT}&resource=https://other.example", target_not_granted("https://other.example")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.clause)
def test_an_error_is_exactly_this_json(server: RunningServer, case: Case) -> None:
    client = server.create_client(scope=("read",), grant_types=case.grants)
    headers = {"Authorization": client.basic, "Content-Type": case.content_type}
    response = server.post_token(case.body, headers=headers, params=case.query)
    status, body = case.answer
    assert response.status_code == status
    assert response.content == json.dumps(body, separators=(",", ":")).encode()
    assert DESCRIPTION.fullmatch(response.json()["error_description"])
    names = set(response.headers) - {"Connection"}
    assert names == {
        "Server",
        "Date",
        "Content-Type",
        "Content-Length",
        "Cache-Control",
        "Pragma",
        "X-Request-ID",
        "X-Content-Type-Options",
    }
    assert response.headers["Content-Type"] == "application/json"
    assert (response.headers["Cache-Control"], response.headers["Pragma"]) == ("no-store", "no-cache")


def test_a_body_that_is_too_long_is_413_in_the_same_form(server: RunningServer) -> None:
    assert_refused(server.post_token(f"{GRANT}&x={'x' * 16384}"), BODY_TOO_LONG)


@pytest.mark.parametrize("how", ["Basic", "body", "nothing", "Bearer"])
def test_invalid_client_is_401_with_the_challenge_of_the_scheme(server: RunningServer, how: str) -> None:
    body = GRANT + ("&client_id=nobody&client_secret=wrong" if how == "body" else "")
    headers = {"Basic": {"Authorization": "Basic bm9ib2R5Ondyb25n"}, "Bearer": {"Authorization": "Bearer x"}}.get(how)
    response = server.post_token(body, headers=headers)
    status, expected = INVALID_CLIENT
    assert (response.status_code, response.json()) == (status, expected)
    assert response.content == json.dumps(expected, separators=(",", ":")).encode()
    assert response.headers["WWW-Authenticate"] == CHALLENGE
    assert (response.headers["Cache-Control"], response.headers["Pragma"]) == ("no-store", "no-cache")


@pytest.mark.parametrize(
    "body",
    [
        f"{GRANT}&scope=%22%5C%E2%82%AC",
        f"{GRANT}&scope=%3Cscript%3Ealert(1)%3C/script%3E",
        "grant_type=%22%5C%E2%82%AC%0D%0AX-Injected:%201",
        f"{GRANT}&%22%5C%0D%0A=1&%22%5C%0D%0A=2",
        f"{GRANT}&resource=%22%5C%E2%82%AC",
        f"{GRANT}&client_id=%22%5C%E2%82%AC",
    ],
    ids=["scope", "scope of allowed characters", "grant_type", "repeated unknown name", "resource", "client_id"],
)
def test_what_a_caller_sends_never_breaks_the_characters_of_error_description(server: RunningServer, body: str) -> None:
    client = server.create_client()
    response = server.post_token(body, headers={"Authorization": client.basic})
    assert response.status_code == 400
    assert sorted(response.json()) == ["error", "error_description"]
    assert DESCRIPTION.fullmatch(response.json()["error_description"])
    assert "X-Injected" not in response.headers
