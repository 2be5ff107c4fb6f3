"""A real gunicorn that must not start: one clear line, a non-zero status, within seconds."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from support.server import Installation, RunningServer, free_port, newest_migration, running_server, wait_until

from app.config.values import PROJECT_FOLDER

SECONDS = 20
"""Far less than it takes to give up by itself; a busy machine imports slowly."""

ENTRY = """
[[keys]]
kid = "{kid}"
alg = "RS256"
private_key = "{kid}.pem"
published_at = {time}
signs_from = {time}
"""


def start(installation: Installation, *options: str) -> tuple[int, str]:
    """Start gunicorn as it is deployed, and wait until it gives up: its status, and what it said."""
    environment = {**installation.environment, "PORT": str(free_port()), "WEB_CONCURRENCY": "2"}
    process = subprocess.Popen(
        [sys.executable, "-m", "gunicorn", "--config", "config/gunicorn.py", *options, "wsgi:app"],
        env=environment,
        cwd=PROJECT_FOLDER,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        pytest.fail(f"gunicorn did not stop within {SECONDS} s: {said}")
    return process.returncode, said


def refusals(said: str) -> list[str]:
    """The lines that say why."""
    return [line.partition("tokenhouse: ")[2] for line in said.splitlines() if line.startswith("tokenhouse: ")]


def write_key(installation: Installation, kid: str, *, bits: int = 2048, mode: int = 0o600) -> None:
    pem = rsa.generate_private_key(65537, bits).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (installation.folder / f"{kid}.pem").write_bytes(pem)
    (installation.folder / f"{kid}.pem").chmod(mode)


def write_ring(installation: Installation, *kids: str, time: str = "2026-01-01T00:00:00Z") -> None:
    (installation.folder / "keyring.toml").write_text("".join(ENTRY.format(kid=kid, time=time) for kid in kids))


def empty(_installation: Installation) -> None:
    """No ring at all."""


def without_keys(installation: Installation) -> None:
    (installation.folder / "keyring.toml").write_text("# None yet.\n")


def weak(installation: Installation) -> None:
    write_key(installation, "a", bits=1024)
    write_ring(installation, "a")


def duplicate(installation: Installation) -> None:
    write_key(installation, "a")
    write_ring(installation, "a", "a")


def readable_by_others(installation: Installation) -> None:
    write_key(installation, "a", mode=0o640)
    write_ring(installation, "a")


def missing(installation: Installation) -> None:
    write_ring(installation, "a")


def folder(installation: Installation) -> None:
    (installation.folder / "a.pem").mkdir(mode=0o700)
    write_ring(installation, "a")


def too_early(installation: Installation) -> None:
    write_key(installation, "a")
    write_ring(installation, "a", time="2999-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("prepare", "told"),
    [
        (empty, "there is no key ring at {folder}/keyring.toml: `flask keys generate` makes one"),
        (without_keys, "the key ring {folder}/keyring.toml has no keys: `flask keys generate` makes one"),
        (
            weak,
            "{where}: {folder}/a.pem has 1024 bits; an RSA key needs 2048 or more",
        ),
        (duplicate, "the key ring has kid 'a' twice: each key needs a kid of its own"),
        (
            readable_by_others,
            "{where}: {folder}/a.pem may be read by others: `chmod 600 {folder}/a.pem`",
        ),
        (
            missing,
            "{where}: {folder}/a.pem cannot be read: No such file or directory",
        ),
        (folder, "{where}: {folder}/a.pem cannot be read: Is a directory"),
        (
            too_early,
            "the key ring has no key that may sign now: the first may sign from 2999-01-01T00:00:00+00:00 on",
        ),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_ring_that_is_unsound_stops_the_start(
    tmp_path: Path, prepare: Callable[[Installation], None], told: str
) -> None:
    installation = Installation(tmp_path)
    prepare(installation)
    status, said = start(installation)
    assert status != 0
    assert refusals(said) == [told.format(folder=tmp_path, where=f"key 1 of the key ring {tmp_path}/keyring.toml")]
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("TOKENHOUSE_ACCESS_TOKEN_LIFETIME", "1s", "TOKENHOUSE_ACCESS_TOKEN_LIFETIME must be from 1m to 1d"),
        (
            "TOKENHOUSE_ISUER",
            "x",
            "TOKENHOUSE_ISUER in the environment is not a setting: did you mean TOKENHOUSE_ISSUER",
        ),
        ("TOKENHOUSE_CONFIG", "staging", "TOKENHOUSE_CONFIG is staging, but there are only: development, "),
        ("TOKENHOUSE_SECRET_PEPPERS", "p1:hidden", "TOKENHOUSE_SECRET_PEPPERS must be comma-separated id:value pairs"),
    ],
)
def test_a_wrong_setting_stops_the_start(tmp_path: Path, name: str, value: str, told: str) -> None:
    installation = Installation(tmp_path)
    installation.environment[name] = value
    status, said = start(installation)
    assert status != 0
    (line,) = refusals(said)
    assert line.startswith(told)
    assert "hidden" not in said
    assert "Traceback" not in said


def test_a_start_that_is_refused_never_listens(tmp_path: Path) -> None:
    status, said = start(Installation(tmp_path))
    assert status != 0
    assert "Listening at" not in said


def test_a_start_that_is_refused_is_quick(tmp_path: Path) -> None:
    began = time.monotonic()
    start(Installation(tmp_path))
    assert time.monotonic() - began < SECONDS


def test_a_database_that_is_away_does_not_stop_the_start(tmp_path: Path) -> None:
    url = "postgresql+psycopg://user:hidden-password@127.0.0.1:1/nowhere"
    server = RunningServer(tmp_path, TOKENHOUSE_DATABASE_URL=url)
    assert server.flask("keys", "generate").returncode == 0
    server.start()
    try:
        answer = server.post_token(auth=("a", "b"))
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    finally:
        server.stop()
    assert "hidden-password" not in server.stderr_path.read_text() + server.stdout_path.read_text()


# What is said at a start that goes well


def started(tmp_path: Path, **settings: str) -> RunningServer:
    server = RunningServer(tmp_path, **settings)
    server.prepare()
    server.start("--workers", "1")
    return server


def diagnostics(server: RunningServer) -> list[str]:
    """Every line of standard error, each of which must be JSON."""
    return [json.loads(line)["event"] for line in server.stderr_path.read_text().splitlines()]


def test_each_line_is_json_and_one_says_who_this_is(tmp_path: Path) -> None:
    server = started(tmp_path)
    try:
        said = diagnostics(server)
        assert said[0].startswith("Starting gunicorn ")
        (introduced,) = [line for line in said if line.startswith("Tokenhouse is ")]
        assert introduced == (
            f"Tokenhouse is https://tokens.example.com, with configuration testing, key ring {tmp_path}/keyring.toml, "
            f"database sqlite:///{tmp_path}/tokenhouse.db"
        )
        before = server.workers()
        server.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + SECONDS
        while before & server.workers():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        said = diagnostics(server)
        assert len([line for line in said if line.startswith("Hang up")]) == 1
        assert len([line for line in said if line == f"Worker exiting (pid: {min(before)})"]) == 1
    finally:
        server.stop()


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_no_password_is_said(tmp_path: Path, database_url: str) -> None:
    url = database_url.replace("postgres:@", "postgres:hidden-password@")
    server = started(tmp_path, TOKENHOUSE_DATABASE_URL=url)
    server.stop()
    (said,) = [line for line in diagnostics(server) if line.startswith("Tokenhouse is ")]
    assert "hidden-password" not in server.stderr_path.read_text()
    assert "postgres" in said


def test_secrets_whose_pepper_is_missing_are_counted(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    installation.prepare()
    for _ in range(3):
        installation.create_client()
    server = RunningServer(tmp_path, TOKENHOUSE_SECRET_PEPPERS=f"p2:{'q' * 40}")
    server.start("--workers", "1")
    server.stop()
    assert "3 secrets are refused: their pepper 'p1' is not in TOKENHOUSE_SECRET_PEPPERS" in diagnostics(server)


def test_a_database_that_is_behind_the_code_stops_the_start(tmp_path: Path) -> None:
    installation = Installation(tmp_path)
    installation.prepare()
    assert installation.flask("db", "downgrade", "0009").returncode == 0
    status, said = start(installation)
    assert status == 4
    told = f"database: at migration 0009, and the code needs {newest_migration()}. Fix: `flask db upgrade`"
    assert refusals(said) == [told]
    doctor = installation.flask("doctor", "--offline")
    assert doctor.returncode == 1
    assert f"error    database: at migration 0009, and the code needs {newest_migration()}\n" in doctor.stdout


def test_in_development_what_is_wrong_is_only_said(tmp_path: Path) -> None:
    settings = {"TOKENHOUSE_CONFIG": "development", "TOKENHOUSE_TRUSTED_PROXIES": "0.0.0.0/0"}
    with running_server(tmp_path, TOKENHOUSE_ISSUER="http://localhost:8080", **settings) as server:
        server.get_token(server.create_client())
        assert "trusted proxies: 0.0.0.0/0 is everybody" in server.stderr_path.read_text()


def test_what_will_hurt_is_said_once_and_a_reload_with_what_hurts_changes_nothing(tmp_path: Path) -> None:
    with running_server(tmp_path, "--workers", "2", TOKENHOUSE_TRUSTED_PROXIES="8.0.0.0/8") as server:
        client = server.create_client()
        server.get_token(client)
        assert server.stderr_path.read_text().count("trusted proxies: 8.0.0.0/8 is a large public network") == 1
        before = server.workers()
        assert server.flask("db", "downgrade", "0009").returncode == 0
        server.process.send_signal(signal.SIGHUP)
        told = "SIGHUP changed nothing: fix this, then send it again: database: at migration 0009"
        wait_until(lambda: told in server.stderr_path.read_text())
        assert server.workers() == before
        assert server.flask("db", "upgrade").returncode == 0
        server.get_token(client)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: not server.workers() & before)
        server.get_token(client)


AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.executable, [sys.executable, "-m", "gunicorn", "--config", "config/gunicorn.py", "wsgi:app"])
"""


def test_whoever_connects_while_systemd_holds_the_port_waits(tmp_path: Path) -> None:
    """As systemd does with ``tokenhouse.socket``: it listens, and hands the socket on as descriptor 3."""
    installation = Installation(tmp_path)
    installation.prepare()
    client = installation.create_client()
    with socket.create_server(("127.0.0.1", 0), backlog=64) as held, ThreadPoolExecutor(1) as pool:
        held.set_inheritable(True)
        url = f"http://127.0.0.1:{held.getsockname()[1]}/oauth/token"
        for _ in range(2):
            # Nobody serves yet, and the connection is taken all the same.
            headers = {"Authorization": client.basic}
            asked = pool.submit(requests.post, url, {"grant_type": "client_credentials"}, headers=headers, timeout=30)
            process = subprocess.Popen(
                [sys.executable, "-c", AS_SYSTEMD, str(held.fileno())],
                cwd=PROJECT_FOLDER, env=installation.environment, pass_fds=[held.fileno()], stdout=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                assert asked.result().status_code == 200
            finally:
                process.terminate()
                process.wait(30)
