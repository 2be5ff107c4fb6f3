"""Guesses get 429 and one line a minute; a right secret is never refused for them."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from support.assertions import ISSUER, claims_of, form, signer
from support.postgres import new_database
from support.redis import running_redis
from support.server import RunningServer, basic, free_port, running_server, wait_until

from app.oauth.rate_limits import TIMES_FOR_ADDRESS

REFUSED = {"error": "invalid_client", "error_description": "Client authentication failed."}
LIMITED = {"error": "temporarily_unavailable", "error_description": "There were too many requests. Retry later."}
FAILURES = 20
OF_ADDRESS = FAILURES * TIMES_FOR_ADDRESS
KEYS = signer("ES256")
ON = {"TOKENHOUSE_RATELIMIT_ENABLED": "true", "TOKENHOUSE_TRUSTED_PROXIES": "127.0.0.0/8"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("limited"), "--workers", "1", **ON) as running:
        yield running


def guess(server: RunningServer, client_id: str, address: str, secret: str = "a-wrong-secret-1") -> Any:
    """Send a secret from an address, through a proxy."""
    return server.post_token(headers={"Authorization": basic(client_id, secret), "X-Forwarded-For": address})


def statuses(server: RunningServer, client_id: str, address: str, guesses: int) -> list[int]:
    return [guess(server, client_id, address).status_code for _ in range(guesses)]


def test_the_next_guess_after_too_many_gets_429_whether_the_client_exists_or_not(server: RunningServer) -> None:
    client = server.create_client()
    for client_id, address in ((client.client_id, "192.0.2.1"), ("nobody", "192.0.2.2")):
        for _ in range(FAILURES):
            refused = guess(server, client_id, address)
            assert (refused.status_code, refused.json()) == (401, REFUSED)
        limited = guess(server, client_id, address)
        assert (limited.status_code, limited.json()) == (429, LIMITED)
        wait = int(limited.headers["Retry-After"])
        assert 1 <= wait <= 60
        assert limited.headers["RateLimit-Policy"] == f'"failures";q={FAILURES};w=60'
        assert limited.headers["RateLimit"] == f'"failures";r=0;t={wait}'
        assert limited.headers["Cache-Control"] == "no-store"
        assert "WWW-Authenticate" not in limited.headers


def test_a_right_secret_is_never_refused_for_the_failures_of_others(server: RunningServer) -> None:
    client, neighbour = server.create_client(), server.create_client()
    address = "192.0.2.3"
    # Beyond both limits: that of the id, and that of the address.
    counts = Counter(statuses(server, client.client_id, address, FAILURES + 5))
    assert counts == {401: FAILURES, 429: 5}
    for number in range(OF_ADDRESS - FAILURES):
        guess(server, f"guess-{number}", address)
    assert guess(server, "a new id", address).headers["RateLimit-Policy"] == f'"address";q={OF_ADDRESS};w=60'
    for one in (client, neighbour):
        assert guess(server, one.client_id, address, one.secret).status_code == 200
    # The owner of an id that is guessed elsewhere reads what is wrong.
    assert guess(server, client.client_id, "192.0.2.4").status_code == 401


def test_a_right_assertion_is_never_refused_for_the_failures_of_others(server: RunningServer) -> None:
    server.create_signing_client("signs", KEYS)
    address = {"X-Forwarded-For": "192.0.2.5"}
    stale = KEYS.sign(claims_of("signs", "https://elsewhere.example.com"))
    answers = [server.post_token(form(stale), headers=address).status_code for _ in range(FAILURES + 1)]
    assert Counter(answers) == {401: FAILURES, 429: 1}
    right = KEYS.sign(claims_of("signs", ISSUER))
    assert server.post_token(form(right), headers=address).status_code == 200


@pytest.mark.parametrize("path", ["introspect", "revoke", "revocations"])
def test_every_endpoint_counts(server: RunningServer, path: str) -> None:
    header = {"Authorization": basic("nobody", "a-wrong-secret-1"), "X-Forwarded-For": f"198.51.100.{len(path)}"}
    url = f"{server.url}/oauth/{path}"
    answers = [requests.post(url, data={"token": "x"}, headers=header, timeout=10) for _ in range(FAILURES + 1)]
    assert [answer.status_code for answer in answers] == [401] * FAILURES + [429]
    assert answers[-1].json() == LIMITED


def test_ipv6_addresses_of_one_network_count_as_one(server: RunningServer) -> None:
    answers = [guess(server, "nobody", f"2001:db8:1:2::{number:x}").status_code for number in range(FAILURES + 1)]
    assert answers == [401] * FAILURES + [429]
    assert guess(server, "nobody", "2001:db8:1:3::1").status_code == 401


def limit(server: RunningServer, client_id: str, rate: str) -> None:
    server.flask_ok("clients", "update", client_id, "--limit", rate)


def test_a_client_gets_as_many_tokens_as_its_limit_says(server: RunningServer) -> None:
    client, neighbour = server.create_client(), server.create_client()
    limit(server, client.client_id, "5/minute")
    answers = [guess(server, client.client_id, "192.0.2.10", client.secret) for _ in range(7)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
    limited = answers[-1]
    wait = int(limited.headers["Retry-After"])
    assert limited.json() == LIMITED
    assert limited.headers["RateLimit-Policy"] == '"tokens";q=5;w=60'
    assert limited.headers["RateLimit"] == f'"tokens";r=0;t={wait}'
    assert server.token_status(neighbour) == 200
    # Requests that are refused for another reason count too.
    limit(server, client.client_id, "2/hour")
    header = {"Authorization": client.basic}
    wrong_scope = {"grant_type": "client_credentials", "scope": "none-of-its-own"}
    assert [server.post_token(wrong_scope, headers=header).status_code for _ in range(3)] == [400, 400, 429]
    assert 3590 <= int(server.post_token(headers=header).headers["Retry-After"]) <= 3600
    # A wrong secret is told as everywhere, whatever the limit.
    assert guess(server, client.client_id, "192.0.2.10").status_code == 401
    limit(server, client.client_id, "default")
    assert server.token_status(client) == 200
    minute = server.flask_json("clients", "show", client.client_id)["limited_at"]
    assert minute is None or minute.endswith("Z")


def test_who_is_limited_is_shown(tmp_path: Path) -> None:
    port = free_port()
    address = f"127.0.0.1:{port}"
    with running_server(tmp_path, "--workers", "1", TOKENHOUSE_METRICS_ADDRESS=address, **ON) as server:
        client, other = server.create_client(), server.create_client()
        limit(server, client.client_id, "1/hour")
        assert [server.token_status(client) for _ in range(9)] == [200] + [429] * 8
        assert server.token_status(other) == 200
        gauge = f'tokenhouse_client_limited{{client_id="{client.client_id}"}} 1.0'
        wait_until(lambda: gauge in requests.get(f"http://{address}/metrics", timeout=10).text)
        text = requests.get(f"http://{address}/metrics", timeout=10).text
        assert other.client_id not in text
        refused = re.search(r"tokenhouse_token_requests_refused_total{.*reason=\"too_many_tokens\"} (.*)", text)
        assert refused is not None
        assert float(refused[1]) == 8
        assert server.flask_json("clients", "show", client.client_id)["limited_at"].endswith("00Z")
        assert server.flask_json("clients", "show", other.client_id)["limited_at"] is None
    lines = [json.loads(line) for line in server.stdout_path.read_text().splitlines()]
    (summary,) = [line for line in lines if line["event"] == "RefusalsSummarized"]
    assert (summary["client_id"], summary["requests"]) == (client.client_id, 8)
    assert summary["causes"] == {"too_many_tokens": 8}
    assert "source_address" not in summary


def test_assertions_are_limited_before_they_are_stored(server: RunningServer) -> None:
    server.create_signing_client("signs-often", KEYS)
    limit(server, "signs-often", "3/minute")
    # At every endpoint, and not at the token endpoint alone.
    url = f"{server.url}/oauth/introspect"
    sent = [{**form(KEYS.sign(claims_of("signs-often", ISSUER))), "token": "x"} for _ in range(4)]
    answers = [requests.post(url, data=one, timeout=10) for one in sent]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert answers[-1].headers["RateLimit-Policy"] == '"assertions";q=3;w=60'
    limit(server, "signs-often", "4/minute")
    # It was not used, so it may be sent again.
    assert requests.post(url, data=sent[-1], timeout=10).status_code == 200
    assert requests.post(url, data=sent[-1], timeout=10).status_code == 401


def test_revocations_are_limited(tmp_path: Path) -> None:
    with running_server(tmp_path, "--workers", "1", TOKENHOUSE_RATELIMIT_REVOCATIONS="3/minute", **ON) as server:
        client = server.create_client()
        url, header = f"{server.url}/oauth/revoke", {"Authorization": client.basic}
        answers = [requests.post(url, data={"token": "x"}, headers=header, timeout=10) for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert answers[-1].headers["RateLimit-Policy"] == '"revocations";q=3;w=60'
        assert server.token_status(client) == 200


def quota_lines(server: RunningServer) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in server.stdout_path.read_text().splitlines()]
    return [line for line in lines if line["event"] == "TokenQuotaExceeded"]


@pytest.mark.parametrize("mode", ["off", "report", "enforce"])
def test_a_quota_of_a_day_is_reported_or_enforced(tmp_path: Path, mode: str) -> None:
    quota = {"TOKENHOUSE_TOKEN_QUOTA": "3", "TOKENHOUSE_TOKEN_QUOTA_MODE": mode}
    with running_server(tmp_path, "--workers", "1", **quota, **ON) as server:
        client, other = server.create_client(), server.create_client()
        answers = [guess(server, client.client_id, "192.0.2.1", client.secret) for _ in range(5)]
        assert server.token_status(other) == 200
        limited = answers[-1]
        if mode == "enforce":
            assert [answer.status_code for answer in answers] == [200] * 3 + [429] * 2
            left = int(limited.headers["Retry-After"])
            assert 0 < left <= 86400
            assert limited.headers["RateLimit-Policy"] == '"quota";q=3;w=86400'
            assert limited.headers["RateLimit"] == f'"quota";r=0;t={left}'
        else:
            assert [answer.status_code for answer in answers] == [200] * 5
    # What was counted is written at the end of the worker.
    (tokens,) = server.flask_json("clients", "show", client.client_id)["tokens"].values()
    assert tokens == (3 if mode == "enforce" else 5)
    told = [(line["client_id"], line["quota"], line["tokens"]) for line in quota_lines(server)]
    assert told == ([(client.client_id, 3, 5)] if mode == "report" else [])


def test_without_limits_nobody_is_limited(tmp_path: Path) -> None:
    with running_server(tmp_path, "--workers", "1", **{**ON, "TOKENHOUSE_RATELIMIT_ENABLED": "false"}) as server:
        client = server.create_client()
        limit(server, client.client_id, "1/hour")
        assert {server.token_status(client) for _ in range(5)} == {200}
        assert set(statuses(server, "nobody", "192.0.2.1", OF_ADDRESS + 5)) == {401}


def test_a_flood_is_one_line_for_each_address(tmp_path: Path) -> None:
    flood, malformed = "192.0.2.6", "192.0.2.7"
    with running_server(tmp_path, "--workers", "1", **ON) as server:
        client = server.create_client()
        for number in range(OF_ADDRESS + 300):
            guess(server, client.client_id if number % 2 else f"nobody-{number}", flood)
        for _ in range(OF_ADDRESS + 100):
            answer = server.post_token("scope=a&scope=b", headers={"X-Forwarded-For": malformed})
            assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    lines = [json.loads(line) for line in server.stdout_path.read_text().splitlines()]
    by_address = [
        Counter(line["event"] for line in lines if line.get("source_address") == one) for one in (flood, malformed)
    ]
    summary, of_malformed = [line for line in lines if line["event"] == "RefusalsSummarized"]
    assert summary["client_ids_sent"] > 100
    assert summary["known_client_ids"] == [client.client_id]
    assert set(summary["causes"]) == {"wrong_secret", "unknown_client"}
    assert sum(summary["causes"].values()) == summary["requests"]
    # Every refusal has a line, or is counted in one.
    assert by_address[0] == {"TokenRefused": OF_ADDRESS + 300 - summary["requests"], "RefusalsSummarized": 1}
    assert by_address[1] == {"TokenRefused": OF_ADDRESS, "RefusalsSummarized": 1}
    assert of_malformed["causes"] == {"repeated_parameter": 100}
    assert "a-wrong-secret" not in json.dumps(lines)
    assert "nobody-" not in json.dumps(lines)


def test_two_machines_count_together_in_redis(tmp_path: Path, postgres: Any) -> None:
    settings = {
        **ON,
        "TOKENHOUSE_DATABASE_URL": new_database(postgres),
        "TOKENHOUSE_SECRET_PEPPERS": f"p1:{'p' * 40}",
    }
    with running_redis() as redis, running_server(tmp_path, TOKENHOUSE_REDIS_URL=redis.url, **settings) as one:
        (tmp_path / "two").mkdir()
        keyring = str(one.settings.keyring)
        two = RunningServer(tmp_path / "two", TOKENHOUSE_REDIS_URL=redis.url, TOKENHOUSE_KEYRING=keyring, **settings)
        two.start()
        try:
            client = one.create_client()
            answers = [guess((one, two)[number % 2], "nobody", "192.0.2.8").status_code for number in range(30)]
            assert answers == [401] * FAILURES + [429] * 10
            redis.stop()
            # Alone, each machine still limits, and refuses nobody who is right.
            for machine in (one, two):
                assert guess(machine, client.client_id, "192.0.2.8", client.secret).status_code == 200
                # Each of its workers counts for itself.
                assert 429 in statuses(machine, "nobody", "192.0.2.9", 2 * FAILURES + 1)
        finally:
            two.stop()
