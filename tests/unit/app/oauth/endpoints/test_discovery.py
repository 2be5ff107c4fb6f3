"""The documents that verifiers read: computed from settings and registries, cached, and the same at every path."""

import hashlib
import json
from datetime import timedelta
from pathlib import Path

import pytest
from conftest import SettableClock
from support.keys import add_key
from unit.harness import Harness, open_harness

JWKS = "/.well-known/jwks.json"
METADATA = ("/.well-known/oauth-authorization-server", "/.well-known/openid-configuration")
ISSUER = "https://tokens.example.com"
METHODS = ["client_secret_basic", "client_secret_post", "private_key_jwt"]
ALGS = ["RS256", "PS256", "ES256", "EdDSA", "Ed25519"]


def test_the_metadata_is_exactly_this_at_both_paths(harness: Harness) -> None:
    for path in METADATA:
        answer = harness.app.test_client().get(
            path, headers={"Host": "evil.example", "X-Forwarded-Host": "evil.example"}
        )
        assert answer.get_json() == {
            "issuer": ISSUER,
            "token_endpoint": f"{ISSUER}/oauth/token",
            "authorization_endpoint": f"{ISSUER}/oauth/authorize",
            "introspection_endpoint": f"{ISSUER}/oauth/introspect",
            "introspection_endpoint_auth_methods_supported": METHODS,
            "introspection_endpoint_auth_signing_alg_values_supported": ALGS,
            "introspection_signing_alg_values_supported": ["RS256"],
            "revocation_endpoint": f"{ISSUER}/oauth/revoke",
            "revocation_endpoint_auth_methods_supported": METHODS,
            "revocation_endpoint_auth_signing_alg_values_supported": ALGS,
            "tokenhouse_revocation_feed": f"{ISSUER}/oauth/revocations",
            "jwks_uri": f"{ISSUER}/.well-known/jwks.json",
            "dpop_signing_alg_values_supported": ["RS256", "PS256", "ES256", "EdDSA", "Ed25519"],
            "grant_types_supported": ["client_credentials"],
            "token_endpoint_auth_methods_supported": METHODS,
            "token_endpoint_auth_signing_alg_values_supported": ALGS,
            "response_types_supported": ["none"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
            "protected_resources": [f"{ISSUER}/oauth/introspect", f"{ISSUER}/oauth/revocations"],
        }


@pytest.mark.parametrize("path", [JWKS, *METADATA])
def test_a_document_may_be_cached_and_read_from_browsers(harness: Harness, path: str) -> None:
    answer = harness.app.test_client().get(path)
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Cache-Control"] == "public, max-age=300"
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    assert answer.headers["ETag"] == f'"{hashlib.sha256(answer.data).hexdigest()[:32]}"'


@pytest.mark.parametrize("path", [JWKS, *METADATA])
def test_a_document_that_is_known_is_not_sent_again(harness: Harness, path: str) -> None:
    caller = harness.app.test_client()
    etag = caller.get(path).headers["ETag"]
    for known in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        answer = caller.get(path, headers={"If-None-Match": known})
        assert (answer.status_code, answer.data) == (304, b"")
        assert answer.headers["ETag"] == etag
        assert answer.headers["Cache-Control"] == "public, max-age=300"
    assert caller.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


def test_the_jwks_holds_the_published_keys_and_public_members_only(harness: Harness) -> None:
    keys = harness.app.test_client().get(JWKS).get_json()["keys"]
    (own,) = harness.services.keys.active().keys
    assert keys == [own.public_jwk]
    assert list(keys[0]) == ["kty", "kid", "use", "alg", "n", "e"]


def test_the_jwks_changes_with_the_clock_alone(harness: Harness) -> None:
    later = harness.clock() + timedelta(days=30)
    following = add_key(harness.services.keys.manager.backend, published_at=later, signs_from=later + timedelta(days=7))
    caller = harness.app.test_client()
    first = caller.get(JWKS)
    harness.clock.now = later
    second = caller.get(JWKS)
    assert [key["kid"] for key in second.get_json()["keys"]] == [first.get_json()["keys"][0]["kid"], following.kid]
    assert first.headers["ETag"] != second.headers["ETag"]


def test_the_cache_time_is_a_setting(tmp_path: Path, clock: SettableClock) -> None:
    with open_harness(tmp_path, clock, jwks_max_age="1h") as harness:
        assert harness.app.test_client().get(JWKS).headers["Cache-Control"] == "public, max-age=3600"


def test_an_issuer_with_a_path_has_its_documents_where_the_rfcs_say(tmp_path: Path, clock: SettableClock) -> None:
    with open_harness(tmp_path, clock, issuer="https://example.com/auth/eu") as harness:
        caller = harness.app.test_client()
        found = [
            caller.get(path).get_json()
            for path in (
                "/.well-known/oauth-authorization-server/auth/eu",
                "/auth/eu/.well-known/openid-configuration",
                "/auth/eu/.well-known/oauth-authorization-server",
                *METADATA,
            )
        ]
        assert all(document == found[0] for document in found)
        assert found[0]["issuer"] == "https://example.com/auth/eu"
        assert found[0]["jwks_uri"] == "https://example.com/auth/eu/.well-known/jwks.json"
        assert caller.get("/auth/eu/.well-known/jwks.json").data == caller.get(JWKS).data
        assert caller.get("/auth/eu/oauth/token").status_code == caller.get("/oauth/token").status_code == 405


def test_documents_are_json_of_ascii(harness: Harness) -> None:
    for path in (JWKS, *METADATA):
        assert json.loads(harness.app.test_client().get(path).data.decode("ascii"))


@pytest.mark.parametrize("path", [JWKS, *METADATA])
def test_a_browser_may_ask_before_it_reads(harness: Harness, path: str) -> None:
    headers = {"Origin": "https://app.example", "Access-Control-Request-Headers": "x-trace"}
    answer = harness.app.test_client().options(path, headers=headers)
    assert (answer.status_code, answer.data) == (200, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == answer.headers["Access-Control-Allow-Headers"] == "*"
    assert "Content-Type" not in answer.headers


@pytest.mark.parametrize("path", ["/oauth/token", "/livez", "/readyz", "/nowhere"])
def test_nothing_else_may_be_read_from_browsers(harness: Harness, path: str) -> None:
    for method in ("GET", "POST", "OPTIONS"):
        answer = harness.app.test_client().open(path, method=method, headers={"Origin": "https://app.example"})
        assert not [name for name, _ in answer.headers if name.startswith("Access-Control-")]


def test_the_scopes_of_clients_are_listed_at_both_paths_as_of_the_last_look(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody else looks.
    monkeypatch.setattr(harness.app.extensions["scheduler"], "start", lambda: None)
    caller = harness.app.test_client()
    for path in METADATA:
        assert "scopes_supported" not in caller.get(path).json
    tag = caller.get(METADATA[0]).headers["ETag"]
    harness.register(scope=("write", "read"))
    assert caller.get(METADATA[0]).headers["ETag"] == tag
    harness.services.clients.registered_scopes.poll()
    for path in METADATA:
        answer = caller.get(path)
        assert answer.json["scopes_supported"] == ["read", "write"]
        assert answer.headers["ETag"] != tag


def test_a_setting_keeps_scopes_to_ourselves(tmp_path: Path, clock: SettableClock) -> None:
    with open_harness(tmp_path, clock, publish_scopes="false") as harness:
        harness.register(scope=("read",))
        harness.services.clients.registered_scopes.poll()
        for path in METADATA:
            assert "scopes_supported" not in harness.app.test_client().get(path).json


DOCUMENTS = [
    "/.well-known/jwks.json",
    "/.well-known/oauth-authorization-server",
    "/.well-known/openid-configuration",
    "/.well-known/oauth-protected-resource/oauth/introspect",
]


@pytest.mark.parametrize("path", DOCUMENTS)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_if_match_is_met_by_what_is_there(harness: Harness, path: str, method: str) -> None:
    caller = harness.app.test_client()
    plain = caller.get(path)
    etag = plain.headers["ETag"]
    for condition in ("*", " * ", etag, f'"x", {etag}'):
        answer = caller.open(path, method=method, headers={"If-Match": condition})
        assert (answer.status_code, answer.headers["ETag"]) == (200, etag), condition
        assert answer.data == (plain.data if method == "GET" else b"")
    answer = caller.open(path, method=method, headers={"If-Match": "*", "If-None-Match": etag})
    assert answer.status_code == 304


@pytest.mark.parametrize("path", DOCUMENTS)
@pytest.mark.parametrize("condition", ['"another"', "", 'W/"weak"', "x"])
def test_another_document_than_is_wanted_is_an_error_that_nobody_keeps(
    harness: Harness, path: str, condition: str
) -> None:
    caller = harness.app.test_client()
    condition = condition.replace("weak", caller.get(path).headers["ETag"].strip('"'))
    answer = caller.get(path, headers={"If-Match": condition})
    assert (answer.status_code, answer.get_json()) == (
        412,
        {
            "error": "invalid_request",
            "error_description": "The document has changed: no entity tag of If-Match is its own.",
        },
    )
    assert answer.headers["Cache-Control"] == "no-store"
    assert "ETag" not in answer.headers
