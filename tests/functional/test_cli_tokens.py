"""``flask tokens``, as a person who debugs uses it: on real tokens of a real server."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.server import Installation, RunningServer, wait_until


@pytest.fixture(scope="session")
def token(server: RunningServer) -> str:
    client = server.create_client(client_id="inspected-client", scope=("read", "write"), audiences=("urn:api",))
    return str(server.get_token(client)["access_token"])


def test_a_good_token_is_explained_claim_by_claim(server: RunningServer, token: str) -> None:
    done = server.flask("tokens", "inspect", "-", stdin=token.encode())
    assert (done.returncode, done.stderr) == (0, "Valid: verifiers in its audience accept it.\n")
    lines = done.stdout.splitlines()
    assert lines[0].split()[0] in {"typ", "alg", "kid"}
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in lines if "\t" in line}
    assert rows["client_id"] == ["inspected-client", "the client that it was issued to"]
    assert rows["scope"] == ["read write", "what it allows"]
    assert rows["aud"] == ["urn:api", "its audience: a verifier must be among these"]
    assert rows["exp"][1].startswith("expires at 20")
    assert ", in 0:59:" in rows["exp"][1]
    assert token.rpartition(".")[2] not in done.stdout, "what is printed is no token"


FORMS = ("{}", "  {}\r\n", "Bearer {}", "bearer  {}\n", '{{"access_token": "{}", "expires_in": 3600}}')


@pytest.mark.parametrize("form", FORMS)
def test_it_takes_what_people_have_at_hand(server: RunningServer, token: str, tmp_path: Path, form: str) -> None:
    file = tmp_path / "token"
    file.write_text(form.format(token))
    done = server.flask("tokens", "inspect", str(file), "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["good"], found["faults"], found["revocation_known"]) == (0, True, [], True)
    assert found["claims"]["sub"] == "inspected-client"
    assert found["header"]["typ"] == "at+jwt"


def test_a_token_of_another_server_is_refused_with_every_reason(token: str, tmp_path: Path) -> None:
    other = Installation(tmp_path, TOKENHOUSE_ISSUER="https://other.example")
    other.prepare()
    done = other.flask("tokens", "inspect", "-", stdin=token.encode())
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Refused: Our key ring has no key with the kid of the token: it was signed elsewhere, or the key was removed.",
        "Refused: Another server issued the token: our iss is https://other.example.",
    ]
    assert "inspected-client" in done.stdout


def test_what_is_no_token_is_refused_and_not_quoted(server: RunningServer) -> None:
    done = server.flask("tokens", "inspect", "-", stdin=b"ths_pasted-by-mistake")
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == "Refused: This is not a JWS: three parts of base64url with dots between them, the first two JSON objects.\n"
    )
    as_json = server.flask("tokens", "inspect", "-", "--json", stdin=b"")
    assert as_json.returncode == 1
    assert json.loads(as_json.stdout)["header"] is None


@pytest.mark.parametrize(("stdin", "cause"), [(b"\xff\xfe", "it is not UTF-8 text")])
def test_what_cannot_be_read_is_one_line(server: RunningServer, stdin: bytes, cause: str) -> None:
    done = server.flask("tokens", "inspect", "-", stdin=stdin)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"Error: the token in - cannot be read: {cause}\n"
    done = server.flask("tokens", "inspect", "/nowhere/token")
    assert done.stderr == "Error: the token in /nowhere/token cannot be read: No such file or directory\n"


UNLESS = "verifiers that work offline do not notice, unless they read the revocation feed.\n"
SAID = f"Introspection says so; {UNLESS}"


def test_what_was_taken_back_is_told(server: RunningServer) -> None:
    client = server.create_client()
    token = server.get_token(client)["access_token"].encode()
    for command, reason, told in (
        (["tokens", "revoke", "-"], "revoked_token", "The token was revoked."),
        (["tokens", "revoke", "--client"], "tokens_revoked", "All tokens that the client had were revoked."),
        (["clients", "disable"], "disabled_client", "The token's client is disabled."),
        (["clients", "delete", "--yes"], "deleted_client", "The token's client was deleted."),
    ):
        arguments = [] if command[-1] == "-" else [client.client_id]
        assert server.flask(*command, *arguments, stdin=token).returncode == 0
        done = server.flask("tokens", "inspect", "-", stdin=token)
        assert (done.returncode, done.stderr) == (1, f"Refused: {told}\n{SAID}")
        found = json.loads(server.flask("tokens", "inspect", "-", "--json", stdin=token).stdout)
        assert (found["good"], found["faults"]) == (False, [{"reason": reason, "told": told}])
        assert found["claims"]["sub"] == client.client_id


def test_a_token_is_taken_back_by_hand_whosever_it_is(server: RunningServer, tmp_path: Path) -> None:
    client = server.create_client()
    token = server.get_token(client)["access_token"]
    jti = server.verify(token)["jti"]
    (tmp_path / "token").write_text(f"Bearer {token}\n")
    done = server.flask("tokens", "revoke", str(tmp_path / "token"))
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == f"The token {jti} of {client.client_id} is dead; {UNLESS}"
    again = server.flask("tokens", "revoke", str(tmp_path / "token"))
    assert (again.returncode, again.stderr) == (0, "It is inactive already. The token was revoked.\n")
    wait_until(lambda: any(event.get("jti") == jti for event in changes(server)))
    (event,) = [event for event in changes(server) if event.get("jti") == jti]
    assert (event["change"], event["client_id"]) == ("revoked", client.client_id)


@pytest.mark.parametrize("stdin", [b"", b"x", b"a.b.c"])
def test_what_is_no_live_token_cannot_be_taken_back(server: RunningServer, stdin: bytes) -> None:
    done = server.flask("tokens", "revoke", "-", stdin=stdin)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: there is nothing to revoke: malformed_token (`flask tokens inspect` says more)\n"


@pytest.mark.parametrize("arguments", [[], ["-", "--client", "x"]])
def test_one_token_or_one_client_is_meant(server: RunningServer, arguments: list[str]) -> None:
    done = server.flask("tokens", "revoke", *arguments, stdin=b"x")
    assert (done.returncode, done.stderr) == (
        1,
        "Error: name a file (- for standard input) or --client ID, and not both\n",
    )


def test_all_tokens_of_a_client_are_taken_back_and_new_ones_live(server: RunningServer) -> None:
    client = server.create_client()
    old = server.get_token(client)["access_token"]
    done = server.flask("tokens", "revoke", "--client", client.client_id)
    assert done.returncode == 0
    assert done.stderr.startswith(f"All tokens that {client.client_id} got until 20")
    # Whatever the moment, the next token is of a later second.
    new = server.get_token(client)["access_token"]
    states = [server.flask("tokens", "inspect", "-", stdin=token.encode()).returncode for token in (old, new)]
    assert states == [1, 0]
    assert server.flask("tokens", "revoke", "--client", "nobody").stderr == (
        "Error: there is no client 'nobody': `flask clients list` shows all\n"
    )


def changes(server: RunningServer) -> list[dict[str, Any]]:
    return [event for event in server.events() if event["event"] == "TokenChanged"]


def test_a_token_is_made_without_the_clients_secret_and_the_audit_log_tells(server: RunningServer) -> None:
    client = server.create_client(scope=("read", "write"), audiences=("urn:a", "urn:b"), access_token_lifetime=600)
    done = server.flask("tokens", "issue", client.client_id)
    assert (done.returncode, done.stderr) == (0, "It is valid for 10m: `flask tokens inspect -` explains it.\n")
    claims = server.verify(done.stdout.strip(), "urn:a")
    assert (claims["sub"], claims["scope"], claims["exp"] - claims["iat"]) == (client.client_id, "read write", 600)
    answer = server.flask_json("tokens", "issue", client.client_id, "--scope", "write", "--resource", "urn:b")
    told = {"token_type": "Bearer", "expires_in": 600, "scope": "write"}
    assert answer == {"access_token": answer["access_token"], **told}
    jti = server.verify(answer["access_token"], "urn:b")["jti"]
    wait_until(lambda: any(event["jti"] == jti for event in changes(server)))
    (event,) = [event for event in changes(server) if event["jti"] == jti]
    assert event["by"]
    assert {name: event[name] for name in ("change", "client_id", "scope", "audience", "expires_in", "outcome")} == {
        "change": "issued",
        "client_id": client.client_id,
        "scope": "write",
        "audience": ["urn:b"],
        "expires_in": 600,
        "outcome": "changed",
    }


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        (["--scope", "delete"], "invalid_scope: The client was not granted: delete"),
        (["--scope", "a  b"], "scope 'a  b' must be tokens"),
        (["--resource", "urn:other"], "invalid_target: The client was not granted: urn:other"),
        (["--resource", "x"], "invalid_target: A resource must be an absolute URI without a fragment."),
    ],
)
def test_nobody_gets_more_than_the_client_by_hand_either(
    server: RunningServer, arguments: list[str], cause: str
) -> None:
    client = server.create_client(scope=("read",), audiences=("urn:a",))
    done = server.flask("tokens", "issue", client.client_id, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"Error: {cause}")


def test_a_client_that_gets_no_tokens_gets_none_by_hand(server: RunningServer) -> None:
    disabled, without = server.create_client(), server.create_client(grant_types=())
    server.flask("clients", "disable", disabled.client_id)
    told = f"Error: {disabled.client_id} is disabled: `flask clients enable {disabled.client_id}` serves it again\n"
    assert server.flask("tokens", "issue", disabled.client_id).stderr == told
    told = f"Error: {without.client_id} may not use client_credentials: it gets no tokens\n"
    assert server.flask("tokens", "issue", without.client_id).stderr == told


def test_claims_of_others_cannot_steer_a_terminal(server: RunningServer) -> None:
    header, claims = (
        "eyJhbGciOiJub25lIn0",
        "eyJzdWIiOiJcdTAwMWJbMzFtIn0",
    )
    done = server.flask("tokens", "inspect", "-", stdin=f"{header}.{claims}.".encode())
    assert done.returncode == 1
    assert "\x1b" not in done.stdout + done.stderr
    assert '"\\u001b[31m"' in done.stdout
