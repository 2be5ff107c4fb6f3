"""``flask explain``: what happened to a request, in words, and how to fix it; from the server's log.

No table of requests exists: the audit log has them.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from app.audit.lines import parse_line
from app.cli.output import SingleCommand, json_option, print_fields, print_json, report, shown
from app.errors import ManagementError
from app.reasons import RefusalReason, TokenReason


@click.command("explain", cls=SingleCommand)
@click.argument("request_id")
@click.argument("log", default="-")
@json_option
def explain(request_id: str, log: str, *, as_json: bool) -> None:
    """Explain what happened to the request REQUEST_ID (its X-Request-ID), from the log in LOG or on standard input."""
    if log == "-" and sys.stdin.isatty():
        raise ManagementError(f"give the audit log: `flask explain {request_id} FILE`, or on standard input")
    found = list(_lines_of(request_id, log))
    if not found:
        raise ManagementError(
            f"no line of the log is about request {request_id}. Is it the whole log, and JSON, with standard error "
            "in it for what was refused before it reached an endpoint? Another server may have handled the request: "
            "each line names its `server`, and `flask servers` lists them. Refusals beyond a rate limit have no line "
            "each: `RefusalsSummarized` lines count them"
        )
    if as_json:
        print_json([{"line": facts, "told": message, "mend": fix} for facts, (message, fix) in map(_explained, found)])
        return
    for facts, (message, fix) in map(_explained, found):
        print_fields({shown(name): shown(value) for name, value in facts.items()})
        report(message)
        if fix:
            report(f"Fix: {fix}")


def _explained(facts: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, str]]:
    return facts, _in_words(facts)


def _in_words(facts: Mapping[str, Any]) -> tuple[str, str]:
    """Return what happened, and how to fix it."""
    event, reason, client = facts.get("event"), str(facts.get("reason", "")), shown(facts.get("client_id", "ID"))
    if event == "TokenIssued":
        return f"Client {client} got a token: nothing is wrong with this request.", ""
    if event in {"TokenIntrospected", "TokenRevoked"} and not reason:
        done = "introspected a token, which is active" if event == "TokenIntrospected" else "revoked a token"
        return f"Client {client} {done}.", ""
    known: RefusalReason | TokenReason | None
    if event in {"TokenIntrospected", "TokenRevoked"}:
        known = TokenReason.of_code(reason)
    elif event in {"TokenRefused", "RequestRefused"}:
        known = RefusalReason.of_code(reason)
    else:
        return "It did not reach an endpoint, or the line says more.", ""
    if known is None:
        return f"This version does not know the reason {shown(reason)}.", ""
    return known.meaning.format(client=client), known.fix.format(client=client)


def _lines_of(request_id: str, log: str) -> Iterator[dict[str, Any]]:
    """Yield the log's lines about a request."""
    wanted = request_id.encode(errors="surrogateescape")
    try:
        with sys.stdin.buffer if log == "-" else Path(log).open("rb") as lines:
            for line in _holding(wanted, lines):
                facts = parse_line(line)
                about = str(facts.get("event", ""))
                if facts.get("request_id") == request_id or about.endswith(f"request_id={request_id}"):
                    yield facts
    except OSError as error:
        raise ManagementError(f"the log {log} cannot be read: {error.strerror}") from None


def _holding(wanted: bytes, lines: Iterable[bytes]) -> Iterator[str]:
    for line in lines:
        if wanted in line:
            yield line.decode(errors="replace")
