"""Every setting: its type, its unit, its default and its reason.

Parsing of values is left to ``config.values``, where values come from to ``config.loader``. What a value means for the
system (is the key ring sound, does the database answer) is checked by the package that uses it.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, SecretStr, model_validator

from app.config.values import (
    DAY,
    HOUR,
    KEYRING_IN_DATABASE,
    LONGEST_LIFETIME_SECONDS,
    MINUTE,
    YEAR,
    IdentifiedKey,
    Network,
    TrustedProxies,
    between,
    parse_address,
    parse_audience,
    parse_database_url,
    parse_issuer,
    parse_keyring,
    parse_keys,
    parse_networks,
    parse_redis_url,
    parse_trusted_proxies,
)

PREFIX = "TOKENHOUSE_"
CONFIG_PATTERN = re.compile(r"[a-z][a-z0-9_-]*")
"""Names of files in ``config/``, without ``.toml``."""

SigningAlg = Literal["RS256", "PS256", "ES256", "EdDSA"]


class Settings(BaseModel):
    """The settings of one process, frozen. Durations are whole seconds, paths are absolute."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)

    config: str = "production"
    """Which file of ``config/`` counts besides ``default.toml``."""

    issuer: Annotated[str, BeforeValidator(parse_issuer)]
    """``iss`` of every token and the base of every URL in the metadata. Never taken from a request."""

    database_url: Annotated[SecretStr, BeforeValidator(parse_database_url)] = SecretStr(
        "sqlite:///instance/tokenhouse.db"
    )
    """Clients and their secrets' digests."""

    redis_url: Annotated[SecretStr | None, BeforeValidator(parse_redis_url)] = None
    """Where several machines remember what they share for a while; unset: in the database."""

    keyring: Annotated[Path | str, BeforeValidator(parse_keyring)] = Path("instance/keyring.toml")
    """The signing keys and their times: a file with PEM files beside it, ``database``, or ``env:NAME`` (static)."""

    keyring_passphrase: SecretStr | None = None
    """Decrypts encrypted PEM files."""

    signing_alg: SigningAlg = "RS256"
    """Which algorithm signs: RFC 7518 section 3.1, RFC 8037. Some verifiers know nothing but RS256."""

    key_announce: Annotated[int, between(0, YEAR)] = 7 * DAY
    """How long a new key is published before it may sign: some verifiers cache a JWKS for a week. Never less than the
    safe time, which is computed."""

    key_rotation_interval: Annotated[int, between(1, 10 * YEAR)] = 90 * DAY
    """How long a key signs before ``flask keys rotate --if-due`` finds that another should."""

    keyring_propagation: Annotated[int, between(0, DAY)] | None = None
    """How long a change of the ring takes to reach every machine; unset: what its home needs."""

    jwks_max_age: Annotated[int, between(1, DAY)] = 5 * MINUTE
    """How long a verifier may cache the JWKS. Most refetch on an unknown ``kid`` only after that."""

    assertion_audience: Literal["any", "issuer"] = "any"
    """What an assertion of a client may name as its audience: the issuer or the token endpoint, or the issuer alone."""

    assertion_lifetime: Annotated[int, between(1, DAY)] = HOUR
    """How far ahead the end of an assertion may be."""

    jwks_uri_networks: Annotated[tuple[Network, ...], BeforeValidator(parse_networks)] = ()
    """Where else than in public networks a client may publish its keys: its ``jwks_uri`` is fetched from here."""

    publish_scopes: bool = True
    """Whether the metadata lists the scopes of registered clients."""

    secret_peppers: Annotated[tuple[IdentifiedKey, ...], BeforeValidator(parse_keys)]
    """Keys for the digests of client secrets: a stolen database alone is worth little. The first digests new ones."""

    encryption_keys: Annotated[tuple[IdentifiedKey, ...], BeforeValidator(parse_keys)] = ()
    """Keys for what must be kept readable, such as a key ring in the database. The first encrypts, all decrypt."""

    access_token_lifetime: Annotated[int, between(MINUTE, LONGEST_LIFETIME_SECONDS)] = HOUR
    """For clients without a lifetime of their own: short, because an access token cannot be called back offline."""

    default_audience: Annotated[str, BeforeValidator(parse_audience)]
    """``aud`` for clients without audiences; the issuer unless set."""

    trusted_proxies: Annotated[TrustedProxies, BeforeValidator(parse_trusted_proxies)] = ()
    """From whom forwarded addresses and request ids are taken; matched against the TCP peer."""

    metrics_address: Annotated[tuple[str, int] | None, BeforeValidator(parse_address)] = ("127.0.0.1", 9464)
    """Where Prometheus is answered: host and port, never the public ones. Empty: nowhere, and nothing is counted."""

    traces: bool | None = None
    """Whether requests are traced by OpenTelemetry; unset: where its own variables say to which collector."""

    log_format: Literal["console", "json"] = "json"
    """``console`` for people, ``json`` for machines."""

    audit_log_required: bool = False
    """Whether a token needs its line in the audit log: without it, a log that takes none costs nobody a token."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """How much the diagnostic log says. The audit log is always complete. No level shows a secret."""

    @model_validator(mode="before")
    @classmethod
    def _default_audience_is_the_issuer(cls, values: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"default_audience": parse_issuer(values.get("issuer")), **values}
        except ValueError:
            return values

    @model_validator(mode="after")
    def _a_ring_in_the_database_is_encrypted(self) -> Self:
        if self.keyring == KEYRING_IN_DATABASE and not self.encryption_keys:
            raise ValueError(
                "TOKENHOUSE_ENCRYPTION_KEYS is required where TOKENHOUSE_KEYRING is database: e.g. "
                'k1:$(python3 -c "import secrets; print(secrets.token_urlsafe(32))"), kept apart from the database'
            )
        return self


EMPTY_MEANS_NONE = frozenset({"metrics_address"})
"""Settings that an empty variable switches off. Others are as if it were not there."""

SETTING_NAMES = tuple(f"{PREFIX}{field.upper()}" for field in Settings.model_fields)
"""Every variable that counts."""
