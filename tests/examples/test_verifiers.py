"""APIs that accept sender-constrained tokens: Flask, nginx and Envoy before any API, Express and Go with own TLS."""

import base64
import contextlib
import getpass
import grp
import hashlib
import http.server
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import requests
from examples.stage import EXAMPLES
from support.assertions import signer
from support.certificates import Certified, client_certificate, rfc9440
from support.certificates import nginx as escaped
from support.dpop import sign_proof
from support.fronts import NGINX, PATH, is_installed
from support.publisher import certified
from support.server import RunningServer, free_port, running_server, wait_until

from examples.programs import NODE_MODULES

VERIFIERS = EXAMPLES / "verifiers"
KEY = signer("ES256")


class Api(NamedTuple):
    """An API that checks tokens, and how a test shows a certificate to it."""

    url: str
    authority: Path | None
    has_own_tls: bool

    def get(self, token: str | None, scheme: str, of: Certified | None = None, **headers: str) -> requests.Response:
        sent = {**({"Authorization": f"{scheme} {token}"} if token else {}), **headers}
        options: dict[str, Any] = {}
        if self.has_own_tls:
            options["verify"] = str(self.authority)
            options["cert"] = files_of(of, self.authority.parent) if of and self.authority else None
        elif of:
            sent["X-Client-Cert"] = escaped(of)["Client-Cert"]
        return requests.get(f"{self.url}/things", headers=sent, timeout=10, **options)


def files_of(of: Certified, folder: Path) -> tuple[str, str]:
    certificate, key = folder / f"{of.fingerprint}.pem", folder / f"{of.fingerprint}.key"
    certificate.write_text(of.pem)
    key.write_text(of.key_pem)
    return str(certificate), str(key)


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with running_server(tmp_path_factory.mktemp("issuer"), TOKENHOUSE_TRUSTED_PROXIES="127.0.0.1") as server:
        yield server


def token(issuer: RunningServer, of: Certified | None = None, *, with_key: bool = False) -> str:
    client = issuer.create_client(sender_constraints=("mtls",) if of else ())
    headers = {"Authorization": client.basic, **(rfc9440(of) if of else {})}
    answer = issuer.post_token(headers=headers | ({"DPoP": sign_proof(KEY)} if with_key else {}))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["access_token"])


def proof(api: Api, access_token: str, by: Any = KEY, **changes: Any) -> str:
    ath = base64.urlsafe_b64encode(hashlib.sha256(access_token.encode()).digest()).rstrip(b"=").decode()
    return sign_proof(by, **{"htm": "GET", "htu": f"{api.url}/things", "ath": ath, **changes})


@contextlib.contextmanager
def started(command: list[str], folder: Path, answers: Callable[[], bool], **environment: str) -> Iterator[None]:
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, env=os.environ | environment, cwd=folder, stdout=log, stderr=log)
    try:
        wait_until(lambda: process.poll() is not None or answers())
        assert process.poll() is None, (folder / "log").read_text()
        yield
    finally:
        process.terminate()
        process.wait(20)


def is_served(url: str, authority: Path | None = None) -> bool:
    with contextlib.suppress(requests.ConnectionError):
        requests.get(url, verify=str(authority) if authority else True, timeout=5)
        return True
    return False


@contextlib.contextmanager
def flask(issuer: RunningServer, folder: Path, api_url: str | None = None) -> Iterator[Api]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    settings = environment(issuer, api_url or url) | {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "flask", "--app", str(VERIFIERS / "verify.py"), "run", "--port", str(port)]
    with started(command, folder, lambda: is_served(url), **settings):
        yield Api(url, None, has_own_tls=False)


def environment(issuer: RunningServer, api_url: str) -> dict[str, str]:
    return {
        "ISSUER": issuer.settings.issuer,
        "JWKS_URL": f"{issuer.url}/.well-known/jwks.json",
        "API_URL": api_url,
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


@contextlib.contextmanager
def plain_api() -> Iterator[int]:
    """An API that checks no tokens: the proxy let each request through that reaches it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"caller": "%s"}' % self.headers["X-Caller"].encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@contextlib.contextmanager
def with_tls(folder: Path) -> Iterator[tuple[int, Path]]:
    certified(folder, "localhost")
    (folder / "certificate.pem").rename(folder / "fullchain.pem")
    (folder / "certificate-key.pem").rename(folder / "privkey.pem")
    yield free_port(), folder / "fullchain.pem"


def placed(name: str, folder: Path, port: int, checks: int, api: int) -> str:
    text = (VERIFIERS / name).read_text().replace("/etc/api/tls", str(folder))
    for old, new in (
        ("listen 443", f"listen 127.0.0.1:{port}"),
        ("address: 0.0.0.0, port_value: 443", f"address: 127.0.0.1, port_value: {port}"),
        ("8001", str(checks)),
        ("8002", str(api)),
    ):
        text = text.replace(old, new)
    return text


@contextlib.contextmanager
def nginx(issuer: RunningServer, folder: Path) -> Iterator[Api]:
    with with_tls(folder) as (port, authority), plain_api() as api:
        url = f"https://localhost:{port}"
        (folder / "checks").mkdir()
        with flask(issuer, folder / "checks", url) as checks:
            config = placed("nginx.conf", folder, port, int(checks.url.rpartition(":")[2]), api)
            (folder / "tokenhouse.conf").write_text(config)
            (folder / "nginx.conf").write_text(
                NGINX.format(folder=folder, user=f"{getpass.getuser()} {grp.getgrgid(os.getgid()).gr_name}")
            )
            command = [str(shutil.which("nginx", path=PATH)), "-p", str(folder), "-c", str(folder / "nginx.conf")]
            with started(command, folder, lambda: is_served(url, authority)):
                yield Api(url, authority, has_own_tls=True)


@contextlib.contextmanager
def envoy(issuer: RunningServer, folder: Path) -> Iterator[Api]:
    spec = find_spec("envoy")
    assert spec is not None
    assert spec.origin is not None
    (program,) = Path(spec.origin).parent.rglob("envoy")
    with with_tls(folder) as (port, authority), plain_api() as api:
        url = f"https://localhost:{port}"
        (folder / "checks").mkdir()
        with flask(issuer, folder / "checks", url) as checks:
            config = placed("envoy.yaml", folder, port, int(checks.url.rpartition(":")[2]), api)
            (folder / "envoy.yaml").write_text(config)
            command = [str(program), "--config-path", str(folder / "envoy.yaml"), "--disable-hot-restart"]
            with started(command, folder, lambda: is_served(url, authority)):
                yield Api(url, authority, has_own_tls=True)


@contextlib.contextmanager
def own_tls(issuer: RunningServer, folder: Path, command: list[str]) -> Iterator[Api]:
    with with_tls(folder) as (port, authority):
        url = f"https://localhost:{port}"
        settings = environment(issuer, url) | {
            "PORT": str(port),
            "TLS_CERT": str(authority),
            "TLS_KEY": str(folder / "privkey.pem"),
        }
        with started(command, folder, lambda: is_served(url, authority), **settings):
            yield Api(url, authority, has_own_tls=True)


@contextlib.contextmanager
def express(issuer: RunningServer, folder: Path) -> Iterator[Api]:
    shutil.copy(VERIFIERS / "express.mjs", folder)
    (folder / "node_modules").symlink_to(NODE_MODULES)
    with own_tls(issuer, folder, ["node", "express.mjs"]) as api:
        yield api


@contextlib.contextmanager
def go(issuer: RunningServer, folder: Path) -> Iterator[Api]:
    caches = {"GOCACHE": str(folder / "cache"), "GOFLAGS": "-mod=mod", "HOME": str(folder)}
    program = str(folder / "api")
    build = ["go", "build", "-o", program, "."]
    subprocess.run(build, cwd=VERIFIERS / "go", env=os.environ | caches, check=True, capture_output=True, timeout=300)
    with own_tls(issuer, folder, [program]) as api:
        yield api


KINDS: dict[str, tuple[Callable[..., Any], Callable[[], bool]]] = {
    "flask": (flask, lambda: True),
    "nginx": (nginx, lambda: is_installed("nginx")),
    "envoy": (envoy, lambda: is_installed("envoy")),
    "express": (express, lambda: bool(shutil.which("node")) and NODE_MODULES.is_dir()),
    "go": (go, lambda: shutil.which("go") is not None),
}


@pytest.fixture(scope="module", params=KINDS)
def api(
    request: pytest.FixtureRequest, issuer: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Api]:
    open_api, can_run = KINDS[request.param]
    if not can_run():
        pytest.skip(f"{request.param} is not installed")
    with open_api(issuer, tmp_path_factory.mktemp(request.param)) as opened:
        yield opened


def test_a_bearer_token_that_is_bound_to_nothing_is_accepted(api: Api, issuer: RunningServer) -> None:
    good = token(issuer)
    answer = api.get(good, "Bearer")
    assert answer.status_code == 200, answer.text
    assert answer.json()["caller"]
    for wrong in (None, "x", good[:-8] + "AAAAAAAA"):
        refused = api.get(wrong, "Bearer")
        assert refused.status_code == 401
        assert "Bearer" in refused.headers["WWW-Authenticate"]


def test_a_token_that_is_bound_to_a_key_needs_a_proof(api: Api, issuer: RunningServer) -> None:
    good = token(issuer, with_key=True)
    first = proof(api, good)
    assert api.get(good, "DPoP", DPoP=first).status_code == 200
    stolen = {
        "as a bearer token": api.get(good, "Bearer"),
        "as a bearer token with a proof": api.get(good, "Bearer", DPoP=proof(api, good)),
        "without a proof": api.get(good, "DPoP"),
        "with a proof that was used": api.get(good, "DPoP", DPoP=first),
        "with a proof of another key": api.get(good, "DPoP", DPoP=proof(api, good, signer("ES256"))),
        "for another token": api.get(good, "DPoP", DPoP=proof(api, token(issuer, with_key=True))),
        "for no token": api.get(good, "DPoP", DPoP=proof(api, good, ath=None)),
        "for another method": api.get(good, "DPoP", DPoP=proof(api, good, htm="POST")),
        "for another URL": api.get(good, "DPoP", DPoP=proof(api, good, htu=f"{api.url}/other")),
        "for another API": api.get(good, "DPoP", DPoP=proof(api, good, htu="https://evil.example/things")),
        "of yesterday": api.get(good, "DPoP", DPoP=proof(api, good, iat=1_700_000_000)),
        "of another type": api.get(good, "DPoP", DPoP=sign_proof(KEY, {"typ": "JWT"})),
        "with its name alone": api.get(good, "DPoP", DPoP="proof"),
    }
    assert {name: answer.status_code for name, answer in stolen.items()} == dict.fromkeys(stolen, 401)
    # It is the theft that is refused.
    assert api.get(good, "DPoP", DPoP=proof(api, good)).status_code == 200
    # A token that is not bound needs no proof, and cannot be presented as if it were.
    assert api.get(token(issuer), "DPoP", DPoP=proof(api, good)).status_code == 401


def test_a_token_that_is_bound_to_a_certificate_needs_it(api: Api, issuer: RunningServer) -> None:
    own, other = client_certificate("own"), client_certificate("other")
    good = token(issuer, own)
    assert api.get(good, "Bearer", own).status_code == 200
    assert api.get(good, "Bearer", other).status_code == 401
    assert api.get(good, "Bearer").status_code == 401
    if api.has_own_tls:
        # Headers of the caller must not count.
        forged = {
            "X-Client-Cert": escaped(own)["Client-Cert"],
            "Client-Cert": rfc9440(own)["Client-Cert"],
            "X-Forwarded-Client-Cert": f"Hash={own.fingerprint}",
        }
        assert api.get(good, "Bearer", **forged).status_code == 401
        assert api.get(good, "Bearer", other, **forged).status_code == 401


def test_a_token_that_is_bound_to_both_needs_both(api: Api, issuer: RunningServer) -> None:
    own = client_certificate("own")
    good = token(issuer, own, with_key=True)
    assert api.get(good, "DPoP", own, DPoP=proof(api, good)).status_code == 200
    assert api.get(good, "DPoP", DPoP=proof(api, good)).status_code == 401
    assert api.get(good, "DPoP", own).status_code == 401
