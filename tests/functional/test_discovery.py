"""What verifiers read, as the settings and the ring have it: caching, rotation by the clock, and no request's words."""

import json
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
import requests
from support.server import RunningServer, running_server, wait_until

JWKS = "/.well-known/jwks.json"
METADATA = "/.well-known/oauth-authorization-server"


@pytest.fixture(scope="module")
def with_short_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    settings = {"TOKENHOUSE_JWKS_MAX_AGE": "90s", "TOKENHOUSE_KEY_ANNOUNCE": "2m"}
    with running_server(tmp_path_factory.mktemp("short-cache"), **settings) as running:
        yield running


def test_an_api_verifies_with_nothing_but_the_metadata(server: RunningServer) -> None:
    token = server.get_token(server.create_client())["access_token"]
    document = requests.get(f"{server.url}{METADATA}", timeout=10).json()
    here = document["jwks_uri"].replace(document["issuer"], server.url)
    key = jwt.PyJWKClient(here).get_signing_key_from_jwt(token)
    claims = jwt.decode(token, key, algorithms=["RS256"], issuer=document["issuer"], audience=document["issuer"])
    assert claims["iss"] == "https://tokens.example.com"


@pytest.mark.parametrize("path", [JWKS, METADATA])
def test_documents_may_be_cached_as_long_as_the_settings_say(with_short_cache: RunningServer, path: str) -> None:
    response = requests.get(f"{with_short_cache.url}{path}", timeout=10)
    assert response.headers["Cache-Control"] == "public, max-age=90"


@pytest.mark.parametrize("path", [JWKS, METADATA])
def test_every_worker_gives_the_same_document_and_entity_tag(server: RunningServer, path: str) -> None:
    answers = [requests.get(f"{server.url}{path}", timeout=10) for _ in range(20)]
    assert len({(answer.content, answer.headers["ETag"]) for answer in answers}) == 1


def test_documents_are_readable_json_of_several_lines(server: RunningServer) -> None:
    for path in (JWKS, METADATA):
        response = requests.get(f"{server.url}{path}", timeout=10)
        assert response.text == json.dumps(response.json(), indent=2)


def test_documents_need_no_authentication_and_ignore_one(server: RunningServer) -> None:
    for value in ("Basic !!!", "Bearer x", "Basic YTpi"):
        response = requests.get(f"{server.url}{JWKS}", headers={"Authorization": value}, timeout=10)
        assert response.status_code == 200


def test_documents_need_no_database(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("no-database")
    unreachable = "postgresql+psycopg://nobody@127.0.0.1:1/nothing"
    with running_server(folder) as with_database:
        keys = with_database.jwks()
    server = RunningServer(folder, TOKENHOUSE_DATABASE_URL=unreachable)
    server.start()
    try:
        assert server.jwks() == keys
        assert requests.get(f"{server.url}{METADATA}", timeout=10).status_code == 200
    finally:
        server.stop()


def test_an_announced_key_keeps_its_entity_tag_apart(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("announced")
    pepper = f"p1:{'p' * 40}"
    with running_server(folder, TOKENHOUSE_SECRET_PEPPERS=pepper) as server:
        before = requests.get(f"{server.url}{JWKS}", timeout=10)
        assert server.flask("keys", "generate").returncode == 0
    again = RunningServer(folder, TOKENHOUSE_SECRET_PEPPERS=pepper)
    again.start()
    try:
        after = requests.get(f"{again.url}{JWKS}", headers={"If-None-Match": before.headers["ETag"]}, timeout=10)
        assert after.status_code == 200
        assert len(after.json()["keys"]) == 2
        assert after.json()["keys"][0] == before.json()["keys"][0]
    finally:
        again.stop()


def test_the_scopes_of_clients_are_listed_soon_after_the_start_at_both_paths(tmp_path: Path) -> None:
    server = RunningServer(tmp_path)
    server.prepare()
    server.create_client(scope=("write", "read"))
    server.start()
    try:
        for path in (METADATA, "/.well-known/openid-configuration"):
            wait_until(lambda path=path: scopes_of(server, path) == ["read", "write"], seconds=10)
    finally:
        server.stop()


def scopes_of(server: RunningServer, path: str) -> list[str] | None:
    found: list[str] | None = requests.get(f"{server.url}{path}", timeout=10).json().get("scopes_supported")
    return found
