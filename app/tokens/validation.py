"""Validates a token as a strict verifier does: RFC 7515 section 5.2, RFC 7519 section 7.2, RFC 9068 section 4. Pure.

A verifier stops at the first problem; here all are found, for people to read. Revocation is left to ``revocations``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cryptography.exceptions import InvalidSignature

from app.crypto.jws import has_type, parse_unverified
from app.keyring.model import KeyState, Ring, SigningKey
from app.keyring.rotation_plan import CLOCK_SKEW_SECONDS
from app.reasons import TokenReason
from app.tokens.issuer import TOKEN_TYPE

MAX_CHARACTERS = 16 * 1024
"""No token of ours is as long, whatever TOKENHOUSE_TOKEN_MAX_CHARACTERS says or said."""

_TEXTS = ("iss", "sub", "client_id", "jti")
_TIMES = ("iat", "exp")


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a verifier rejects a token.

    :param detail: what in particular. Quotes nothing of a signature.
    """

    reason: TokenReason
    detail: str = ""

    @property
    def message(self) -> str:
        """A sentence for people."""
        meaning = self.reason.meaning
        return f"{meaning.removesuffix('.')}: {self.detail}." if self.detail else meaning


@dataclass(frozen=True, slots=True)
class TokenValidation:
    """What a token says, and why it would be rejected; ``None`` where nothing can be parsed.

    :param problems: empty for a valid token of ours. Only then are its claims true.
    """

    problems: tuple[Problem, ...]
    unverified_header: Mapping[str, Any] | None = None
    unverified_claims: Mapping[str, Any] | None = None

    @property
    def is_good(self) -> bool:
        """Whether a verifier in its audience accepts it."""
        return not self.problems


def validate_token(unverified_token: str, issuer: str, ring: Ring, now: datetime) -> TokenValidation:
    """Validate a token from any source.

    :param issuer: our issuer.
    """
    if len(unverified_token) > MAX_CHARACTERS:
        return TokenValidation((Problem(TokenReason.TOO_LONG, f"{len(unverified_token)} characters"),))
    found = parse_unverified(unverified_token, MAX_CHARACTERS)
    if found is None:
        return TokenValidation((Problem(TokenReason.MALFORMED_TOKEN),))
    header, claims = found.header, found.claims
    if header is None or claims is None:
        wrong = "header" if header is None else "payload"
        return TokenValidation((Problem(TokenReason.MALFORMED_TOKEN, f"its {wrong} is not"),), header, claims)
    problems = (
        *_header_problems(header),
        *_signature_problems(header, found.signed, found.signature, ring, now),
        *_claim_problems(claims, issuer, now),
    )
    return TokenValidation(problems, header, claims)


def from_epoch(seconds: int) -> datetime:
    """Convert an epoch time to a datetime in UTC."""
    return datetime.fromtimestamp(seconds, UTC)


def _header_problems(header: Mapping[str, Any]) -> Iterator[Problem]:
    if not has_type(header, TOKEN_TYPE):
        yield Problem(TokenReason.OTHER_TYPE)
    if "crit" in header:
        yield Problem(TokenReason.CRITICAL_HEADER)


def _signature_problems(
    header: Mapping[str, Any], signed: bytes, signature: bytes, ring: Ring, now: datetime
) -> Iterator[Problem]:
    kid = header.get("kid")
    key = ring.find(kid) if isinstance(kid, str) else None
    if key is None:
        yield Problem(TokenReason.UNKNOWN_KEY)
        return
    if header.get("alg") != key.alg:
        yield Problem(TokenReason.OTHER_ALGORITHM)
        return
    try:
        key.verify(signature, signed)
    except InvalidSignature:
        yield Problem(TokenReason.WRONG_SIGNATURE)
    yield from _key_problems(key, ring, now)


def _key_problems(key: SigningKey, ring: Ring, now: datetime) -> Iterator[Problem]:
    state = ring.state_of(key, now)
    if state is KeyState.REVOKED:
        yield Problem(TokenReason.REVOKED_KEY)
    elif state is KeyState.GONE:
        yield Problem(TokenReason.KEY_GONE)


def _claim_problems(claims: Mapping[str, Any], issuer: str, now: datetime) -> Iterator[Problem]:
    texts = [name for name in _TEXTS if not isinstance(claims.get(name), str)]
    times = [name for name in _TIMES if type(claims.get(name)) is not int]
    if wrong := texts + times:
        yield Problem(TokenReason.MISSING_CLAIM, ", ".join(wrong))
    if not _is_audience(claims.get("aud")):
        yield Problem(TokenReason.MISSING_CLAIM, "aud")
    if "iss" not in texts and claims["iss"] != issuer:
        yield Problem(TokenReason.OTHER_ISSUER, f"our iss is {issuer}")
    seconds = int(now.timestamp())
    if "exp" not in times and claims["exp"] <= seconds:
        yield Problem(TokenReason.EXPIRED)
    # Another machine, whose clock may be ahead, may have issued it just now.
    if "iat" not in times and claims["iat"] > seconds + CLOCK_SKEW_SECONDS:
        yield Problem(TokenReason.NOT_YET)


def _is_audience(value: object) -> bool:
    several = value if isinstance(value, list) and value else [value]
    return all(isinstance(one, str) for one in several)
