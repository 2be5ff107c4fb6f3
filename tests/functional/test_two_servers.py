"""Two machines with one PostgreSQL and one Redis: what is done on one counts on the other, whatever happens to one."""

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import jwt
import pytest
import requests
from support.assertions import ISSUER, claims_of, form, signer
from support.dpop import sign_proof
from support.keys import add_key
from support.machines import SKEWED, Machines, frozen, kill, two_machines
from support.server import NewClient, RunningServer, wait_until

SEEN_SECONDS = 3
"""Within this time every worker uses a changed key ring, and notices that the database is back."""


@pytest.fixture(scope="module")
def machines(postgres: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    options = {"TOKENHOUSE_DPOP_NONCE_LIFETIME": "5m"}
    with two_machines(tmp_path_factory.mktemp("machines"), postgres, **options) as made:  # type: ignore[arg-type]
        yield made


def statuses(machines: Machines, client: NewClient) -> tuple[int, int]:
    one, two = (server.token_status(client) for server in machines.both)
    return one, two


def kid_of(server: RunningServer, client: NewClient) -> str:
    return str(jwt.get_unverified_header(server.get_token(client)["access_token"])["kid"])


def published(server: RunningServer) -> set[str]:
    return {key["kid"] for key in server.jwks()["keys"]}


def test_a_client_that_is_disabled_on_one_machine_gets_nothing_from_either(machines: Machines) -> None:
    client = machines.one.create_client()
    assert statuses(machines, client) == (200, 200)
    machines.two.flask_ok("clients", "disable", client.client_id)
    assert statuses(machines, client) == (401, 401)
    machines.one.flask_ok("clients", "enable", client.client_id)
    assert statuses(machines, client) == (200, 200)
    machines.one.flask_ok("clients", "delete", client.client_id, "--yes")
    assert statuses(machines, client) == (401, 401)


def test_a_secret_that_is_rotated_on_one_machine_is_rotated_on_both(machines: Machines) -> None:
    client = machines.one.create_client()
    made = machines.two.flask_json("clients", "rotate-secret", client.client_id)
    new = NewClient(client.client_id, made["client_secret"])
    assert (statuses(machines, client), statuses(machines, new)) == ((200, 200), (200, 200))
    (old,) = (
        secret["id"]
        for secret in machines.one.flask_json("clients", "secrets", client.client_id)
        if secret["last_four"] == client.secret[-4:]
    )
    machines.one.flask_ok("clients", "revoke-secret", client.client_id, old)
    assert (statuses(machines, client), statuses(machines, new)) == ((401, 401), (200, 200))


def test_an_assertion_counts_once_on_both(machines: Machines) -> None:
    keys = signer("ES256")
    machines.one.create_signing_client("signs", keys)
    for first, second in (machines.both, machines.both[::-1]):
        assertion = form(keys.sign(claims_of("signs", ISSUER)))
        assert [first.post_token(assertion).status_code, second.post_token(assertion).status_code] == [200, 401]


def test_a_proof_is_accepted_once_and_each_machine_accepts_the_others_nonces(machines: Machines) -> None:
    keys, client = signer("ES256"), machines.one.create_client()
    for first, second in (machines.both, machines.both[::-1]):
        refused = first.post_token(headers={"Authorization": client.basic, "DPoP": sign_proof(keys)})
        assert (refused.status_code, refused.json()["error"]) == (400, "use_dpop_nonce")
        proof = sign_proof(keys, nonce=refused.headers["DPoP-Nonce"])
        headers = {"Authorization": client.basic, "DPoP": proof}
        assert [server.post_token(headers=headers).status_code for server in (second, first)] == [200, 400]


def test_a_token_that_is_revoked_at_one_machine_is_revoked_at_both(machines: Machines) -> None:
    client = machines.one.create_client()
    token = machines.one.get_token(client)["access_token"]
    assert [server.is_active(client, token) for server in machines.both] == [True, True]
    answer = requests.post(
        f"{machines.two.url}/oauth/revoke", {"token": token}, headers={"Authorization": client.basic}, timeout=10
    )
    assert answer.status_code == 200
    assert [server.is_active(client, token) for server in machines.both] == [False, False]
    other = machines.two.get_token(client)["access_token"]
    machines.one.flask_ok("tokens", "revoke", "--client", client.client_id)
    assert [server.is_active(client, other) for server in machines.both] == [False, False]


def test_both_begin_to_sign_with_the_next_key_at_the_same_moment(machines: Machines) -> None:
    client, backend = machines.one.create_client(), machines.one.services.keys.manager.backend
    with machines.one.context():
        now = machines.one.services.clock()
        begins = now.replace(microsecond=0) + timedelta(seconds=6)
        standby = add_key(backend, published_at=now - timedelta(days=8), signs_from=begins, written_at=now)
    wait_until(lambda: all(standby.kid in published(server) for server in machines.both), SEEN_SECONDS)
    seen: list[tuple[float, str]] = []
    while time.time() < begins.timestamp() + 1.5:
        for server in machines.both:
            before, kid = time.time(), kid_of(server, client)
            assert all(kid in published(other) for other in machines.both)
            if kid == standby.kid:
                seen.append((time.time(), kid))
            else:
                assert before < begins.timestamp() + 0.5
    assert len(seen) > 4
    assert min(at for at, _ in seen) >= begins.timestamp()


def test_a_key_that_is_revoked_on_one_machine_is_gone_from_both(machines: Machines) -> None:
    client = machines.one.create_client()
    with machines.one.context():
        now = machines.one.services.clock()
        long_ago = now - timedelta(days=8)
        backend = machines.one.services.keys.manager.backend
        add_key(backend, published_at=long_ago, signs_from=now + timedelta(days=80), written_at=now)
    signing = kid_of(machines.one, client)
    machines.two.flask_ok("keys", "revoke", signing, "--yes")
    wait_until(
        lambda: all(signing not in published(server) and kid_of(server, client) != signing for server in machines.both),
        SEEN_SECONDS,
    )
    assert kid_of(machines.one, client) == kid_of(machines.two, client)


def test_both_are_listed_and_agree(machines: Machines) -> None:
    listed = {row["name"]: row for row in machines.one.flask_json("servers")}
    assert listed.keys() == {"one", "two"}
    assert {row["state"] for row in listed.values()} == {"running"}
    # Where they reach the same database and Redis differs, as through a proxy on each machine.
    urls = {"TOKENHOUSE_DATABASE_URL", "TOKENHOUSE_REDIS_URL"}
    assert set(listed["two"]["other settings"]) <= urls


def test_a_machine_that_hangs_costs_the_other_nothing(machines: Machines) -> None:
    client, disabled = machines.one.create_client(), machines.one.create_client()
    assert statuses(machines, disabled) == (200, 200)
    with frozen(machines.two):
        machines.one.flask_ok("clients", "disable", disabled.client_id)
        assert {machines.one.token_status(client) for _ in range(50)} == {200}
    # What it missed counts from its first request on.
    assert statuses(machines, disabled) == (401, 401)
    assert statuses(machines, client) == (200, 200)


def test_a_machine_without_its_network_serves_whom_it_knows(machines: Machines) -> None:
    # Not one that exists: the snapshot may have it.
    known, unknown = machines.one.create_client(), NewClient("nobody", "x" * 40)
    keys = signer("ES256")
    machines.one.create_signing_client("signs-too", keys)
    assert statuses(machines, known) == (200, 200)
    wait_until(lambda: machines.two.post_token(form(keys.sign(claims_of("signs-too", ISSUER)))).status_code == 200)
    time.sleep(1.5)
    machines.cut()
    try:
        assert (machines.two.token_status(known), machines.two.token_status(unknown)) == (200, 503)
        ready = requests.get(f"{machines.two.url}/readyz", timeout=10).json()
        assert (ready["status"], ready["checks"]["database"]) == ("degraded", "degraded")
        assert machines.two.post_token(form(keys.sign(claims_of("signs-too", ISSUER)))).status_code == 503
        assert published(machines.two) == published(machines.one)
        # It cannot know that yet. docs/databases.md says for how long.
        machines.one.flask_ok("clients", "disable", known.client_id)
        assert statuses(machines, known) == (401, 200)
    finally:
        machines.heal()
    wait_until(lambda: machines.two.token_status(known) == 401, SEEN_SECONDS)
    wait_until(lambda: machines.two.token_status(unknown) == 401, SEEN_SECONDS)
    wait_until(lambda: requests.get(f"{machines.two.url}/readyz", timeout=10).json()["status"] == "ok", 10)


def test_a_machine_that_is_lost_costs_the_other_nothing(machines: Machines) -> None:
    client = machines.one.create_client()
    machines.two.get_token(client)
    kill(machines.two)
    assert {machines.one.token_status(client) for _ in range(50)} == {200}
    machines.one.flask_ok("clients", "disable", client.client_id)
    machines.two.start("--workers", "1")
    assert statuses(machines, client) == (401, 401)


@pytest.mark.parametrize("seconds", ["60", "-60"])
def test_clocks_a_minute_apart(postgres: object, tmp_path: Path, seconds: str) -> None:
    path = str(Path(__file__).resolve().parent.parent)
    with two_machines(tmp_path, postgres, SKEW_SECONDS=seconds, PYTHONPATH=path) as machines:  # type: ignore[arg-type]
        machines.two.stop()
        machines.two.start("--workers", "1", application=SKEWED)
        client, keys = machines.one.create_client(), signer("ES256")
        machines.one.create_signing_client("signs", keys)
        for issued_by, asked in (machines.both, machines.both[::-1]):
            token = issued_by.get_token(client)["access_token"]
            # An API with the usual leeway of a minute, and the other machine.
            assert asked.verify(token)["sub"] == client.client_id
            assert asked.is_active(client, token)
            assertion = form(keys.sign(claims_of("signs", ISSUER)))
            wait_until(lambda a=assertion, s=issued_by: s.post_token(a).status_code in {200, 401})  # type: ignore[misc]
            fresh = form(keys.sign(claims_of("signs", ISSUER)))
            assert [issued_by.post_token(fresh).status_code, asked.post_token(fresh).status_code] == [200, 401]
        assert published(machines.one) == published(machines.two)
        assert kid_of(machines.one, client) == kid_of(machines.two, client)
        machines.two.flask_ok("clients", "disable", client.client_id)
        assert statuses(machines, client) == (401, 401)
