"""The doctor's checks of several servers: whether they agree, and whether secrets travel or are kept in clear."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from app.config.private_files import find_exposure
from app.config.settings import PREFIX, SECRET_FIELDS
from app.config.values import KEYRING_IN_DATABASE, PROJECT_FOLDER, format_time, is_loopback
from app.database.models import db
from app.errors import StartError
from app.operations.findings import Finding, Found, Severity
from app.operations.servers import (
    KEY_KINDS,
    PEPPER,
    ServerRegistry,
    differences,
    fingerprint_of_key,
    fingerprint_of_ring,
    is_running,
)
from app.services import Services

_FIX_SETTINGS = "give all servers the same values, then restart them; `flask servers` lists them"
_DEFAULT_RING = PROJECT_FOLDER / "instance" / "keyring.toml"


def registry_of(services: Services) -> ServerRegistry:
    """Return the registry of the servers of this database."""
    return ServerRegistry(services.settings, db.engine, services.keys.active, services.clock)


def find_other_keys(services: Services) -> Found:
    """Find peppers and encryption keys whose value is not the one that other servers have under that id."""
    try:
        known = registry_of(services).known_keys()
    except SQLAlchemyError:
        # The check of the database reports it.
        return
    for kind, setting in KEY_KINDS.items():
        for key in getattr(services.settings, setting):
            if known.get((kind, key.id), fingerprint_of_key(kind, key)) != fingerprint_of_key(kind, key):
                yield Finding(
                    "keys",
                    Severity.ERROR,
                    f"{key.id!r} of {PREFIX}{setting.upper()} has another value than this database was used with",
                    "secrets of clients are refused here that other servers accept"
                    if kind == PEPPER
                    else "what other servers have encrypted cannot be decrypted here, and the reverse",
                    f"copy the value from another server; give a new value a new id, and put it before {key.id!r}",
                )


def find_drift(services: Services) -> Found:
    """Compare the servers that run with these settings and this ring."""
    try:
        servers = registry_of(services).servers()
    except SQLAlchemyError:
        return
    yield from _find_older_database(servers)
    running = [row for row in servers if is_running(row, services.clock())]
    if not running:
        return
    differing = _find_other_settings(services, running)
    yield from differing
    yield from _find_other_rings(services, running)
    versions = sorted({row.version for row in running})
    if len(versions) > 1:
        yield Finding(
            "servers",
            Severity.WARNING,
            f"they run the versions {', '.join(versions)}",
            "fine during an update, but not for long",
            "update the rest",
        )
    hosts = {row.host for row in running}
    if db.engine.dialect.name == "sqlite" and len(hosts) > 1:
        yield Finding(
            "servers",
            Severity.ERROR,
            f"{len(hosts)} machines use one SQLite file: {', '.join(sorted(hosts))}",
            "SQLite's locks do not work between machines, and the file breaks",
            "move to PostgreSQL: docs/databases.md",
        )
    if not differing and len(versions) == 1:
        yield Finding("servers", Severity.OK, f"{len(running)} running, with the same settings")


def _find_older_database(servers: Sequence[Any]) -> Found:
    if went_back_to := next((row.went_back_to for row in servers if row.went_back_to), None):
        yield Finding(
            "database",
            Severity.ERROR,
            f"it went back to {format_time(went_back_to)}: a server has seen a later state",
            "what came after is undone: revoked keys sign again, disabled clients get tokens, revoked tokens count",
            "`flask restore-check --audit FILE…` does again what is missing",
        )


def _find_other_settings(services: Services, running: Sequence[Any]) -> list[Finding]:
    found: list[Finding] = []
    differing: defaultdict[str, list[str]] = defaultdict(list)
    for row in running:
        for name in differences(row, services.settings):
            differing[name].append(row.name)
    for name, servers in sorted(differing.items()):
        is_grave = name in {f"{PREFIX}ISSUER", f"{PREFIX}SECRET_PEPPERS", f"{PREFIX}KEYRING", f"{PREFIX}SIGNING_ALG"}
        found.append(
            Finding(
                "servers",
                Severity.ERROR if is_grave else Severity.WARNING,
                f"{', '.join(sorted(set(servers)))}: another {name} than here",
                "which answer a caller gets depends on the server that handles the request",
                _FIX_SETTINGS,
            )
        )
    return found


def _find_other_rings(services: Services, running: Sequence[Any]) -> Found:
    try:
        own = fingerprint_of_ring(services.keys.manager.backend.read())
    except StartError:
        # The check of the ring reports it.
        return
    others = sorted({row.name for row in running if row.ring != own})
    if others:
        yield Finding(
            "servers",
            Severity.ERROR,
            f"{', '.join(others)}: another key ring than here",
            "verifiers refuse tokens whose key the JWKS that they fetched does not have",
            "one ring for all: TOKENHOUSE_KEYRING=database (`flask keys move database`); wait a minute after a change",
        )


def find_unencrypted_connections(services: Services) -> Found:
    """Find a database or Redis on another machine that is reached without TLS."""
    settings = services.settings
    url = make_url(settings.database_url.get_secret_value())
    if url.get_backend_name() == "postgresql" and _is_elsewhere(url.host or str(url.query.get("host", ""))):
        try:
            with db.engine.connect() as connection:
                driver = connection.connection.driver_connection
                is_encrypted = bool(getattr(getattr(driver, "pgconn", None), "ssl_in_use", True))
        except SQLAlchemyError:
            return
        if not is_encrypted:
            yield Finding(
                "database",
                Severity.WARNING,
                "it is on another machine, and reached without TLS",
                "digests, and with a ring in the database encrypted keys, can be read and changed on the way",
                "add sslmode=verify-full to TOKENHOUSE_DATABASE_URL, and ssl = on to postgresql.conf",
            )
    if settings.redis_url:
        redis = make_url(settings.redis_url.get_secret_value())
        if redis.drivername == "redis" and _is_elsewhere(redis.host or ""):
            yield Finding(
                "redis",
                Severity.WARNING,
                "it is on another machine, and reached without TLS",
                "anyone on the network path can read its password, and with it delete the ids of used assertions",
                "use rediss:// in TOKENHOUSE_REDIS_URL",
            )


def find_exposed_files(services: Services) -> Found:
    """Find files with secrets that other users may read, and private keys that a move has left behind."""
    settings = services.settings
    for path in _secret_files():
        try:
            exposure = find_exposure(path)
        except OSError:
            continue
        if exposure:
            yield Finding(
                "secret files",
                # Where .env counts and holds a secret, the settings were refused before.
                Severity.ERROR if exposure.is_changeable and path.name != ".env" else Severity.WARNING,
                f"{path} {exposure.fault}",
                "every program on this machine may read the secret, or replace it",
                exposure.fix,
            )
    if settings.keyring == KEYRING_IN_DATABASE and _DEFAULT_RING.exists():
        keys = ", ".join(sorted(path.name for path in _DEFAULT_RING.parent.glob("*.pem")))
        yield Finding(
            "key ring",
            Severity.WARNING,
            f"{_DEFAULT_RING} is left from before the ring was moved to the database",
            "its private keys may still sign, and nobody guards them any more",
            f"remove it and the private keys beside it: {keys}",
        )


def _secret_files() -> Iterator[Path]:
    for field in sorted(SECRET_FIELDS):
        if path := os.environ.get(f"{PREFIX}{field.upper()}_FILE"):
            yield PROJECT_FOLDER / path
    yield PROJECT_FOLDER / ".env"


def _is_elsewhere(host: str) -> bool:
    return bool(host) and not host.startswith("/") and host != "localhost" and not is_loopback(host)
