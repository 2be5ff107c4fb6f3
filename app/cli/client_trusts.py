"""``flask clients trust``, ``trusts``, ``untrust``, ``trust-test``: platforms whose tokens authenticate a client."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
from flask.cli import with_appcontext

from app.cli.client_keys import read_key_file, report_skipped
from app.cli.output import json_option, print_json, print_table, read_secret, report, timestamp
from app.clients import trust_rules
from app.clients.trust_rules import Trust
from app.clients.trusts import to_trust
from app.crypto.jws import parse_unverified
from app.database.models import ClientTrustRow
from app.errors import ManagementError
from app.oauth.client_auth.federated_jwt import examine_token
from app.oauth.requests import ASSERTION_MAX_CHARACTERS
from app.services import services

_PRESETS: Mapping[str, Callable[[str, str], tuple[str, str]]] = {
    "kubernetes": trust_rules.kubernetes,
    "github": trust_rules.github,
    "gitlab": trust_rules.gitlab,
    "spiffe": trust_rules.spiffe,
}
_SHOWN_CHARACTERS = 60


@click.command("trust")
@with_appcontext
@click.argument("client_id", metavar="ID")
@click.option("--issuer", default="", metavar="URL", help="The platform, exactly as its tokens have it in iss.")
@click.option("--subject", metavar="PATTERN", help="The sub of its tokens; * may end it, after a : or a /.")
@click.option("--claim", "claims", multiple=True, metavar="K=V", help="A further claim; K may be a path: a/b.")
@click.option("--kubernetes", metavar="NS/SA", help="A service account of a cluster, whose issuer is --issuer.")
@click.option("--github", metavar="OWNER/REPO[@REF|:environment:NAME]", help="A workflow of GitHub Actions.")
@click.option("--gitlab", metavar="GROUP/PROJECT[@BRANCH]", help="A job of GitLab; --issuer for your own GitLab.")
@click.option("--spiffe", metavar="ID", help="A SPIFFE workload, whose issuer is --issuer.")
@click.option("--audience", metavar="URI", help="The only aud of its tokens. Default: this server's issuer.")
@click.option("--jwks-uri", metavar="URL", help="Where the platform's keys are, if it has no discovery document.")
@click.option("--jwks-file", metavar="FILE|-", help="The platform's keys, if they cannot be fetched from here.")
@click.option("--once", is_flag=True, help="Accept each token once only.")
@json_option
def add_trust(  # noqa: PLR0913 - One for each option.
    client_id: str,
    *,
    issuer: str,
    subject: str | None,
    claims: Sequence[str],
    audience: str | None,
    jwks_uri: str | None,
    jwks_file: str | None,
    once: bool,
    as_json: bool,
    **presets: str | None,
) -> None:
    """Let a client of federated_jwt authenticate with a platform's tokens.

    Say which: --issuer with --subject, --kubernetes or --spiffe; or --github, or --gitlab.
    """
    chosen = [name for name, value in presets.items() if value is not None] + (["subject"] if subject else [])
    if len(chosen) != 1:
        raise ManagementError(f"give one of --subject, {', '.join(f'--{name}' for name in _PRESETS)}")
    if subject is None:
        (name,) = chosen
        issuer, subject = _PRESETS[name](presets[name] or "", issuer)
    if not issuer:
        raise ManagementError("--issuer is missing: the platform, exactly as its tokens have it in iss")
    trust = Trust(issuer, subject, _parse_claims(claims), audience or services().settings.issuer, once)
    if jwks_uri and jwks_file:
        raise ManagementError("--jwks-file and --jwks-uri are two places for keys: give one of them")
    keys = read_key_file(jwks_file) if jwks_file else None
    row, warnings, skipped = services().clients.trusts.add(client_id, trust, keys=keys, jwks_uri=jwks_uri)
    report_skipped(skipped)
    if as_json:
        print_json(_describe(row))
    else:
        report(f"{client_id} authenticates with tokens of {row.issuer} whose sub is {row.subject} ({row.trust_id}).")
    for warning in warnings:
        report(f"Warning: {warning}.")


@click.command("trusts")
@with_appcontext
@click.argument("client_id", metavar="ID")
@json_option
def show_trusts(client_id: str, *, as_json: bool) -> None:
    """Show the platforms whose tokens authenticate a client, and whether their keys can be fetched."""
    described = [_describe(row) for row in services().clients.trusts.find(client_id)]
    if as_json:
        print_json(described)
        return
    columns = ("trust", "issuer", "subject", "claims", "audience", "once", "keys")
    print_table(
        columns,
        [
            (
                each["trust_id"],
                each["issuer"],
                each["subject"],
                " ".join(f"{name}={value}" for name, value in each["claims"].items()),
                each["audience"],
                "yes" if each["once"] else "no",
                each["keys"]["fault"] or f"from {each['keys']['uri'] or 'a file'}, {each['keys']['fetched_at']}",
            )
            for each in described
        ],
    )


@click.command("untrust")
@with_appcontext
@click.argument("client_id", metavar="ID")
@click.argument("trust_id", metavar="TRUST")
def remove_trust(client_id: str, trust_id: str) -> None:
    """Remove a trust. Tokens that fit it are refused from now on."""
    left = services().clients.trusts.remove(client_id, trust_id)
    report(f"{trust_id} was removed; {client_id} has {left} left.")


@click.command("trust-test")
@with_appcontext
@click.argument("client_id", metavar="ID")
@click.argument("file", metavar="FILE|-")
@json_option
def test_trust(client_id: str, file: str, *, as_json: bool) -> None:
    """Compare the platform's token in FILE with each trust of a client; exit with 1 if it fits none."""
    found = parse_unverified(read_secret(file, "token file").strip(), ASSERTION_MAX_CHARACTERS)
    if found is None or found.header is None or found.claims is None:
        raise ManagementError(f"{file} holds no JWT of at most {ASSERTION_MAX_CHARACTERS} characters")
    trusts = services().clients.trusts
    results: list[dict[str, Any]] = []
    for row in trusts.find(client_id):
        keys = trusts.find_keys(row.issuer)
        checks = examine_token(found, to_trust(row), keys.jwks["keys"] if keys else (), services().clock())
        results.append({"trust_id": row.trust_id, "fits": all(each.fits for each in checks), "checks": checks})
    fits = any(result["fits"] for result in results)
    if as_json:
        print_json([{**result, "checks": [_shown(check) for check in result["checks"]]} for result in results])
    else:
        for result in results:
            report(f"{result['trust_id']} {'fits' if result['fits'] else 'does not fit'}:")
            cells = [
                ("yes" if check.fits else "NO", check.name, check.expected, str(check.found)[:_SHOWN_CHARACTERS])
                for check in result["checks"]
            ]
            print_table(("fits", "claim", "the trust expects", "the token has"), cells)
    if not fits:
        report("It fits no trust." if results else f"{client_id} trusts no platform: `flask clients trust` names one.")
        sys.exit(1)


def _shown(check: trust_rules.ClaimCheck) -> dict[str, Any]:
    return {"claim": check.name, "expected": check.expected, "found": check.found, "fits": check.fits}


def _describe(row: ClientTrustRow) -> dict[str, Any]:
    keys = services().clients.trusts.find_keys(row.issuer)
    return {
        "trust_id": row.trust_id,
        "issuer": row.issuer,
        "subject": row.subject,
        "claims": row.claims,
        "audience": row.audience,
        "once": row.once,
        "created_at": timestamp(row.created_at),
        "keys": {
            "uri": keys.uri,
            "kids": [key["kid"] for key in keys.jwks["keys"]],
            "fetched_at": timestamp(keys.fetched_at),
            "fault": keys.fault,
            "skipped": keys.skipped or [],
        }
        if keys
        else None,
    }


def _parse_claims(given: Sequence[str]) -> dict[str, str]:
    claims: dict[str, str] = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals:
            raise ManagementError("--claim must be K=V")
        if name in claims:
            raise ManagementError(f"--claim {name} is given twice")
        claims[name] = value
    return claims
