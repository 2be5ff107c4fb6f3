"""``flask db``: a real process takes each kind of database up, down and up again."""

from pathlib import Path

from sqlalchemy import create_engine, inspect
from support.server import Installation

TABLES = [
    "alembic_version",
    "audit_outbox",
    "client_secret_uses",
    "client_secrets",
    "clients",
    "key_ring",
    "revoked_tokens",
    "signing_key_uses",
    "signing_keys",
]


def tables(installation: Installation) -> list[str]:
    engine = create_engine(installation.settings.database_url.get_secret_value())
    try:
        return sorted(inspect(engine).get_table_names())
    finally:
        engine.dispose()


def test_a_database_goes_up_down_and_up_again_with_rows_in_it(tmp_path: Path, database_url: str) -> None:
    installation = Installation(tmp_path, TOKENHOUSE_DATABASE_URL=database_url)
    for command, found in (
        (["upgrade"], TABLES),
        (["downgrade", "base"], ["alembic_version"]),
        (["upgrade"], TABLES),
        (["downgrade", "0005"], [name for name in TABLES if name != "revoked_tokens"]),
        (["upgrade"], TABLES),
        (["downgrade", "0003"], [name for name in TABLES if name not in {"audit_outbox", "revoked_tokens"}]),
        (["upgrade"], TABLES),
    ):
        done = installation.flask("db", *command)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert tables(installation) == found
        if found == TABLES:
            if not installation.flask_json("clients", "list"):
                installation.flask_json("clients", "create", "A service", "--client-id", "the-same-id")
            assert [client["client_id"] for client in installation.flask_json("clients", "list")] == ["the-same-id"]


def test_the_database_says_which_migration_it_is_at(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    installation.flask("db", "upgrade")
    done = installation.flask("db", "current")
    assert done.returncode == 0
    assert done.stdout.startswith("0006 (head)")
    assert installation.flask("db", "check").returncode == 0
