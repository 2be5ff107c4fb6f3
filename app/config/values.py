"""Parsers for the values of settings: durations, URLs, networks, keys. Each raises ``ValueError`` with what is allowed.

Which settings exist is left to ``config.settings``. No error quotes a value: it may be a secret.
"""

import ipaddress
import re
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from pydantic import BeforeValidator, SecretStr
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from app.audiences import AUDIENCE_RULE, is_audience
from app.types import Rate

PROJECT_FOLDER = Path(__file__).resolve().parent.parent.parent
"""The folder that relative paths in settings start from, whatever the working directory."""

MINUTE, HOUR, DAY, YEAR = 60, 3600, 86400, 365 * 86400
"""Seconds."""

LONGEST_LIFETIME_SECONDS = DAY
"""The longest lifetime of any access token, including a lifetime that is set for one client."""

KEYRING_IN_DATABASE = "database"
KEYRING_IN_ENVIRONMENT = "env:"

UNIX = "unix"
"""Stands for the peer of a Unix socket, which has no address."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
TrustedProxies = tuple[Network | str, ...]
"""Networks, and :data:`UNIX`."""

_UNITS = {"s": 1, "m": MINUTE, "h": HOUR, "d": DAY, "y": YEAR}
_LONGEST_DURATION = 3650 * DAY
_DURATION = re.compile(r"([0-9]{1,12})([smhdy]?)")
_RATE_UNITS = {"second": 1, "minute": MINUTE, "hour": HOUR, "day": DAY}
_RATE = re.compile(r"([1-9][0-9]{0,8})/(second|minute|hour|day)")
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,16}")
_KEY_MIN_CHARACTERS = 32
_REDIS_NUMBER = re.compile(r"(?:/[0-9]{0,6})?")
_SERVER_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HEADER_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
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


class IdentifiedKey(NamedTuple):
    """A key that digests or encrypts. Its ``id`` is stored beside each result, so that keys can rotate."""

    id: str
    value: SecretStr


def parse_duration(value: object) -> int:
    """Parse ``90s``, ``15m``, ``24h``, ``7d``, ``1y`` (365 days) or an integer number of seconds.

    :returns: whole seconds.
    :raises ValueError: anything else, or more than ten years.
    """
    found = _DURATION.fullmatch(str(value)) if isinstance(value, str | int) and not isinstance(value, bool) else None
    if found is None:
        raise ValueError("must be a duration such as 90s, 15m, 24h or 7d")
    seconds = int(found[1]) * _UNITS[found[2] or "s"]
    if seconds > _LONGEST_DURATION:
        raise ValueError("must be at most 3650d")
    return seconds


def format_time(time: datetime) -> str:
    """Return a time in UTC in the form of RFC 3339, to the second, as commands, log and messages show it."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def format_duration(seconds: int) -> str:
    """Format ``seconds`` in the largest unit that divides them: 3600 is ``1h``."""
    unit = next((unit for unit in "dhm" if seconds and seconds % _UNITS[unit] == 0), "s")
    return f"{seconds // _UNITS[unit]}{unit}"


def parse_rate(value: object) -> Rate:
    """Parse a rate such as ``20/minute``.

    :raises ValueError: anything else.
    """
    if isinstance(value, Rate):
        return value
    found = _RATE.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise ValueError("must be a number and a unit such as 20/minute: second, minute, hour or day")
    return Rate(int(found[1]), _RATE_UNITS[found[2]])


def format_rate(rate: Rate) -> str:
    """Format ``rate`` as :func:`parse_rate` reads it."""
    return f"{rate.amount}/{next(unit for unit, seconds in _RATE_UNITS.items() if seconds == rate.seconds)}"


def between(shortest: int, longest: int) -> BeforeValidator:
    """Return a validator for durations from ``shortest`` to ``longest`` seconds."""

    def check(value: object) -> int:
        seconds = parse_duration(value)
        if not shortest <= seconds <= longest:
            raise ValueError(f"must be from {format_duration(shortest)} to {format_duration(longest)}")
        return seconds

    return BeforeValidator(check)


def is_loopback(host: str) -> bool:
    """Return whether ``host``, a name or an address, can only mean this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def parse_issuer(value: object) -> str:
    """Parse an issuer. Verifiers compare issuers byte by byte, so only one spelling of each is allowed.

    :raises ValueError: the rule that ``value`` breaks.
    """
    found = _ISSUER.fullmatch(value) if isinstance(value, str) else None
    if found is None or not is_host(found["host"]):
        raise ValueError(_ISSUER_RULE)
    secure = found["scheme"] == "https" or is_loopback(found["host"].strip("[]"))
    port = int(found["port"] or 0)
    plain = port != _DEFAULT_PORTS[found["scheme"]] and port <= _LARGEST_PORT
    if not (secure and plain) or {".", ".."} & set(found["path"].split("/")):
        raise ValueError(_ISSUER_RULE)
    return found[0]


def parse_base_url(value: object) -> str | None:
    """Parse the base URL of endpoints, by the rules of an issuer.

    :raises ValueError: the rule that ``value`` breaks.
    """
    return None if value is None else parse_issuer(value)


def parse_header_name(value: object) -> str:
    """Parse the name of an HTTP header.

    :raises ValueError: it is not 1 to 64 letters, digits and hyphens.
    """
    if not _HEADER_NAME.fullmatch(str(value)):
        raise ValueError("must be the name of a header: 1 to 64 letters, digits and hyphens")
    return str(value)


def is_host(host: str) -> bool:
    """Return whether ``host`` may stand in a URL. In brackets it must be an IPv6 address."""
    if not host.startswith("["):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).version == 6  # noqa: PLR2004
    except ValueError:
        return False


def parse_audience(value: object) -> str:
    """Parse the identifier of an API.

    :raises ValueError: anything else.
    """
    if not isinstance(value, str) or not is_audience(value):
        raise ValueError(AUDIENCE_RULE)
    return value


def parse_database_url(value: object) -> SecretStr:
    """Parse an SQLAlchemy URL; a relative path of SQLite becomes absolute.

    :raises ValueError: another database or driver, or a URL that could be read in two ways.
    """
    allowed = "must be sqlite:///PATH or postgresql+psycopg://USER:PASSWORD@HOST/NAME"
    try:
        url = make_url(value.get_secret_value() if isinstance(value, SecretStr) else str(value))
    except (ArgumentError, ValueError):
        raise ValueError(allowed) from None
    if url.drivername in {"postgres", "postgresql", "postgresql+psycopg"}:
        # An unencoded @ in the password would make the rest of it the host, which logs show.
        if "@" in f"{url.host}{url.database}":
            raise ValueError("must have user and password percent-encoded: @ is %40, / is %2F, : is %3A")
        if url.query.keys() & {"password", "sslpassword"}:
            raise ValueError("must have the password before the host, and not as a parameter, which logs show")
        parse_prepare_threshold(url.query.get("prepare_threshold", "0"))
        return SecretStr(url.set(drivername="postgresql+psycopg").render_as_string(hide_password=False))
    if url.drivername in {"sqlite", "sqlite+pysqlite"}:
        return SecretStr(_absolute_sqlite_url(url).render_as_string(hide_password=False))
    raise ValueError(allowed)


def parse_prepare_threshold(value: object) -> int | None:
    """Parse psycopg's ``prepare_threshold`` of a URL: a number, or ``none``.

    :raises ValueError: anything else.
    """
    if value == "none":
        return None
    if not isinstance(value, str) or not re.fullmatch("[0-9]{1,9}", value):
        raise ValueError("must have a number or none as prepare_threshold")
    return int(value)


def _absolute_sqlite_url(url: URL) -> URL:
    if url.database in {None, "", ":memory:"}:
        raise ValueError("must name a file: a SQLite database in memory cannot be shared by several workers")
    return url.set(database=str(PROJECT_FOLDER / str(url.database)))


def parse_redis_url(value: object) -> SecretStr | None:
    """Parse the URL of a Redis.

    :raises ValueError: anything else.
    """
    if value is None:
        return None
    allowed = "must be redis://[USER:PASSWORD@]HOST[:PORT][/NUMBER], rediss://… (TLS) or unix://PATH"
    url = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
    from redis import ConnectionPool  # noqa: PLC0415 - The driver is loaded only where Redis is used.

    try:
        parts = urlsplit(url)
        is_plain = parts.path if parts.scheme == "unix" else parts.hostname and _REDIS_NUMBER.fullmatch(parts.path)
        pool = ConnectionPool.from_url(url)
        # The URL's query is parsed when a connection object is made; nothing connects here.
        pool.make_connection()
    except (ValueError, TypeError):
        raise ValueError(allowed) from None
    if not is_plain or pool.connection_kwargs.get("decode_responses"):
        raise ValueError(allowed)
    return SecretStr(url)


def parse_trusted_proxies(value: object) -> TrustedProxies:
    """Parse comma-separated networks in CIDR notation (an address is a network of one) and ``unix``.

    :raises ValueError: anything else.
    """
    if isinstance(value, tuple):
        return value
    trusted: list[Network | str] = []
    for part in filter(None, (part.strip() for part in str(value).split(","))):
        try:
            trusted.append(UNIX if part == UNIX else ipaddress.ip_network(part))
        except ValueError:
            raise ValueError(
                "must be comma-separated networks such as 10.0.0.0/8 or fd00::/8, without host bits, or unix"
            ) from None
    return tuple(trusted)


def parse_networks(value: object) -> tuple[Network, ...]:
    """Parse comma-separated networks in CIDR notation.

    :raises ValueError: anything else.
    """
    try:
        found = parse_trusted_proxies(value)
        if UNIX not in found:
            return found  # type: ignore[return-value]
    except ValueError:
        pass
    raise ValueError("must be comma-separated networks such as 10.0.0.0/8 or fd00::/8, without host bits")


def parse_address(value: object) -> tuple[str, int] | None:
    """Parse ``HOST:PORT``; empty means none.

    :raises ValueError: anything else.
    """
    if value in {None, ""}:
        return None
    if isinstance(value, tuple):
        return value
    host, colon, port = str(value).rpartition(":")
    is_number = _PORT.fullmatch(port) and int(port) <= _LARGEST_PORT
    is_good_host = is_host(host) if host.startswith("[") else _HOST.fullmatch(host)
    if not colon or not is_number or not is_good_host:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:9464 or [::1]:9464, or empty for none")
    return host.strip("[]"), int(port)


def default_server_name() -> str:
    """Return the host name of this machine, with every other character replaced."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64] or "server"


def parse_server_name(value: object) -> str:
    """Check the name of a server.

    :raises ValueError: it is not 1 to 64 characters of A-Z a-z 0-9 . _ -
    """
    name = str(value)
    if not _SERVER_NAME.fullmatch(name):
        raise ValueError("must be 1 to 64 characters of A-Z a-z 0-9 . _ -")
    return name


def parse_path(value: object) -> Path | None:
    """Parse the path of a file, which becomes absolute.

    :raises ValueError: anything else.
    """
    if value is None:
        return None
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError("must be the path of a file")
    return PROJECT_FOLDER / value


def parse_paths(value: object) -> tuple[Path, ...]:
    """Parse comma-separated paths of files, which become absolute.

    :raises ValueError: anything else.
    """
    if isinstance(value, tuple):
        return value
    names = [name.strip() for name in value.split(",")] if isinstance(value, str) else []
    if not all(names) or not names:
        raise ValueError("must be comma-separated paths of files")
    return tuple(PROJECT_FOLDER / name for name in names)


def parse_keyring(value: object) -> Path | str:
    """Parse the location of a key ring: a path, ``database``, or ``env:NAME``. A path becomes absolute.

    :raises ValueError: anything else.
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


def parse_keys(value: object) -> tuple[IdentifiedKey, ...]:
    """Parse comma-separated ``id:value`` pairs.

    :raises ValueError: anything else, a short value, or an id that occurs twice.
    """
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
