"""``docs/revocation-feed.md``, clause by clause, over HTTP, and the Python and the Node that stand in it."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import jwt
import pytest
import requests
from conformance.expected import INVALID_CLIENT, METHOD_NOT_ALLOWED, NOT_A_FORM, assert_refused, refusal
from support.assertions import claims_of, form, signer
from support.server import NewClient, RunningServer, basic, free_port, running_server

from app.clients.fields import ClientFields
from app.database.models import RevokedTokenRow, db
from app.tokens.revocation_feed import MOST_TOKENS_OF_CLIENT

PROJECT = Path(__file__).resolve().parents[2]
DOCUMENT = (PROJECT / "docs" / "revocation-feed.md").read_text()
SCHEMA = json.loads((PROJECT / "docs" / "revocation-feed.schema.json").read_text())
API = "https://api.example"
MEDIA_TYPE = "application/revocations+jwt"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose issuer is where it listens."""
    port = str(free_port())
    folder = tmp_path_factory.mktemp("feed")
    with running_server(folder, TOKENHOUSE_ISSUER=f"http://127.0.0.1:{port}", PORT=port) as server:
        yield server


@pytest.fixture(scope="module")
def reader(served: RunningServer) -> NewClient:
    return served.create_client("An API", grant_types=(), introspects=(API,))


def get(server: RunningServer, who: NewClient, method: str = "GET", **headers: str) -> requests.Response:
    url = requests.get(f"{server.url}/.well-known/oauth-authorization-server", timeout=10).json()
    return requests.request(
        method, url["tokenhouse_revocation_feed"], headers={"Authorization": who.basic, **headers}, timeout=10
    )


def read(server: RunningServer, answer: requests.Response, who: NewClient) -> dict[str, Any]:
    header = jwt.get_unverified_header(answer.text)
    assert header == {"typ": "revocations+jwt", "alg": "RS256", "kid": header["kid"]}
    keys = {key["kid"]: jwt.PyJWK(key).key for key in server.jwks()["keys"]}
    claims: dict[str, Any] = jwt.decode(
        answer.text, keys[header["kid"]], algorithms=["RS256"], audience=who.client_id, issuer=server.settings.issuer
    )
    jsonschema.Draft202012Validator(SCHEMA).validate(claims)
    return claims


def test_the_document_names_what_was_taken_back(served: RunningServer, reader: NewClient) -> None:
    client = served.create_client(audiences=(API,))
    token = served.get_token(client)["access_token"]
    claims = served.verify(token, API)
    requests.post(
        f"{served.url}/oauth/revoke", {"token": token}, headers={"Authorization": client.basic}, timeout=10
    ).raise_for_status()
    answer = get(served, reader)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, MEDIA_TYPE)
    assert answer.headers["Cache-Control"] == "private, max-age=60"
    assert answer.headers["Vary"] == "Authorization"
    found = read(served, answer, reader)
    assert found["revoked_tokens"][claims["jti"]] == claims["exp"]
    assert client.client_id not in found["clients_revoked_until"]
    before = int(time.time())
    assert served.flask("tokens", "revoke", "--client", client.client_id).returncode == 0
    found = read(served, get(served, reader), reader)
    assert before <= found["clients_revoked_until"][client.client_id] <= time.time()


def test_who_has_it_is_not_given_it_again(served: RunningServer, reader: NewClient) -> None:
    first = get(served, reader)
    tag = first.headers["ETag"]
    for condition in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        answer = get(served, reader, **{"If-None-Match": condition})
        # The five minutes may be over just now.
        if answer.status_code == 304:
            assert (answer.content, answer.headers["ETag"]) == (b"", tag)
            assert answer.headers["Cache-Control"] == "private, max-age=60"
        else:
            assert answer.headers["ETag"] != tag
    assert get(served, reader, **{"If-None-Match": '"other"'}).status_code == 200


def test_head_has_the_same_head(served: RunningServer, reader: NewClient) -> None:
    answer = get(served, reader, "HEAD")
    assert (answer.status_code, answer.content, answer.headers["Content-Type"]) == (200, b"", MEDIA_TYPE)
    assert int(answer.headers["Content-Length"]) > 500


def test_only_who_was_made_to_introspect_may_read_it(served: RunningServer, reader: NewClient) -> None:
    client = served.create_client(audiences=(API,))
    answer = get(served, client)
    assert_refused(answer, refusal(400, "unauthorized_client", "The client was not made to introspect tokens."))
    assert served.event_of(answer)["reason"] == "not_made_to_introspect"
    for wrong in ("", "Bearer x", basic(reader.client_id, "x" * 40), basic("nobody", "x" * 40)):
        answer = requests.get(f"{served.url}/oauth/revocations", headers={"Authorization": wrong}, timeout=10)
        assert_refused(answer, INVALID_CLIENT)


def test_who_cannot_prove_itself_in_a_header_posts_a_form(served: RunningServer, reader: NewClient) -> None:
    one = signer("EdDSA")
    with served.context():
        fields = ClientFields(
            client_name="Keyed",
            token_endpoint_auth_method="private_key_jwt",
            grant_types=(),
            introspects=(API,),
            auth_fields={"jwks": {"keys": [one.jwk | {"kid": one.kid}]}},
        )
        row, _ = served.services.clients.repository.register(fields, with_secret=False)
        client_id = row.client_id
    url = f"{served.url}/oauth/revocations"
    whole = form(one.sign(claims_of(client_id, served.url)))
    del whole["grant_type"]
    answer = requests.post(url, data=whole, timeout=10)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, MEDIA_TYPE)
    assert (answer.headers["Cache-Control"], "ETag" in answer.headers) == ("no-store", False)
    assert read(served, answer, NewClient(client_id, ""))["aud"] == client_id
    assert_refused(requests.post(url, data=whole, timeout=10), INVALID_CLIENT)
    secret = {"client_id": reader.client_id, "client_secret": reader.secret}
    assert requests.post(url, data=secret, headers={"If-None-Match": "*"}, timeout=10).status_code == 200


def test_other_methods_and_secrets_in_the_query_are_refused(served: RunningServer, reader: NewClient) -> None:
    assert_refused(get(served, reader, "PUT"), METHOD_NOT_ALLOWED)
    assert_refused(get(served, reader, "POST"), NOT_A_FORM)
    url = f"{served.url}/oauth/revocations?client_id={reader.client_id}&client_secret=x"
    answer = requests.get(url, headers={"Authorization": reader.basic}, timeout=10)
    assert answer.status_code == 400
    assert answer.json()["error"] == "invalid_request"


def test_the_document_is_no_access_token(served: RunningServer, reader: NewClient) -> None:
    body = {"token": get(served, reader).text}
    answer = requests.post(f"{served.url}/oauth/introspect", body, headers={"Authorization": reader.basic}, timeout=10)
    assert answer.json() == {"active": False}


def _code(language: str) -> str:
    (block,) = re.findall(rf"```{language}\n(.*?)```", DOCUMENT, re.DOTALL)
    return str(block)


def test_the_python_of_the_document_refuses_what_was_taken_back(served: RunningServer, reader: NewClient) -> None:
    module: dict[str, Any] = {
        "ISSUER": served.settings.issuer,
        "CLIENT_ID": reader.client_id,
        "CLIENT_SECRET": reader.secret,
    }
    exec(_code("python"), module)  # noqa: S102
    one, other = (served.create_client(audiences=(API,)) for _ in range(2))
    tokens = [served.get_token(client)["access_token"] for client in (one, one, other)]
    claims = [served.verify(token, API) for token in tokens]
    module["refresh"]()
    assert [module["is_revoked"](said) for said in claims] == [False, False, False]
    assert served.flask("tokens", "revoke", "-", stdin=tokens[0].encode()).returncode == 0
    assert served.flask("clients", "disable", other.client_id).returncode == 0
    module["refresh"]()
    assert [module["is_revoked"](said) for said in claims] == [True, False, True]
    module["refresh"]()
    assert [module["is_revoked"](said) for said in claims] == [True, False, True]
    # What it has is kept, and only changes are fetched.
    assert module["feed"]["since"] <= module["feed"]["iat"]
    assert served.flask("tokens", "revoke", "-", stdin=tokens[1].encode()).returncode == 0
    module["refresh"]()
    assert [module["is_revoked"](said) for said in claims] == [True, True, True]
    assert [module["must_be_introspected"](said) for said in claims] == [False, False, False]
    crowd(served, one.client_id)
    module["refresh"]()
    assert [module["must_be_introspected"](said) for said in claims] == [True, True, False]


def crowd(server: RunningServer, client_id: str) -> None:
    """Store more revoked tokens of a client than the feed lists."""
    now = datetime.now(UTC)
    row = {"client_id": client_id, "audiences": [API], "exp": int(now.timestamp()) + 3600, "revoked_at": now}
    rows = [{**row, "jti": f"{client_id}-{place}"} for place in range(MOST_TOKENS_OF_CLIENT + 1)]
    with server.context():
        db.session.execute(RevokedTokenRow.__table__.insert(), rows)
        db.session.commit()


@pytest.mark.node
@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
def test_the_node_of_the_document_refuses_what_was_taken_back(
    served: RunningServer, reader: NewClient, tmp_path: Path
) -> None:
    client, crowded = (served.create_client(audiences=(API,)) for _ in range(2))
    tokens = [served.get_token(client)["access_token"] for _ in range(3)] + [served.get_token(crowded)["access_token"]]
    assert served.flask("tokens", "revoke", "-", stdin=tokens[0].encode()).returncode == 0
    crowd(served, crowded.client_id)
    names = {"issuer": served.settings.issuer, "clientId": reader.client_id, "clientSecret": reader.secret}
    given = "".join(f"const {name} = {json.dumps(value)}\n" for name, value in names.items())
    claims = json.dumps([served.verify(token, API) for token in tokens])
    program = tmp_path / "feed.mjs"
    (tmp_path / "node_modules").symlink_to(PROJECT / "tests" / "clients" / "node" / "node_modules")
    program.write_text(
        f"{given}{_code('js')}\nawait refresh()\nconst claims = {claims}\nconst told = [claims.map(isRevoked)]\n"
        f"const body = new URLSearchParams({{ token: {json.dumps(tokens[1])} }})\n"
        f"const headers = {{ authorization: {json.dumps(client.basic)} }}\n"
        "await fetch(`${issuer}/oauth/revoke`, { method: 'POST', headers, body })\n"
        "await refresh()\nawait refresh()\n"
        "told.push(claims.map(isRevoked), claims.map(mustBeIntrospected), feed.since <= feed.iat)\n"
        "console.log(JSON.stringify(told))\n"
    )
    done = subprocess.run(["node", str(program)], capture_output=True, check=True, timeout=30)
    assert json.loads(done.stdout) == [
        [True, False, False, False],
        [True, True, False, False],
        [False, False, False, True],
        True,
    ]


def test_changes_are_asked_for_by_the_time_of_a_document(served: RunningServer, reader: NewClient) -> None:
    known = read(served, get(served, reader), reader)
    client = served.create_client(audiences=(API,))
    tokens = [served.get_token(client)["access_token"] for _ in range(2)]
    assert served.flask("tokens", "revoke", "-", stdin=tokens[0].encode()).returncode == 0
    url, headers = f"{served.url}/oauth/revocations", {"Authorization": reader.basic}
    answer = requests.get(url, params={"since": known["iat"]}, headers=headers, timeout=10)
    changes = read(served, answer, reader)
    assert changes["since"] == known["iat"]
    assert served.verify(tokens[0], API)["jti"] in changes["revoked_tokens"]
    again = requests.get(
        url, params={"since": known["iat"]}, headers={**headers, "If-None-Match": answer.headers["ETag"]}, timeout=10
    )
    assert again.status_code == 304
    old = requests.get(url, params={"since": known["iat"] - 3600}, headers=headers, timeout=10)
    assert "since" not in read(served, old, reader)


@pytest.mark.parametrize(
    "query", ["since=", "since=x", "since=-1", "since=1.5", "since=1&since=1", "since=1234567890123"]
)
def test_a_time_that_is_none_is_refused(served: RunningServer, reader: NewClient, query: str) -> None:
    url = f"{served.url}/oauth/revocations?{query}"
    answer = requests.get(url, headers={"Authorization": reader.basic}, timeout=10)
    assert (answer.status_code, answer.json()) == (
        400,
        {
            "error": "invalid_request",
            "error_description": "The parameter since must be the iat of a document, once.",
        },
    )
