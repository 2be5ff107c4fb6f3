"""RFC 7523 sections 2.2 and 3 with a MAC, OpenID Connect Core section 9: ``client_secret_jwt``."""

import base64
import hashlib
import hmac
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import jwt
import pytest
import requests
from conformance.expected import INVALID_CLIENT, assert_refused
from support.assertions import ISSUER, by_hand, claims_of, form, signer
from support.server import NewClient, RunningServer

METHOD = "client_secret_jwt"
TOKEN_ENDPOINT = f"{ISSUER}/oauth/token"


def make(server: RunningServer, **fields: Any) -> NewClient:
    return server.create_client(token_endpoint_auth_method=METHOD, **fields)


@pytest.fixture(scope="module")
def client(server: RunningServer) -> NewClient:
    return make(server, scope=("read",))


def assertion(
    client: NewClient, audience: Any = ISSUER, *, secret: str = "", alg: str = "HS256", **changes: Any
) -> str:
    headers = changes.pop("headers", None)
    return jwt.encode(claims_of(client.client_id, audience, **changes), secret or client.secret, alg, headers)


def assert_in(server: RunningServer, response: requests.Response, client: NewClient) -> str:
    assert response.status_code == 200, response.text
    assert server.verify(response.json()["access_token"])["sub"] == client.client_id
    event = server.event_of(response)
    assert event["auth_method"] == METHOD
    return str(event["secret_id"])


def reason(server: RunningServer, response: requests.Response) -> str:
    assert_refused(response, INVALID_CLIENT)
    return str(server.event_of(response)["reason"])


@pytest.mark.parametrize("audience", [ISSUER, TOKEN_ENDPOINT, [ISSUER, TOKEN_ENDPOINT]])
@pytest.mark.parametrize("headers", [{}, {"kid": "ignored"}, {"typ": "client-authentication+jwt"}])
def test_2_2_a_mac_of_the_secret_is_taken(
    server: RunningServer, client: NewClient, audience: Any, headers: dict[str, str]
) -> None:
    assert_in(server, server.post_token(form(assertion(client, audience, headers=headers))), client)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"iss": "another"}, "assertion_of_another"),
        ({"audience": "https://other.example"}, "assertion_audience"),
        ({"audience": [ISSUER, "https://other.example"]}, "assertion_audience"),
        ({"exp": None}, "assertion_times"),
        ({"exp": 1}, "assertion_expired"),
        ({"exp": 10**11}, "assertion_too_long"),
        ({"iat": "1"}, "assertion_times"),
        ({"iat": 10**11}, "assertion_in_the_future"),
        ({"jti": None}, "assertion_without_id"),
        ({"headers": {"typ": "at+jwt"}}, "assertion_other_type"),
        ({"secret": "x" * 49}, "assertion_signature"),
        ({"alg": "HS384"}, "assertion_algorithm"),
        ({"alg": "HS512", "secret": "s" * 64}, "assertion_algorithm"),
    ],
)
def test_3_every_check_is_made(server: RunningServer, client: NewClient, changes: dict[str, Any], why: str) -> None:
    assert reason(server, server.post_token(form(assertion(client, **changes)))) == why


def test_a_client_may_narrow_the_audience_to_the_issuer(server: RunningServer) -> None:
    narrow = make(server, auth_fields={"assertion_audience": "issuer"})
    assert_in(server, server.post_token(form(assertion(narrow))), narrow)
    assert reason(server, server.post_token(form(assertion(narrow, TOKEN_ENDPOINT)))) == "assertion_audience"


def test_an_assertion_is_good_once(server: RunningServer, client: NewClient) -> None:
    one = assertion(client)
    with ThreadPoolExecutor(16) as pool:
        statuses = [answer.status_code for answer in pool.map(lambda _: server.post_token(form(one)), range(32))]
    assert (statuses.count(200), statuses.count(401)) == (1, 31)


def test_its_secret_is_taken_in_no_other_way_and_others_not_in_this(server: RunningServer, client: NewClient) -> None:
    other = server.create_client()
    by_basic = server.post_token(headers={"Authorization": client.basic})
    assert reason(server, by_basic) == "other_method_registered"
    body = {"grant_type": "client_credentials", "client_id": client.client_id, "client_secret": client.secret}
    assert reason(server, server.post_token(body)) == "other_method_registered"
    assert reason(server, server.post_token(form(assertion(other)))) == "other_method_registered"
    signed = signer().sign(claims_of(client.client_id))
    assert reason(server, server.post_token(form(signed))) == "other_method_registered"


def test_another_clients_secret_and_an_empty_one_are_wrong(server: RunningServer, client: NewClient) -> None:
    other = make(server)
    assert reason(server, server.post_token(form(assertion(client, secret=other.secret)))) == "assertion_signature"
    unsigned = by_hand({"alg": "HS256"}, claims_of(client.client_id)).rpartition(".")[0]
    for key in (b"", b"\0" * 32, hashlib.sha256(client.secret.encode()).digest()):
        mac = base64.urlsafe_b64encode(hmac.digest(key, unsigned.encode(), "sha256")).rstrip(b"=").decode()
        assert reason(server, server.post_token(form(f"{unsigned}.{mac}"))) == "assertion_signature"
    whole = base64.urlsafe_b64encode(hmac.digest(client.secret.encode(), unsigned.encode(), "sha256")).decode()
    for mac in (whole[:8], whole.rstrip("=") + "AAAA"):
        assert reason(server, server.post_token(form(f"{unsigned}.{mac}"))) == "assertion_signature"


def test_an_unknown_client_is_refused_alike(server: RunningServer, client: NewClient) -> None:
    nobody = NewClient("nobody", client.secret)
    assert reason(server, server.post_token(form(assertion(nobody)))) == "unknown_client"
    known = server.post_token(form(assertion(client, secret="w" * 40)))
    unknown = server.post_token(form(assertion(nobody)))
    varies = {"X-Request-ID", "Date"}
    assert known.content == unknown.content
    assert {k: v for k, v in known.headers.items() if k not in varies} == {
        k: v for k, v in unknown.headers.items() if k not in varies
    }


def test_a_secret_is_rotated_with_an_overlap_and_ends(server: RunningServer) -> None:
    mine = make(server)
    first = assert_in(server, server.post_token(form(assertion(mine))), mine)
    with server.context():
        new, _ = server.services.clients.secrets.rotate(mine.client_id, overlap=timedelta(days=1))
    renewed = NewClient(mine.client_id, new.secret)
    response = server.post_token(form(assertion(mine)))
    assert assert_in(server, response, mine) == first
    assert "Tokenhouse-Secret-Expires" in response.headers
    assert assert_in(server, server.post_token(form(assertion(renewed))), mine) == new.secret_id
    with server.context():
        server.services.clients.secrets.revoke(mine.client_id, first)
    assert reason(server, server.post_token(form(assertion(mine)))) == "revoked_secret"
    assert_in(server, server.post_token(form(assertion(renewed))), mine)
    with server.context():
        server.services.clients.secrets.rotate(mine.client_id, overlap=timedelta())
    assert reason(server, server.post_token(form(assertion(renewed)))) == "expired_secret"


def test_introspection_and_revocation_take_it_too(server: RunningServer, client: NewClient) -> None:
    token = server.post_token(form(assertion(client))).json()["access_token"]
    asked = {**form(assertion(client)), "token": token}
    del asked["grant_type"]
    assert requests.post(f"{server.url}/oauth/introspect", data=asked, timeout=10).json()["active"] is True
    asked["client_assertion"] = assertion(client)
    assert requests.post(f"{server.url}/oauth/revoke", data=asked, timeout=10).status_code == 200
    asked["client_assertion"] = assertion(client)
    assert requests.post(f"{server.url}/oauth/introspect", data=asked, timeout=10).json() == {"active": False}


def test_the_metadata_says_so(server: RunningServer) -> None:
    metadata = requests.get(f"{server.url}/.well-known/oauth-authorization-server", timeout=10).json()
    for endpoint in ("token", "introspection", "revocation"):
        assert METHOD in metadata[f"{endpoint}_endpoint_auth_methods_supported"]
        assert "HS256" in metadata[f"{endpoint}_endpoint_auth_signing_alg_values_supported"]


def test_no_secret_lies_in_the_database_in_clear(server: RunningServer) -> None:
    mine = make(server)
    for file in server.folder.glob("tokenhouse.db*"):
        content = file.read_bytes()
        assert mine.secret.encode() not in content
        assert json.dumps(mine.secret).encode() not in content
