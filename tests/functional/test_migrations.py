"""``flask db``: a real process takes each kind of database up, down and up again."""

from pathlib import Path

from sqlalchemy import create_engine, inspect
from support.server import Installation

TABLES = ["alembic_version", "client_secrets", "clients"]


def tables(installation: Installation) -> list[str]:
    engine = create_engine(installation.settings.database_url.get_secret_value())
    try:
        return sorted(inspect(engine).get_table_names())
    finally:
        engine.dispose()


def test_a_database_goes_up_down_and_up_again_with_rows_in_it(tmp_path: Path, database_url: str) -> None:
    installation = Installation(tmp_path, TOKENHOUSE_DATABASE_URL=database_url)
    for command, found in (("upgrade", TABLES), ("downgrade", ["alembic_version"]), ("upgrade", TABLES)):
        done = installation.flask("db", command)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert tables(installation) == found
        if found == TABLES:
            made = installation.flask_json("clients", "create", "A service", "--client-id", "the-same-id")
            assert [client["client_id"] for client in installation.flask_json("clients", "list")] == ["the-same-id"]
            assert made["client_secret"].startswith("ths_")


def test_the_database_says_which_migration_it_is_at(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    installation.flask("db", "upgrade")
    done = installation.flask("db", "current")
    assert done.returncode == 0
    assert done.stdout.startswith("0001 (head)")
    assert installation.flask("db", "check").returncode == 0
