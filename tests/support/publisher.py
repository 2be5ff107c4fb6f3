"""Somebody else's web server, that publishes keys, well or badly."""

import contextlib
import datetime as dt
import ipaddress
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

Answer = Callable[[BaseHTTPRequestHandler], None]


class Publisher(ThreadingHTTPServer):
    """Answers every GET in the same way, and counts them."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer: Answer = lambda handler: send(handler, b"{}")
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.scheme, self.host = "http", "127.0.0.1"

    @property
    def url(self) -> str:
        """Where the keys are."""
        return f"{self.scheme}://{self.host}:{self.server_address[1]}/jwks.json"

    def publish(self, *jwks: dict[str, Any], max_age: int | None = None) -> None:
        """Serve these public keys from now on."""
        headers = {} if max_age is None else {"Cache-Control": f"public, max-age={max_age}"}
        body = json.dumps({"keys": list(jwks)}).encode()
        self.answer = lambda handler: send(handler, body, **headers)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who leaves in the middle is what is tested."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Publisher

    def do_GET(self) -> None:
        self.server.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        self.server.answer(self)

    def log_message(self, *_: object) -> None:
        pass


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    """A whole answer."""
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


@contextlib.contextmanager
def publishing(tls: ssl.SSLContext | None = None) -> Iterator[Publisher]:
    """A server that runs within; by https, as ``localhost``, with ``tls``."""
    with Publisher() as server:
        if tls:
            server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
            server.scheme, server.host = "https", "localhost"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def certified(folder: Path, *names: str) -> tuple[ssl.SSLContext, Path]:
    """A server's side of TLS for ``names``, and the file of who has certified it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "A test")])
    now = dt.datetime.now(dt.UTC)
    alternatives = [
        x509.IPAddress(ipaddress.ip_address(one)) if one[0].isdigit() else x509.DNSName(one) for one in names
    ]
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, key_pem = folder / "certificate.pem", folder / "certificate-key.pem"
    pem.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key_pem)
    return context, pem
