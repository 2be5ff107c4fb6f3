"""The fronts of ``deploy/``: a real proxy with TLS, and two servers behind it."""

import contextlib
import getpass
import grp
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import requests
from support.publisher import certified
from support.server import NewClient, RunningServer, free_port, wait_until

from app.config.values import PROJECT_FOLDER

DEPLOY = PROJECT_FOLDER / "deploy"
NAME = "localhost"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NGINX = """
daemon off;
user {user};
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    include {folder}/tokenhouse.conf;
}}
"""


@dataclass
class Front:
    """A proxy with TLS, and what is behind it."""

    port: int
    authority: Path
    servers: tuple[RunningServer, RunningServer]
    way_of_the_other: Path
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"https://{NAME}:{self.port}"

    def post(self, client: NewClient, session: requests.Session | None = None, **headers: str) -> requests.Response:
        return (session or requests).post(
            f"{self.url}/oauth/token",
            {"grant_type": "client_credentials"},
            headers={"Authorization": client.basic, **headers},
            verify=str(self.authority),
            timeout=30,
        )

    def answers(self) -> bool:
        with contextlib.suppress(requests.RequestException):
            return requests.get(f"{self.url}/livez", verify=str(self.authority), timeout=5).status_code == 200
        return False


def for_each(text: str, lines: str, backends: tuple[int, int]) -> str:
    """The configuration with the ``lines`` of one server for each of two."""
    assert text.count(lines) == 1
    each = (lines.replace("8080", str(port)).replace(" one", f" s{port}") for port in backends)
    return text.replace(lines, "".join(each))


def nginx(folder: Path, port: int, backends: tuple[int, int], change: Callable[[str], str]) -> tuple[list[str], Path]:
    text = change((DEPLOY / "nginx.conf").read_text())
    text = for_each(text, "    server 127.0.0.1:8080;\n    server 127.0.0.1:8080 backup max_fails=0;\n", backends)
    text = text.replace("listen 443", f"listen 127.0.0.1:{port}").replace("/etc/tokenhouse/tls", str(folder))
    (folder / "tokenhouse.conf").write_text(text.replace("/var/log/nginx", str(folder)))
    (folder / "nginx.conf").write_text(
        NGINX.format(folder=folder, user=f"{getpass.getuser()} {grp.getgrgid(os.getgid()).gr_name}")
    )
    return [
        str(shutil.which("nginx", path=PATH)),
        "-p",
        str(folder),
        "-c",
        str(folder / "nginx.conf"),
    ], folder / "tokenhouse.log"


def haproxy(folder: Path, port: int, backends: tuple[int, int], change: Callable[[str], str]) -> tuple[list[str], Path]:
    text = change((DEPLOY / "haproxy.cfg").read_text())
    lines = "    server one 127.0.0.1:8080 check\n    server one-again 127.0.0.1:8080 backup\n"
    text = for_each(text, lines, backends).replace("bind :443", f"bind 127.0.0.1:{port}")
    # As long as the tests wait for it.
    text = text.replace("timeout http-request 15s", "timeout http-request 3s")
    (folder / "haproxy.cfg").write_text(text.replace("/etc/tokenhouse/tls", str(folder)))
    pem = (folder / "fullchain.pem").read_text() + (folder / "privkey.pem").read_text()
    (folder / "haproxy.pem").write_text(pem)
    return [str(shutil.which("haproxy", path=PATH)), "-db", "-f", str(folder / "haproxy.cfg")], folder / "stdout"


def envoy(folder: Path, port: int, backends: tuple[int, int], change: Callable[[str], str]) -> tuple[list[str], Path]:
    text = change((DEPLOY / "envoy.yaml").read_text())
    one = "              - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 8080}}}\n"
    text = for_each(text, one, backends)
    text = text.replace("address: 0.0.0.0, port_value: 443", f"address: 127.0.0.1, port_value: {port}")
    (folder / "envoy.yaml").write_text(text.replace("/etc/tokenhouse/tls", str(folder)))
    spec = find_spec("envoy")
    assert spec is not None
    assert spec.origin is not None
    (program,) = Path(spec.origin).parent.rglob("envoy")
    options = ["--config-path", str(folder / "envoy.yaml"), "--log-level", "warning", "--disable-hot-restart"]
    return [str(program), *options], folder / "stdout"


FRONTS: dict[str, Callable[[Path, int, tuple[int, int], Callable[[str], str]], tuple[list[str], Path]]] = {
    "nginx": nginx,
    "haproxy": haproxy,
    "envoy": envoy,
}


def is_installed(kind: str) -> bool:
    """Whether a proxy can be run here."""
    return (find_spec("envoy") if kind == "envoy" else shutil.which(kind, path=PATH)) is not None


@contextlib.contextmanager
def open_front(kind: str, tmp_path: Path, change: Callable[[str], str] = str, **settings: str) -> Iterator[Front]:
    """Run a proxy of ``kind`` with two servers behind it.

    :param change: changes the text of its configuration.
    :param settings: of the servers.
    """
    # Started by root, nginx changes to another user, who must be able to read these files.
    folder = tmp_path / "front"
    folder.mkdir()
    certified(folder, NAME)
    (folder / "certificate.pem").rename(folder / "fullchain.pem")
    (folder / "certificate-key.pem").rename(folder / "privkey.pem")
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(served(tmp_path / "one", **settings))
        # A separate connection to the same database, which the test can cut.
        (tmp_path / "way").symlink_to(one.folder / "tokenhouse.db")
        shared = {
            "TOKENHOUSE_DATABASE_URL": f"sqlite:///{tmp_path}/way",
            "TOKENHOUSE_KEYRING": one.environment["TOKENHOUSE_KEYRING"],
            "TOKENHOUSE_SECRET_PEPPERS": one.environment["TOKENHOUSE_SECRET_PEPPERS"],
        }
        two = stack.enter_context(served(tmp_path / "two", **settings, **shared))
        port = free_port()
        command, log = FRONTS[kind](folder, port, (one.port, two.port), change)
        with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
            process = subprocess.Popen(command, stdout=stdout, stderr=stderr, cwd=folder)
        try:
            made = Front(port, folder / "fullchain.pem", (one, two), tmp_path / "way", log, process)
            wait_until(lambda: process.poll() is not None or made.answers())
            assert process.poll() is None, (folder / "stderr").read_text()
            yield made
        finally:
            process.terminate()
            process.wait(20)


@contextlib.contextmanager
def served(folder: Path, **settings: str) -> Iterator[RunningServer]:
    folder.mkdir()
    server = RunningServer(folder, TOKENHOUSE_TRUSTED_PROXIES="127.0.0.1", PORT=str(free_port()), **settings)
    if "TOKENHOUSE_DATABASE_URL" not in settings:
        server.prepare()
    server.start("--workers", "2")
    try:
        yield server
    finally:
        server.stop()
