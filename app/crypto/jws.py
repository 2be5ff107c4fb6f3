"""Parses a JWS in compact form (RFC 7515 section 7.1) without verifying it, and compares what JWTs contain. Pure.

Verification is left to ``tokens.validation`` and ``oauth.client_auth``.
"""

import json
import math
import re
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from typing import Any, TypeGuard

from app.types import UnverifiedJws

_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)")


def parse_unverified(unverified: str, most_characters: int) -> UnverifiedJws | None:
    """Parse ``unverified``; return ``None`` if it is too long, or not three parts of base64url."""
    found = _COMPACT.fullmatch(unverified) if len(unverified) <= most_characters else None
    if found is None:
        return None
    signed = unverified[: found.end(2)].encode()
    return UnverifiedJws(parse_object(found[1]), parse_object(found[2]), signed, decode(found[3]) or b"")


def decode(part: str) -> bytes | None:
    """Decode base64url without padding; return ``None`` for anything else."""
    try:
        return urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        return None


def has_type(header: Mapping[str, Any], *types: str) -> bool:
    """Return whether the ``typ`` of ``header`` is one of the media types ``types``: RFC 7515 section 4.1.9.

    :param types: in lower case, without ``application/``, which a header may omit too.
    """
    typ = header.get("typ")
    return isinstance(typ, str) and typ.lower().removeprefix("application/") in types


def is_numeric_date(value: object) -> TypeGuard[float]:
    """Return whether ``value`` is a NumericDate (RFC 7519 section 2): a finite number, which may have a fraction."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


def parse_object(part: str) -> Mapping[str, Any] | None:
    """Decode base64url and parse a JSON object; return ``None`` for anything else."""
    raw = decode(part)
    try:
        value = json.loads(raw.decode()) if raw is not None else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
