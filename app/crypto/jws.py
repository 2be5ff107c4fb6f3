"""A JWS in compact form (RFC 7515 section 7.1), taken apart and not believed. Pure.

Whose it is, and whether what it says is true, is left to ``inspection`` (tokens) and ``client_auth`` (assertions).
"""

import json
import re
from base64 import urlsafe_b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)")


@dataclass(frozen=True, slots=True)
class UnverifiedJws:
    """The parts of one.

    :param header: ``None`` where it is no JSON object; ``claims`` likewise.
    :param signed: what the signature is over.
    :param signature: empty where it is no base64url.
    """

    header: Mapping[str, Any] | None
    claims: Mapping[str, Any] | None
    signed: bytes
    signature: bytes


def parse_unverified(unverified: str, most_characters: int) -> UnverifiedJws | None:
    """The parts of ``unverified``; ``None`` where it is too long, or not three parts of base64url."""
    found = _COMPACT.fullmatch(unverified) if len(unverified) <= most_characters else None
    if found is None:
        return None
    signed = unverified[: found.end(2)].encode()
    return UnverifiedJws(_parsed(found[1]), _parsed(found[2]), signed, decode(found[3]) or b"")


def parse_unverified_header(unverified: str, most_characters: int) -> Mapping[str, Any] | None:
    """The header of ``unverified`` alone; ``None`` where there is none."""
    part, dot, _ = unverified.partition(".")
    return _parsed(part) if dot and part.isascii() and len(unverified) <= most_characters else None


def decode(part: str) -> bytes | None:
    """What stands in base64url without padding; ``None`` where that is nothing."""
    try:
        return urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except ValueError:
        return None


def _parsed(part: str) -> Mapping[str, Any] | None:
    raw = decode(part)
    try:
        value = json.loads(raw.decode()) if raw is not None else None
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
