"""Every setting: its type, its unit, its default and its reason.

Parsing of values is left to ``config.values``, where values come from to ``config.loader``. What a value means for the
system (is the key ring sound, does the database answer) is checked by the package that uses it.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, model_validator

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
    default_server_name,
    parse_address,
    parse_audience,
    parse_base_url,
    parse_database_url,
    parse_header_name,
    parse_issuer,
    parse_keyring,
    parse_keys,
    parse_networks,
    parse_path,
    parse_paths,
    parse_rate,
    parse_redis_url,
    parse_server_name,
    parse_trusted_proxies,
)
from app.types import Rate

PREFIX = "TOKENHOUSE_"
CONFIG_PATTERN = re.compile(r"[a-z][a-z0-9_-]*")
"""Names of files in ``config/``, without ``.toml``."""

SigningAlg = Literal["RS256", "PS256", "ES256", "EdDSA"]


class Settings(BaseModel):
    """The settings of one process, frozen. Durations are whole seconds, paths are absolute."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)

    config: str = "production"
    """Which file of ``config/`` is used besides ``default.toml``."""

    issuer: Annotated[str, BeforeValidator(parse_issuer)]
    """``iss`` of every token and the base of every URL in the metadata. Never taken from a request."""

    database_url: Annotated[SecretStr, BeforeValidator(parse_database_url)] = SecretStr(
        "sqlite:///instance/tokenhouse.db"
    )
    """The database of clients and digests of their secrets."""

    redis_url: Annotated[SecretStr | None, BeforeValidator(parse_redis_url)] = None
    """Redis for state that several machines share for a while; unset: in the database."""

    keyring: Annotated[Path | str, BeforeValidator(parse_keyring)] = Path("instance/keyring.toml")
    """The signing keys and their times: a file with PEM files beside it, ``database``, or ``env:NAME`` (static)."""

    keyring_passphrase: SecretStr | None = None
    """Decrypts encrypted PEM files."""

    signing_alg: SigningAlg = "RS256"
    """The algorithm that signs: RFC 7518 section 3.1, RFC 8037. Some verifiers know only RS256."""

    key_announce: Annotated[int, between(0, YEAR)] = 7 * DAY
    """How long a new key is published before it may sign: some verifiers cache a JWKS for a week. Never less than the
    computed safe time.
    """

    key_rotation_interval: Annotated[int, between(1, 10 * YEAR)] = 90 * DAY
    """How long a key signs before ``flask keys rotate --if-due`` replaces it."""

    keyring_propagation: Annotated[int, between(0, DAY)] | None = None
    """How long a change of the ring takes to reach every machine; unset: what its backend needs."""

    jwks_max_age: Annotated[int, between(1, DAY)] = 5 * MINUTE
    """How long verifiers may cache the JWKS. Most refetch on an unknown ``kid`` only after that."""

    assertion_audience: Literal["any", "issuer"] = "any"
    """Which audience an assertion may name: as each client is marked, or the issuer alone from all."""

    assertion_lifetime: Annotated[int, between(1, DAY)] = HOUR
    """How far in the future an assertion may expire."""

    jwks_uri_networks: Annotated[tuple[Network, ...], BeforeValidator(parse_networks)] = ()
    """Networks besides the public ones from which a client's ``jwks_uri`` may be fetched."""

    publish_scopes: bool = True
    """Whether the metadata lists the scopes of registered clients."""

    secret_peppers: Annotated[tuple[IdentifiedKey, ...], BeforeValidator(parse_keys)]
    """Keys for the digests of client secrets: a stolen database alone is worth little. The first digests new secrets.
    """

    encryption_keys: Annotated[tuple[IdentifiedKey, ...], BeforeValidator(parse_keys)] = ()
    """Keys that encrypt what must be decrypted again, such as a key ring in the database. The first encrypts, all
    decrypt.
    """

    access_token_lifetime: Annotated[int, between(MINUTE, LONGEST_LIFETIME_SECONDS)] = HOUR
    """The lifetime of tokens of clients without their own. Short, because a token cannot be revoked for offline
    verifiers.
    """

    audience_parameter: bool = True
    """Whether token requests may name APIs with the parameter ``audience`` too, as callers of other servers do."""

    token_max_characters: Annotated[int, Field(ge=1024, le=12 * 1024)] = 8 * 1024
    """The longest token that is issued: tokens travel in headers, for which many servers have 8 KiB."""

    outage_grace: Annotated[int, between(0, DAY)] = 15 * MINUTE
    """How long known clients get tokens while the database is away; 0: never."""

    snapshot: Annotated[Path | None, BeforeValidator(parse_path)] = None
    """The file with known clients and keys, with which workers start and issue while the database is away."""

    default_audience: Annotated[str, BeforeValidator(parse_audience)]
    """``aud`` for clients without audiences; the issuer unless set."""

    ratelimit_enabled: bool = True
    """Whether there are rate limits."""

    ratelimit_failures: Annotated[Rate, BeforeValidator(parse_rate)] = Rate(20, MINUTE)
    """Failed authentications for each client id and source address; ten times that for a source address."""

    ratelimit_tokens: Annotated[Rate, BeforeValidator(parse_rate)] = Rate(6000, MINUTE)
    """Default limit of token requests, and of assertions, per authenticated client."""

    ratelimit_revocations: Annotated[Rate, BeforeValidator(parse_rate)] = Rate(600, MINUTE)
    """Revocation requests of an authenticated client."""

    token_quota: Annotated[int, Field(ge=1, le=10**9)] | None = None
    """How many tokens a client gets in a day, in UTC; unset: any number."""

    token_quota_mode: Literal["off", "report", "enforce"] = "report"  # noqa: S105 - A mode.
    """What happens beyond the quota: nothing, an event, or a refusal."""

    dpop_nonce_lifetime: Annotated[int, between(0, HOUR)] = 0
    """How long a nonce for DPoP proofs is valid; 0: proofs need none."""

    mtls_header: Annotated[str, BeforeValidator(parse_header_name)] = "Client-Cert"
    """The header in which a trusted proxy forwards the client's certificate."""

    mtls_format: Literal["rfc9440", "xfcc", "nginx"] = "rfc9440"
    """The format of that header: RFC 9440, Envoy's ``x-forwarded-client-cert``, or nginx's escaped PEM."""

    mtls_trust_anchors: Annotated[Path | None, BeforeValidator(parse_path)] = None
    """File with the certificates of the authorities that ``tls_client_auth`` trusts, in PEM."""

    mtls_crls: Annotated[tuple[Path, ...], BeforeValidator(parse_paths)] = ()
    """Files with their revocation lists (CRL). If set, each issuer in a chain needs a list that has not expired."""

    mtls_url: Annotated[str | None, BeforeValidator(parse_base_url)] = None
    """Base URL of the endpoints where the proxy requests a certificate; unset: the issuer."""

    trusted_proxies: Annotated[TrustedProxies, BeforeValidator(parse_trusted_proxies)] = ()
    """The proxies whose forwarded addresses and request ids are used; matched against the TCP peer."""

    metrics_address: Annotated[tuple[str, int] | None, BeforeValidator(parse_address)] = ("127.0.0.1", 9464)
    """Where the metrics listener is: host and port, never the public ones. Empty: no listener, and nothing is counted.
    """

    traces: bool | None = None
    """Whether requests are traced with OpenTelemetry; unset: if its own variables name a collector."""

    server_name: Annotated[str, BeforeValidator(parse_server_name)] = Field(default_factory=default_server_name)
    """The name of this server in the audit log and in ``flask servers``; unset: that of the machine."""

    log_format: Literal["console", "json"] = "json"
    """``console`` for people, ``json`` for machines."""

    audit_log_required: bool = False
    """Whether a token is refused if its audit line cannot be written."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The level of the diagnostic log. The audit log is always complete. No level shows a secret."""

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return the variables of those settings that are not set.

        :param names: fields of this class.
        """
        return [f"{PREFIX}{name.upper()}" for name in names if not getattr(self, name)]

    @property
    def enforces_quota(self) -> bool:
        """Whether a client that has got as many tokens as the quota allows gets no more."""
        return self.token_quota is not None and self.token_quota_mode == "enforce"  # noqa: S105 - A mode.

    @property
    def reports_quota(self) -> bool:
        """Whether there is an event for a client that gets more tokens than the quota allows."""
        return self.token_quota is not None and self.token_quota_mode != "off"  # noqa: S105 - A mode.

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

    @model_validator(mode="after")
    def _certificates_can_come(self) -> Self:
        if self.mtls_crls and not self.mtls_trust_anchors:
            raise ValueError(
                "TOKENHOUSE_MTLS_CRLS needs TOKENHOUSE_MTLS_TRUST_ANCHORS, whose authorities sign the lists"
            )
        if (self.mtls_trust_anchors or self.mtls_url) and not self.trusted_proxies:
            raise ValueError(
                "TOKENHOUSE_MTLS_TRUST_ANCHORS and TOKENHOUSE_MTLS_URL need TOKENHOUSE_TRUSTED_PROXIES: only a trusted "
                "proxy may forward a certificate"
            )
        return self

    @model_validator(mode="after")
    def _a_snapshot_is_encrypted_and_used(self) -> Self:
        if self.snapshot and not self.encryption_keys:
            raise ValueError("TOKENHOUSE_ENCRYPTION_KEYS is required where TOKENHOUSE_SNAPSHOT is set: it is encrypted")
        if self.snapshot and not self.outage_grace:
            raise ValueError("TOKENHOUSE_SNAPSHOT needs a TOKENHOUSE_OUTAGE_GRACE above 0: it is used for no longer")
        return self


EMPTY_MEANS_NONE = frozenset({"metrics_address"})
"""Settings that an empty variable switches off. For others an empty variable counts as absent."""

SECRET_FIELDS = frozenset({"database_url", "redis_url", "keyring_passphrase", "secret_peppers", "encryption_keys"})
"""Settings whose values are secrets, or contain one."""

SETTING_NAMES = tuple(f"{PREFIX}{field.upper()}" for field in Settings.model_fields)
"""Every variable that is a setting."""
