"""``flask doctor``: print what ``app.operations.doctor`` finds wrong with this installation."""

import http.client
import json
from dataclasses import asdict
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import click
from flask.cli import with_appcontext

from app.cli.output import SingleCommand, json_option, print_json, print_line
from app.config.settings import Settings
from app.operations.doctor import examine
from app.operations.findings import Finding, Severity
from app.services import services

SECONDS = 5
MOST_BYTES = 64 * 1024


@click.command("doctor", cls=SingleCommand)
@click.option("--offline", is_flag=True, help="Do not fetch the metadata at the issuer's URL.")
@json_option
@with_appcontext
@click.pass_context
def doctor(context: click.Context, *, offline: bool, as_json: bool) -> None:
    """Check settings, keys, database and their surroundings; print what is wrong, why it matters and how to fix it.

    Exits with status 1 if there are errors. Changes nothing.
    """
    found = list(examine(services()))
    if not offline:
        found.append(_ask_as_verifiers_do(services().settings))
    if as_json:
        print_json([asdict(one) for one in found])
    else:
        for one in sorted(found, key=lambda one: list(Severity).index(one.severity)):
            _print(one)
    if any(one.severity is Severity.ERROR for one in found):
        context.exit(1)


def _print(found: Finding) -> None:
    print_line(f"{found.severity:<8} {found.check}: {found.what}")
    for word, message in (("why", found.why), ("fix", found.how)):
        if message:
            print_line(f"{'':<8}   {word}: {message}")


def _ask_as_verifiers_do(settings: Settings) -> Finding:
    """Check whether the metadata at the issuer's URL is this installation's."""
    url = f"{settings.issuer}/.well-known/openid-configuration"
    why = "verifiers and clients begin there"
    try:
        with urlopen(Request(url, headers={"Accept": "application/json"}), timeout=SECONDS) as answer:  # noqa: S310 - Of the settings.
            document: Any = json.loads(answer.read(MOST_BYTES))
    except (URLError, OSError, ValueError, http.client.HTTPException) as error:
        message = getattr(error, "reason", None) or error
        how = "check that the server runs, that the proxy forwards this path, and that the name resolves from here"
        return Finding("metadata", Severity.WARNING, f"{url} cannot be read: {message}", why, how)
    theirs = document.get("issuer") if isinstance(document, dict) else None
    if theirs != settings.issuer:
        return Finding(
            "metadata",
            Severity.ERROR,
            f"{url} says that the issuer is {json.dumps(theirs)}",
            "verifiers compare it to the letter, and refuse the tokens of this one",
            "TOKENHOUSE_ISSUER must be the URL by which all reach the server",
        )
    return Finding("metadata", Severity.OK, f"{url} is this installation's")
