"""Fetches documents from URLs that others supplied, never from our own network (server-side request forgery).

Anybody's host name can resolve to an address in our network, now or a second later. So the address is checked, and
the checked address is the one that is connected to. Redirects are not followed, and no proxy or credential of this
process's environment is used. Size and time are limited.
"""

import http.client
import ipaddress
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from app.config.values import Network, is_loopback

CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 10.0
"""From the lookup of the name to the last byte of the response."""
MOST_ADDRESSES = 3
"""Addresses of a host that are tried, in the order of the resolver."""
MOST_BYTES = 64 * 1024
URL_MAX_CHARACTERS = 2000

URL_RULE = (
    "must be an https URL (http on loopback only) of printable ASCII, without user name and fragment, such as "
    "https://client.example.com/jwks.json"
)
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?\.?|\[[0-9A-Fa-f:.]+\]")
_PATH = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?")
_QUERY = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/?-]*")
_MAX_AGE = re.compile(r'(?:^|[,\s])max-age="?([0-9]{1,9})"?(?:$|[,\s])', re.IGNORECASE)
_NO_STORE = re.compile(r"(?:^|[,\s])no-(?:store|cache)(?:$|[,\s])", re.IGNORECASE)

_PUBLIC_IPV6 = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""RFC 6052: packets go to the IPv4 address in the last 32 bits."""

_ISATAP = {0x00005EFE, 0x02005EFE}
"""RFC 5214: the third quarter of an address whose last 32 bits are an IPv4 address to which packets go."""

_NEVER_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            "168.63.129.16/32",  # A platform's own services, in every virtual network of Azure.
            "192.0.0.192/32",  # The metadata of an instance in Oracle's cloud.
            "192.88.99.0/24",  # Relays of 6to4, which were given up: RFC 7526.
            "3fff::/20",  # For documentation: RFC 9637.
        ),
    )
)
"""Networks that are public by their registration, and lead to what is not."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[..., Sequence[Any]]
"""A function like ``socket.getaddrinfo``."""


class FetchError(Exception):
    """Why a document could not be fetched, for the operator. Never quotes the response."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A fetched document.

    :param max_age: how many seconds it may be cached (RFC 9111 section 5.2.2.1); ``None`` if the response does not
        say.
    """

    body: bytes
    max_age: int | None


def check_url(url: str) -> None:
    """Check a URL before it is stored. The addresses of its host are checked at each fetch.

    :raises ValueError: the rule that ``url`` breaks.
    """
    if len(url) > URL_MAX_CHARACTERS:
        raise ValueError(f"must have at most {URL_MAX_CHARACTERS} characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(URL_RULE) from None
    host = parts.netloc if parts.port is None else parts.netloc.rpartition(":")[0]
    is_plain = _HOST.fullmatch(host) and _PATH.fullmatch(parts.path) and _QUERY.fullmatch(parts.query)
    # Reassembled, the URL must be the same: it must not be readable in two ways.
    if not is_plain or port == 0 or "#" in url or parts.geturl() != url:
        raise ValueError(URL_RULE)
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(str(parts.hostname))):
        raise ValueError(URL_RULE)


def without_query(url: str) -> str:
    """Return ``url`` as a log may show it: people put secrets into queries."""
    return url.partition("?")[0]


class Fetcher:
    """Fetches documents.

    :param networks: networks besides the public ones that hosts may be in.
    :param resolve: resolves host names.
    """

    def __init__(self, networks: Sequence[Network] = (), *, resolve: Resolve = socket.getaddrinfo) -> None:
        self._networks = networks
        self._resolve = resolve

    def fetch(self, url: str, accept: str) -> Fetched:
        """Fetch the document at ``url``.

        :param accept: the value of the ``Accept`` header.
        :raises FetchError: the fetch failed; why.
        """
        try:
            check_url(url)
        except ValueError as error:
            raise FetchError(f"the URL {error}") from None
        parts = urlsplit(url)
        deadline = time.monotonic() + TOTAL_SECONDS
        try:
            with (
                closing(self._connected(str(parts.hostname), parts.port or _port_of(parts.scheme), deadline)) as plain,
                closing(plain.dup()) as same,
            ):
                # A server that sends one byte now and then would otherwise hold the connection for ever.
                is_over = threading.Event()
                end = threading.Timer(max(0.0, deadline - time.monotonic()), _cut, (same, is_over))
                end.daemon = True
                end.start()
                try:
                    found = _ask(plain, parts, accept)
                except Exception:
                    _refuse_late(is_over)
                    raise
                finally:
                    end.cancel()
                # A response that was cut off may look complete.
                _refuse_late(is_over)
                return found
        except ssl.SSLCertVerificationError as error:
            raise FetchError(f"the certificate is not valid: {error.verify_message}") from None
        except ssl.SSLError as error:
            raise FetchError(f"TLS failed: {error.reason or 'the connection ended'}") from None
        except TimeoutError:
            raise FetchError(f"nothing came for {CONNECT_SECONDS:.0f} s") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise FetchError(f"the connection failed: {_named(error)}") from None

    def _connected(self, host: str, port: int, deadline: float) -> socket.socket:
        """Connect to an address of ``host`` that has been checked, until ``deadline`` of the monotonic clock."""
        addresses = self._addresses(host, port, deadline)[:MOST_ADDRESSES]
        failure: OSError | None = None
        for number, (family, address) in enumerate(addresses):
            # Silent ones leave time for those after them.
            share = (deadline - time.monotonic()) / (len(addresses) - number)
            connection = socket.socket(family, socket.SOCK_STREAM)
            connection.settimeout(max(0.01, min(CONNECT_SECONDS, share)))
            try:
                connection.connect(address)
            except OSError as error:
                connection.close()
                failure = error
            else:
                connection.settimeout(CONNECT_SECONDS)
                return connection
        raise failure or FetchError(f"{host} has no address")

    def _addresses(self, host: str, port: int, deadline: float) -> Sequence[tuple[int, Any]]:
        try:
            found = self._resolve_within(host, port, deadline - time.monotonic())
        except (OSError, UnicodeError):
            raise FetchError(f"{host} has no address") from None
        for *_, address in found:
            # Reject the host if any address is disallowed: the next lookup may return that one first.
            here = ipaddress.ip_address(address[0].partition("%")[0])
            # ``localhost`` may resolve to loopback only.
            allowed = here.is_loopback if is_loopback(host) else is_allowed(here, self._networks)
            if not allowed:
                raise FetchError(
                    f"{host} leads to {address[0]}, which is no public address: "
                    "TOKENHOUSE_JWKS_URI_NETWORKS names others that are allowed"
                )
        return [(family, address) for family, *_, address in found]

    def _resolve_within(self, host: str, port: int, seconds: float) -> Sequence[Any]:
        """Resolve ``host`` in a separate thread, since ``getaddrinfo`` takes no timeout."""
        outcome: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def resolve() -> None:
            try:
                outcome.put(self._resolve(host, port, type=socket.SOCK_STREAM))
            except (OSError, UnicodeError) as error:
                outcome.put(error)

        threading.Thread(target=resolve, daemon=True).start()
        try:
            found = outcome.get(timeout=max(0.0, seconds))
        except queue.Empty:
            raise FetchError(f"{host} could not be resolved within {TOTAL_SECONDS:.0f} s") from None
        if isinstance(found, Exception):
            raise found
        return list(found)


def is_allowed(address: _Address, networks: Sequence[Network]) -> bool:
    """Return whether ``address`` is in a public network or in one of ``networks``. Loopback is never public."""
    address = _unwrapped(address)
    if any(address in network for network in networks):
        return True
    if not address.is_global or address.is_multicast or any(address in network for network in _NEVER_PUBLIC):
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return True
    inner = _isatap(address)
    return address in _PUBLIC_IPV6 and (inner is None or is_allowed(inner, networks))


def _unwrapped(address: _Address) -> _Address:
    """Return the IPv4 address inside an IPv6 address, if packets would go to it."""
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address


def _isatap(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address inside an ISATAP address."""
    if int(address) >> 32 & 0xFFFFFFFF not in _ISATAP:
        return None
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


def _port_of(scheme: str) -> int:
    return 443 if scheme == "https" else 80


def _ask(plain: socket.socket, parts: Any, accept: str) -> Fetched:
    wrapped = system_trust().wrap_socket(plain, server_hostname=parts.hostname) if parts.scheme == "https" else plain
    connection = http.client.HTTPConnection(parts.hostname)
    connection.sock, connection.auto_open = wrapped, 0
    with closing(wrapped):
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"Host": parts.netloc, "Accept": accept, "Accept-Encoding": "identity", "Connection": "close"}
        connection.request("GET", target, headers={**headers, "User-Agent": "tokenhouse"})
        with connection.getresponse() as response:
            if response.status != http.client.OK:
                hint = ", and redirects are not followed" if response.status // 100 == 3 else ""  # noqa: PLR2004
                raise FetchError(f"the answer has status {response.status}{hint}")
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise FetchError("the answer is compressed, which was not asked for")
            body = response.read(MOST_BYTES + 1)
            if len(body) > MOST_BYTES:
                raise FetchError(f"the answer has more than {MOST_BYTES // 1024} KiB")
            if response.length:
                raise FetchError("the answer ended early")
            return Fetched(body, _max_age(", ".join(response.headers.get_all("Cache-Control", []))))


def _max_age(cache_control: str) -> int | None:
    if _NO_STORE.search(cache_control):
        return 0
    found = _MAX_AGE.search(cache_control)
    return int(found[1]) if found else None


def _cut(connection: socket.socket, is_over: threading.Event) -> None:
    is_over.set()
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _refuse_late(is_over: threading.Event) -> None:
    if is_over.is_set():
        raise FetchError(f"the answer did not end within {TOTAL_SECONDS:.0f} s") from None


def _named(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or type(error).__name__


@lru_cache(maxsize=1)
def system_trust() -> ssl.SSLContext:
    """Return a TLS context that trusts what the system trusts (``SSL_CERT_FILE``)."""
    return ssl.create_default_context()
