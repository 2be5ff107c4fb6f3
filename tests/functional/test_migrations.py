"""``flask db``: a real process takes each kind of database up, down and up again."""

from pathlib import Path

from sqlalchemy import create_engine, func, inspect, select, text
from support.server import Installation, newest_migration

from app.database.models import ClientRow, ClientSecretRow, db

TABLES = [
    "alembic_version",
    "api_grants",
    "apis",
    "audit_outbox",
    "client_key_sets",
    "client_secret_uses",
    "client_secrets",
    "client_trusts",
    "client_usage",
    "clients",
    "issuer_key_sets",
    "key_fingerprints",
    "key_ring",
    "revoked_tokens",
    "servers",
    "signing_key_uses",
    "signing_keys",
    "used_assertions",
]

SERVERS = ("key_fingerprints", "servers", "client_usage", "client_trusts", "issuer_key_sets", "apis", "api_grants")


def without(*names: str) -> list[str]:
    return [name for name in TABLES if name not in names]


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
        (["downgrade", "0009"], without(*SERVERS)),
        (["upgrade"], TABLES),
        (["downgrade", "0007"], without(*SERVERS, "client_key_sets")),
        (["upgrade"], TABLES),
        (["downgrade", "0006"], without(*SERVERS, "client_key_sets", "used_assertions")),
        (["upgrade"], TABLES),
        (["downgrade", "0005"], without(*SERVERS, "client_key_sets", "used_assertions", "revoked_tokens")),
        (["upgrade"], TABLES),
        (
            ["downgrade", "0003"],
            without(*SERVERS, "client_key_sets", "used_assertions", "revoked_tokens", "audit_outbox"),
        ),
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
    assert done.stdout.startswith(f"{newest_migration()} (head)")
    assert installation.flask("db", "check").returncode == 0


def test_what_was_there_before_tokens_could_be_taken_back(tmp_path: Path, database_url: str) -> None:
    installation = Installation(tmp_path, TOKENHOUSE_DATABASE_URL=database_url)
    installation.prepare()
    for client_id in ("served", "disabled", "deleted"):
        installation.create_client(client_id=client_id, audiences=("urn:a",))
    assert installation.flask("db", "downgrade", "0005").returncode == 0
    engine = create_engine(installation.settings.database_url.get_secret_value())
    times = {"disabled": "2026-01-31 12:00:00.5+00:00", "deleted": "2026-01-31 13:00:00.5+00:00"}
    if engine.dialect.name == "sqlite":
        times = {client_id: f"{time[:21]}00000" for client_id, time in times.items()}
    with engine.begin() as connection:
        for client_id, time in times.items():
            # What the release before does; a name of ours.
            ended = f"UPDATE clients SET {client_id}_at = '{time}' WHERE client_id = '{client_id}'"  # noqa: S608
            connection.execute(text(ended))
    assert installation.flask("db", "upgrade").returncode == 0
    with installation.context(), db.engine.connect() as connection:
        rows = connection.execute(select(ClientRow.client_id, ClientRow.tokens_not_before, ClientRow.audiences_ever))
        found = {client_id: (until and until.isoformat(), ever) for client_id, until, ever in rows}
        assert found == {
            "served": (None, ["urn:a"]),
            "disabled": ("2026-01-31T12:00:00.500000+00:00", ["urn:a"]),
            "deleted": ("2026-01-31T13:00:00.500000+00:00", ["urn:a"]),
        }
        # Nothing went with a table that was made anew.
        assert connection.scalar(select(func.count()).select_from(ClientSecretRow)) == 3
    engine.dispose()
