"""RFC 8414: the metadata document, where it stands, and that it is the settings' and never a request's."""

from collections.abc import Iterator

import pytest
import requests
from conformance.expected import NOT_FOUND, assert_refused
from support.server import RunningServer, running_server

OAUTH = "/.well-known/oauth-authorization-server"
OPENID = "/.well-known/openid-configuration"
METHODS = ["client_secret_basic", "client_secret_post", "client_secret_jwt", "private_key_jwt"]
ALGS = ["HS256", "RS256", "PS256", "ES256", "EdDSA", "Ed25519"]


def metadata(issuer: str) -> dict[str, object]:
    """The whole document for ``issuer``."""
    return {
        "issuer": issuer,
        "token_endpoint": f"{issuer}/oauth/token",
        "authorization_endpoint": f"{issuer}/oauth/authorize",
        "introspection_endpoint": f"{issuer}/oauth/introspect",
        "introspection_endpoint_auth_methods_supported": METHODS,
        "introspection_endpoint_auth_signing_alg_values_supported": ALGS,
        "introspection_signing_alg_values_supported": ["RS256"],
        "revocation_endpoint": f"{issuer}/oauth/revoke",
        "revocation_endpoint_auth_methods_supported": METHODS,
        "revocation_endpoint_auth_signing_alg_values_supported": ALGS,
        "tokenhouse_revocation_feed": f"{issuer}/oauth/revocations",
        "jwks_uri": f"{issuer}/.well-known/jwks.json",
        "dpop_signing_alg_values_supported": ["RS256", "PS256", "ES256", "EdDSA", "Ed25519"],
        "protected_resources": [f"{issuer}/oauth/introspect", f"{issuer}/oauth/revocations"],
        "grant_types_supported": ["client_credentials"],
        "token_endpoint_auth_methods_supported": METHODS,
        "token_endpoint_auth_signing_alg_values_supported": ALGS,
        "response_types_supported": ["none"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["RS256"],
    }


ROOT_ISSUER = "https://tokens.example.com"
PATH_ISSUER = "https://example.com/tenants/one"


@pytest.fixture(scope="module")
def below_a_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose issuer has a path."""
    settings = {"TOKENHOUSE_ISSUER": PATH_ISSUER, "TOKENHOUSE_ENCRYPTION_KEYS": f"k1:{'e' * 40}"}
    with running_server(tmp_path_factory.mktemp("issuer-with-path"), **settings) as running:
        yield running


def get(server: RunningServer, path: str, **headers: str) -> requests.Response:
    return requests.get(f"{server.url}{path}", headers=headers, timeout=10)


@pytest.mark.parametrize("path", [OAUTH, OPENID])
def test_2_the_document_is_exactly_this(server: RunningServer, path: str) -> None:
    response = get(server, path)
    assert (response.status_code, response.json()) == (200, metadata(ROOT_ISSUER))


def test_both_paths_give_the_same_document_to_the_byte(server: RunningServer) -> None:
    assert get(server, OAUTH).content == get(server, OPENID).content


def test_2_every_required_member_is_there_and_every_url_begins_with_the_issuer(server: RunningServer) -> None:
    document = get(server, OAUTH).json()
    assert {"issuer", "token_endpoint", "response_types_supported", "jwks_uri"} <= set(document)
    urls = {value for name, value in document.items() if name.endswith(("_endpoint", "_uri"))}
    assert all(url.startswith(f"{document['issuer']}/") for url in urls)


def test_3_2_the_answer_is_json_and_no_member_is_empty(server: RunningServer) -> None:
    response = get(server, OAUTH)
    assert response.headers["Content-Type"] == "application/json"
    assert all(value not in (None, "", [], {}) for value in response.json().values())


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_2_nothing_is_served_at_the_authorization_endpoint(server: RunningServer, method: str) -> None:
    """Some clients, those of MCP among them, reject metadata without it."""
    url = get(server, OAUTH).json()["authorization_endpoint"].replace(ROOT_ISSUER, server.url)
    query = {"response_type": "code", "client_id": "x", "redirect_uri": "https://evil.example", "state": "y"}
    response = requests.request(method, url, params=query, data=query if method == "POST" else None, timeout=10)
    assert (response.status_code, response.json()) == (404, NOT_FOUND[1])
    assert "Location" not in response.headers


def test_2_the_urls_of_the_document_work(server: RunningServer) -> None:
    document = get(server, OAUTH).json()
    here = {name: url.replace(ROOT_ISSUER, server.url) for name, url in document.items() if isinstance(url, str)}
    assert requests.get(here["jwks_uri"], timeout=10).json() == server.jwks()
    client = server.create_client()
    body = {"grant_type": "client_credentials"}
    response = requests.post(here["token_endpoint"], body, headers={"Authorization": client.basic}, timeout=10)
    assert server.verify(response.json()["access_token"])["iss"] == document["issuer"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "evil.example:8443"},
        {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http"},
        {"Forwarded": "host=evil.example;proto=http"},
        {"X-Forwarded-Prefix": "/evil", "X-Script-Name": "/evil", "Script-Name": "/evil", "X-Original-Url": "/evil"},
    ],
    ids=" ".join,
)
def test_3_3_the_issuer_is_the_settings_whatever_the_request_says(
    server: RunningServer, headers: dict[str, str]
) -> None:
    assert get(server, OAUTH, **headers).json() == metadata(ROOT_ISSUER)
    client = server.create_client()
    response = server.post_token(headers={"Authorization": client.basic, **headers})
    assert server.verify(response.json()["access_token"])["iss"] == ROOT_ISSUER


@pytest.mark.parametrize(
    "path",
    [
        f"{OAUTH}/tenants/one",
        f"/tenants/one{OPENID}",
        f"/tenants/one{OAUTH}",
        OAUTH,
        OPENID,
    ],
    ids=[
        "section 3.1 between host and path",
        "OpenID Connect Discovery below the path",
        "RFC 8414's own name below the path",
        "RFC 8414 at the root, for a proxy that takes the path off",
        "OpenID at the root, for a proxy that takes the path off",
    ],
)
def test_3_1_an_issuer_with_a_path_has_its_documents_where_verifiers_look(
    below_a_path: RunningServer, path: str
) -> None:
    response = get(below_a_path, path)
    assert (response.status_code, response.json()) == (200, metadata(PATH_ISSUER))


@pytest.mark.parametrize(
    "path",
    [
        f"{OAUTH}/tenants/two",
        f"{OAUTH}/tenants",
        f"{OAUTH}/tenants/one/",
        f"{OAUTH}/",
        f"/tenants/two{OPENID}",
        f"/tenants/one/{OPENID}",
        "/tenants/one",
        "/tenants/two/oauth/token",
    ],
)
def test_3_1_another_issuer_has_no_documents_here(below_a_path: RunningServer, path: str) -> None:
    assert_refused(get(below_a_path, path), NOT_FOUND)


@pytest.mark.parametrize("path", ["/tenants/one/oauth/token", "/oauth/token"])
def test_an_issuer_with_a_path_issues_tokens_below_it_and_at_the_root(below_a_path: RunningServer, path: str) -> None:
    client = below_a_path.create_client()
    body = {"grant_type": "client_credentials"}
    response = requests.post(f"{below_a_path.url}{path}", body, headers={"Authorization": client.basic}, timeout=10)
    assert response.status_code == 200
    claims = below_a_path.verify(response.json()["access_token"])
    assert (claims["iss"], claims["aud"]) == (PATH_ISSUER, PATH_ISSUER)


@pytest.mark.parametrize("path", ["/tenants/one/.well-known/jwks.json", "/.well-known/jwks.json"])
def test_an_issuer_with_a_path_publishes_its_keys_below_it_and_at_the_root(
    below_a_path: RunningServer, path: str
) -> None:
    response = get(below_a_path, path)
    assert (response.status_code, response.json()) == (200, below_a_path.jwks())
