"""docs/production.md, from top to bottom: each line in a shell, the units by what stands in them, nginx, PostgreSQL.

What a test may not touch is moved into a folder (``/etc/tokenhouse`` and the like), who may not be made is who runs the
tests, and ports are free ones; all else is as it is written.
"""

import configparser
import contextlib
import getpass
import grp
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jwt
import psutil
import psycopg
import pytest
from support import postgres
from support.server import PROJECT_FOLDER, free_port, wait_until

SYSTEM_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
DOCUMENT = (PROJECT_FOLDER / "docs" / "production.md").read_text()
NAME = "tokens.example.com"
SHELL = """
set -euo pipefail
apt-get() { :; }
useradd() { :; }
chown() { :; }
runuser() { shift 3; "$@"; }
nginx() { command nginx -c "$ROOT/nginx.conf" "$@"; }
logrotate() { command logrotate --state "$ROOT/logrotate.state" "$@"; }
"""
NGINX = """
daemon off;
pid {root}/nginx.pid;
error_log {root}/nginx-error.log;
worker_processes 1;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {root}/t1; proxy_temp_path {root}/t2; fastcgi_temp_path {root}/t3;
    uwsgi_temp_path {root}/t4; scgi_temp_path {root}/t5;
    include {root}/etc/nginx/conf.d/*.conf;
}}
"""

pytestmark = [
    pytest.mark.skipif(
        any(shutil.which(name, path=SYSTEM_PATH) is None for name in ("nginx", "logrotate", "git", "openssl", "curl")),
        reason="nginx, logrotate, git, openssl or curl is not installed",
    ),
    pytest.mark.skipif(not (PROJECT_FOLDER / ".git").exists(), reason="this is not a checkout"),
]


@dataclass
class Machine:
    """A folder that is the machine's root, and what systemd would do there."""

    root: Path
    port: int
    tls_port: int
    environment: dict[str, str]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    folder: Path = Path("/")
    said: str = ""

    def do(self, section: int, block: int = 0) -> str:
        """Run one block of a section; what it says on standard output."""
        part = re.split(r"^## ", DOCUMENT, flags=re.MULTILINE)[section]
        assert part.startswith(f"{section}. ")
        text = self.here(re.findall(r"```sh\n(.*?)```", part, re.DOTALL)[block])
        # What makes a person's shell stop at a failure; this one does so anyway.
        text = re.sub(r"^(\(\nset -e|\))\n", "", text, flags=re.MULTILINE)
        self.said = ""
        for piece in re.split(r"^(systemctl .*)\n", text, flags=re.MULTILINE):
            if piece.startswith("systemctl "):
                self.systemctl(*piece.split()[1:])
            elif piece.strip():
                self.said += self.shell(piece)
        return self.said

    def here(self, text: str) -> str:
        """``text`` with paths, people and ports of this machine."""
        text = re.sub(r"(?<![\w$}])/(etc|opt|var|usr/local/bin)(?=/)", rf"{self.root}/\1", text)
        text = re.sub(r"-o \w+ -g \w+ ", "", text).replace("127.0.0.1:8080", f"127.0.0.1:{self.port}")
        text = text.replace("PORT=8080", f"PORT={self.port}").replace("listen 443", f"listen 127.0.0.1:{self.tls_port}")
        text = text.replace("exec runuser -u tokenhouse --", "exec")
        text = text.replace("su tokenhouse tokenhouse", f"su {getpass.getuser()} {grp.getgrgid(os.getgid()).gr_name}")
        text = text.replace("https://git.example.com/tokenhouse.git", str(self.root / "repository"))
        return text.replace("@127.0.0.1/tokenhouse", f"@/tokenhouse?host={self.environment['PGHOST']}")

    def shell(self, text: str) -> str:
        done = subprocess.run(
            ["bash", "-c", f"{SHELL}\ncd {self.folder}\n{text}\npwd >{self.root}/folder"],
            env=self.environment, capture_output=True, check=False, timeout=300, text=True,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        self.folder = Path((self.root / "folder").read_text().strip())
        return done.stdout

    def systemctl(self, verb: str, *names: str) -> None:
        for name in (name.removesuffix(".service") for name in names if not name.startswith("--")):
            if verb in {"restart", "stop"}:
                self.stop(name)
            if verb == "reload" and name in self.running:
                self.running[name].send_signal(signal.SIGHUP)
            elif verb in {"restart", "start", "enable", "reload"}:
                self.start(name)

    def start(self, name: str) -> None:
        if name == "nginx":
            command = [str(shutil.which("nginx", path=SYSTEM_PATH)), "-c", str(self.root / "nginx.conf")]
            self.running[name] = subprocess.Popen(command, env=self.environment, start_new_session=True)
            return
        if name.endswith(".timer"):
            service = name.replace(".timer", ".service")
            done = self.execute(self.unit(service), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            assert (done.communicate()[0], done.returncode) == (b"", 0)
            return
        unit = self.unit(f"{name}.service")
        log = Path(unit["StandardOutput"].removeprefix("append:"))
        # Unless it is said otherwise, systemd sends standard error where standard output goes.
        journal = self.root / "journal" if unit.get("StandardError") == "journal" else log
        with log.open("ab") as stdout, journal.open("ab") as stderr:
            self.running[name] = self.execute(unit, stdout=stdout, stderr=stderr)

    def unit(self, name: str) -> dict[str, str]:
        parser = configparser.RawConfigParser(strict=False)
        parser.optionxform = str  # type: ignore[assignment,method-assign]
        parser.read(self.root / "etc" / "systemd" / "system" / name)
        return dict(parser["Service"])

    def execute(self, unit: dict[str, str], *, port: int | None = None, **streams: Any) -> subprocess.Popen[bytes]:
        lines = Path(unit["EnvironmentFile"]).read_text().splitlines()
        environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "WEB_CONCURRENCY": "2"}
        environment |= dict(line.split("=", 1) for line in lines) | ({"PORT": str(port)} if port else {})
        return subprocess.Popen(
            shlex.split(unit["ExecStart"]), env=environment, cwd=unit["WorkingDirectory"],
            umask=int(unit["UMask"], 8), start_new_session=True, **streams,
        )  # fmt: skip

    def stop(self, name: str) -> None:
        if process := self.running.pop(name, None):
            process.terminate()
            assert process.wait(30) == 0

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def curl(self, path: str, *options: str) -> tuple[int, dict[str, str], str]:
        """Ask through nginx, with TLS, from an address that is no proxy's; status, fields and body."""
        done = subprocess.run(
            ["curl", "--silent", "--show-error", "--include", "--interface", "127.0.0.2", "--cacert",
             str(self.path("/etc/tokenhouse/tls/fullchain.pem")), *options, f"https://{NAME}{path}"],
            env=self.environment, capture_output=True, check=True, timeout=60, text=True,
        )  # fmt: skip
        head, _, body = done.stdout.partition("\n\n")
        first, *lines = head.splitlines()
        return int(first.split()[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}, body

    def token(self, *options: str) -> tuple[int, dict[str, str], str]:
        secret = self.path("/var/lib/tokenhouse/billing.secret").read_text().strip()
        return self.curl("/oauth/token", "-u", f"billing:{secret}", "-d", "grant_type=client_credentials", *options)

    def verify(self, access_token: str) -> dict[str, Any]:
        keys = {key["kid"]: jwt.PyJWK(key) for key in json.loads(self.curl("/.well-known/jwks.json")[2])["keys"]}
        key = keys[jwt.get_unverified_header(access_token)["kid"]]
        issuer = f"https://{NAME}"
        claims: dict[str, Any] = jwt.decode(access_token, key, algorithms=["RS256"], issuer=issuer, audience=issuer)
        return claims

    def event(self, request_id: str) -> dict[str, Any]:
        files = self.path("/var/log/tokenhouse").glob("audit.log*")
        lines = [line for path in files for line in path.read_text().splitlines()]
        (event,) = [event for event in map(json.loads, lines) if event.get("request_id") == request_id]
        return dict(event)

    def ready(self) -> bool:
        return self.curl("/readyz")[0] == 200

    def release(self) -> str:
        return Path(f"/proc/{self.running['tokenhouse'].pid}/cwd").readlink().name


@pytest.fixture
def backend() -> Iterator[Path]:
    # Not in pytest's own folder: nginx and PostgreSQL are other users, whom the next run of pytest would shut out.
    with tempfile.TemporaryDirectory(prefix="tokenhouse-", ignore_cleanup_errors=True) as made:
        yield Path(made)


@pytest.fixture
def machine(backend: Path) -> Iterator[Machine]:
    root = backend / "root"
    database = postgres.start(backend / "postgres")
    postgres.ask_for_passwords(database, backend / "postgres", "tokenhouse")
    binaries = Path(psutil.Process(database.get_postmaster_info().pid).exe()).parent
    tls_port = free_port()
    environment = {
        "PATH": f"{root}/usr/local/bin:{binaries}:{Path(sys.executable).parent}:{SYSTEM_PATH}",
        "HOME": str(backend), "CURL_HOME": str(backend), "ROOT": str(root), "LANG": "C.UTF-8",
        "PGHOST": psycopg.conninfo.conninfo_to_dict(database.get_uri())["host"], "PGUSER": "postgres",
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    # What pip needs to find packages where the tests run.
    environment |= {
        k: v for k, v in os.environ.items() if k.startswith(("PIP_", "SSL_", "XDG_")) or "proxy" in k.lower()
    }
    (backend / ".curlrc").write_text(f'connect-to = "{NAME}:443:127.0.0.1:{tls_port}"\nnoproxy = "*"\n')
    made = Machine(root, free_port(), tls_port, environment)
    for folder in ("etc/systemd/system", "etc/nginx/conf.d", "etc/logrotate.d", "usr/local/bin", "var/log/nginx"):
        (root / folder).mkdir(parents=True)
    (root / "nginx.conf").write_text(NGINX.format(root=root))
    publish(made)
    yield made
    for process in made.running.values():
        process.terminate()
    for process in made.running.values():
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
    for process in made.running.values():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    postgres.stop(database)


def publish(machine: Machine) -> None:
    """Make the repository that is cloned: the files as they are now, and two releases."""
    repository = machine.root / "repository"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=PROJECT_FOLDER, capture_output=True, check=True, text=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if (PROJECT_FOLDER / name).is_file():
            (repository / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(PROJECT_FOLDER / name, repository / name)
    for path in filter(Path.is_file, (repository / "deploy").iterdir()):
        path.write_text(machine.here(path.read_text()))
    machine.shell(
        f"cd {repository}\ngit init --quiet\ngit config user.name test\ngit config user.email test@example.com\n"
        "git add --all\ngit commit --quiet --message one\ngit tag v0.1.0\n"
        "git commit --quiet --allow-empty --message two\ngit tag v0.2.0\ncd /"
    )


def modes(folder: Path) -> dict[str, str]:
    return {path.name: f"{path.stat().st_mode & 0o7777:04o}" for path in [folder, *folder.iterdir()]}


def test_the_way_from_nothing_to_production(machine: Machine) -> None:
    set_up(machine)
    first = issue_through_nginx(machine)
    rotate_logs(machine)
    lose_everything_and_restore(machine, first)
    upgrade_and_go_back(machine)
    serve_from_two_machines(machine)


def set_up(machine: Machine) -> None:
    """Sections 1 to 5."""
    machine.do(1, 0)
    machine.do(1, 1)
    code = machine.path("/opt/tokenhouse/current/app")
    assert code.stat().st_mode & 0o777 == 0o755
    assert list((code / "operations" / "__pycache__").glob("gunicorn_hooks.*.pyc"))
    machine.do(2, 0)
    machine.do(2, 1)
    assert modes(machine.path("/etc/tokenhouse")) == {
        "tokenhouse": "0750", "peppers": "0640", "encryption-keys": "0640", "tokenhouse.env": "0640",
        "database-url": "0640",
    }  # fmt: skip
    machine.do(3)
    assert modes(machine.path("/var/lib/tokenhouse")) == {"tokenhouse": "0700"}
    assert json.loads(machine.do(4))["status"] == "ok"
    journal = machine.path("journal").read_text()
    assert "with configuration production, key ring" in journal
    machine.do(5, 0)
    machine.do(5, 1)
    wait_until(
        lambda: (
            subprocess.run(
                ["curl", "-sko", "/dev/null", f"https://127.0.0.1:{machine.tls_port}"], check=False
            ).returncode
            == 0
        )
    )


def issue_through_nginx(machine: Machine) -> str:
    """Section 6, and what a caller behind nginx sees; the key's id."""
    token = json.loads(machine.do(6).splitlines()[-1])["access_token"]
    assert machine.verify(token)["scope"] == "invoices:read"
    status, fields, _ = machine.token("-H", "X-Forwarded-For: 192.0.2.1", "-H", "X-Request-ID: chosen-by-me")
    event = machine.event(fields["x-request-id"])
    assert (status, event["event"], event["source_address"]) == (200, "TokenIssued", "127.0.0.2")
    assert fields["strict-transport-security"] == "max-age=31536000"
    assert fields["x-request-id"] != "chosen-by-me"
    # A secret in the query is refused, and nobody logs it.
    assert machine.curl("/oauth/token?client_secret=in-the-query", "-d", "grant_type=client_credentials")[0] == 400
    assert machine.curl("/oauth/token", "-d", "x=" + "y" * 20_000)[0] == 413
    logs = [path for path in machine.root.rglob("*") if path.suffix == ".log" or path.name == "journal"]
    assert len(logs) == 5
    assert not [path for path in logs if "in-the-query" in path.read_text()]
    assert machine.path("/var/log/nginx/tokenhouse.log").read_text().splitlines()[-2].split()[2:5] == [
        "POST", "/oauth/token", "400",
    ]  # fmt: skip
    return str(jwt.get_unverified_header(token)["kid"])


def rotate_logs(machine: Machine) -> None:
    """Section 7."""
    machine.do(7)
    assert machine.path("/var/log/tokenhouse/audit.log.1").exists()
    wait_until(machine.path("/var/log/tokenhouse/audit.log").exists)
    assert machine.event(machine.token()[1]["x-request-id"])["event"] == "TokenIssued"


def lose_everything_and_restore(machine: Machine, kid: str) -> None:
    """Section 8."""
    machine.do(8, 0)
    assert modes(machine.path("/var/backups/tokenhouse"))["tokenhouse"] == "0700"
    machine.stop("tokenhouse")
    shutil.rmtree(machine.path("/var/lib/tokenhouse"))
    machine.path("/etc/tokenhouse/peppers").write_text("p9:" + "x" * 40)
    machine.do(8, 1)
    wait_until(machine.ready)
    status, _, body = machine.token()
    assert (status, jwt.get_unverified_header(json.loads(body)["access_token"])["kid"]) == (200, kid)
    assert set(modes(machine.path("/var/lib/tokenhouse")).values()) == {"0700", "0600"}


def upgrade_and_go_back(machine: Machine) -> None:
    """Section 9."""
    machine.stop("tokenhouse")
    status, fields, body = machine.token()
    assert (status, json.loads(body)["error"], fields["retry-after"]) == (503, "server_error", "1")
    machine.start("tokenhouse")
    assert machine.release() == "0.1.0"
    assert json.loads(machine.do(9, 0).splitlines()[-1])["status"] == "ok"
    assert (machine.release(), machine.token()[0]) == ("0.2.0", 200)
    machine.do(9, 1)
    wait_until(machine.ready)
    assert (machine.release(), machine.token()[0]) == ("0.1.0", 200)


def serve_from_two_machines(machine: Machine) -> None:
    """Section 10: a second server with the same settings, as on another machine, and the first one dies."""
    before = json.loads(machine.curl("/.well-known/jwks.json")[2])
    other = free_port()
    with (machine.root / "other.out").open("ab") as stream:
        machine.running["other"] = machine.execute(
            machine.unit("tokenhouse.service"), port=other, stdout=stream, stderr=stream
        )
    configuration = machine.path("/etc/nginx/conf.d/tokenhouse.conf")
    line = f"server 127.0.0.1:{machine.port};"
    assert line in configuration.read_text()
    configuration.write_text(configuration.read_text().replace(line, f"{line} server 127.0.0.1:{other};"))
    machine.systemctl("reload", "nginx")
    wait_until(lambda: "TokenIssued" in (machine.root / "other.out").read_text() or machine.token()[0] != 200)
    assert json.loads(machine.curl("/.well-known/jwks.json")[2]) == before
    os.killpg(machine.running["tokenhouse"].pid, signal.SIGKILL)
    assert [machine.token()[0] for _ in range(20)] == [200] * 20
