"""Finds what is or will be wrong with an installation: each finding with why it matters and how to fix it.

``flask doctor`` runs all checks. A start runs those that a server can make at once: errors stop it in production.
"""

import ipaddress
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from app.config.settings import Settings
from app.config.values import format_time, is_loopback
from app.database.engine import describe
from app.database.models import db
from app.errors import ManagementError, StartError
from app.keyring.validation import find_problems, find_warnings
from app.observability.otel_variables import find_faults as otel_faults
from app.observability.otel_variables import is_enabled
from app.operations.doctor_database import find_lonely_database, find_other_clock, find_other_schema
from app.operations.doctor_servers import (
    find_drift,
    find_exposed_files,
    find_other_keys,
    find_unencrypted_connections,
)
from app.operations.findings import Finding, Found, NotResponding, Severity
from app.operations.snapshot import SnapshotError, open_snapshot
from app.services import Services

DEMO_CLIENT = "demo"
"""Created by the first `make run`, which prints its secret."""
DIFFERENT_CHARACTERS_MIN = 10
"""A random value of 32 characters has more different ones; a repeated word has fewer."""
WIDEST_PUBLIC_PREFIX = {4: 16, 6: 32}
"""A public network of proxies larger than this contains machines of others."""
WIDEST_PRIVATE_PREFIX = {4: 16, 6: 48}
"""A private network of proxies larger than this contains more than proxies."""

_PEPPERS, _ENCRYPTION_KEYS = "TOKENHOUSE_SECRET_PEPPERS", "TOKENHOUSE_ENCRYPTION_KEYS"


_Check = Callable[[Services], Found]


def examine(services: Services) -> Found:
    """Run all checks, within an application context."""
    for check in (*_AT_START, *_LATER):
        yield from check(services)


def examine_start(services: Services) -> Found:
    """Run the checks of a start, except the key ring's. Something that does not respond stops nothing."""
    is_away = False
    for check in _AT_START:
        if is_away and check in _OF_THE_DATABASE:
            # Each would wait for the same timeout.
            continue
        for found in check(services):
            if isinstance(found, NotResponding):
                is_away = is_away or check is find_other_schema
                yield replace(found, severity=Severity.WARNING)
            else:
                yield found


def _find_plain_issuer(services: Services) -> Found:
    issuer = services.settings.issuer
    if issuer.startswith("https:") or not is_production(services.settings):
        yield Finding("issuer", Severity.OK, issuer)
        return
    yield Finding(
        "issuer",
        Severity.WARNING,
        f"{issuer} is plain http, which is for this machine alone",
        "secrets and tokens of other callers would travel unencrypted, and verifiers reject such an issuer",
        "put a TLS proxy in front (deploy/nginx.conf) and set TOKENHOUSE_ISSUER to its https URL",
    )


def _find_weak_keys(services: Services) -> Found:
    settings = services.settings
    groups = {_PEPPERS: settings.secret_peppers, _ENCRYPTION_KEYS: settings.encryption_keys}
    known: dict[str, str] = {}
    is_well = True
    make = 'python3 -c "import secrets; print(secrets.token_urlsafe(32))"'
    for variable, keys in groups.items():
        for key in keys:
            value, name = key.value.get_secret_value(), f"{key.id!r} of {variable}"
            if len(set(value)) < DIFFERENT_CHARACTERS_MIN:
                is_well = False
                yield Finding(
                    "keys",
                    Severity.WARNING,
                    f"{name} can be guessed: it has few different characters",
                    "it is all that protects a stolen database",
                    f"put a random one first, keep this one second until nothing needs it: {make}",
                )
            if value in known:
                is_well = False
                yield Finding(
                    "keys",
                    Severity.WARNING,
                    f"{name} has the same value as {known[value]}",
                    "anyone who learns one has both",
                    f"give each its own random value: {make}",
                )
            known.setdefault(value, name)
    if is_well:
        yield Finding("keys", Severity.OK, "peppers and encryption keys look random")


def _find_demo(services: Services) -> Found:
    if not is_production(services.settings):
        return
    try:
        row = services.clients.repository.find(DEMO_CLIENT)
    except ManagementError:
        yield Finding("demo client", Severity.OK, "does not exist")
        return
    except SQLAlchemyError:
        # The check of the database reports it.
        return
    finally:
        services.clients.repository.end_reading()
    if row.disabled_at is None:
        yield Finding(
            "demo client",
            Severity.WARNING,
            f"the client {DEMO_CLIENT!r} gets tokens here",
            "`make run` creates it and prints its secret on a developer's screen",
            f"`flask clients delete {DEMO_CLIENT}`, unless it is your own",
        )


def _find_legacy_assertions(services: Services) -> Found:
    clients = services.clients.repository
    try:
        found = clients.count(assertion_style="legacy")
    except SQLAlchemyError:
        # The check of the database reports it.
        return
    finally:
        clients.end_reading()
    if found:
        yield Finding(
            "assertions",
            Severity.WARNING,
            f"clients whose assertions named the token endpoint in the last 30 days: {found}",
            "RFC 10070 allows the issuer alone: an assertion for a URL can be lured out of a client by another server",
            "`flask clients list --assertion-style legacy` names them; docs/client-keys.md shows how each library is "
            "told the issuer",
        )
    else:
        yield Finding("assertions", Severity.OK, "none named the token endpoint in the last 30 days")


def _find_forgetful_redis(services: Services) -> Found:
    url = services.settings.redis_url
    if url is None:
        return
    from redis import Redis  # noqa: PLC0415 - The driver is loaded only where it is used.
    from redis.exceptions import RedisError  # noqa: PLC0415

    from app.database.redis import open_pool  # noqa: PLC0415

    try:
        with Redis(connection_pool=open_pool(url.get_secret_value())) as redis:
            memory: Mapping[str, Any] = redis.info("memory")
    except RedisError as error:
        yield NotResponding(
            "redis",
            Severity.ERROR,
            f"it does not respond: {describe(error)}",
            "without it no client that signs assertions gets a token",
            "check TOKENHOUSE_REDIS_URL, that Redis runs, and that its user may run INFO",
        )
        return
    policy = memory.get("maxmemory_policy", "noeviction")
    if memory.get("maxmemory") and policy != "noeviction":
        yield Finding(
            "redis",
            Severity.ERROR,
            f"it evicts keys when it is full (maxmemory-policy {policy})",
            "used assertions would be accepted again unnoticed",
            "CONFIG SET maxmemory-policy noeviction, or use a separate Redis",
        )
    else:
        yield Finding("redis", Severity.OK, "it responds and evicts nothing")


def _find_open_metrics(services: Services) -> Found:
    address = services.settings.metrics_address
    if address is None or is_loopback(address[0]):
        return
    try:
        here = ipaddress.ip_address(address[0])
    except ValueError:
        return
    if here.is_unspecified or here.is_global:
        yield Finding(
            "metrics",
            Severity.WARNING,
            f"they are served at {address[0]} to anybody who reaches it",
            "they show how many tokens are issued and how healthy the server is",
            "set TOKENHOUSE_METRICS_ADDRESS to an internal address, or put a firewall in front",
        )


def _find_wide_proxies(services: Services) -> Found:
    for network in services.settings.trusted_proxies:
        if isinstance(network, str):
            continue
        if network.prefixlen == 0:
            yield Finding(
                "trusted proxies",
                Severity.ERROR,
                f"{network} is everybody",
                "anybody can write any address into the audit log",
                "name your proxies' own addresses in TOKENHOUSE_TRUSTED_PROXIES",
            )
        elif network.is_private and network.prefixlen < WIDEST_PRIVATE_PREFIX[network.version]:
            yield Finding(
                "trusted proxies",
                Severity.WARNING,
                f"{network} is a large private network",
                "any of its machines or pods can write any address into the audit log",
                "name your proxies' own networks in TOKENHOUSE_TRUSTED_PROXIES",
            )
        elif network.is_global and network.prefixlen < WIDEST_PUBLIC_PREFIX[network.version]:
            yield Finding(
                "trusted proxies",
                Severity.WARNING,
                f"{network} is a large public network",
                "anybody with a machine there can write any address into the audit log",
                "name your proxies' own addresses in TOKENHOUSE_TRUSTED_PROXIES",
            )


def _find_wrong_traces(services: Services) -> Found:
    must = services.settings.traces
    if is_enabled(must, os.environ):
        severity, why = (Severity.ERROR, "no server starts") if must else (Severity.WARNING, "there are no traces")
        for fault in otel_faults(os.environ):
            yield Finding("traces", severity, fault, why, "docs/traces.md describes the variables")


def _find_unfit_keys(services: Services) -> Found:
    try:
        unfit = services.clients.jwks_cache.find_unfit()
    except SQLAlchemyError:
        return
    for client_id, kid, weakness in unfit:
        yield Finding(
            "client keys",
            Severity.WARNING,
            f"key {kid!r} of {client_id!r} {weakness}",
            "anybody may be able to forge its signatures, or verifying them takes long",
            "have the client create a new key: docs/client-keys.md",
        )


def _find_unusable_snapshot(services: Services) -> Found:
    snapshot = open_snapshot(services, db.engine)
    if snapshot is None:
        return
    try:
        found = snapshot.load()
    except SnapshotError as error:
        yield Finding(
            "snapshot",
            Severity.WARNING,
            str(error),
            "this machine could not start a worker that issues tokens while the database is away",
            "see whether a server runs here; it writes another one within seconds",
        )
        return
    clients = f"{len(found.clients)} clients" if len(found.clients) != 1 else "1 client"
    yield Finding("snapshot", Severity.OK, f"of {format_time(found.read_at)}, with {clients}")


def _find_ring_faults(services: Services) -> Found:
    see = "`flask keys check` shows the problem, docs/keys.md the way out"
    try:
        ring = services.keys.manager.backend.read()
        now = services.keys.active.now()
        wrong = find_problems(ring, now, services.keys.manager.rules)
        imperfect = find_warnings(ring, now, services.keys.manager.rules)
    except StartError as error:
        yield Finding("key ring", Severity.ERROR, str(error), "without it no server starts", see)
        return
    for fault in wrong:
        yield Finding("key ring", Severity.ERROR, fault, "verifiers would reject valid tokens", see)
    for fault in imperfect:
        yield Finding("key ring", Severity.WARNING, fault, "the next rotation is not as safe as it can be", see)
    if not wrong and not imperfect:
        yield Finding("key ring", Severity.OK, "safe, with a standby")


def _find_apis_without_key(services: Services) -> Found:
    try:
        algs = services.apis.repository.signing_algs()
        ring, now = services.keys.manager.backend.read(), services.keys.active.now()
    except (SQLAlchemyError, StartError):
        # The checks of the database and of the key ring report it.
        return
    finally:
        services.clients.repository.end_reading()
    usable = {key.alg for key in ring.usable(now)}
    for alg in algs:
        if alg not in usable:
            yield Finding(
                "APIs",
                Severity.ERROR,
                ring.why_none_signs(now, alg),
                "token requests for the APIs with this algorithm get 503",
                f"`flask keys generate --alg {alg}`; until it may sign, `flask apis update API --signing-alg default`",
            )


def find_lost_secrets(services: Services) -> Found:
    """Find secrets whose pepper or key has left the settings: they are refused, and nothing else would say why."""
    settings, secrets = services.settings, services.clients.secrets
    try:
        counted = (
            ("pepper", _PEPPERS, settings.secret_peppers, secrets.count_by_pepper()),
            ("encryption key", _ENCRYPTION_KEYS, settings.encryption_keys, secrets.count_by_encryption_key()),
        )
    except SQLAlchemyError:
        return
    finally:
        services.clients.repository.end_reading()
    for what, variable, keys, found in counted:
        for key_id in sorted(found.keys() - {key.id for key in keys}):
            yield Finding(
                "secrets",
                Severity.ERROR,
                f"{found[key_id]} secrets are refused: their {what} {key_id!r} is not in {variable}",
                "their clients get no token until it is back",
                f"put it back, second, into {variable}",
            )


def _find_failing_key_sets(services: Services) -> Found:
    clients = services.clients
    try:
        failing = [(client_id, f"keys {client_id}") for client_id in clients.jwks_cache.find_failing()]
        failing += [(issuer, "trusts ID") for issuer in clients.issuer_keys.find_failing()]
    except SQLAlchemyError:
        return
    for owner, command in failing:
        yield Finding(
            "client keys",
            Severity.WARNING,
            f"the published keys of {owner!r} cannot be fetched",
            "the last good ones stay in use, and a new key would be refused",
            f"`flask clients {command}` says why",
        )


_AT_START: tuple[_Check, ...] = (
    _find_plain_issuer,
    _find_weak_keys,
    find_other_schema,
    find_other_clock,
    find_other_keys,
    _find_demo,
    find_lonely_database,
    find_exposed_files,
    _find_forgetful_redis,
    _find_open_metrics,
    _find_wide_proxies,
    _find_wrong_traces,
)

_OF_THE_DATABASE = {find_other_clock, find_other_keys, _find_demo}

_LATER: tuple[_Check, ...] = (
    _find_ring_faults,
    _find_apis_without_key,
    find_lost_secrets,
    _find_failing_key_sets,
    _find_unfit_keys,
    _find_legacy_assertions,
    _find_unusable_snapshot,
    find_drift,
    find_unencrypted_connections,
)


def is_production(settings: Settings) -> bool:
    """Return whether errors stop a start."""
    return settings.config != "development"
