"""A database or a Redis that is half broken is a few lines in the log, however many requests meet it."""

from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy.engine import make_url
from support.assertions import ISSUER, claims_of, form, signer
from support.postgres import new_database
from support.redis import running_redis
from support.server import RunningServer, running_server, wait_until

REQUESTS = 150
KEYS = signer("ES256")


def by_assertion(server: RunningServer) -> int:
    return server.post_token(form(KEYS.sign(claims_of("signs", ISSUER)))).status_code


def lines(server: RunningServer, *words: str) -> list[str]:
    return [line for line in server.stderr_path.read_text().splitlines() if all(word in line for word in words)]


def test_a_database_that_takes_some_writes_and_not_others(tmp_path: Path, postgres: Any) -> None:
    url = make_url(new_database(postgres))
    with running_server(
        tmp_path, "--workers", "1", TOKENHOUSE_DATABASE_URL=url.render_as_string(hide_password=False)
    ) as server:
        client = server.create_client()
        server.create_signing_client("signs", KEYS)

        def break_it(*, is_broken: bool) -> None:
            with psycopg.connect(postgres.get_uri(database=url.database), autocommit=True) as connection:
                new, old = ("away", "used_assertions") if is_broken else ("used_assertions", "away")
                connection.execute(f"ALTER TABLE {old} RENAME TO {new}")

        break_it(is_broken=True)
        for _ in range(REQUESTS):
            assert by_assertion(server) == 503
            assert server.post_token(headers={"Authorization": client.basic}).status_code == 200
        assert len(lines(server, "the database fails: UndefinedTable 42P01")) in {1, 2}
        assert lines(server, "the database responds again") == []
        break_it(is_broken=False)
        wait_until(lambda: by_assertion(server) == 200 and len(lines(server, "the database responds again")) == 1)


def test_a_redis_that_takes_no_writes(tmp_path: Path) -> None:
    with (
        running_redis() as redis,
        running_server(tmp_path, "--workers", "1", TOKENHOUSE_REDIS_URL=redis.url) as server,
        redis.client() as admin,
    ):
        server.create_signing_client("signs", KEYS)
        assert by_assertion(server) == 200
        # A replica, as after a failover of which nobody told us.
        admin.execute_command("REPLICAOF", "127.0.0.1", "1")
        for _ in range(REQUESTS):
            assert by_assertion(server) == 503
        fails = lines(server, "redis fails: ReadOnlyError")
        assert len(fails) in {1, 2}
        assert all(line.isascii() for line in fails)
        assert lines(server, "redis responds again") == []
        admin.execute_command("REPLICAOF", "NO", "ONE")
        wait_until(lambda: by_assertion(server) == 200 and len(lines(server, "redis responds again")) == 1)
