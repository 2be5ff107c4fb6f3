"""``flask clients certificates``, ``certificates-add``, ``certificates-remove`` and the ``--tls-…`` options."""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from cryptography import x509
from flask.cli import with_appcontext
from joserfc.util import urlsafe_b64decode

from app.cli.output import json_option, print_json, print_table, read_bytes, report, timestamp
from app.clients.fields import ClientFields
from app.crypto.certificates import thumbprint_of
from app.errors import ManagementError
from app.oauth.client_auth.tls import ALTERNATIVE_NAMES, CERTIFICATES, NAMES, SUBJECT_DN, SelfSignedTlsClientAuth
from app.services import services

SUBJECT_SHOWN_CHARACTERS = 200

_OPTIONS = {SUBJECT_DN: "--tls-subject-dn", **{name: f"--tls-san-{kind}" for name, kind in ALTERNATIVE_NAMES.items()}}
_HELP = {
    SUBJECT_DN: "The subject of its certificate, as in RFC 4514: CN=billing,O=Example.",
    **{name: f"A subject alternative name of its certificate ({kind})." for name, kind in ALTERNATIVE_NAMES.items()},
}
_COLUMNS = ("fingerprint", "subject", "not_before", "not_after", "state")


def tls_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for clients that authenticate with a certificate."""
    command = click.option(
        "--tls-cert-file", metavar="FILE|-", help="Its certificates in PEM, for self_signed_tls_client_auth."
    )(command)
    for name in reversed(NAMES):
        command = click.option(_OPTIONS[name], name, help=_HELP[name])(command)
    return command


def given_tls_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the options that were given.

    :raises ManagementError: the file holds no certificates.
    """
    fields = {name: options[name] for name in NAMES if options[name]}
    if options["tls_cert_file"]:
        fields[CERTIFICATES] = _read_certificates(options["tls_cert_file"])
    return fields


def _read_certificates(source: str) -> list[dict[str, Any]]:
    raw = read_bytes(source, "certificate file")
    if b"PRIVATE KEY" in raw:
        raise ManagementError(f"{source} holds a private key: register the certificate alone")
    try:
        found = x509.load_pem_x509_certificates(raw)
    except (ValueError, x509.InvalidVersion):
        raise ManagementError(f"{source} must hold certificates in PEM") from None
    described = [_describe(one) for one in found]
    now = int(services().clock().timestamp())
    if any(one["not_after"] <= now for one in described):
        raise ManagementError(f"{source}: a certificate has expired")
    return described


def _describe(certificate: x509.Certificate) -> dict[str, Any]:
    """Return what is stored of a certificate: the thumbprint, and what ``flask clients certificates`` shows."""
    return {
        "x5t#S256": thumbprint_of(certificate),
        "subject": certificate.subject.rfc4514_string()[:SUBJECT_SHOWN_CHARACTERS],
        "not_before": int(certificate.not_valid_before_utc.timestamp()),
        "not_after": int(certificate.not_valid_after_utc.timestamp()),
    }


@click.command("certificates")
@with_appcontext
@click.argument("client_id", metavar="ID")
@json_option
def show_certificates(client_id: str, *, as_json: bool) -> None:
    """Show the certificates that a client has registered."""
    row = services().clients.repository.find(client_id)
    now = int(services().clock().timestamp())
    rows = [
        {
            **one,
            "fingerprint": _fingerprint(one),
            "not_before": timestamp(datetime.fromtimestamp(one["not_before"], UTC)),
            "not_after": timestamp(datetime.fromtimestamp(one["not_after"], UTC)),
            "state": _state(one, now),
        }
        for one in _certificates_in(row.auth_fields, client_id)
    ]
    if as_json:
        print_json(rows)
        return
    print_table(_COLUMNS, [[one[name] for name in _COLUMNS] for one in rows])


def _state(certificate: Mapping[str, Any], now: int) -> str:
    if certificate["not_after"] < now:
        return "expired"
    return "not yet valid" if certificate["not_before"] > now else "valid"


@click.command("certificates-add")
@with_appcontext
@click.argument("client_id", metavar="ID")
@click.argument("file")
def add_certificates(client_id: str, file: str) -> None:
    """Add the certificates in FILE (- for standard input). The client's other certificates stay registered."""
    new = _read_certificates(file)

    def together(old: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if known := [_fingerprint(one) for one in new if one["x5t#S256"] in {other["x5t#S256"] for other in old}]:
            raise ManagementError(f"{client_id} has {', '.join(known)} already")
        return [*old, *new]

    row = services().clients.repository.update(client_id, lambda before: _with_certificates(before, together))
    added = ", ".join(map(_fingerprint, new))
    report(f"{row.client_id} may authenticate with {added} too. `flask clients certificates-remove` ends an old one.")


@click.command("certificates-remove")
@with_appcontext
@click.argument("client_id", metavar="ID")
@click.argument("fingerprint")
def remove_certificate(client_id: str, fingerprint: str) -> None:
    """Remove the certificate FINGERPRINT: SHA-256 in hexadecimal, with or without colons."""
    wanted = fingerprint.replace(":", "").lower()

    def without(old: list[dict[str, Any]]) -> list[dict[str, Any]]:
        left = [one for one in old if _fingerprint(one) != wanted]
        if len(left) == len(old):
            raise ManagementError(
                f"{client_id} has no certificate {fingerprint!r}: `flask clients certificates {client_id}` shows all"
            )
        if not left:
            raise ManagementError(
                f"{fingerprint!r} is the last certificate: `flask clients disable {client_id}` shuts the client out"
            )
        return left

    services().clients.repository.update(client_id, lambda before: _with_certificates(before, without))
    report(f"{client_id} may not authenticate with {wanted} any more.")


def _with_certificates(
    before: ClientFields, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]
) -> dict[str, Any]:
    """Return the change that gives a client other certificates."""
    changed = change(_certificates_in(before.auth_fields, "the client"))
    return {"auth_fields": SelfSignedTlsClientAuth.check_fields({CERTIFICATES: changed})}


def _certificates_in(auth_fields: Mapping[str, Any] | None, whose: str) -> list[dict[str, Any]]:
    if not auth_fields or CERTIFICATES not in auth_fields:
        raise ManagementError(
            f"{whose} has no registered certificates: only {SelfSignedTlsClientAuth.name} with --tls-cert-file has some"
        )
    certificates: list[dict[str, Any]] = list(auth_fields[CERTIFICATES])
    return certificates


def fingerprints(auth_fields: Mapping[str, Any] | None) -> Sequence[str]:
    """Return the fingerprints of the certificates that a client has registered."""
    return [_fingerprint(one) for one in (auth_fields or {}).get(CERTIFICATES, ())]


def _fingerprint(certificate: Mapping[str, Any]) -> str:
    """Return SHA-256 of a certificate in hexadecimal, as OpenSSL prints it but for colons and case."""
    return urlsafe_b64decode(certificate["x5t#S256"].encode()).hex()
