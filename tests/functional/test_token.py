"""The main job over HTTP: a client gets a token, and an API verifies it with the JWKS."""

import re
import time
from datetime import timedelta

import pytest
from conformance.expected import INVALID_CLIENT, Granted, assert_answer, assert_refused, scope_not_granted
from support.server import NewClient, RunningServer, basic, running_server


def test_a_client_gets_a_token_that_an_api_verifies(server: RunningServer) -> None:
    client = server.create_client(scope=("read", "write"))
    answer = server.get_token(client)
    assert list(answer) == ["access_token", "token_type", "expires_in", "scope"]
    assert (answer["token_type"], answer["expires_in"], answer["scope"]) == ("Bearer", 3600, "read write")
    claims = server.verify(answer["access_token"])
    assert (claims["sub"], claims["client_id"], claims["scope"]) == (client.client_id, client.client_id, "read write")


def test_a_client_made_on_the_command_line_gets_a_token_from_the_running_server(server: RunningServer) -> None:
    made = server.flask_json(
        "clients", "create", "Nightly report", "--scope", "read", "--audience", "https://a.example"
    )
    assert re.fullmatch(r"nightly-report-[a-z2-7]{20}", made["client_id"])
    assert re.fullmatch(r"ths_[A-Za-z0-9_-]{49}", made["client_secret"])
    answer = server.get_token(NewClient(made["client_id"], made["client_secret"]))
    assert server.verify(answer["access_token"], "https://a.example")["scope"] == "read"


def test_the_secret_works_by_basic_and_in_the_body(server: RunningServer) -> None:
    client = server.create_client(scope=("read", "write"))
    assert_answer(server.post_token(headers={"Authorization": client.basic}), Granted())
    body = {"grant_type": "client_credentials", "client_id": client.client_id, "client_secret": client.secret}
    assert_answer(server.post_token(body), Granted())


@pytest.mark.parametrize(
    ("method", "works", "fails"),
    [("client_secret_basic", "Basic", "body"), ("client_secret_post", "body", "Basic")],
)
def test_a_client_of_one_method_is_refused_by_the_other(
    server: RunningServer, method: str, works: str, fails: str
) -> None:
    client = server.create_client(scope=("read", "write"), token_endpoint_auth_method=method)
    body = {"grant_type": "client_credentials", "client_id": client.client_id, "client_secret": client.secret}
    responses = {"Basic": server.post_token(headers={"Authorization": client.basic}), "body": server.post_token(body)}
    assert_answer(responses[works], Granted())
    assert_refused(responses[fails], INVALID_CLIENT)
    assert server.event_of(responses[fails])["reason"] == "other_method_registered"


@pytest.mark.parametrize("lifetime", [1, 60, 901, 86400])
def test_a_client_has_a_lifetime_of_its_own(server: RunningServer, lifetime: int) -> None:
    client = server.create_client(access_token_lifetime=lifetime)
    answer = server.get_token(client)
    assert answer["expires_in"] == lifetime
    claims = server.verify(answer["access_token"])
    assert claims["exp"] - claims["iat"] == lifetime


def test_a_changed_lifetime_scope_and_audience_count_from_the_next_token_on(server: RunningServer) -> None:
    client = server.create_client(scope=("read",), audiences=("https://a.example",))
    earlier = server.get_token(client)
    changed = server.flask(
        "clients", "update", client.client_id, "--lifetime", "5m", "--scope", "write", "--audience", "https://b.example"
    )
    assert changed.returncode == 0, changed.stderr
    answer = server.get_token(client)
    assert (answer["expires_in"], answer["scope"]) == (300, "write")
    assert server.verify(answer["access_token"], "https://b.example")["aud"] == "https://b.example"
    assert server.verify(earlier["access_token"], "https://a.example")["scope"] == "read"
    assert_refused(
        server.post_token("grant_type=client_credentials&scope=read", headers={"Authorization": client.basic}),
        scope_not_granted("read"),
    )


def test_lifetime_default_audience_and_issuer_come_from_the_settings(tmp_path_factory: pytest.TempPathFactory) -> None:
    settings = {
        "TOKENHOUSE_ISSUER": "https://issuer.example:8443",
        "TOKENHOUSE_ACCESS_TOKEN_LIFETIME": "15m",
        "TOKENHOUSE_DEFAULT_AUDIENCE": "https://api.example",
    }
    with running_server(tmp_path_factory.mktemp("settings"), **settings) as server:
        answer = server.get_token(server.create_client())
        assert answer["expires_in"] == 900
        claims = server.verify(answer["access_token"])
        assert (claims["iss"], claims["aud"]) == ("https://issuer.example:8443", "https://api.example")
        with_own = server.create_client(audiences=("https://own.example",), access_token_lifetime=30)
        answer = server.get_token(with_own)
        assert answer["expires_in"] == 30
        assert server.verify(answer["access_token"], "https://own.example")["aud"] == "https://own.example"


@pytest.mark.parametrize(
    ("asked", "granted"),
    [
        (None, "read write delete"),
        ("", "read write delete"),
        ("write", "write"),
        ("delete read", "delete read"),
        ("read read write read", "read write"),
        ("read write delete", "read write delete"),
    ],
)
def test_a_token_has_the_scopes_that_were_asked_for_in_that_order(
    server: RunningServer, asked: str | None, granted: str
) -> None:
    client = server.create_client(scope=("read", "write", "delete"))
    answer = server.get_token(client, **({} if asked is None else {"scope": asked}))
    assert answer["scope"] == granted
    assert server.verify(answer["access_token"])["scope"] == granted


@pytest.mark.parametrize("asked", ["admin", "read admin", "admin read", "Read", "read,write"])
def test_never_fewer_scopes_than_asked_for(server: RunningServer, asked: str) -> None:
    client = server.create_client(scope=("read", "write"))
    body = {"grant_type": "client_credentials", "scope": asked}
    response = server.post_token(body, headers={"Authorization": client.basic})
    refused = " ".join(token for token in asked.split() if token not in {"read", "write"})
    assert_refused(response, scope_not_granted(refused))


def test_a_secret_works_until_it_expires(server: RunningServer) -> None:
    valid = server.create_client(scope=("read", "write"), secret_expires_after=timedelta(hours=1))
    assert_answer(server.post_token(headers={"Authorization": valid.basic}), Granted())
    expired = server.create_client(secret_expires_after=timedelta(seconds=-1))
    response = server.post_token(headers={"Authorization": expired.basic})
    assert_refused(response, INVALID_CLIENT)
    assert server.event_of(response)["reason"] == "expired_secret"


def test_an_imported_id_and_secret_work_as_they_are(
    server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    secret = "imported secret with / and + and %41"
    file = tmp_path_factory.mktemp("imported") / "secret"
    file.write_text(f"{secret}\n")
    made = server.flask_json("clients", "create", "Old", "--client-id", "old/system 7", "--secret-file", str(file))
    assert (made["client_id"], made["client_secret"]) == ("old/system 7", secret)
    assert_answer(server.post_token(headers={"Authorization": basic("old/system 7", secret)}), Granted(None))
    body = {"grant_type": "client_credentials", "client_id": "old/system 7", "client_secret": secret}
    assert_answer(server.post_token(body), Granted(None))


def test_a_token_is_never_issued_ahead_of_the_clock(server: RunningServer) -> None:
    client = server.create_client()
    for _ in range(10):
        claims = server.verify(server.get_token(client)["access_token"])
        assert claims["iat"] <= time.time()


def test_the_event_of_a_token_tells_all_but_the_token(server: RunningServer) -> None:
    client = server.create_client(scope=("read", "write"), audiences=("https://a.example", "https://b.example"))
    body = [("grant_type", "client_credentials"), ("scope", "write read")]
    resources = [("resource", "https://b.example"), ("resource", "https://a.example")]
    response = server.post_token(body + resources, headers={"Authorization": client.basic})
    claims = server.verify(response.json()["access_token"], "https://a.example")
    (key,) = server.jwks()["keys"]
    (secret,) = server.flask_json("clients", "show", client.client_id)["secrets"]
    event = server.event_of(response)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event.pop("time"))
    duration = event.pop("duration_ms")
    assert type(duration) is float
    assert 0 < duration < 10_000
    assert event == {
        "server": server.settings.server_name,
        "event": "TokenIssued",
        "request_id": response.headers["X-Request-ID"],
        "source_address": "127.0.0.1",
        "client_id": client.client_id,
        "auth_method": "client_secret_basic",
        "secret_id": secret["id"],
        "grant_type": "client_credentials",
        "scope": "write read",
        "audience": ["https://b.example", "https://a.example"],
        "jti": claims["jti"],
        "kid": key["kid"],
        "expires_in": 3600,
        "outcome": "issued",
    }


def test_the_event_names_the_method_that_was_used(server: RunningServer) -> None:
    client = server.create_client()
    body = {"grant_type": "client_credentials", "client_id": client.client_id, "client_secret": client.secret}
    assert server.event_of(server.post_token(body))["auth_method"] == "client_secret_post"


def test_every_answer_has_a_request_id_of_its_own(server: RunningServer) -> None:
    client = server.create_client()
    sent = {"Authorization": client.basic, "X-Request-ID": "chosen-by-the-caller"}
    ids = {server.post_token(headers=sent).headers["X-Request-ID"] for _ in range(5)}
    assert len(ids) == 5
    assert all(re.fullmatch(r"[0-9a-f]{32}", request_id) for request_id in ids)
