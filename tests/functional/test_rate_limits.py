"""Guesses get 429 and one line a minute; a right secret is never refused for them."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from support.assertions import ISSUER, claims_of, form, signer
from support.postgres import new_database
from support.redis import running_redis
from support.server import RunningServer, basic, running_server

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
