"""``flask clients`` for clients with keys of their own: the pair of a new one, and keys that come and go."""

import json
import stat
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from support.assertions import Signer, claims_of, form, signer
from support.server import RunningServer

METHOD = ("--auth-method", "private_key_jwt")


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
        (b"", "holds no JWK set, no JWK and no public key in PEM"),
        (b"x", "holds no JWK set, no JWK and no public key in PEM"),
        (b"\xff", "cannot be read: it is not UTF-8 text"),
        (b"[]", 'the key set must be a JSON object with "keys"'),
        (
            b"-----BEGIN PUBLIC KEY-----\nx\n-----END PUBLIC KEY-----",
            "holds no public key of a kind that is known here",
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
        (METHOD, "private_key_jwt needs a public key: --jwks-file FILE, or --generate-key FILE makes one"),
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
    assert again.stderr == f"Error: the key set has kid {new.kid!r} twice: each key needs a kid of its own\n"
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


def test_a_client_goes_over_from_a_secret_to_a_key_and_back(server: RunningServer, tmp_path: Path) -> None:
    client, one = server.create_client(), signer()
    (tmp_path / "key").write_text(json.dumps(one.jwk))
    done = server.flask("clients", "update", client.client_id, *METHOD)
    assert done.stderr.startswith("Error: private_key_jwt needs a public key")
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
