"""``flask clients`` for clients with keys of their own: the pair of a new one, and keys that come and go."""

import json
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests
from cryptography.hazmat.primitives import serialization
from sqlalchemy import update
from support.assertions import ISSUER, Signer, claims_of, form, signer
from support.publisher import publishing, send
from support.server import RunningServer, running_server, wait_until

from app.database.models import ClientKeySetRow, db

METHOD = ("--auth-method", "private_key_jwt")
NO_KEYS = (
    "private_key_jwt needs public keys from one place: --jwks-file FILE, --jwks-uri URL, or --generate-key FILE "
    "makes a pair"
)


def pem(one: Signer, *, private: bool = False) -> bytes:
    if private:
        return bytes(one.key.as_pem(private=True))
    return bytes(
        one.key.public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )


def test_a_pair_is_made_and_signs_at_once(server: RunningServer, tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    words = ("clients", "create", "Keyed", *METHOD, "--scope", "read", "--generate-key", str(file), "--json")
    done = server.flask(*words)
    told = f"Its private key is in {file}, and nowhere else: docs/client-keys.md shows how to use it.\n"
    assert (done.returncode, done.stderr) == (0, told)
    made = json.loads(done.stdout)
    assert "client_secret" not in made
    assert made["token_endpoint_auth_method"] == "private_key_jwt"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().startswith("-----BEGIN PRIVATE KEY-----\n")
    (kid,) = server.flask_json("clients", "show", made["client_id"])["keys"]
    for header in ({"kid": kid}, {}):
        assertion = jwt.encode(claims_of(made["client_id"]), file.read_text(), algorithm="RS256", headers=header)
        assert server.post_token(form(assertion)).status_code == 200


def test_a_pair_is_never_written_over_another_file(server: RunningServer, tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_text("something else")
    done = server.flask("clients", "create", "Keyed", "--client-id", "no-file", *METHOD, "--generate-key", str(file))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: {file} exists, and a secret is never written over another file\n"
    assert file.read_text() == "something else"
    assert server.flask("clients", "show", "no-file").returncode == 1


def test_where_there_is_no_client_there_is_no_key(server: RunningServer, tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    for arguments in (("--scope", "a  b"), ("--client-id", "é"), ("--auth-method", "client_secret_basic")):
        done = server.flask("clients", "create", "Keyed", *METHOD, *arguments, "--generate-key", str(file))
        assert done.returncode == 1, done.stdout
        assert not file.exists()


@pytest.mark.parametrize("shape", ["set", "jwk", "pem"])
@pytest.mark.parametrize("alg", ["RS256", "ES256", "EdDSA"])
def test_public_keys_are_registered_in_what_people_have(
    server: RunningServer, tmp_path: Path, shape: str, alg: str
) -> None:
    one = signer(alg)
    shapes: dict[str, Any] = {"set": {"keys": [one.jwk]}, "jwk": one.jwk}
    (tmp_path / "keys").write_bytes(pem(one) if shape == "pem" else json.dumps(shapes[shape]).encode())
    made = server.flask_json("clients", "create", "Keyed", *METHOD, "--jwks-file", str(tmp_path / "keys"))
    assert server.post_token(form(one.sign(claims_of(made["client_id"])))).status_code == 200


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "this is no JWK set, no JWK and no public key in PEM"),
        (b"x", "this is no JWK set, no JWK and no public key in PEM"),
        (b"\xff", "the key set is not UTF-8 text"),
        (b"[]", 'the key set must be a JSON object with "keys"'),
        (
            b"-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----",
            "key 1 is no valid public key in PEM",
        ),
        (pem(signer("ES256"), private=True), "holds a private key: register its public half only"),
        (json.dumps(signer("ES256").key.as_dict(private=True)).encode(), "key 1 is private (d)"),
    ],
    ids=map(str, range(7)),
)
def test_other_files_are_refused_and_not_quoted(
    server: RunningServer, tmp_path: Path, content: bytes, cause: str
) -> None:
    (tmp_path / "keys").write_bytes(content)
    done = server.flask("clients", "create", "Keyed", *METHOD, "--jwks-file", str(tmp_path / "keys"))
    assert (done.returncode, done.stdout) == (1, "")
    assert cause in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (
            METHOD,
            NO_KEYS,
        ),
        (
            ("--assertion-audience", "issuer"),
            "keys and assertions are for clients with --auth-method private_key_jwt or client_secret_jwt",
        ),
        ((*METHOD, "--secret-file", "-"), "--secret-file goes with no private_key_jwt: its clients have no secret"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    server: RunningServer, arguments: tuple[str, ...], cause: str
) -> None:
    done = server.flask("clients", "create", "Keyed", *arguments, stdin=b"x" * 40)
    assert (done.returncode, done.stderr) == (1, f"Error: {cause}\n")


def test_keys_come_and_go_and_the_last_one_stays(server: RunningServer, tmp_path: Path) -> None:
    old, new = signer(), signer("EdDSA")
    (tmp_path / "old").write_text(json.dumps(old.jwk))
    (tmp_path / "new").write_bytes(pem(new))
    client_id = server.flask_json("clients", "create", "Keyed", *METHOD, "--jwks-file", str(tmp_path / "old"))[
        "client_id"
    ]
    assert server.flask("clients", "keys-add", client_id, str(tmp_path / "new")).stderr == (
        f"{client_id} may sign with {new.kid} too. `flask clients keys-remove` ends an old one.\n"
    )
    again = server.flask("clients", "keys-add", client_id, str(tmp_path / "new"))
    assert again.stderr == f"Error: {client_id} has {new.kid} already\n"
    shown = server.flask_json("clients", "keys", client_id)["keys"]
    assert [key["kid"] for key in shown] == [old.kid, new.kid]
    assert server.flask("clients", "keys", client_id).stdout.splitlines()[1].split("\t")[:2] == [old.kid, "RSA"]
    unknown = server.flask("clients", "keys-remove", client_id, "x")
    assert unknown.stderr == f"Error: {client_id} has no key 'x': `flask clients keys {client_id}` shows all\n"
    assert server.flask("clients", "keys-remove", client_id, old.kid).returncode == 0
    last = server.flask("clients", "keys-remove", client_id, new.kid)
    assert last.stderr == (
        f"Error: {new.kid!r} is the last key: `flask clients disable {client_id}` shuts the client out\n"
    )
    assert server.post_token(form(new.sign(claims_of(client_id)))).status_code == 200


def test_keys_of_a_file_that_cannot_be_used_are_skipped_and_named(server: RunningServer, tmp_path: Path) -> None:
    one, other = signer("ES256"), signer("EdDSA")
    keys = [None, one.jwk | {"kid": "2026"}, other.jwk | {"kid": "2026"}, one.jwk | {"kid": "enc", "use": "enc"}]
    (tmp_path / "keys").write_text(json.dumps({"keys": keys}))
    words = ("clients", "create", "Keyed", *METHOD, "--jwks-file", str(tmp_path / "keys"), "--json")
    done = server.flask(*words)
    said = ["Skipped: key 1 is no JSON object", "Skipped: key 4 (enc) is not for signatures (use, key_ops)"]
    assert (done.returncode, done.stderr.splitlines()) == (0, said)
    client_id = json.loads(done.stdout)["client_id"]
    for each in (one, other):
        assert server.post_token(form(each.sign(claims_of(client_id), kid="2026"))).status_code == 200
    # Several keys in PEM, with whatever stands around them.
    (tmp_path / "more").write_bytes(b"\xef\xbb\xbfBag Attributes\n" + pem(signer("ES256")) + pem(signer("RS256")))
    assert server.flask("clients", "keys-add", client_id, str(tmp_path / "more")).returncode == 0
    assert len(server.flask_json("clients", "keys", client_id)["keys"]) == 4
    assert server.flask("clients", "keys-remove", client_id, "2026").returncode == 0
    assert len(server.flask_json("clients", "keys", client_id)["keys"]) == 2


def test_published_keys_that_cannot_be_used_are_named(server: RunningServer) -> None:
    one = signer("ES256")
    with publishing() as publisher:
        publisher.publish(one.jwk | {"kid": "enc", "use": "enc"}, one.jwk | {"kid": one.kid})
        words = ("clients", "create", "Publishes", *METHOD, "--jwks-uri", publisher.url, "--json")
        done = server.flask(*words)
        said = "Skipped: key 1 (enc) is not for signatures (use, key_ops)\n"
        assert (done.returncode, done.stderr) == (0, said)
        client_id = json.loads(done.stdout)["client_id"]
        assert server.flask_json("clients", "keys", client_id)["skipped"] == [said[9:-1]]
        assert said in server.flask("clients", "keys", client_id).stderr


def test_a_client_goes_over_from_a_secret_to_a_key_and_back(server: RunningServer, tmp_path: Path) -> None:
    client, one = server.create_client(), signer()
    (tmp_path / "key").write_text(json.dumps(one.jwk))
    done = server.flask("clients", "update", client.client_id, *METHOD)
    assert done.stderr.startswith("Error: private_key_jwt needs public keys")
    assert (
        server.flask("clients", "update", client.client_id, *METHOD, "--jwks-file", str(tmp_path / "key")).returncode
        == 0
    )
    assert server.post_token(headers={"Authorization": client.basic}).status_code == 401
    assert server.post_token(form(one.sign(claims_of(client.client_id)))).status_code == 200
    assert server.flask("clients", "update", client.client_id, "--auth-method", "client_secret").returncode == 0
    assert server.post_token(headers={"Authorization": client.basic}).status_code == 200
    assert server.post_token(form(one.sign(claims_of(client.client_id)))).status_code == 401
    none = server.flask("clients", "keys", client.client_id)
    assert none.stderr == f"Error: {client.client_id} has no keys: it is not one of private_key_jwt\n"


def test_keys_are_fetched_from_where_the_client_publishes_them(server: RunningServer, tmp_path: Path) -> None:
    one, other = signer("ES256"), signer("ES256")
    with publishing() as publisher:
        publisher.publish(one.jwk | {"kid": one.kid}, max_age=600)
        made = server.flask_json("clients", "create", "Publishes", *METHOD, "--jwks-uri", publisher.url)
        client_id = made["client_id"]
        assert server.post_token(form(one.sign(claims_of(client_id)))).status_code == 200
        shown = server.flask_json("clients", "keys", client_id)
        assert [key["kid"] for key in shown["keys"]] == [one.kid]
        assert (shown["jwks_uri"], shown["fault"]) == (publisher.url, None)
        assert shown["fetched_at"] < shown["next_fetch_at"]
        assert server.flask_json("clients", "show", client_id)["jwks_uri"] == publisher.url
        human = server.flask("clients", "keys", client_id)
        assert (one.kid in human.stdout, publisher.url in human.stdout) == (True, True)

        publisher.publish(other.jwk | {"kid": other.kid})
        assert server.post_token(form(other.sign(claims_of(client_id)))).status_code == 401
        assert server.flask("clients", "keys", client_id, "--fetch").returncode == 0
        assert server.post_token(form(other.sign(claims_of(client_id)))).status_code == 200
        assert server.post_token(form(one.sign(claims_of(client_id)))).status_code == 401
        assert len(publisher.asked) == 2

        for words in (("keys-add", client_id, "-"), ("keys-remove", client_id, other.kid)):
            refused = server.flask("clients", *words, stdin=json.dumps(one.jwk).encode())
            told = f"Error: the keys of the client are what it publishes at {publisher.url}\n"
            assert (refused.returncode, refused.stderr) == (1, told)

    # To keys of a file, and back to a publisher that is gone: nothing is changed.
    (tmp_path / "keys").write_text(json.dumps(one.jwk))
    assert server.flask("clients", "update", client_id, "--jwks-file", str(tmp_path / "keys")).returncode == 0
    assert server.flask("clients", "keys", client_id, "--fetch").stderr == (
        f"Error: {client_id} publishes no keys: there is nothing to fetch\n"
    )
    gone = server.flask("clients", "update", client_id, "--jwks-uri", publisher.url)
    told = f"Error: the keys at {publisher.url} cannot be fetched: the connection failed: Connection refused\n"
    assert (gone.returncode, gone.stderr) == (1, told)
    assert server.post_token(form(one.sign(claims_of(client_id)))).status_code == 200


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (
            ("--jwks-uri", "http://client.example.com/"),
            "jwks_uri must be an https URL (http on loopback only)",
        ),
        (("--jwks-uri", "https://169.254.169.254/latest"), "leads to 169.254.169.254, which is no public address"),
        (("--jwks-uri", "https://2130706433/"), "leads to 127.0.0.1, which is no public address"),
        (("--jwks-uri", "https://no-such-name.invalid/"), "no-such-name.invalid has no address"),
        (("--jwks-uri", "https://a.example/", "--jwks-file", "-"), "are two places for keys: give one of them"),
        (("--jwks-uri", "http://localhost/", "--generate-key", "new.pem"), "needs public keys from one place"),
    ],
)
def test_a_url_that_leads_nowhere_good_makes_no_client(
    server: RunningServer, tmp_path: Path, arguments: tuple[str, ...], cause: str
) -> None:
    before = server.flask_json("clients", "list", "--name", "Publishes nothing")
    words = [str(tmp_path / word) if word == "new.pem" else word for word in arguments]
    done = server.flask("clients", "create", "Publishes nothing", *METHOD, *words, stdin=b"{}")
    assert (done.returncode, done.stdout) == (1, "")
    assert cause in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "new.pem").exists()
    assert server.flask_json("clients", "list", "--name", "Publishes nothing") == before == []


def test_of_all_workers_one_fetches_and_a_failure_is_named(tmp_path: Path) -> None:
    one, other = signer("ES256"), signer("ES256")
    with running_server(tmp_path, "--workers", "3") as server, publishing() as publisher:
        publisher.publish(one.jwk | {"kid": one.kid})
        words = ("Publishes", "--client-id", "publishes", *METHOD, "--jwks-uri", publisher.url)
        server.flask_json("clients", "create", *words)
        for count, keys in ((2, other), (3, one)):
            publisher.publish(keys.jwk | {"kid": keys.kid})
            _make_due(server)
            wait_until(lambda keys=keys: server.post_token(form(keys.sign(claims_of("publishes")))).status_code == 200)
            assert len(publisher.asked) == count
        publisher.answer = lambda handler: send(handler, b"", 500)
        _make_due(server)

        def checks() -> Any:
            return requests.get(f"{server.url}/readyz", timeout=10).json()

        wait_until(lambda: checks()["checks"].get("client_keys") == "degraded")
        assert requests.get(f"{server.url}/readyz", timeout=10).status_code == 200
        assert server.post_token(form(one.sign(claims_of("publishes")))).status_code == 200
        assert len(publisher.asked) == 4


def _make_due(server: RunningServer) -> None:
    with server.context(), db.engine.begin() as connection:
        connection.execute(update(ClientKeySetRow).values(refresh_at=datetime(2026, 1, 1, tzinfo=UTC)))


TOKEN_ENDPOINT = f"{ISSUER}/oauth/token"


def _audience_of(server: RunningServer, client_id: str) -> str | None:
    found: str | None = server.flask_json("clients", "show", client_id)["assertion_audience"]
    return found


def _key_file(folder: Path, one: Signer) -> str:
    file = folder / "key.json"
    file.write_text(json.dumps(one.jwk | {"kid": one.kid}))
    return str(file)


def test_a_new_client_names_the_issuer_alone_unless_it_is_marked(server: RunningServer, tmp_path: Path) -> None:
    one = signer("ES256")
    create = ("clients", "create", "Signs", *METHOD, "--jwks-file", _key_file(tmp_path, one))
    strict = server.flask_json(*create)["client_id"]
    marked = server.flask_json(*create, "--assertion-audience", "any")["client_id"]
    plain = server.flask_json("clients", "create", "Plain")["client_id"]
    assert [_audience_of(server, each) for each in (strict, marked, plain)] == ["issuer", "any", None]
    sent = {each: server.post_token(form(one.sign(claims_of(each, TOKEN_ENDPOINT)))) for each in (strict, marked)}
    assert [answer.status_code for answer in sent.values()] == [401, 200]
    event = server.event_of(sent[strict])
    assert (event["reason"], event["detail"]) == ("assertion_audience", "aud is the token endpoint, not the issuer")


def test_a_change_keeps_what_a_client_may_name(server: RunningServer, tmp_path: Path) -> None:
    file = _key_file(tmp_path, signer("ES256"))
    mac = ("clients", "create", "Signs", "--auth-method", "client_secret_jwt")
    old, strict = (
        server.create_client(token_endpoint_auth_method="client_secret_jwt").client_id,
        server.flask_json(*mac),
    )
    assert [_audience_of(server, each) for each in (old, strict["client_id"])] == ["any", "issuer"]
    assert server.flask("clients", "update", old, "--description", "x").returncode == 0
    assert _audience_of(server, old) == "any"
    # From one kind of assertion to another: its library stays the same.
    assert server.flask("clients", "update", old, *METHOD, "--jwks-file", file).returncode == 0
    assert _audience_of(server, old) == "any"
    assert server.flask("clients", "keys-add", old, _key_file(tmp_path, signer("ES256"))).returncode == 0
    assert _audience_of(server, old) == "any"
    # From a secret to its first assertion.
    plain = server.flask_json("clients", "create", "Plain")["client_id"]
    assert server.flask("clients", "update", plain, *METHOD, "--jwks-file", file).returncode == 0
    assert _audience_of(server, plain) == "issuer"


def test_a_client_that_still_names_the_token_endpoint_is_not_shut_out_by_mistake(
    server: RunningServer, tmp_path: Path
) -> None:
    one = signer("ES256")
    words = (*METHOD, "--jwks-file", _key_file(tmp_path, one), "--assertion-audience", "any")
    client_id = "names-the-endpoint"
    server.flask_json("clients", "create", "Legacy", "--client-id", client_id, *words)

    def show() -> dict[str, Any]:
        found: dict[str, Any] = server.flask_json("clients", "show", client_id)
        return found

    assert (show()["assertion_style"], show()["legacy_assertion_at"]) == (None, None)
    legacy = claims_of(client_id, [ISSUER, TOKEN_ENDPOINT])
    assert server.post_token(form(one.sign(legacy, typ="client-authentication+jwt"))).status_code == 200
    wait_until(lambda: show()["legacy_assertion_at"] is not None)
    assert show()["assertion_style"] == {"aud": "both", "typ": "client-authentication+jwt"}
    listed = server.flask_json("clients", "list", "--assertion-style", "legacy")
    assert client_id in [each["client_id"] for each in listed]
    assert all(each["legacy_assertion_at"] for each in listed)
    update = ("clients", "update", client_id, "--assertion-audience", "issuer")
    done = server.flask(*update)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"Error: at {show()['legacy_assertion_at']} {client_id} sent an assertion whose aud is the token endpoint, "
        f"which would be refused: let it name {ISSUER} alone, or say --yes\n"
    )
    assert _audience_of(server, client_id) == "any"
    assert server.flask(*update, "--yes").returncode == 0
    assert _audience_of(server, client_id) == "issuer"
    assert server.post_token(form(one.sign(claims_of(client_id, ISSUER)))).status_code == 200
    wait_until(lambda: show()["assertion_style"] == {"aud": "issuer", "typ": "jwt"})


def test_a_kid_that_begins_like_an_option_can_be_removed(server: RunningServer, tmp_path: Path) -> None:
    keys = [signer("EdDSA").jwk | {"kid": kid} for kid in ("-zGRVRXU", "other")]
    (tmp_path / "keys").write_text(json.dumps({"keys": keys}))
    words = ("clients", "create", "Keyed", *METHOD, "--jwks-file", str(tmp_path / "keys"))
    client_id = server.flask_json(*words)["client_id"]
    done = server.flask("clients", "keys-remove", client_id, "-zGRVRXU")
    assert (done.returncode, done.stderr) == (0, f"{client_id} may not sign with -zGRVRXU any more.\n")
