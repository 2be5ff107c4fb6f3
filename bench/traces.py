"""What traces cost a token: none, those that nobody records, a hundredth, and all, each measured in turn.

Run it on a machine that does nothing else, with wrk: `.venv/bin/python bench/traces.py [--rounds 5] [--seconds 4]`.
What takes the spans is a program of its own, whose CPU is not in the figures.
"""

import argparse
import multiprocessing
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection

from load import drive, require_wrk
from subjects import tokenhouse

SAMPLERS = {
    "unrecorded": {"OTEL_TRACES_SAMPLER": "always_off"},
    "a hundredth": {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"},
    "all": {"OTEL_TRACES_SAMPLER": "always_on"},
}


class Sink(BaseHTTPRequestHandler):
    """Takes spans and forgets them."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Say that they were taken."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _serve(said: Connection) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    said.send(server.server_port)
    server.serve_forever()


@contextmanager
def running_sink() -> Iterator[str]:
    """Where spans go, as a URL."""
    heard, said = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(said,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{heard.recv()}"
    finally:
        process.kill()


def main() -> None:
    """Measure, and print medians over the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4)
    given = parser.parse_args()
    require_wrk()
    found: dict[str, list[tuple[float, float, float]]] = {}
    with running_sink() as url:
        on = {"TOKENHOUSE_TRACES": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": url}
        kinds = {"none": {}, **{kind: on | sampler for kind, sampler in SAMPLERS.items()}}
        for _ in range(given.rounds):
            for kind, settings in kinds.items():
                with tokenhouse(settings=settings) as subject:
                    drive(subject, connections=16, seconds=1)
                    told = drive(subject, connections=16, seconds=given.seconds)
                    if told.refused + told.failed:
                        raise SystemExit(f"{kind}: {told.refused} were refused and {told.failed} failed")
                    found.setdefault(kind, []).append((told.cpu_us, told.rate, sum(subject.pss_mib())))
    for kind, cells in found.items():
        cpu, rate, pss = (statistics.median(column) for column in zip(*cells, strict=True))
        by_round = " ".join(f"{cell[0]:.0f}" for cell in cells)
        print(f"{kind:12} {cpu:5.0f} us a token [{by_round}] {rate:6.0f} tokens/s {pss:4.0f} MiB")


if __name__ == "__main__":
    main()
