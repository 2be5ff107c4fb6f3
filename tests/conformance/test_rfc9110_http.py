"""RFC 9110: 405 with ``Allow``, HEAD, entity tags and 304, CORS, for the public documents and the small endpoints."""

import hashlib

import pytest
import requests
from conformance.expected import METHOD_NOT_ALLOWED, NOT_FOUND, assert_refused
from support.server import RunningServer

DOCUMENTS = ["/.well-known/jwks.json", "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"]
READABLE = [*DOCUMENTS, "/livez", "/readyz"]

of_documents = pytest.mark.parametrize("path", DOCUMENTS)
of_all_readable = pytest.mark.parametrize("path", READABLE)


def get(server: RunningServer, path: str, **headers: str) -> requests.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.get(f"{server.url}{path}", headers=named, timeout=10)


@of_all_readable
@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"])
def test_15_5_6_another_method_is_405_with_allow(server: RunningServer, path: str, method: str) -> None:
    response = requests.request(method, f"{server.url}{path}", timeout=10)
    assert_refused(response, METHOD_NOT_ALLOWED)
    assert sorted(response.headers["Allow"].split(", ")) == ["GET", "HEAD", "OPTIONS"]


@of_all_readable
def test_9_3_2_head_has_the_headers_of_get_and_no_body(server: RunningServer, path: str) -> None:
    got, head = get(server, path), requests.head(f"{server.url}{path}", timeout=10)
    assert (head.status_code, head.content) == (200, b"")
    volatile = {"Date", "X-Request-ID"}
    assert {name: value for name, value in head.headers.items() if name not in volatile} == {
        name: value for name, value in got.headers.items() if name not in volatile
    }


@of_all_readable
def test_9_3_7_options_tells_the_methods(server: RunningServer, path: str) -> None:
    response = requests.options(f"{server.url}{path}", timeout=10)
    assert (response.status_code, response.content) == (200, b"")
    assert sorted(response.headers["Allow"].split(", ")) == ["GET", "HEAD", "OPTIONS"]
    assert "X-Request-ID" in response.headers
    assert "text/html" not in response.headers.get("Content-Type", "")


@of_documents
def test_a_public_document_has_exactly_these_headers(server: RunningServer, path: str) -> None:
    response = get(server, path)
    for volatile in ("Date", "X-Request-ID", "Connection"):
        response.headers.pop(volatile, None)
    assert dict(response.headers) == {
        "Server": "tokenhouse",
        "Content-Type": "application/json",
        "Content-Length": str(len(response.content)),
        "ETag": f'"{hashlib.sha256(response.content).hexdigest()[:32]}"',
        "Cache-Control": "public, max-age=300",
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Allow-Headers": "*",
        "X-Content-Type-Options": "nosniff",
    }


@of_documents
def test_a_browser_may_ask_before_it_reads_a_public_document(server: RunningServer, path: str) -> None:
    preflight = {"Origin": "https://app.example", "Access-Control-Request-Method": "GET"}
    asked = preflight | {"Access-Control-Request-Headers": "x-requested-with"}
    response = requests.options(f"{server.url}{path}", headers=asked, timeout=10)
    assert response.headers.get("Access-Control-Allow-Origin") == "*"
    assert response.headers.get("Access-Control-Allow-Headers") == "*"


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/oauth/token", "/nothing"])
def test_nothing_else_is_for_browsers_of_other_origins(server: RunningServer, path: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        response = requests.request(
            method, f"{server.url}{path}", headers={"Origin": "https://app.example"}, timeout=10
        )
        assert not [name for name in response.headers if name.lower().startswith("access-control-")]


@of_documents
@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', '{}, "other"', "*"])
def test_13_1_2_a_known_entity_tag_gives_304(server: RunningServer, path: str, form: str) -> None:
    etag = get(server, path).headers["ETag"]
    response = get(server, path, If_None_Match=form.format(etag))
    assert (response.status_code, response.content) == (304, b"")
    assert response.headers["ETag"] == etag
    assert response.headers["Cache-Control"] == "public, max-age=300"
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert len(response.headers["X-Request-ID"]) == 32


@of_documents
@pytest.mark.parametrize("value", ['"other"', "garbage", "", '"', 'W/"other"'])
def test_13_1_2_another_entity_tag_gives_the_document(server: RunningServer, path: str, value: str) -> None:
    response = get(server, path, If_None_Match=value)
    assert (response.status_code, response.content) == (200, get(server, path).content)


@of_documents
def test_13_1_2_head_knows_304_too(server: RunningServer, path: str) -> None:
    etag = get(server, path).headers["ETag"]
    response = requests.head(f"{server.url}{path}", headers={"If-None-Match": etag}, timeout=10)
    assert (response.status_code, response.headers["ETag"]) == (304, etag)


@of_documents
def test_13_1_3_a_date_alone_gives_the_document(server: RunningServer, path: str) -> None:
    response = get(server, path, If_Modified_Since="Fri, 31 Dec 2100 23:59:59 GMT")
    assert response.status_code == 200


@of_documents
def test_14_2_a_range_gives_the_whole_document(server: RunningServer, path: str) -> None:
    response = get(server, path, Range="bytes=0-9")
    assert (response.status_code, response.content) == (200, get(server, path).content)


@of_documents
def test_a_query_changes_no_document(server: RunningServer, path: str) -> None:
    assert get(server, f"{path}?x=1&x=%FF").content == get(server, path).content


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/oauth",
        "/oauth/token/",
        "/oauth//token",
        "/OAUTH/TOKEN",
        "/oauth/token%00",
        "/livez/",
        "/%FF",
    ],
)
def test_15_5_5_another_path_is_404(server: RunningServer, path: str) -> None:
    for method in ("GET", "POST"):
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        (answer,) = server.send(head.encode(), method)
        assert_refused(answer, NOT_FOUND)


@pytest.mark.parametrize("target", ["/oauth/%74oken", "/./oauth/token", "http://tokens.example.com/oauth/token"])
def test_a_target_in_another_spelling_gives_no_redirect(server: RunningServer, target: str) -> None:
    (answer,) = server.send(
        f"POST {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()
    )
    assert answer.status_code in {400, 404}
    assert sorted(answer.json()) == ["error", "error_description"]


def test_options_of_the_server_as_a_whole(server: RunningServer) -> None:
    """Section 9.3.7."""
    (answer,) = server.send(b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Allow"] == "GET, HEAD, POST, OPTIONS"
    assert "Content-Type" not in answer.headers
    (answer,) = server.send(b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", "GET")
    assert answer.status_code in {400, 404}
