"""OAuth and HTTP clients of the Python world fetch tokens."""

import asyncio
import json
import urllib.request
import warnings
from urllib.parse import parse_qsl

import httpx
import pytest
import requests
from authlib.integrations.base_client import OAuthError
from authlib.integrations.requests_client import OAuth2Session as AuthlibSession
from authlib.oauth2.rfc7523 import ClientSecretJWT, PrivateKeyJWT
from clients.relay import CHALLENGE, REFUSED, Harness, SentRequest
from oauthlib.oauth2 import BackendApplicationClient, InvalidClientError, InvalidScopeError
from requests.auth import HTTPBasicAuth
from requests_oauth2client import ClientSecretJwt as R2cClientSecretJwt
from requests_oauth2client import InvalidClient as R2cInvalidClient
from requests_oauth2client import OAuth2Client as R2cClient
from requests_oauth2client import PrivateKeyJwt as R2cPrivateKeyJwt
from requests_oauthlib import OAuth2Session
from support.assertions import signer
from support.server import NewClient

with warnings.catch_warnings():
    # Where httpx2 is missing, Authlib asks for it and works with httpx.
    warnings.filterwarnings("ignore", message="The httpx module is deprecated")
    from authlib.integrations.httpx_client import AsyncOAuth2Client, OAuth2Client

GRANT = {"grant_type": "client_credentials"}
SECONDS = 10


@pytest.fixture(autouse=True)
def _plain_http_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")


def raw(client: NewClient) -> str:
    return f"{client.client_id}:{client.secret}"


def form(sent: SentRequest) -> dict[str, str]:
    return dict(parse_qsl(sent.body.decode(), strict_parsing=True))


def without_times(token: dict[str, object]) -> dict[str, object]:
    """What a client made of the answer, without what it computed from its own clock."""
    return {name: value for name, value in token.items() if name != "expires_at"}


def test_requests_gets_a_token_by_basic(harness: Harness) -> None:
    client = harness.register_awkward_for_raw()
    answer = requests.post(harness.token_url, data=GRANT, auth=(client.client_id, client.secret), timeout=SECONDS)
    harness.check_answer(answer.json(), client)
    assert harness.only_sent().credentials == raw(client)


def test_requests_gets_a_token_by_the_body(harness: Harness) -> None:
    client = harness.register_awkward_for_encoded()
    body = GRANT | {"client_id": client.client_id, "client_secret": client.secret}
    harness.check_answer(requests.post(harness.token_url, data=body, timeout=SECONDS).json(), client)
    assert harness.only_sent().credentials is None


def test_requests_oauthlib_gets_a_token_by_basic(harness: Harness) -> None:
    client = harness.register_awkward_for_raw()
    with OAuth2Session(client=BackendApplicationClient(client.client_id, scope=["read", "write"])) as session:
        token = session.fetch_token(harness.token_url, auth=HTTPBasicAuth(client.client_id, client.secret))
    assert (token["scope"], token.scope_changed) == (["read", "write"], False)
    harness.check_answer(without_times(token) | {"scope": " ".join(token["scope"])}, client)
    sent = harness.only_sent()
    assert (sent.credentials, form(sent)) == (raw(client), GRANT | {"scope": "read write"})


def test_requests_oauthlib_gets_a_token_by_the_body(harness: Harness) -> None:
    client = harness.register_awkward_for_encoded()
    with OAuth2Session(client=BackendApplicationClient(client.client_id)) as session:
        token = session.fetch_token(harness.token_url, include_client_id=True, client_secret=client.secret)
    harness.check_answer(without_times(token) | {"scope": " ".join(token["scope"])}, client)
    sent = harness.only_sent()
    assert sent.credentials is None
    assert form(sent) == GRANT | {"client_id": client.client_id, "client_secret": client.secret}


def test_requests_oauthlib_may_send_its_id_in_the_body_beside_basic(harness: Harness) -> None:
    client = harness.register_awkward_for_raw()
    with OAuth2Session(client=BackendApplicationClient(client.client_id)) as session:
        basic = HTTPBasicAuth(client.client_id, client.secret)
        token = session.fetch_token(harness.token_url, auth=basic, include_client_id=True)
    harness.check_answer(without_times(token) | {"scope": " ".join(token["scope"])}, client)
    sent = harness.only_sent()
    assert (sent.credentials, form(sent)) == (raw(client), GRANT | {"client_id": client.client_id})


def test_requests_oauthlib_raises_its_own_error_for_a_wrong_secret(harness: Harness) -> None:
    client = harness.register()
    with (
        OAuth2Session(client=BackendApplicationClient(client.client_id)) as session,
        pytest.raises(InvalidClientError) as raised,
    ):
        session.fetch_token(harness.token_url, client_secret="wrong")
    assert (raised.value.error, raised.value.description) == tuple(REFUSED.values())


def test_requests_oauthlib_raises_its_own_error_for_a_scope_that_was_not_granted(harness: Harness) -> None:
    client = harness.register()
    with (
        OAuth2Session(client=BackendApplicationClient(client.client_id, scope=["read", "delete"])) as session,
        pytest.raises(InvalidScopeError),
    ):
        session.fetch_token(harness.token_url, client_secret=client.secret)


def test_authlib_gets_a_token_by_basic(harness: Harness) -> None:
    client = harness.register_awkward_for_raw()
    with AuthlibSession(client.client_id, client.secret, scope="read") as session:
        token = session.fetch_token(harness.token_url)
    harness.check_answer(without_times(token), client, scope="read")
    sent = harness.only_sent()
    assert sent.credentials == raw(client)
    assert sent.headers["content-type"] == "application/x-www-form-urlencoded;charset=UTF-8"
    assert form(sent) == GRANT | {"scope": "read"}


def test_authlib_gets_a_token_by_the_body(harness: Harness) -> None:
    client = harness.register_awkward_for_encoded()
    method = "client_secret_post"
    with AuthlibSession(client.client_id, client.secret, token_endpoint_auth_method=method) as session:
        token = session.fetch_token(harness.token_url)
    harness.check_answer(without_times(token), client)
    sent = harness.only_sent()
    assert sent.credentials is None
    assert form(sent) == GRANT | {"client_id": client.client_id, "client_secret": client.secret}


def test_authlib_raises_its_own_error_for_a_wrong_secret(harness: Harness) -> None:
    with (
        AuthlibSession(harness.register().client_id, "wrong") as session,
        pytest.raises(OAuthError) as raised,
    ):
        session.fetch_token(harness.token_url)
    assert (raised.value.error, raised.value.description) == tuple(REFUSED.values())


def test_authlib_raises_its_own_error_for_a_scope_that_was_not_granted(harness: Harness) -> None:
    client = harness.register()
    with (
        AuthlibSession(client.client_id, client.secret, scope="read delete") as session,
        pytest.raises(OAuthError) as raised,
    ):
        session.fetch_token(harness.token_url)
    assert raised.value.error == "invalid_scope"


def test_authlib_over_httpx_gets_a_token_by_basic_and_by_the_body(harness: Harness) -> None:
    client = harness.register_awkward_for_raw()
    for method in ("client_secret_basic", "client_secret_post"):
        with OAuth2Client(client.client_id, client.secret, token_endpoint_auth_method=method) as session:
            harness.check_answer(without_times(session.fetch_token(harness.token_url)), client)
    assert [sent.credentials for sent in harness.sent()] == [raw(client), None]


def test_asynchronous_authlib_over_httpx_gets_a_token_by_basic_and_by_the_body(harness: Harness) -> None:
    client = harness.register_awkward_for_raw()

    async def fetch(method: str) -> dict[str, object]:
        async with AsyncOAuth2Client(
            client.client_id, client.secret, token_endpoint_auth_method=method, scope="read write"
        ) as session:
            return without_times(await session.fetch_token(harness.token_url))

    harness.check_answer(asyncio.run(fetch("client_secret_basic")), client)
    harness.check_answer(asyncio.run(fetch("client_secret_post")), client)
    assert [sent.credentials for sent in harness.sent()] == [raw(client), None]


def test_httpx_gets_a_token_by_basic(harness: Harness) -> None:
    client = harness.register_awkward_for_raw()
    answer = httpx.post(harness.token_url, data=GRANT, auth=httpx.BasicAuth(client.client_id, client.secret))
    harness.check_answer(answer.json(), client)
    assert harness.only_sent().credentials == raw(client)


def test_httpx_reads_the_challenge_of_a_refusal(harness: Harness) -> None:
    answer = httpx.post(harness.token_url, data=GRANT, auth=httpx.BasicAuth(harness.register().client_id, "wrong"))
    assert (answer.status_code, answer.json()) == (401, REFUSED)
    assert answer.headers["WWW-Authenticate"] == CHALLENGE


def test_urllib_authenticates_when_it_is_challenged(harness: Harness) -> None:
    client = harness.register_awkward_for_raw()
    passwords = urllib.request.HTTPPasswordMgr()
    passwords.add_password("tokenhouse", harness.url, client.client_id, client.secret)
    opener = urllib.request.build_opener(urllib.request.HTTPBasicAuthHandler(passwords))
    with opener.open(harness.token_url, b"grant_type=client_credentials", SECONDS) as answer:
        harness.check_answer(json.load(answer), client)
    assert [sent.credentials for sent in harness.sent()] == [None, raw(client)]


def test_authlib_introspects_and_revokes(harness: Harness) -> None:
    client, reader = harness.register(), harness.register(grant_types=(), audiences=(), introspects=("*",))
    token = harness.server.get_token(client)["access_token"]
    introspection, revocation = f"{harness.url}/oauth/introspect", f"{harness.url}/oauth/revoke"
    live = {"active": True, "token_type": "Bearer", **harness.verified(token)}
    with (
        AuthlibSession(client.client_id, client.secret) as owner,
        AuthlibSession(reader.client_id, reader.secret, token_endpoint_auth_method="client_secret_post") as asking,
    ):
        for session in (owner, asking):
            assert session.introspect_token(introspection, token=token).json() == live
        hinted = owner.introspect_token(introspection, token=token, token_type_hint="access_token")
        assert hinted.json() == live
        refused = asking.revoke_token(revocation, token=token)
        assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")
        assert asking.introspect_token(introspection, token=token).json() == live
        assert owner.revoke_token(revocation, token=token, token_type_hint="access_token").status_code == 200
        assert asking.introspect_token(introspection, token=token).json() == {"active": False}


@pytest.mark.parametrize("style", ["issuer", "any"])
@pytest.mark.parametrize("alg", ["RS256", "ES256", "PS256"])
def test_authlib_signs_assertions(harness: Harness, alg: str, style: str) -> None:
    one = signer(alg)
    client_id = harness.register_keyed(one, assertion_audience=style)
    # Unless it is told, it names the URL that it asks.
    method = PrivateKeyJWT(harness.url if style == "issuer" else None, alg=alg)
    with AuthlibSession(client_id, one.key, token_endpoint_auth_method=method) as session:
        for _ in range(2):
            token = session.fetch_token(harness.token_url, grant_type="client_credentials")
            assert harness.verified(token["access_token"])["sub"] == client_id
    with (
        AuthlibSession(
            client_id,
            signer(alg).key,
            token_endpoint_auth_method=method,
        ) as stranger,
        pytest.raises(OAuthError) as caught,
    ):
        stranger.fetch_token(harness.token_url, grant_type="client_credentials")
    assert caught.value.error == "invalid_client"


def test_a_client_that_is_not_told_the_issuer_is_refused_unless_it_is_marked(harness: Harness) -> None:
    one = signer("RS256")
    client_id = harness.register_keyed(one)
    for method in (PrivateKeyJWT(), PrivateKeyJWT(harness.token_url)):
        with (
            AuthlibSession(client_id, one.key, token_endpoint_auth_method=method) as session,
            pytest.raises(OAuthError) as caught,
        ):
            session.fetch_token(harness.token_url, grant_type="client_credentials")
        assert caught.value.error == "invalid_client"
    own = {**one.key.as_dict(private=True), "kid": one.kid, "alg": "RS256"}
    with pytest.raises(R2cInvalidClient):
        R2cClient(harness.token_url, auth=R2cPrivateKeyJwt(client_id, own), testing=True).client_credentials()


def test_authlib_signs_assertions_with_its_secret(harness: Harness) -> None:
    client = harness.register(token_endpoint_auth_method="client_secret_jwt")
    method = ClientSecretJWT(harness.token_url)
    with AuthlibSession(client.client_id, client.secret, token_endpoint_auth_method=method) as session:
        for _ in range(2):
            token = session.fetch_token(harness.token_url, grant_type="client_credentials")
            assert harness.verified(token["access_token"])["sub"] == client.client_id
    with (
        AuthlibSession(client.client_id, "w" * 49, token_endpoint_auth_method=method) as stranger,
        pytest.raises(OAuthError) as caught,
    ):
        stranger.fetch_token(harness.token_url, grant_type="client_credentials")
    assert caught.value.error == "invalid_client"


@pytest.mark.parametrize("style", ["issuer", "any"])
@pytest.mark.parametrize("alg", ["RS256", "PS256", "ES256", "EdDSA"])
def test_requests_oauth2client_signs_assertions(harness: Harness, alg: str, style: str) -> None:
    one, other = signer(alg), signer(alg)
    client_id = harness.register_keyed(one, assertion_audience=style)
    own, foreign = ({**key.key.as_dict(private=True), "kid": one.kid, "alg": alg} for key in (one, other))
    told = {"aud": harness.url} if style == "issuer" else {}
    client = R2cClient(harness.token_url, auth=R2cPrivateKeyJwt(client_id, own, alg=alg, **told), testing=True)
    for _ in range(2):
        assert harness.verified(client.client_credentials().access_token)["sub"] == client_id
    with pytest.raises(R2cInvalidClient):
        R2cClient(
            harness.token_url, auth=R2cPrivateKeyJwt(client_id, foreign, alg=alg, **told), testing=True
        ).client_credentials()


def test_requests_oauth2client_signs_assertions_with_its_secret(harness: Harness) -> None:
    made = harness.register(token_endpoint_auth_method="client_secret_jwt")
    # Unless it is told, it names the endpoint that it asks, and only the token endpoint is a name of ours.
    auth = R2cClientSecretJwt(made.client_id, made.secret, aud=harness.url)
    client = R2cClient(
        harness.token_url,
        introspection_endpoint=f"{harness.url}/oauth/introspect",
        revocation_endpoint=f"{harness.url}/oauth/revoke",
        auth=auth,
        testing=True,
    )
    token = client.client_credentials().access_token
    assert harness.verified(token)["sub"] == made.client_id
    assert client.introspect_token(token)["active"] is True
    assert client.revoke_token(token) is True
    assert client.introspect_token(token) == {"active": False}
