"""RFC 8705 and RFC 9440: certificates of clients, as a proxy hands them on, and tokens that are bound to them."""

from collections.abc import Iterator
from typing import Any

import pytest
import requests
from conformance.expected import INVALID_CLIENT, MALFORMED, Granted, assert_answer, assert_refused, invalid_request
from support.assertions import signer
from support.certificates import Certified, client_certificate, rfc9440
from support.dpop import sign_proof
from support.server import NewClient, RunningServer, running_server

MTLS = "https://mtls.example.com"
MISSING = invalid_request("The request must come with a client certificate over TLS.")


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose proxy is on this machine: what a test sends, the proxy sends."""
    settings = {"TOKENHOUSE_TRUSTED_PROXIES": "127.0.0.1", "TOKENHOUSE_MTLS_URL": MTLS}
    with running_server(tmp_path_factory.mktemp("mtls"), "--workers", "2", **settings) as running:
        yield running


@pytest.fixture(scope="module")
def certificate() -> Certified:
    return client_certificate("a caller")


@pytest.fixture(scope="module")
def bound(behind: RunningServer) -> NewClient:
    """A client with a secret, whose tokens are bound to its certificate."""
    return behind.create_client(scope=("read", "write"), sender_constraints=("mtls",))


def post(
    server: RunningServer, client: NewClient, of: Certified | None, data: Any = None, **headers: str
) -> requests.Response:
    certified = rfc9440(of) if of else {}
    return server.post_token(data, headers={"Authorization": client.basic, **certified, **headers})


def reason(server: RunningServer, answer: requests.Response) -> str:
    return str(server.event_of(answer)["reason"])


def test_3_1_a_token_is_bound_to_the_certificate(
    behind: RunningServer, bound: NewClient, certificate: Certified
) -> None:
    answer = post(behind, bound, certificate)
    assert_answer(answer, Granted())
    cnf = {"x5t#S256": certificate.thumbprint}
    assert behind.verify(answer.json()["access_token"])["cnf"] == cnf
    assert behind.event_of(answer)["cnf"] == cnf


def test_3_2_introspection_shows_the_certificate(
    behind: RunningServer, bound: NewClient, certificate: Certified
) -> None:
    token = post(behind, bound, certificate).json()["access_token"]
    headers = {"Authorization": bound.basic}
    described = requests.post(f"{behind.url}/oauth/introspect", {"token": token}, headers=headers, timeout=10).json()
    assert (described["token_type"], described["cnf"]) == ("Bearer", {"x5t#S256": certificate.thumbprint})


def test_3_3_and_5_the_metadata(behind: RunningServer, server: RunningServer) -> None:
    def read(one: RunningServer) -> dict[str, Any]:
        return dict(requests.get(f"{one.url}/.well-known/oauth-authorization-server", timeout=10).json())

    metadata = read(behind)
    assert metadata["tls_client_certificate_bound_access_tokens"] is True
    assert metadata["mtls_endpoint_aliases"] == {
        "token_endpoint": f"{MTLS}/oauth/token",
        "introspection_endpoint": f"{MTLS}/oauth/introspect",
        "revocation_endpoint": f"{MTLS}/oauth/revoke",
    }
    # Without a proxy no certificate can come.
    assert not read(server).keys() & {"tls_client_certificate_bound_access_tokens", "mtls_endpoint_aliases"}


def test_a_client_whose_tokens_are_bound_gets_none_without_a_certificate(
    behind: RunningServer, bound: NewClient
) -> None:
    for headers in ({}, {"Client-Cert": ""}):
        answer = post(behind, bound, None, **headers)
        assert_refused(answer, MISSING)
        assert reason(behind, answer) == "certificate_missing"


def test_any_other_client_gets_a_bearer_token_whether_it_has_a_certificate_or_not(
    behind: RunningServer, certificate: Certified
) -> None:
    client = behind.create_client(scope=("read", "write"))
    for of in (None, certificate):
        answer = post(behind, client, of)
        assert_answer(answer, Granted())
        assert "cnf" not in behind.verify(answer.json()["access_token"])


def test_a_certificate_does_not_replace_a_secret(
    behind: RunningServer, bound: NewClient, certificate: Certified
) -> None:
    wrong = NewClient(bound.client_id, "wrong")
    assert_refused(post(behind, wrong, certificate), INVALID_CLIENT)
    body = {"grant_type": "client_credentials", "client_id": bound.client_id}
    assert_refused(behind.post_token(body, headers=rfc9440(certificate)), INVALID_CLIENT)


def test_a_token_may_be_bound_to_a_certificate_and_to_a_key(behind: RunningServer, certificate: Certified) -> None:
    client, key = behind.create_client(sender_constraints=("dpop", "mtls")), signer("ES256")
    for htu in (f"{behind.settings.issuer}/oauth/token", f"{MTLS}/oauth/token"):
        answer = post(behind, client, certificate, DPoP=sign_proof(key, htu=htu))
        assert (answer.status_code, answer.json()["token_type"]) == (200, "DPoP")
        claims = behind.verify(answer.json()["access_token"])
        assert claims["cnf"] == {"jkt": key.kid, "x5t#S256": certificate.thumbprint}


def test_9440_2_a_header_in_another_format_is_refused(behind: RunningServer, bound: NewClient) -> None:
    answer = post(behind, bound, None, **{"Client-Cert": "x"})
    assert_refused(answer, MALFORMED)
    assert reason(behind, answer) == "certificate_malformed"


def test_9440_4_from_anybody_but_the_proxy_the_header_is_refused_at_each_endpoint(
    server: RunningServer, certificate: Certified
) -> None:
    client = server.create_client(introspects=("*",))
    for path in ("token", "introspect", "revoke", "revocations"):
        for headers in (rfc9440(certificate), {"Client-Cert": ""}):
            answer = requests.post(
                f"{server.url}/oauth/{path}",
                {"grant_type": "client_credentials", "token": "x"},
                headers={"Authorization": client.basic, **headers},
                timeout=10,
            )
            assert_refused(answer, MALFORMED)
            assert reason(server, answer) == "certificate_from_stranger"


def test_9440_4_a_header_with_an_underscore_is_not_the_header(behind: RunningServer, bound: NewClient) -> None:
    value = rfc9440(client_certificate("x"))["Client-Cert"].encode()
    answer = behind.send_form(
        b"grant_type=client_credentials", b"Authorization: " + bound.basic.encode(), b"Client_Cert: " + value
    )
    assert_refused(answer, MISSING)


def test_9440_2_two_headers_are_refused(behind: RunningServer, bound: NewClient, certificate: Certified) -> None:
    """A proxy that adds its own and keeps the caller's must not work by chance."""
    line = b"Client-Cert: " + rfc9440(certificate)["Client-Cert"].encode()
    answer = behind.send_form(b"grant_type=client_credentials", b"Authorization: " + bound.basic.encode(), line, line)
    assert_refused(answer, MALFORMED)
