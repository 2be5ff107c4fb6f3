"""RFC 6749 section 3.2: POST, each parameter at most once, an empty one is absent, an unknown one ignored."""

from typing import NamedTuple

import pytest
import requests
from conformance.expected import (
    ANY_REPEATED,
    GRANT,
    INVALID_CLIENT,
    MALFORMED,
    METHOD_NOT_ALLOWED,
    Granted,
    Refusal,
    assert_answer,
    assert_refused,
    in_query,
    missing,
    repeated,
)
from support.server import NewClient, RunningServer


class Case(NamedTuple):
    clause: str
    body: str
    answer: Granted | Refusal
    query: str = ""


@pytest.fixture(scope="module")
def client(server: RunningServer) -> NewClient:
    return server.create_client(scope=("read", "write"), audiences=("https://a.example",))


CASES = [
    Case("least request", GRANT, Granted()),
    Case("grant_type twice", f"{GRANT}&{GRANT}", repeated("grant_type")),
    Case("grant_type twice, differently", f"{GRANT}&grant_type=password", repeated("grant_type")),
    Case("scope twice", f"{GRANT}&scope=read&scope=write", repeated("scope")),
    Case("scope twice, the same", f"{GRANT}&scope=read&scope=read", repeated("scope")),
    Case("scope twice, one name encoded", f"{GRANT}&scope=read&sco%70e=read", repeated("scope")),
    Case("client_id twice", f"{GRANT}&client_id=a&client_id=a", repeated("client_id")),
    Case("client_secret twice", f"{GRANT}&client_secret=a&client_secret=b", repeated("client_secret")),
    Case("unknown twice", f"{GRANT}&foo=1&foo=2", ANY_REPEATED),
    Case("nameless twice", f"{GRANT}&=1&=2", ANY_REPEATED),
    Case(
        "resource twice is RFC 8707's exception",
        f"{GRANT}&resource=https://a.example&resource=https://a.example",
        Granted(),
    ),
    Case("empty grant_type", "grant_type=", missing("grant_type")),
    Case("no grant_type", "scope=read", missing("grant_type")),
    Case("grant_type without equals sign", "grant_type", missing("grant_type")),
    Case("empty body", "", missing("grant_type")),
    Case("empty scope", f"{GRANT}&scope=", Granted()),
    Case("scope without equals sign", f"{GRANT}&scope", Granted()),
    Case("empty client_id", f"{GRANT}&client_id=", Granted()),
    Case("empty client_secret", f"{GRANT}&client_secret=", Granted()),
    Case("empty resource", f"{GRANT}&resource=", Granted()),
    Case("empty ones do not repeat", f"{GRANT}&scope=&scope=read&scope=&grant_type=", Granted("read")),
    Case("unknown ignored", f"{GRANT}&foo=bar&redirect_uri=https%3A%2F%2Fb.example&state=xyz", Granted()),
    Case("unknown empty ignored", f"{GRANT}&state=&foo", Granted()),
    Case("names are case-sensitive", "Grant_Type=client_credentials", missing("grant_type")),
    Case("a name of other case is unknown", f"{GRANT}&SCOPE=nothing", Granted()),
    Case("a name in brackets is unknown", f"{GRANT}&scope[]=nothing", Granted()),
    Case("grant_type in the query", GRANT, in_query("grant_type"), GRANT),
    Case("grant_type in the query only", "", in_query("grant_type"), GRANT),
    Case("scope in the query", GRANT, in_query("scope"), "scope=read"),
    Case("resource in the query", GRANT, in_query("resource"), "resource=https://a.example"),
    Case("empty scope in the query", GRANT, in_query("scope"), "scope"),
    Case("unknown in the query", GRANT, Granted(), "foo=bar&foo=bar&state=x"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.clause)
def test_the_token_endpoint_reads_parameters_as_section_3_2_says(
    server: RunningServer, client: NewClient, case: Case
) -> None:
    response = server.post_token(case.body, headers={"Authorization": client.basic}, params=case.query)
    assert_answer(response, case.answer)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
def test_the_token_endpoint_answers_post_only(server: RunningServer, client: NewClient, method: str) -> None:
    head = f"{method} /oauth/token HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: {client.basic}\r\n\r\n"
    (answer,) = server.send(head.encode(), method)
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "POST"
    if method == "HEAD":
        assert answer.content == b""
    else:
        assert_refused(answer, METHOD_NOT_ALLOWED)


def test_methods_are_case_sensitive(server: RunningServer) -> None:
    (answer,) = server.send(b"post /oauth/token HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    assert_refused(answer, MALFORMED)


def test_parameters_in_the_query_of_a_get_give_no_token(server: RunningServer, client: NewClient) -> None:
    query = {"grant_type": "client_credentials", "client_id": client.client_id, "client_secret": client.secret}
    response = requests.get(server.token_url, params=query, timeout=10)
    assert_refused(response, METHOD_NOT_ALLOWED)
    assert response.headers["Allow"] == "POST"


def test_confidential_clients_must_authenticate(server: RunningServer) -> None:
    assert_refused(server.post_token(GRANT), INVALID_CLIENT)
