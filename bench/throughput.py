"""How many tokens a second, how fast, for how much CPU and memory: ``make bench`` and ``make bench-peers``.

Interleaved rounds: each round measures every server in every condition, in an order that rotates, with what ``openssl
speed rsa2048`` says of the machine right before. Printed are medians with the lowest and the highest; all that was
measured goes into a JSON file. Nothing is asserted.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import requests
from load import Load, drive, fetch, require_wrk
from subjects import (
    ROOT,
    WORKERS,
    Subject,
    careful_authlib,
    empty_flask,
    granian,
    gthread,
    node_oauth2_server,
    oidc_provider,
    openssl_signatures_a_second,
    tokenhouse,
)

SUBJECTS: dict[str, Callable[[], AbstractContextManager[Subject]]] = {
    "tokenhouse": tokenhouse,
    "tokenhouse ES256": partial(tokenhouse, "tokenhouse ES256", alg="ES256"),
    "tokenhouse PostgreSQL": partial(tokenhouse, "tokenhouse PostgreSQL", on_postgresql=True),
    "tokenhouse 10,000 clients": partial(tokenhouse, "tokenhouse 10,000 clients", clients=10_000),
    "tokenhouse 1,000,000 clients": partial(tokenhouse, "tokenhouse 1,000,000 clients", clients=1_000_000),
}
PEERS: dict[str, Callable[[], AbstractContextManager[Subject]]] = {
    "oidc-provider": oidc_provider,
    "node-oauth2-server": node_oauth2_server,
    "careful Authlib": careful_authlib,
}
JWKS = "/.well-known/jwks.json"
METADATA = "/.well-known/oauth-authorization-server"
RESULTS = ROOT / "bench" / "results"
TOKENS_FOR_SIZE = 100_000
WARM_UP_SECONDS = 10
Cells = dict[tuple[str, str], list[dict[str, Any]]]


def conditions(subject: Subject, options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Load]]]:
    """What ``subject`` is measured in, one after the other."""
    seconds = options.seconds
    if subject.name == "empty Flask view":
        yield "view", partial(fetch, subject, "/", connections=16, seconds=seconds)
        return
    latest: list[Load] = []

    def tokens(connections: int) -> Load:
        load = drive(subject, connections=connections, seconds=seconds)
        latest.append(load)
        return load

    yield "tokens, 16 connections", partial(tokens, 16)
    if options.short and subject.name != "tokenhouse":
        return
    if not options.short:
        # Half of what it has just done: each connection pauses for what is left of its share of time.
        yield "tokens, half load", lambda: drive(subject, connections=16, seconds=seconds, pause_ms=_pause(latest[0]))
        yield "tokens, 1 connection", partial(tokens, 1)
        yield "tokens, 64 connections", partial(tokens, 64)
    if subject.name == "tokenhouse":
        yield "refused", partial(drive, subject, connections=16, seconds=seconds, authorizations=subject.wrong)
        yield "JWKS", partial(fetch, subject, JWKS, connections=16, seconds=seconds)
        yield "metadata", partial(fetch, subject, METADATA, connections=16, seconds=seconds)
        etag = requests.get(f"{subject.url}{JWKS}", timeout=5).headers["ETag"]
        yield "JWKS, not modified", partial(fetch, subject, JWKS, connections=16, seconds=seconds, etag=etag)


def _pause(full: Load) -> float:
    """Milliseconds between two requests of one of 16 connections that are to send half of ``full``."""
    return max(0.0, 16 / (full.rate / 2) * 1000 - full.p50_ms / 2)


def measure(subjects: Sequence[Subject], options: argparse.Namespace) -> Cells:
    """All rounds."""
    cells: Cells = defaultdict(list)
    for subject in subjects:
        if subject.name != "empty Flask view":
            # Node compiles while it runs: its figures double within the first seconds.
            drive(subject, connections=16, seconds=1 if options.short else WARM_UP_SECONDS)
    for number in range(options.rounds):
        first = number % len(subjects)
        for subject in [*subjects[first:], *subjects[:first]]:
            for condition, run in conditions(subject, options):
                openssl = openssl_signatures_a_second(WORKERS)
                load = run()
                cells[subject.name, condition].append(
                    {**asdict(load), "rate": load.rate, "cpu_us": load.cpu_us, "openssl": openssl}
                )
        print(f"round {number + 1} of {options.rounds} is done", flush=True)
    return cells


def sizes(subjects: Sequence[Subject]) -> dict[str, Any]:
    """Bytes of each database before and after many tokens."""
    found = {}
    for subject in subjects:
        if subject.database_bytes is None:
            continue
        # Uses are noted every few seconds: once for all clients before the first look.
        drive(subject, connections=16, seconds=1)
        time.sleep(6)
        before, issued = subject.database_bytes(), 0
        while issued < TOKENS_FOR_SIZE:
            issued += drive(subject, connections=16, seconds=10).requests
        time.sleep(6)
        found[subject.name] = {"tokens": issued, "bytes_before": before, "bytes_after": subject.database_bytes()}
    return found


def told(cells: Cells) -> Iterator[str]:
    """The table."""
    yield f"{'':28} {'a second':>22} {'of openssl':>10} {'a CPU-s':>8} {'CPU µs':>7} {'p50 ms':>7} {'p99 ms':>7}  bad"
    for condition in dict.fromkeys(condition for _, condition in cells):
        yield condition
        for (name, mine), runs in cells.items():
            if mine != condition:
                continue
            middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            rates = [run["rate"] for run in runs]
            spread = f"{middle['rate']:,.0f} [{min(rates):,.0f}-{max(rates):,.0f}]"
            share = statistics.median(run["rate"] / run["openssl"] for run in runs)
            bad = sum(run["failed"] + (0 if condition == "refused" else run["refused"]) for run in runs)
            yield (
                f"  {name:26} {spread:>22} {share:>10.3f} {1e6 / max(middle['cpu_us'], 1):>8,.0f} "
                f"{middle['cpu_us']:>7,.0f} {middle['p50_ms']:>7.2f} {middle['p99_ms']:>7.2f}  {bad:.0f}"
            )


def ratios(cells: Cells) -> Iterator[str]:
    """Tokenhouse against each other server, round by round."""
    mine = cells.get(("tokenhouse", "tokens, 16 connections"), [])
    for (name, condition), runs in cells.items():
        if condition == "tokens, 16 connections" and name != "tokenhouse" and mine:
            of_rounds = [one["rate"] / other["rate"] for one, other in zip(mine, runs, strict=True)]
            yield f"tokenhouse / {name}: {statistics.median(of_rounds):.2f} [{min(of_rounds):.2f}-{max(of_rounds):.2f}]"


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5, help="of each cell")
    parser.add_argument("--peers", action="store_true", help="other OAuth servers in the same rounds")
    parser.add_argument("--short", action="store_true", help="one round of a second, fewer conditions and clients")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these servers alone")
    options = parser.parse_args()
    require_wrk()
    chosen = {**SUBJECTS, **(PEERS if options.peers else {}), "empty Flask view": empty_flask}
    if importlib.util.find_spec("granian"):
        chosen["tokenhouse, granian"] = granian
    chosen["tokenhouse, gthread"] = gthread
    if options.short:
        options.rounds, options.seconds = 1, 1
        del chosen["tokenhouse 1,000,000 clients"]
    if options.only:
        chosen = {name: make for name, make in chosen.items() if name in options.only}
    with contextlib.ExitStack() as stack:
        subjects = []
        for name, make in chosen.items():
            print(f"starting {name}", flush=True)
            subjects.append(stack.enter_context(make()))
        cells = measure(subjects, options)
        memory = {subject.name: subject.pss_mib() for subject in subjects}
        starts = {subject.name: subject.start_seconds for subject in subjects}
        growth = {} if options.short else sizes(subjects)
    print("\n".join(["", *told(cells), "", *ratios(cells), ""]))
    for name, parts in memory.items():
        listed = " + ".join(f"{part:.0f}" for part in parts)
        print(f"{name:28} {sum(parts):5.0f} MiB PSS ({listed}), answers {starts[name]:.2f} s after its start")
    for name, size in growth.items():
        print(
            f"{name:28} {size['bytes_before']:,} bytes of database before {size['tokens']:,} tokens, "
            f"{size['bytes_after']:,} after"
        )
    kept = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "kernel": platform.release()},
        "options": vars(options),
        "cells": [{"server": name, "condition": condition, "runs": runs} for (name, condition), runs in cells.items()],
        "pss_mib": memory,
        "start_seconds": starts,
        "database": growth,
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
    file.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"\nAll figures: {file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}")


if __name__ == "__main__":
    main()
