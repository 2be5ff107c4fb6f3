"""``flask tokens``, as a person who debugs uses it: on real tokens of a real server."""

import json
from pathlib import Path

import pytest
from support.server import Installation, RunningServer


@pytest.fixture(scope="module")
def token(server: RunningServer) -> str:
    client = server.create_client(client_id="inspected-client", scope=("read", "write"), audiences=("urn:api",))
    return str(server.get_token(client)["access_token"])


def test_a_good_token_is_explained_claim_by_claim(server: RunningServer, token: str) -> None:
    done = server.flask("tokens", "inspect", "-", stdin=token.encode())
    assert (done.returncode, done.stderr) == (0, "Good: whoever it is for accepts it.\n")
    lines = done.stdout.splitlines()
    assert lines[0].split()[0] in {"typ", "alg", "kid"}
    rows = {line.split("\t")[0]: line.split("\t")[1:] for line in lines if "\t" in line}
    assert rows["client_id"] == ["inspected-client", "the client that it was issued to"]
    assert rows["scope"] == ["read write", "what it allows"]
    assert rows["aud"] == ["urn:api", "whom it is for: whoever verifies it must be among these"]
    assert rows["exp"][1].startswith("good until 20")
    assert ", in 0:59:" in rows["exp"][1]
    assert token.rpartition(".")[2] not in done.stdout, "what is printed is no token"


FORMS = ("{}", "  {}\r\n", "Bearer {}", "bearer  {}\n", '{{"access_token": "{}", "expires_in": 3600}}')


@pytest.mark.parametrize("form", FORMS)
def test_it_takes_what_people_have_at_hand(server: RunningServer, token: str, tmp_path: Path, form: str) -> None:
    file = tmp_path / "token"
    file.write_text(form.format(token))
    done = server.flask("tokens", "inspect", str(file), "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, found["good"], found["faults"], found["client"]) == (0, True, [], "enabled")
    assert found["claims"]["sub"] == "inspected-client"
    assert found["header"]["typ"] == "at+jwt"


def test_a_token_of_another_server_is_refused_with_every_reason(token: str, tmp_path: Path) -> None:
    other = Installation(tmp_path, TOKENHOUSE_ISSUER="https://other.example")
    other.prepare()
    done = other.flask("tokens", "inspect", "-", stdin=token.encode())
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "Refused: No key of our ring has its kid: it was signed elsewhere, or the key was removed.",
        "Refused: Another server issued it: our iss is https://other.example.",
    ]
    assert "inspected-client" in done.stdout


def test_what_is_no_token_is_refused_and_not_quoted(server: RunningServer) -> None:
    done = server.flask("tokens", "inspect", "-", stdin=b"ths_pasted-by-mistake")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Refused: It is no JWS in compact form: three parts of base64url with points between them.\n"
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


def test_a_client_that_has_been_disabled_or_deleted_is_told(server: RunningServer) -> None:
    client = server.create_client()
    token = server.get_token(client)["access_token"].encode()
    for verb, state in (("disable", "disabled"), ("delete", "deleted")):
        server.flask("clients", verb, client.client_id, *(["--yes"] if verb == "delete" else []))
        done = server.flask("tokens", "inspect", "-", stdin=token)
        assert done.returncode == 0
        assert f"Its client is {state}; verifiers that work offline do not know." in done.stderr
        assert json.loads(server.flask("tokens", "inspect", "-", "--json", stdin=token).stdout)["client"] == state


def test_claims_of_others_cannot_steer_a_terminal(server: RunningServer) -> None:
    header, claims = (
        "eyJhbGciOiJub25lIn0",
        "eyJzdWIiOiJcdTAwMWJbMzFtIn0",
    )
    done = server.flask("tokens", "inspect", "-", stdin=f"{header}.{claims}.".encode())
    assert done.returncode == 1
    assert "\x1b" not in done.stdout + done.stderr
    assert '"\\u001b[31m"' in done.stdout
