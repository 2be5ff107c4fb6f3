"""The caller's address behind proxies: ``Forwarded`` (RFC 7239) and ``X-Forwarded-For``. Pure.

Only headers from a trusted proxy count. Of a chain of proxies the nearest address that is not trusted is the
caller's: the caller may have written everything before it.
"""

import ipaddress
import re
from collections.abc import Iterator, Sequence

from app.config.values import UNIX, TrustedProxies

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,128}")
_PAIR = re.compile(r'\s*([A-Za-z]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s",;]*)\s*')
_MOST_HOPS = 32


def is_trusted(peer: str, trusted: TrustedProxies) -> bool:
    """Return whether ``peer``, an address or :data:`UNIX`, is a trusted proxy."""
    if not trusted:
        return False
    address = _address(peer)
    if address is None:
        return peer == UNIX and UNIX in trusted
    return any(address in network for network in trusted if not isinstance(network, str))


def find_source(peer: str, forwarded_for: str | None, forwarded: str | None, trusted: TrustedProxies) -> str:
    """Return the address that a request came from.

    :param peer: the TCP peer's address, or :data:`UNIX`.
    :param forwarded_for: the value of ``X-Forwarded-For``; several fields joined with commas, in order.
    :param forwarded: the value of ``Forwarded``, joined in the same way.
    :returns: the nearest hop that is not trusted; the last trusted hop if the next one is not an address. If both
        headers are present and disagree, the caller wrote one of them, and the peer is returned.
    """
    if not is_trusted(peer, trusted) or (forwarded_for is None and forwarded is None):
        return peer
    found = set()
    if forwarded_for is not None:
        found.add(_nearest(peer, forwarded_for.split(","), trusted))
    if forwarded is not None:
        found.add(_nearest(peer, list(_forwarded_hops(forwarded)), trusted))
    return found.pop() if len(found) == 1 else peer


def parse_request_id(given: str | None) -> str | None:
    """Return a request id from a trusted proxy, if it may stand in a log and a header."""
    return given if given is not None and _REQUEST_ID.fullmatch(given) else None


def _nearest(peer: str, hops: Sequence[str], trusted: TrustedProxies) -> str:
    nearest = peer
    for hop in reversed(hops[-_MOST_HOPS:]):
        address = _address(hop.strip())
        if address is None:
            break
        nearest = str(address)
        if not is_trusted(nearest, trusted):
            break
    return nearest


def _forwarded_hops(forwarded: str) -> Iterator[str]:
    """Yield the ``for`` of each of the nearest elements; empty for an element that has none or is malformed."""
    if forwarded.count('"') % 2:
        # An unbalanced quote: no element's end is certain.
        yield ""
        return
    for element in _split(forwarded, ",")[-_MOST_HOPS:]:
        pairs = [_PAIR.fullmatch(pair) for pair in _split(element, ";")]
        values = [pair[2].strip('"') for pair in pairs if pair and pair[1].lower() == "for"]
        yield values[0] if len(values) == 1 and all(pairs) else ""


def _split(text: str, separator: str) -> list[str]:
    """Split ``text`` at each ``separator`` outside quotes, looking at each character once.

    A caller writes this header, so the cost must not grow faster than its length.
    """
    pieces = [[""]]
    for number, part in enumerate(text.split('"')):
        if number % 2:
            pieces[-1] += '"', part, '"'
        else:
            first, *more = part.split(separator)
            pieces[-1].append(first)
            pieces += [[piece] for piece in more]
    return ["".join(piece) for piece in pieces]


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Parse an address with or without a port, as both headers write it."""
    if found := re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::[0-9]{1,5})?|([0-9.]+):[0-9]{1,5}", text):
        text = found[1] or found[2]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
