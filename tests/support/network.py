"""A network between a server and a service, which can be cut: data and connections wait, as behind a lost switch."""

import contextlib
import socket
import threading
from pathlib import Path


class Network:
    """Listens on a free port, and hands everything on to a Unix socket."""

    def __init__(self, upstream: Path) -> None:
        self._upstream = str(upstream)
        self._works = threading.Event()
        self._works.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._listener.getsockname()[1])

    def cut(self) -> None:
        """Let nothing through any more."""
        self._works.clear()

    def heal(self) -> None:
        """Let everything through again, what has waited first."""
        self._works.set()

    def close(self) -> None:
        """Refuse new connections."""
        self.heal()
        # Ends the thread that accepts; closing alone would not.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(near,), daemon=True).start()

    def _connect(self, near: socket.socket) -> None:
        with near, socket.socket(socket.AF_UNIX) as far:
            self._works.wait()
            with contextlib.suppress(OSError):
                far.connect(self._upstream)
                back = threading.Thread(target=self._pass_on, args=(far, near), daemon=True)
                back.start()
                self._pass_on(near, far)
                back.join()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                self._works.wait()
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
