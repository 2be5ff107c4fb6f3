"""RFC 9728: the metadata of APIs, and of this server's own protected endpoints."""

from collections.abc import Iterator
from urllib.parse import quote

import pytest
import requests
from conformance.expected import METHOD_NOT_ALLOWED, NOT_FOUND
from support.server import RunningServer, running_server, wait_until

WELL_KNOWN = "/.well-known/oauth-protected-resource"
ISSUER = "https://tokens.example.com"
PATH_ISSUER = "https://example.com/tenants/one"
ORDERS = "https://orders.example.com/v1"


@pytest.fixture(scope="module")
def apis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server with APIs, and two workers."""
    with running_server(tmp_path_factory.mktemp("apis"), "--workers", "2") as running:
        create(running, "orders", ORDERS, "--scope", "read write")
        yield running


@pytest.fixture(scope="module")
def below_a_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose issuer has a path."""
    with running_server(tmp_path_factory.mktemp("issuer-with-path"), TOKENHOUSE_ISSUER=PATH_ISSUER) as running:
        create(running, "orders", ORDERS)
        yield running


def create(server: RunningServer, name: str, identifier: str, *words: str) -> None:
    server.flask_json("apis", "create", name, "--identifier", identifier, *words)


def get(server: RunningServer, name: str, **headers: str) -> requests.Response:
    return requests.get(f"{server.url}{WELL_KNOWN}/{quote(name)}", headers=headers, timeout=10)


def test_2_the_document_of_an_api_is_exactly_this(apis: RunningServer) -> None:
    response = get(apis, "orders")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Cache-Control"] == "public, max-age=300"
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert response.json() == {
        "resource": ORDERS,
        "authorization_servers": [ISSUER],
        "scopes_supported": ["read", "write"],
        "bearer_methods_supported": ["header"],
    }


def test_3_2_no_member_is_empty(apis: RunningServer) -> None:
    create(apis, "plain", "https://plain.example.com")
    assert get(apis, "plain").json() == {
        "resource": "https://plain.example.com",
        "authorization_servers": [ISSUER],
        "bearer_methods_supported": ["header"],
    }


def test_a_change_shows_at_once_whichever_worker_answers(apis: RunningServer) -> None:
    create(apis, "changing", "https://changing.example.com", "--scope", "a")
    for scopes in (["a", "b"], ["b"]):
        apis.flask_ok("apis", "update", "changing", "--scope", " ".join(scopes))
        assert [get(apis, "changing").json()["scopes_supported"] for _ in range(6)] == [scopes] * 6
    apis.flask_ok("apis", "update", "changing", "--no-document")
    assert_not_found(get(apis, "changing"))
    apis.flask_ok("apis", "update", "changing", "--document")
    assert get(apis, "changing").status_code == 200
    apis.flask_ok("apis", "delete", "changing", "--yes")
    assert_not_found(get(apis, "changing"))


def assert_not_found(response: requests.Response) -> None:
    assert (response.status_code, response.json()) == (404, NOT_FOUND[1])


@pytest.mark.parametrize("name", ["nobody", "Orders", "orders/", "orders/more", "", "oauth", "oauth/token", "%00", "'"])
def test_3_1_nothing_else_has_a_document(apis: RunningServer, name: str) -> None:
    assert_not_found(get(apis, name))


def test_an_api_with_a_plain_name_has_no_document(apis: RunningServer) -> None:
    create(apis, "bills", "bills", "--scope", "read")
    assert_not_found(get(apis, "bills"))


def test_a_name_may_need_escapes(apis: RunningServer) -> None:
    create(apis, "Größe & more", "https://sizes.example.com")
    url = apis.flask_json("apis", "show", "Größe & more")["document"]
    assert url == f"{ISSUER}{WELL_KNOWN}/Gr%C3%B6%C3%9Fe%20%26%20more"
    assert requests.get(url.replace(ISSUER, apis.url), timeout=10).json()["resource"] == "https://sizes.example.com"


def test_a_document_has_a_tag_and_only_get(apis: RunningServer) -> None:
    tag = get(apis, "orders").headers["ETag"]
    assert get(apis, "orders", **{"If-None-Match": tag}).status_code == 304
    response = requests.post(f"{apis.url}{WELL_KNOWN}/orders", timeout=10)
    assert (response.status_code, response.json()) == (405, METHOD_NOT_ALLOWED[1])
    head = requests.head(f"{apis.url}{WELL_KNOWN}/orders", timeout=10)
    assert (head.status_code, head.content, head.headers["ETag"]) == (200, b"", tag)


@pytest.mark.parametrize("path", ["/oauth/introspect", "/oauth/revocations"])
def test_5_1_a_protected_endpoint_names_its_document(apis: RunningServer, path: str) -> None:
    refused = requests.post(f"{apis.url}{path}", {"token": "x"}, auth=("nobody", "x"), timeout=10)
    assert refused.status_code == 401
    scheme, _, parameters = refused.headers["WWW-Authenticate"].partition(" ")
    named = dict(part.split("=", 1) for part in parameters.split(", "))
    assert scheme == "Basic"
    assert named["resource_metadata"] == f'"{ISSUER}{WELL_KNOWN}{path}"'
    document = requests.get(f"{apis.url}{WELL_KNOWN}{path}", timeout=10)
    assert document.headers["Cache-Control"] == "public, max-age=300"
    assert document.json() == {
        "resource": f"{ISSUER}{path}",
        "authorization_servers": [ISSUER],
        "bearer_methods_supported": [],
    }


def test_5_1_the_token_endpoint_is_no_protected_resource(apis: RunningServer) -> None:
    for path in ("/oauth/token", "/oauth/revoke"):
        body = {"token": "x", "grant_type": "client_credentials"}
        refused = requests.post(f"{apis.url}{path}", body, auth=("nobody", "x"), timeout=10)
        assert "resource_metadata" not in refused.headers["WWW-Authenticate"]


def test_3_1_the_path_of_an_issuer_comes_after_the_well_known_one(below_a_path: RunningServer) -> None:
    refused = requests.post(f"{below_a_path.url}/oauth/introspect", {"token": "x"}, auth=("nobody", "x"), timeout=10)
    url = f"https://example.com{WELL_KNOWN}/tenants/one/oauth/introspect"
    assert f'resource_metadata="{url}"' in refused.headers["WWW-Authenticate"]
    document = requests.get(url.replace("https://example.com", below_a_path.url), timeout=10).json()
    assert (document["resource"], document["authorization_servers"]) == (
        f"{PATH_ISSUER}/oauth/introspect",
        [PATH_ISSUER],
    )
    url = below_a_path.flask_json("apis", "show", "orders")["document"]
    assert url == f"{PATH_ISSUER}{WELL_KNOWN}/orders"
    for served in (f"/tenants/one{WELL_KNOWN}/orders", f"{WELL_KNOWN}/orders"):
        assert requests.get(f"{below_a_path.url}{served}", timeout=10).json()["resource"] == ORDERS


def test_4_the_servers_metadata_lists_protected_resources(apis: RunningServer) -> None:
    create(apis, "listed", "https://listed.example.com")

    def listed() -> list[str]:
        document = requests.get(f"{apis.url}/.well-known/oauth-authorization-server", timeout=10).json()
        found: list[str] = document["protected_resources"]
        return found

    wait_until(lambda: all("https://listed.example.com" in listed() for _ in range(4)))
    assert {f"{ISSUER}/oauth/introspect", f"{ISSUER}/oauth/revocations", ORDERS} <= set(listed())
    assert "bills" not in listed()
