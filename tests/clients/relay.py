"""A relay before a real Tokenhouse: passes every byte on, and tells afterwards what a client sent.

The relay's address is the issuer, so that clients which discover their endpoints come through it too.
"""

import base64
import contextlib
import http.client
import io
import secrets
import socket
import socketserver
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from operator import itemgetter
from pathlib import Path
from typing import Any

from support.assertions import Signer
from support.server import NewClient, RunningServer, running_server

from app.clients.fields import ClientFields

AUDIENCE = "https://api.example.com"
"""The API that the tokens of these tests are for."""

GRANTED = {"token_type": "Bearer", "expires_in": 3600, "scope": "read write"}
"""The answer to a client made by ``Harness.register``, without the token."""

REFUSED = {"error": "invalid_client", "error_description": "Client authentication failed."}
CHALLENGE = 'Basic realm="tokenhouse", error="invalid_client", error_description="Client authentication failed."'

SETTINGS = {"TOKENHOUSE_PUBLISH_SCOPES": "false", "TOKENHOUSE_ENCRYPTION_KEYS": f"k1:{'e' * 40}"}

AWKWARD_SECRET = "50%+25:a b/c=d&e%41%2Bf-_.~"
"""A secret taken over from elsewhere, with all that encodings trip over, well-formed escapes included."""

_CHUNK_BYTES = 65536


@dataclass(frozen=True)
class SentRequest:
    """A request as it went over the wire; a chunked body stands put together again. Names of headers in lower case."""

    method: str
    target: str
    http_version: str
    headers: dict[str, str]
    body: bytes

    @property
    def credentials(self) -> str | None:
        """What stood in ``Authorization: Basic``, without the base64."""
        scheme, _, encoded = self.headers.get("authorization", "").partition(" ")
        return base64.b64decode(encoded).decode() if scheme == "Basic" else None


class Relay(socketserver.ThreadingTCPServer):
    """Listens on a free port of its own."""

    daemon_threads = True
    allow_reuse_address = True
    upstream_port: int

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self._received: list[tuple[object, bytes]] = []

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def note(self, connection: object, chunk: bytes) -> None:
        """Keep what a client sent on a connection."""
        self._received.append((connection, chunk))

    def take(self) -> list[SentRequest]:
        """All requests since the last time, in the order in which they began."""
        received, self._received = self._received, []
        found = []
        for connection in {connection for connection, _ in received}:
            own = [(order, chunk) for order, (owner, chunk) in enumerate(received) if owner is connection]
            chunk_ends = list(accumulate(len(chunk) for _, chunk in own))
            for offset, request in _read_requests(b"".join(chunk for _, chunk in own)):
                order, _ = own[bisect_right(chunk_ends, offset)]
                found.append((order, request))
        return [request for _, request in sorted(found, key=itemgetter(0))]


class _Connection(socketserver.BaseRequestHandler):
    """One client's connection, with one to the server behind it."""

    server: Relay
    request: socket.socket

    def handle(self) -> None:
        """Pass bytes on in both directions until both have ended."""
        with socket.create_connection(("127.0.0.1", self.server.upstream_port)) as upstream:
            back = threading.Thread(target=_pump, args=(upstream, self.request, None), daemon=True)
            back.start()
            _pump(self.request, upstream, partial(self.server.note, self))
            back.join()


def _pump(source: socket.socket, sink: socket.socket, note: Callable[[bytes], None] | None) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(_CHUNK_BYTES):
            if note:
                note(chunk)
            sink.sendall(chunk)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def _read_requests(received: bytes) -> Iterator[tuple[int, SentRequest]]:
    """Take apart what came on one connection: where each request began, and the request."""
    stream = io.BytesIO(received)
    offset = 0
    while line := stream.readline():
        method, target, version = line.decode().split()
        headers = {name.lower(): value for name, value in http.client.parse_headers(stream).items()}
        if headers.get("transfer-encoding") == "chunked":
            body = b"".join(_read_chunks(stream))
        else:
            body = stream.read(int(headers.get("content-length", "0")))
        yield offset, SentRequest(method, target, version, headers, body)
        offset = stream.tell()


def _read_chunks(stream: io.BytesIO) -> Iterator[bytes]:
    while size := int(stream.readline(), 16):
        yield stream.read(size)
        stream.readline()
    stream.readline()


@dataclass(frozen=True)
class Harness:
    """A Tokenhouse whose issuer is the URL at which clients reach it."""

    server: RunningServer
    relay: Relay

    @property
    def url(self) -> str:
        """The issuer."""
        return self.relay.url

    @property
    def token_url(self) -> str:
        """The token endpoint."""
        return f"{self.url}/oauth/token"

    @property
    def jwks_url(self) -> str:
        """Where verifiers fetch the keys."""
        return f"{self.url}/.well-known/jwks.json"

    def register(self, *, id_prefix: str | None = None, secret: str | None = None, **fields: Any) -> NewClient:
        """Make a client for :data:`AUDIENCE`; with a prefix, its id is as if taken over, and unlike any other."""
        taken_over = {"secret": secret} if secret else {}
        client_id = f"{id_prefix}{secrets.token_hex(4)}" if id_prefix else None
        defaults = {"scope": ("read", "write"), "audiences": (AUDIENCE,)}
        return self.server.create_client(client_id=client_id, **taken_over, **defaults | fields)

    def register_keyed(self, *signers: Signer, assertion_audience: str = "issuer") -> str:
        """Make a client for :data:`AUDIENCE` that signs assertions; its id."""
        keys = {"keys": [one.jwk | {"kid": one.kid} for one in signers]}
        auth_fields = {"jwks": keys, "assertion_audience": assertion_audience}
        fields = ClientFields(
            client_name="Keyed",
            audiences=(AUDIENCE,),
            token_endpoint_auth_method="private_key_jwt",
            auth_fields=auth_fields,
        )
        with self.server.context():
            row, _ = self.server.services.clients.repository.register(fields, with_secret=False)
            return str(row.client_id)

    def register_awkward_for_raw(self) -> NewClient:
        """Make a client with all that a raw ``Authorization: Basic`` can carry: no colon in the id."""
        return self.register(id_prefix="night job/1+1=2&3%20", secret=AWKWARD_SECRET)

    def register_awkward_for_encoded(self) -> NewClient:
        """Make a client with all that a form-encoded ``Authorization: Basic`` can carry."""
        return self.register(id_prefix="night job: 1+1=2&3%20", secret=AWKWARD_SECRET)

    def verified(self, access_token: str) -> dict[str, Any]:
        """The claims of a good token, in the order in which they stand in it."""
        return self.server.verify(access_token, AUDIENCE)

    def check_answer(self, answer: dict[str, Any], client: NewClient, scope: str = "read write") -> None:
        """See that ``answer`` is exactly what the contract promises, with a good token of ``client``."""
        access_token = answer["access_token"]
        assert answer == {"access_token": access_token, **GRANTED, "scope": scope}
        claims = self.verified(access_token)
        assert claims == {
            "iss": self.url,
            "sub": client.client_id,
            "client_id": client.client_id,
            "aud": AUDIENCE,
            "iat": claims["iat"],
            "exp": claims["iat"] + 3600,
            "jti": claims["jti"],
            "scope": scope,
        }

    def sent(self) -> list[SentRequest]:
        """What came over the wire since the last time."""
        return self.relay.take()

    def only_sent(self) -> SentRequest:
        """The one request since the last time."""
        (request,) = self.sent()
        return request


@contextlib.contextmanager
def running_house(folder: Path, **settings: str) -> Iterator[Harness]:
    """Serve a fresh installation behind a relay for as long as the block runs."""
    with (
        Relay() as relay,
        running_server(folder, TOKENHOUSE_ISSUER=relay.url, **SETTINGS | settings) as server,
    ):
        relay.upstream_port = server.port
        listening = threading.Thread(target=relay.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        listening.start()
        try:
            yield Harness(server, relay)
        finally:
            relay.shutdown()
            listening.join()
