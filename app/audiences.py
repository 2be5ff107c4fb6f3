"""Identifiers of APIs: what may be an ``aud`` (RFC 7519 section 4.1.3), and which URIs are the same (RFC 3986). Pure.

No library fits: rfc3986 (2022) and hyperlink (2021) are no longer developed and leave default ports and empty paths
alone, and yarl changes more than RFC 3986 allows.
"""

import re

AUDIENCE_RULE = "must be an absolute URI without a fragment, or a name of letters, digits and ._~/@+-"

_ABSOLUTE_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[A-Za-z0-9._~:/?\[\]@!$&'()*+,;=%-]+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~/@+-]*")
_PARTS = re.compile(r"([^:]+):(?://([^/?]*))?([^?]*)(.*)", re.DOTALL)
_ESCAPED = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]")
_DEFAULT_PORTS = {"http": "80", "https": "443"}


def is_absolute_uri(value: str) -> bool:
    """Return whether ``value`` may name a resource: RFC 8707 section 2, in the characters of RFC 3986."""
    return _ABSOLUTE_URI.fullmatch(value) is not None


def is_audience(value: str) -> bool:
    """Return whether ``value`` may be an ``aud``: a StringOrURI, which must be a URI if it contains a colon."""
    return is_absolute_uri(value) if ":" in value else _NAME.fullmatch(value) is not None


def normalize(audience: str) -> str:
    """Return a form that is equal for equivalent URIs: RFC 3986 sections 6.2.2 and 6.2.3. A name is its own form.

    Case of scheme, host and escapes, escapes of unreserved characters, dot segments, a default port and an empty
    path make no difference.
    """
    found = _PARTS.fullmatch(audience)
    if found is None:
        return audience
    scheme, authority, path, query = found.groups()
    scheme = scheme.lower()
    path, query = _normalize_escapes(path), _normalize_escapes(query)
    if authority is None:
        return f"{scheme}:{_remove_dot_segments(path) if path.startswith('/') else path}{query}"
    if scheme in _DEFAULT_PORTS:
        path = path or "/"
    return f"{scheme}://{_normalize_authority(scheme, authority)}{_remove_dot_segments(path)}{query}"


def _normalize_escapes(part: str) -> str:
    def normalized(escaped: re.Match[str]) -> str:
        character = chr(int(escaped[1], 16))
        return character if _UNRESERVED.fullmatch(character) else escaped[0].upper()

    return _ESCAPED.sub(normalized, part)


def _normalize_authority(scheme: str, authority: str) -> str:
    user, at, host = authority.rpartition("@")
    host = _normalize_escapes(host).lower()
    name, colon, port = host.rpartition(":")
    is_port = colon and (":" not in name or name.endswith("]"))
    if is_port and port in {"", _DEFAULT_PORTS.get(scheme)}:
        host = name
    # Lower case has changed the escapes that are left.
    return f"{_normalize_escapes(user)}{at}{_normalize_escapes(host)}"


def _remove_dot_segments(path: str) -> str:
    """Remove ``.`` and ``..``: RFC 3986 section 5.2.4, for a path that is empty or begins with a slash."""
    kept: list[str] = []
    segments = path.split("/")
    for segment in segments:
        if segment == ".." and len(kept) > 1:
            kept.pop()
        elif segment not in {".", ".."}:
            kept.append(segment)
    if segments[-1] in {".", ".."}:
        kept.append("")
    return "/".join(kept)
