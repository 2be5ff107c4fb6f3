"""The HTTP server of the metrics listener: few connections, each for a short time.

prometheus-client's own has neither a timeout nor a limit, so half-sent requests would take the worker's threads and
file descriptors.
"""

import contextlib
import socket
import threading
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import make_wsgi_app

CONNECTION_SECONDS = 5.0
"""How long a connection may take in all, from its first byte to the end of the response."""

MOST_CONNECTIONS = 8
"""Further ones are closed at once."""


class _Handler(WSGIRequestHandler):
    """Logs nothing."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - The name of the base class.
        """Log nothing."""


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = MOST_CONNECTIONS

    def __init__(self, *arguments: Any) -> None:
        self._free = threading.BoundedSemaphore(MOST_CONNECTIONS)
        super().__init__(*arguments)

    def server_bind(self) -> None:
        """Bind without looking up the name of this host, which can take long."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in a thread, or close it if there are too many."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle a connection until it ends or its time is over."""
        over = threading.Timer(CONNECTION_SECONDS, _cut, (request,))
        over.daemon = True
        over.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            over.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore a caller that leaves, or whose time is over."""


def serve(host: str, port: int, registry: CollectorRegistry) -> None:
    """Serve the metrics of ``registry`` in a thread, until this process ends.

    :raises OSError: the address cannot be used.
    """
    family, _, _, _, address = next(iter(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
    server_class = type("_Server", (_Server,), {"address_family": family})
    server = server_class(address[:2], _Handler)
    server.set_app(make_wsgi_app(registry))
    threading.Thread(target=server.serve_forever, daemon=True).start()


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
