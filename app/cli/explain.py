"""``flask explain``: what happened to a request, in words, and how to fix it; from the server's log.

No table of requests exists: the audit log has them. Lines may be as the server wrote them, or wrapped by Docker,
journald or a log collector.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from app.cli.output import SingleCommand, json_option, print_fields, print_json, report, shown
from app.errors import ManagementError

_WRAPPINGS = ("log", "MESSAGE", "message", "msg", "line")
"""Names under which others wrap our lines."""

_CONSOLE = re.compile(r"\S+Z (\w+) +((?:\w+=(?:'[^']*'|\S+) ?)+)")
_PAIR = re.compile(r"(\w+)=('[^']*'|\S+)")
"""A line in the format of development."""

_PARAMETERS = "Check what the caller sends: `detail` names the parameter, docs/http.md describes all of them."
_ASSERTION = "docs/client-keys.md says what an assertion must contain."
_REDIS = "Check that Redis runs and that TOKENHOUSE_REDIS_URL is right; `/readyz` shows its state. The caller retries."
_DATABASE = "Check that the database runs and responds; `/readyz` shows its state, standard error has its message."

REFUSALS: Mapping[str, tuple[str, str]] = {
    "unknown_client": (
        "No client has, or ever had, the id that was sent.",
        "`flask clients list` shows all: look for a blank, a typing error, or another installation's settings.",
    ),
    "deleted_client": ("Client {client} was deleted.", "Create another one: `flask clients create NAME`."),
    "disabled_client": ("Client {client} is disabled.", "`flask clients enable {client}` serves it again."),
    "wrong_secret": (
        "The secret is not one of client {client}.",
        "`flask clients secrets {client}` shows the last four characters, `rotate-secret {client}` creates another.",
    ),
    "expired_secret": (
        "The secret of client {client} is right, but has expired.",
        "`flask clients rotate-secret {client}` creates another one.",
    ),
    "revoked_secret": (
        "The secret of client {client} was revoked.",
        "Give the caller its new secret, or create one: `flask clients rotate-secret {client}`.",
    ),
    "other_method_registered": (
        "Client {client} authenticated with another method than the registered one.",
        "`flask clients update {client} --auth-method client_secret` allows it to use Basic and the body.",
    ),
    "no_authentication": (
        "The request had no credentials.",
        "Send id and secret by Basic, or as client_id and client_secret in the body. A proxy may remove headers.",
    ),
    "unsupported_scheme": ("Its Authorization header is not Basic.", "Send Basic, or the credentials in the body."),
    "malformed_credentials": (
        "Its credentials cannot be parsed, or contain characters that no id or secret has.",
        "Check whether the secret ends in a line break, or was encoded twice.",
    ),
    "several_authentications": ("It authenticated with two methods at once.", "Send Basic or the body, not both."),
    "repeated_authorization": ("It had two Authorization headers.", "Send one; a proxy may have added the other."),
    "other_client_id": (
        "The client_id in its body is not the client that authenticated.",
        "Leave client_id out of the body, or send the same.",
    ),
    "assertion_malformed": ("Its assertion is no JWT.", _ASSERTION),
    "assertion_type_unknown": ("Its client_assertion_type is not that of a JWT.", _ASSERTION),
    "assertion_algorithm": ("Its assertion is signed with an algorithm that is not supported.", _ASSERTION),
    "assertion_other_type": ("Its assertion is a JWT for another purpose.", _ASSERTION),
    "unreadable_secret": (
        "A secret of client {client} is encrypted with a key that has left the settings.",
        "Put it back into TOKENHOUSE_ENCRYPTION_KEYS: `flask clients secrets --by-encryption-key` counts such secrets.",
    ),
    "assertion_signature": (
        "Its assertion was not signed with a key that client {client} has registered.",
        "`flask clients keys {client}` shows what is registered; `keys-add {client} FILE` adds another.",
    ),
    "assertion_of_another": ("Its assertion has an iss that is not its sub.", _ASSERTION),
    "assertion_audience": ("The audience of its assertion is not this server, or not this server alone.", _ASSERTION),
    "assertion_times": ("Its assertion lacks exp or iat, or they are not whole numbers.", _ASSERTION),
    "assertion_without_id": ("Its assertion lacks a jti.", _ASSERTION),
    "assertion_expired": (
        "Its assertion has expired.",
        "Sign a new one for each request; check that the clocks agree.",
    ),
    "assertion_in_the_future": ("Its assertion was issued in the future.", "Check that the machines' clocks agree."),
    "assertion_too_long": (
        "The lifetime of its assertion is too long.",
        "Let it expire within minutes, at most within an hour.",
    ),
    "assertion_replayed": (
        "Its assertion was used before: a request was repeated, or an assertion was stolen.",
        "Sign a new one for each request, for a retry too.",
    ),
    "missing_parameter": ("A required parameter is missing.", _PARAMETERS),
    "repeated_parameter": ("A parameter was repeated.", _PARAMETERS),
    "query_parameter": (
        "A parameter was in its URL, where proxies log it.",
        "Send parameters in the body. If it was a secret, it is in logs now: `flask clients rotate-secret ID`.",
    ),
    "not_a_form": ("Its body was not a form.", "Send Content-Type: application/x-www-form-urlencoded, not JSON."),
    "malformed_form": ("Its body was not a form in UTF-8.", "Percent-encode what is not a letter or a digit."),
    "incomplete_body": (
        "Its body ended before it was complete.",
        "Look for a proxy or a caller that gives up early.",
    ),
    "body_too_large": (
        "Its body was longer than 16 KiB.",
        "No token request is nearly as long: check the caller.",
    ),
    "grant_not_allowed": (
        "Client {client} may not use this grant.",
        "`flask clients update {client} --grant-type client_credentials` allows it.",
    ),
    "unknown_grant_type": ("The grant type is not supported.", "Send grant_type=client_credentials."),
    "malformed_scope": ("Its scope breaks the grammar.", "Send scopes with one blank between them."),
    "scope_not_granted": (
        "Client {client} requested scopes that it was not granted.",
        'Request fewer, or grant all that it needs: `flask clients update {client} --scope "…"`.',
    ),
    "malformed_resource": (
        "A resource in it is not an absolute URI.",
        "Send a URI with a scheme and without a fragment.",
    ),
    "resource_not_granted": (
        "Client {client} requested a resource that is not among its audiences.",
        "`flask clients update {client} --audience …` replaces them.",
    ),
    "no_signing_key": ("No key may sign now.", "`flask keys list` shows why."),
    "no_key_ring": ("The key ring cannot be read.", "`flask keys check` says why."),
    "audit_log_stalled": (
        "The audit log takes no lines, and the settings require a line for each token.",
        "Check who reads standard output, and whether the disk is full.",
    ),
    "tokens_just_revoked": (
        "All tokens of client {client} were revoked in that second, and it requested many in the same second.",
        "The caller retries. If this lasts, the clocks of two machines differ.",
    ),
    "not_made_to_introspect": (
        "Client {client} requested the revocation feed, but may not introspect.",
        "`flask clients update {client} --introspect URI` names the API that it verifies tokens for.",
    ),
    "database_silent": ("The database did not respond for seconds.", _DATABASE),
    "redis_silent": ("Redis did not respond for seconds.", _REDIS),
    "redis_": ("Redis did not respond, so whether the assertion was used before could not be checked.", _REDIS),
    "database_": ("The database did not respond.", _DATABASE),
    "unexpected_": (
        "The server has a fault.",
        "Standard error has the traceback under the same request id: please report it.",
    ),
}
"""What each reason of a refusal means, and its fix. Reasons that end in ``_`` are prefixes."""

ABOUT_TOKENS: Mapping[str, tuple[str, str]] = {
    "not_for_this_caller": (
        "The token is valid, but for no resource that client {client} may introspect.",
        "`flask clients update {client} --introspect URI` names all of its resources.",
    ),
    "other_clients_token": ("It is another client's token, and was not revoked.", "Only its own client may revoke it."),
    "unknown_client": ("No client has the token's client_id.", ""),
    "deleted_client": ("The token's client was deleted.", ""),
    "disabled_client": (
        "The token's client is disabled.",
        "`flask clients enable ID`, then the client must fetch a new token.",
    ),
    "tokens_revoked": ("All tokens that its client had were revoked.", "The client must fetch a new one."),
    "revoked_token": ("The token was revoked.", "The client must fetch a new one."),
    "expired": ("The token has expired.", "The client must fetch a new one before its `expires_in` is over."),
    "not_yet": ("The token was issued in the future.", "Check that the machines' clocks agree."),
    "other_issuer": ("Another server issued the token.", "Look for a trailing slash, or http for https, in an `iss`."),
    "malformed_token": ("It is not a token.", "Check whether it was truncated, or has `Bearer` before it."),
    "other_type": ("It is a signed statement, but not an access token.", ""),
    "critical_header": ("It requires extensions that are not supported.", ""),
    "unknown_key": (
        "It was signed with a key that is not in our ring.",
        "Check whether another installation issued it.",
    ),
    "other_algorithm": ("Its alg is not that of the key that it names: it may be an attack.", ""),
    "wrong_signature": ("It was modified or forged.", ""),
    "revoked_key": ("The key that signed it was revoked.", "The client must fetch a new one."),
    "key_gone": ("The key that signed it has retired.", "The client must fetch a new one."),
    "missing_claim": ("A claim is missing or has the wrong type.", ""),
}
"""Why a token was not active, or was not revoked."""


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
            "in it for what was refused before it reached an endpoint?"
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
    if event in {"TokenIntrospected", "TokenRevoked"}:
        known = ABOUT_TOKENS.get(reason)
    elif event in {"TokenRefused", "RequestRefused"}:
        known = REFUSALS.get(reason) or next(
            (message for start, message in REFUSALS.items() if start.endswith("_") and reason.startswith(start)), None
        )
    else:
        return "It did not reach an endpoint, or the line says more.", ""
    if known is None:
        return f"This version does not know the reason {shown(reason)}.", ""
    message, fix = known
    return message.format(client=client), fix.format(client=client)


def _lines_of(request_id: str, log: str) -> Iterator[dict[str, Any]]:
    """Yield the log's lines about a request."""
    wanted = request_id.encode(errors="surrogateescape")
    try:
        with sys.stdin.buffer if log == "-" else Path(log).open("rb") as lines:
            for line in _holding(wanted, lines):
                facts = _unwrapped(line)
                about = str(facts.get("event", ""))
                if facts.get("request_id") == request_id or about.endswith(f"request_id={request_id}"):
                    yield facts
    except OSError as error:
        raise ManagementError(f"the log {log} cannot be read: {error.strerror}") from None


def _holding(wanted: bytes, lines: Iterable[bytes]) -> Iterator[str]:
    for line in lines:
        if wanted in line:
            yield line.decode(errors="replace")


def _unwrapped(line: str) -> dict[str, Any]:
    """Parse the object in a line, whatever precedes it, and however often it was wrapped."""
    if words := _CONSOLE.fullmatch(line.strip()):
        return {"event": words[1], **{name: value.strip("'") for name, value in _PAIR.findall(words[2])}}
    start = line.find("{")
    try:
        facts = json.loads(line[start:]) if start >= 0 else None
    except (ValueError, RecursionError):
        return {}
    if not isinstance(facts, dict):
        return {}
    if "event" not in facts:
        for name in _WRAPPINGS:
            if isinstance(facts.get(name), str):
                return _unwrapped(facts[name])
    return facts
