"""``flask clients keys``, ``keys-add``, ``keys-remove``, ``--generate-key``: keys of clients that sign assertions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click
from cryptography.hazmat.primitives import serialization
from flask.cli import with_appcontext

from app.cli.output import (
    KID_FIRST,
    SecretFile,
    json_option,
    print_fields,
    print_json,
    print_table,
    read_bytes,
    report,
    secret_file_for,
    timestamp,
)
from app.clients.fields import ClientFields
from app.clients.jwks_cache import FetchedJwks
from app.crypto.algorithms import ALGORITHMS, RSA_MIN_BITS, to_jwk
from app.crypto.key_set import KeySet, check_jwks, read_key_set
from app.database.models import ClientKeySetRow
from app.errors import ManagementError
from app.oauth.client_auth import METHODS
from app.oauth.client_auth.assertions import AUDIENCES, NEW_CLIENT_FIELDS, AssertionMethod, audience_rule
from app.oauth.client_auth.private_key_jwt import PrivateKeyJwt
from app.oauth.client_auth.tls import CERTIFICATES, NAMES
from app.services import services

METHODS_WITH_ASSERTIONS = {method.name for method in METHODS if issubclass(method, AssertionMethod)}
_REPLACE_EACH_OTHER = {"jwks", "jwks_uri", CERTIFICATES, *NAMES}
GENERATED_ALG = "RS256"
"""The default of every library that signs."""


def key_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for what a client of ``private_key_jwt`` registers."""
    for option in (
        click.option("--jwks-file", metavar="FILE|-", help="Its public keys: a JWK set, a JWK, or PEM."),
        click.option("--jwks-uri", metavar="URL", help="Where it publishes its public keys: a JWK set, by https."),
        click.option(
            "--assertion-audience",
            type=click.Choice(AUDIENCES),
            help="What its assertions may name: the issuer alone (new clients), or the token endpoint too.",
        ),
    ):
        command = option(command)
    return command


def given_auth_fields(jwks_file: str | None, jwks_uri: str | None, assertion_audience: str | None) -> dict[str, Any]:
    """Return the fields of the key options that were given.

    :raises ManagementError: a file is wrong, or two sources were given.
    """
    fields: dict[str, Any] = {}
    if jwks_file and jwks_uri:
        raise ManagementError("--jwks-file and --jwks-uri are two places for keys: give one of them")
    if jwks_file:
        fields["jwks"] = _read_keys(jwks_file)
    if jwks_uri:
        fields["jwks_uri"] = jwks_uri
    if assertion_audience:
        fields["assertion_audience"] = assertion_audience
    return fields


def check_new_auth_fields(method: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``fields`` of a new client with the defaults, checked by its authentication method.

    :raises ManagementError: the method refuses them.
    """
    return _check(method, {**_new_client_fields(method), **fields})


def _check(method: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    by_name = {one.name: one for one in METHODS}
    return by_name.get(method, METHODS[0]).check_fields(fields)


def _new_client_fields(method: str) -> Mapping[str, Any]:
    return NEW_CLIENT_FIELDS if method in METHODS_WITH_ASSERTIONS else {}


def changed_auth_fields(before: ClientFields, method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of ``method`` for a client that was ``before``; another method's fields are dropped.

    :raises ManagementError: the method refuses them.
    """
    kept = dict(before.auth_fields)
    if method != before.token_endpoint_auth_method:
        kept = dict(_new_client_fields(method))
        if kept and before.token_endpoint_auth_method in METHODS_WITH_ASSERTIONS:
            kept["assertion_audience"] = audience_rule(before.auth_fields)
    if given.keys() & _REPLACE_EACH_OTHER:
        kept = {name: value for name, value in kept.items() if name not in _REPLACE_EACH_OTHER}
    return {"auth_fields": _check(method, {**kept, **given})}


def published_keys(auth_fields: Mapping[str, Any]) -> FetchedJwks | None:
    """Fetch the keys of a client that publishes them; report those that are skipped.

    :raises ManagementError: why the fetch failed.
    """
    if "jwks_uri" not in auth_fields:
        return None
    found = services().clients.jwks_cache.fetch(auth_fields["jwks_uri"])
    report_skipped(found.skipped)
    return found


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A new key pair; its private half goes to a file.

    :param public: the public half, as a key set.
    """

    public: dict[str, Any]
    _file: SecretFile
    _pem: str

    def write(self) -> None:
        """Write the private half, before the client is committed."""
        self._file.write(self._pem)


@contextmanager
def key_file_for(path: str | None) -> Iterator[KeyPair | None]:
    """Generate the pair of ``--generate-key``; delete its file if no client is created.

    :raises ManagementError: the file exists, or cannot be written.
    """
    with secret_file_for(path) as file:
        if file is None:
            yield None
            return
        key = ALGORITHMS[GENERATED_ALG].generate(RSA_MIN_BITS)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        public = check_jwks({"keys": [to_jwk(key).as_dict(private=False)]})
        yield KeyPair(public, file, pem.decode().strip())


def _read_keys(source: str) -> dict[str, Any]:
    """Read public keys as a JWK set, and report those that are skipped."""
    found = read_key_file(source)
    report_skipped(found.skipped)
    return found.jwks


def read_key_file(source: str) -> KeySet:
    """Read public keys from a file, or from standard input (``-``).

    :raises ManagementError: no key can be used, or one is private.
    """
    raw = read_bytes(source, "key file")
    try:
        return read_key_set(raw)
    except ManagementError as error:
        raise ManagementError(f"{source}: {error}") from None


def report_skipped(skipped: Sequence[str]) -> None:
    """Name keys that were skipped."""
    for reason in skipped:
        report(f"Skipped: {reason}")


@click.command("keys")
@with_appcontext
@click.argument("client_id", metavar="ID")
@click.option("--fetch", is_flag=True, help="Fetch them now, if the client publishes them.")
@json_option
def show_keys(client_id: str, *, fetch: bool, as_json: bool) -> None:
    """Show the public keys of a client."""
    row = services().clients.repository.find(client_id)
    if fetch:
        if "jwks_uri" not in (row.auth_fields or {}):
            raise ManagementError(f"{client_id} publishes no keys: there is nothing to fetch")
        services().clients.repository.end_reading()
        found = published_keys(row.auth_fields or {})
        row = services().clients.repository.update(client_id, key_set=found)
    published = services().clients.repository.cached_jwks_of(row)
    keys = published.jwks["keys"] if published else _keys_in(row.auth_fields, client_id)
    state = _state_of(published) if published else {}
    if as_json:
        print_json({"keys": keys, **state})
        return
    print_table(("kid", "kty", "alg"), [(key["kid"], key["kty"], key.get("alg", "any of its kind")) for key in keys])
    if state:
        report("")
        print_fields({name: value for name, value in state.items() if value is not None and name != "skipped"})
        report_skipped(state["skipped"])


def _state_of(published: ClientKeySetRow) -> dict[str, Any]:
    return {
        "jwks_uri": published.uri,
        "fetched_at": timestamp(published.fetched_at),
        "next_fetch_at": timestamp(published.refresh_at),
        "fault": published.fault,
        "skipped": published.skipped or [],
    }


@click.command("keys-add")
@with_appcontext
@click.argument("client_id", metavar="ID")
@click.argument("file")
def add_keys(client_id: str, file: str) -> None:
    """Add the public keys in FILE (- for standard input). The client's other keys stay valid."""
    new = _read_keys(file)["keys"]

    def together(old: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if known := [key["kid"] for key in new if key in old]:
            raise ManagementError(f"{client_id} has {', '.join(known)} already")
        return [*old, *new]

    row = services().clients.repository.update(client_id, lambda before: _with_keys(before, together))
    message = ", ".join(key["kid"] for key in new)
    report(f"{row.client_id} may sign with {message} too. `flask clients keys-remove` ends an old one.")


@click.command("keys-remove", context_settings=KID_FIRST)
@with_appcontext
@click.argument("client_id", metavar="ID")
@click.argument("kid")
def remove_key(client_id: str, kid: str) -> None:
    """Remove the public key KID. Assertions signed with it are refused from now on."""

    def without(keys: list[dict[str, Any]]) -> list[dict[str, Any]]:
        left = [key for key in keys if key["kid"] != kid]
        if len(left) == len(keys):
            raise ManagementError(f"{client_id} has no key {kid!r}: `flask clients keys {client_id}` shows all")
        if not left:
            raise ManagementError(f"{kid!r} is the last key: `flask clients disable {client_id}` shuts the client out")
        return left

    services().clients.repository.update(client_id, lambda before: _with_keys(before, without))
    report(f"{client_id} may not sign with {kid} any more.")


def _with_keys(before: ClientFields, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the change that gives a client other keys."""
    keys = change(_keys_in(before.auth_fields, "the client"))
    return {"auth_fields": PrivateKeyJwt.check_fields({**before.auth_fields, "jwks": {"keys": keys}})}


def _keys_in(auth_fields: Mapping[str, Any] | None, whose: str) -> list[dict[str, Any]]:
    if auth_fields and "jwks_uri" in auth_fields:
        raise ManagementError(f"the keys of {whose} are what it publishes at {auth_fields['jwks_uri']}")
    if not auth_fields or "jwks" not in auth_fields:
        raise ManagementError(f"{whose} has no keys: it is not one of {PrivateKeyJwt.name}")
    keys: list[dict[str, Any]] = auth_fields["jwks"]["keys"]
    return keys
