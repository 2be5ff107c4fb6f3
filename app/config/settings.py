"""Every setting: its type, its unit, its default and its reason.

Where values come from is left to ``config.loader``; what a value means for the system (is the key ring sound, does
the database answer), to the rooms that use it.
"""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, SecretStr, model_validator
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from app.proxies import UNIX, Network, Trusted, parse_trusted

PROJECT_FOLDER = Path(__file__).resolve().parent.parent.parent
"""What relative paths in settings mean, from wherever a command runs."""

PREFIX = "TOKENHOUSE_"

MINUTE, HOUR, DAY, YEAR = 60, 3600, 86400, 365 * 86400

LONGEST_LIFETIME_SECONDS = DAY
"""The longest lifetime of any token, in seconds: a client's own lifetime included."""

CONFIG_PATTERN = re.compile(r"[a-z][a-z0-9_-]*")
_UNITS = {"s": 1, "m": MINUTE, "h": HOUR, "d": DAY, "y": YEAR}
_LONGEST_DURATION = 3650 * DAY
_DURATION = re.compile(r"([0-9]{1,12})([smhdy]?)")
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,16}")
_KEY_MIN_CHARACTERS = 32
_REDIS_NUMBER = re.compile(r"(?:/[0-9]{0,6})?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

KEYRING_IN_DATABASE = "database"
KEYRING_IN_ENVIRONMENT = "env:"

SigningAlg = Literal["RS256", "PS256", "ES256", "EdDSA"]
_ISSUER = re.compile(
    r"(?P<scheme>https?)://(?P<host>[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])"
    r"(?::(?P<port>[1-9][0-9]{0,4}))?(?P<path>(?:/[A-Za-z0-9._~-]+)*)"
)
_ISSUER_RULE = (
    "must be an https URL (http on loopback only) in lower case, with no default port, trailing slash, query, fragment "
    "or user name"
)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_LARGEST_PORT = 65535
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?")


class StartError(Exception):
    """What stops a start: one line for each fault, which names what is wrong and what is allowed."""


class IdentifiedKey(NamedTuple):
    """A key for digesting or encrypting: ``id`` stands beside all that it made, so that keys can rotate."""

    id: str
    value: SecretStr


def parse_duration(value: object) -> int:
    """Whole seconds of ``90s``, ``15m``, ``24h``, ``7d``, ``1y`` (365 days), or of an integer that counts seconds.

    :raises ValueError: anything else, or more than ten years.
    """
    found = _DURATION.fullmatch(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else None
    if found is None:
        raise ValueError("must be a duration such as 90s, 15m, 24h or 7d")
    seconds = int(found[1]) * _UNITS[found[2] or "s"]
    if seconds > _LONGEST_DURATION:
        raise ValueError("must be at most 3650d")
    return seconds


def format_duration(seconds: int) -> str:
    """Write ``seconds`` in the largest unit that divides them: 3600 is ``1h``."""
    unit = next((unit for unit in "dhm" if seconds and seconds % _UNITS[unit] == 0), "s")
    return f"{seconds // _UNITS[unit]}{unit}"


def _between(shortest: int, longest: int) -> BeforeValidator:
    """Duration with bounds, in seconds."""

    def check(value: object) -> int:
        seconds = parse_duration(value)
        if not shortest <= seconds <= longest:
            raise ValueError(f"must be from {format_duration(shortest)} to {format_duration(longest)}")
        return seconds

    return BeforeValidator(check)


def is_loopback(host: str) -> bool:
    """Whether ``host``, a name or an address, can only be this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def parse_issuer(value: object) -> str:
    """Check an issuer. Verifiers compare it to the letter, so what could be written in two ways is refused.

    :raises ValueError: it is refused; the rule.
    """
    found = _ISSUER.fullmatch(value) if isinstance(value, str) else None
    if found is None or not _is_host(found["host"]):
        raise ValueError(_ISSUER_RULE)
    secure = found["scheme"] == "https" or is_loopback(found["host"].strip("[]"))
    port = int(found["port"] or 0)
    plain = port != _DEFAULT_PORTS[found["scheme"]] and port <= _LARGEST_PORT
    if not (secure and plain) or {".", ".."} & set(found["path"].split("/")):
        raise ValueError(_ISSUER_RULE)
    return found[0]


def _is_host(host: str) -> bool:
    if not host.startswith("["):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).version == 6  # noqa: PLR2004
    except ValueError:
        return False


def _parse_audience(value: object) -> str:
    if not isinstance(value, str) or not is_absolute_uri(value):
        raise ValueError("must be an absolute URI without a fragment, such as https://api.example.com")
    return value


def is_absolute_uri(value: str) -> bool:
    """Whether ``value`` may name a resource: RFC 8707 section 2, in the characters of RFC 3986."""
    return re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9._~:/?\[\]@!$&'()*+,;=%-]+", value) is not None


def _parse_database_url(value: object) -> SecretStr:
    allowed = "must be sqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST/NAME"
    try:
        url = make_url(value.get_secret_value() if isinstance(value, SecretStr) else str(value))
    except (ArgumentError, ValueError):
        raise ValueError(allowed) from None
    if url.drivername in {"postgres", "postgresql", "postgresql+psycopg"}:
        # What follows an @ in a password is taken for the host, and would be told as one.
        if "@" in f"{url.host}{url.database}":
            raise ValueError("must have user and password percent-encoded: @ is %40, / is %2F, : is %3A")
        return SecretStr(url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False))
    if url.drivername in {"sqlite", "sqlite+pysqlite"}:
        return SecretStr(_absolute_sqlite_url(url).render_as_string(hide_password=False))
    raise ValueError(allowed)


def _absolute_sqlite_url(url: URL) -> URL:
    if url.database in {None, "", ":memory:"}:
        raise ValueError("must name a file: a SQLite database in memory cannot be shared by several workers")
    return url.set(database=str(PROJECT_FOLDER / str(url.database)))


def _parse_redis_url(value: object) -> SecretStr | None:
    if value is None:
        return None
    allowed = "must be redis://[USER:PASSWORD@]HOST[:PORT][/NUMBER], rediss://… (TLS) or unix://PATH"
    url = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    from redis import ConnectionPool  # noqa: PLC0415 - Only who has one waits for the driver.

    try:
        parts = urlsplit(url)
        is_plain = parts.path if parts.scheme == "unix" else parts.hostname and _REDIS_NUMBER.fullmatch(parts.path)
        pool = ConnectionPool.from_url(url)
        # What the query of the URL says is read with a connection; it is not opened here.
        pool.make_connection()
    except (ValueError, TypeError):
        raise ValueError(allowed) from None
    if not is_plain or pool.connection_kwargs.get("decode_responses"):
        raise ValueError(allowed)
    return SecretStr(url)


def _parse_networks(value: object) -> tuple[Network, ...]:
    try:
        found = parse_trusted(value)
        if UNIX not in found:
            return found  # type: ignore[return-value]
    except ValueError:
        pass
    raise ValueError("must be comma-separated networks such as 10.0.0.0/8 or fd00::/8, without host bits")


def _parse_address(value: object) -> tuple[str, int] | None:
    if value in {None, ""}:
        return None
    if isinstance(value, tuple):
        return value
    host, colon, port = str(value).rpartition(":")
    is_number = _PORT.fullmatch(port) and int(port) <= _LARGEST_PORT
    is_host = _is_host(host) if host.startswith("[") else _HOST.fullmatch(host)
    if not colon or not is_number or not is_host:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:9464 or [::1]:9464, or empty for none")
    return host.strip("[]"), int(port)


def parse_keyring(value: object) -> Path | str:
    """Read where a key ring is: an absolute path, ``database``, or ``env:NAME``.

    :raises ValueError: none of these.
    """
    if value == KEYRING_IN_DATABASE:
        return KEYRING_IN_DATABASE
    if isinstance(value, str) and value.startswith(KEYRING_IN_ENVIRONMENT):
        if not _VARIABLE.fullmatch(value.removeprefix(KEYRING_IN_ENVIRONMENT)):
            raise ValueError("must name a variable after env:, of letters, digits and underscores")
        return value
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError("must be the path of a file, `database`, or env:NAME")
    return PROJECT_FOLDER / value


def _parse_keys(value: object) -> tuple[IdentifiedKey, ...]:
    if isinstance(value, tuple):
        return value
    allowed = f"must be comma-separated id:value pairs, each value of {_KEY_MIN_CHARACTERS} characters or more"
    keys = []
    for pair in str(value).split(","):
        key_id, colon, secret = pair.strip().partition(":")
        if not colon or not _KEY_ID.fullmatch(key_id) or len(secret) < _KEY_MIN_CHARACTERS:
            raise ValueError(allowed)
        keys.append(IdentifiedKey(key_id, SecretStr(secret)))
    if len({key.id for key in keys}) < len(keys):
        raise ValueError("must not name an id twice")
    return tuple(keys)


class Settings(BaseModel):
    """The settings of one process, frozen. Durations are whole seconds, paths are absolute."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)

    config: str = "production"
    """Which file of ``config/`` counts besides ``default.toml``."""

    issuer: Annotated[str, BeforeValidator(parse_issuer)]
    """``iss`` of every token and the base of every URL in the metadata. Never taken from a request."""

    database_url: Annotated[SecretStr, BeforeValidator(_parse_database_url)] = SecretStr(
        "sqlite:///instance/tokenhouse.db"
    )
    """Clients and their secrets' digests."""

    redis_url: Annotated[SecretStr | None, BeforeValidator(_parse_redis_url)] = None
    """Where several machines remember what they share for a while; unset: in the database."""

    keyring: Annotated[Path | str, BeforeValidator(parse_keyring)] = Path("instance/keyring.toml")
    """The signing keys and their times: a file with PEM files beside it, ``database``, or ``env:NAME`` (static)."""

    keyring_passphrase: SecretStr | None = None
    """Decrypts encrypted PEM files."""

    signing_alg: SigningAlg = "RS256"
    """Which algorithm signs: RFC 7518 section 3.1, RFC 8037. Some verifiers know nothing but RS256."""

    key_announce: Annotated[int, _between(0, YEAR)] = 7 * DAY
    """How long a new key is published before it may sign: some verifiers cache a JWKS for a week. Never less than the
    safe time, which is computed."""

    key_rotation_interval: Annotated[int, _between(1, 10 * YEAR)] = 90 * DAY
    """How long a key signs before ``flask keys rotate --if-due`` finds that another should."""

    keyring_propagation: Annotated[int, _between(0, DAY)] | None = None
    """How long a change of the ring takes to reach every machine; unset: what its home needs."""

    jwks_max_age: Annotated[int, _between(1, DAY)] = 5 * MINUTE
    """How long a verifier may cache the JWKS. Most refetch on an unknown ``kid`` only after that."""

    assertion_audience: Literal["any", "issuer"] = "any"
    """What an assertion of a client may name as its audience: the issuer or the token endpoint, or the issuer alone."""

    assertion_lifetime: Annotated[int, _between(1, DAY)] = HOUR
    """How far ahead the end of an assertion may be."""

    jwks_uri_networks: Annotated[tuple[Network, ...], BeforeValidator(_parse_networks)] = ()
    """Where else than in public networks a client may publish its keys: its ``jwks_uri`` is fetched from here."""

    publish_scopes: bool = True
    """Whether the metadata lists the scopes of registered clients."""

    secret_peppers: Annotated[tuple[IdentifiedKey, ...], BeforeValidator(_parse_keys)]
    """Keys for the digests of client secrets: a stolen database alone is worth little. The first digests new ones."""

    encryption_keys: Annotated[tuple[IdentifiedKey, ...], BeforeValidator(_parse_keys)] = ()
    """Keys for what must be kept readable, such as a key ring in the database. The first encrypts, all decrypt."""

    access_token_lifetime: Annotated[int, _between(MINUTE, LONGEST_LIFETIME_SECONDS)] = HOUR
    """For clients without a lifetime of their own: short, because an access token cannot be called back offline."""

    default_audience: Annotated[str, BeforeValidator(_parse_audience)]
    """``aud`` for clients without audiences; the issuer unless set."""

    trusted_proxies: Annotated[Trusted, BeforeValidator(parse_trusted)] = ()
    """From whom forwarded addresses and request ids are taken; matched against the TCP peer."""

    metrics_address: Annotated[tuple[str, int] | None, BeforeValidator(_parse_address)] = ("127.0.0.1", 9464)
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
