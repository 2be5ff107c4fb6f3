"""DPoP: access tokens that are bound to a key of the client (RFC 9449).

The client signs a proof for each request. The token contains the thumbprint of the key, so a stolen token is useless
without the key. This module checks the proofs of token requests (section 4.3); APIs check those that come with tokens.
Each proof is accepted once, on all workers and machines. Nonces (section 8) are authenticated times and are not stored.
"""

import hashlib
import hmac
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn
from urllib.parse import urljoin, urlsplit

from joserfc.util import urlsafe_b64encode

from app.config.settings import Settings
from app.config.values import IdentifiedKey
from app.crypto.encryption import derive_key
from app.crypto.jwk import SIGNING_ALGS, Jwk, check_key, matching, refuse_private, verifies
from app.crypto.jws import decode, has_type, is_numeric_date, parse_object, parse_unverified
from app.errors import InvalidDpopProof, ManagementError, UseDpopNonce
from app.oauth.replay_store import JTI_MAX_CHARACTERS, REMEMBERED_LONGER_SECONDS, SKEW_SECONDS, has_jti
from app.oauth.services import OAuthServices
from app.reasons import RefusalReason
from app.types import Metadata, TokenRequest

PROOF_TYPE = "dpop+jwt"
PROOF_MAX_CHARACTERS = 8 * 1024
"""No proof is nearly as long."""
PROOF_SECONDS = 60
"""How long a proof is valid after its ``iat``, in addition to ``SKEW_SECONDS``."""

_HEADERS_KEPT = 512
"""Headers of proofs that are cached."""

NONCE_HEADER = "DPoP-Nonce"
_TIME_BYTES = 6
_MAC_BYTES = 16

_DEFAULT_PORTS = {"https": 443, "http": 80}
_ESCAPED = re.compile("%([0-9A-Fa-f]{2})")
_UNRESERVED = re.compile("[A-Za-z0-9._~-]")


@dataclass(frozen=True, slots=True)
class Proof:
    """A proof whose signature is valid.

    :param jkt: the thumbprint of its key (RFC 7638).
    """

    jkt: str
    claims: Mapping[str, Any]


class Dpop:
    """Binds tokens to the key of the DPoP proof. A proof is optional, unless the client must send one."""

    name = "dpop"
    client_metadata = "dpop_bound_access_tokens"
    option = "require-dpop"
    option_help = "Refuse its token requests without a DPoP proof."
    requires: tuple[str, ...] = ()
    header = "HTTP_DPOP"

    def __init__(self, services: OAuthServices) -> None:
        settings = services.settings
        self._clock = services.clock
        self._replay_store = services.replay_store
        metadata = services.metadata
        self._targets: list[str] = [
            members["token_endpoint"] for members in (metadata, metadata.get("mtls_endpoint_aliases")) if members
        ]
        self._nonces = Nonces(settings.secret_peppers, settings.dpop_nonce_lifetime)

    @staticmethod
    def metadata(settings: Settings, endpoints: Metadata) -> Metadata:  # noqa: ARG004 - For other constraints.
        """Return the members of the server's metadata (section 5.1)."""
        return {"dpop_signing_alg_values_supported": list(SIGNING_ALGS)}

    def confirm(self, request: TokenRequest) -> dict[str, str]:
        """Check the proof of ``request``; return the ``cnf`` of its token (section 6.1).

        :raises InvalidDpopProof: it is missing, wrong, or was used before.
        :raises UseDpopNonce: it has no nonce that is valid now.
        :raises ServiceUnavailable: whether it was used before cannot be known.
        """
        now = int(self._clock().timestamp())
        if self._nonces.lifetime_seconds:
            request.response_headers.append((NONCE_HEADER, self._nonces.create(now)))
        sent = request.environ.get(self.header)
        if sent is None:
            _refuse(RefusalReason.PROOF_MISSING)
        proof = read_proof(sent)
        check_target(proof.claims, request.method, *self._targets)
        issued_at, ends_at = self._check_time(proof.claims, now)
        until = ends_at + SKEW_SECONDS + REMEMBERED_LONGER_SECONDS
        if not self._replay_store.use(f"dpop {proof.jkt}", proof.claims["jti"], issued_at, until):
            _refuse(RefusalReason.PROOF_REPLAYED)
        return {"jkt": proof.jkt}

    def _check_time(self, claims: Mapping[str, Any], now: int) -> tuple[int, int]:
        """Check the time of a proof; return when it was issued and when it expires, in seconds since 1970.

        If nonces are required, the nonce determines both, and ``iat`` is not compared with the clock.
        """
        lifetime = self._nonces.lifetime_seconds
        if lifetime:
            nonce = claims.get("nonce")
            issued_at = self._nonces.issued_at(nonce) if isinstance(nonce, str) else None
            if issued_at is None or not now - lifetime <= issued_at <= now + SKEW_SECONDS:
                raise UseDpopNonce(detail="nonce is missing" if nonce is None else "nonce is not valid now")
            return issued_at, issued_at + lifetime
        if not now - PROOF_SECONDS - SKEW_SECONDS <= claims["iat"] <= now + SKEW_SECONDS:
            _refuse(RefusalReason.PROOF_STALE, f"iat is in the {'past' if claims['iat'] < now else 'future'}")
        return math.floor(claims["iat"]), math.ceil(claims["iat"]) + PROOF_SECONDS


def read_proof(unverified_proof: str) -> Proof:
    """Parse a proof, and verify its signature with the key that it holds.

    :param unverified_proof: the value of the ``DPoP`` header. Repeated headers are joined, so they are not a JWS.
    :raises InvalidDpopProof: the proof is malformed, or its key is not allowed.
    """
    unverified_proof = unverified_proof.strip(" \t")
    found = parse_unverified(unverified_proof, PROOF_MAX_CHARACTERS)
    if found is None or found.header is None or found.claims is None or not found.signature:
        _refuse(RefusalReason.PROOF_INVALID, "the header is not a JWT, or it is repeated")
    alg, key = _read_header(unverified_proof.partition(".")[0])
    if not verifies(key, alg, found.signature, found.signed):
        _refuse(RefusalReason.PROOF_INVALID, "the signature does not match jwk")
    if not has_jti(found.claims):
        _refuse(RefusalReason.PROOF_INVALID, f"jti is not a string of 1 to {JTI_MAX_CHARACTERS} characters")
    if not is_numeric_date(found.claims.get("iat")):
        _refuse(RefusalReason.PROOF_INVALID, "iat is not a number")
    return Proof(key["kid"], found.claims)


@lru_cache(maxsize=_HEADERS_KEPT)
def _read_header(encoded: str) -> tuple[str, Jwk]:
    """Return algorithm and key of a proof's header; ``kid`` of the key is its thumbprint.

    The result is cached: checking a key takes as long as verifying a signature, and all proofs of a key have the same
    header.

    :raises InvalidDpopProof: the header is not that of a proof, or its key is not allowed.
    """
    header = parse_object(encoded) or {}
    if not has_type(header, PROOF_TYPE):
        _refuse(RefusalReason.PROOF_INVALID, f"typ is not {PROOF_TYPE}")
    if "crit" in header:
        _refuse(RefusalReason.PROOF_INVALID, "crit names extensions")
    alg, jwk = header.get("alg"), header.get("jwk")
    if not isinstance(alg, str) or alg not in SIGNING_ALGS:
        _refuse(RefusalReason.PROOF_INVALID, f"alg must be {', '.join(SIGNING_ALGS)}")
    if not isinstance(jwk, dict):
        _refuse(RefusalReason.PROOF_INVALID, "jwk is not a JSON object")
    try:
        refuse_private(jwk, "jwk")
        key = check_key({name: value for name, value in jwk.items() if name != "kid"}, "jwk")
    except ManagementError as error:
        _refuse(RefusalReason.PROOF_INVALID, str(error))
    if not matching([key], alg, None):
        _refuse(RefusalReason.PROOF_INVALID, "jwk is not for this alg")
    return alg, key


def check_target(claims: Mapping[str, Any], method: str, *targets: str) -> None:
    """Check that a proof is for a request of ``method`` to one of the URLs ``targets``.

    :raises InvalidDpopProof: the proof is for another request.
    """
    if claims.get("htm") != method:
        _refuse(RefusalReason.PROOF_OTHER_REQUEST, "htm is not the method of the request")
    htu = claims.get("htu")
    is_known = isinstance(htu, str) and (htu in targets or _normalized(htu) in map(_normalized, targets))
    if not is_known:
        _refuse(RefusalReason.PROOF_OTHER_REQUEST, "htu is not the URL of the token endpoint in the metadata")


def _normalized(url: str) -> tuple[object, ...] | None:
    """Return ``url`` without query and fragment, normalized as RFC 3986 sections 6.2.2 and 6.2.3 say."""
    try:
        parts = urlsplit(url)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
        path = urljoin("/", _ESCAPED.sub(_unescape, parts.path) or "/")
    except ValueError:
        return None
    return parts.scheme, parts.username, parts.password, parts.hostname, port, path


def _unescape(escaped: re.Match[str]) -> str:
    character = chr(int(escaped[1], 16))
    return character if _UNRESERVED.fullmatch(character) else escaped[0].upper()


class Nonces:
    """Creates and verifies nonces, which are times with a MAC.

    :param peppers: shared by all workers and machines. The first creates nonces, all verify them.
    :param lifetime_seconds: how long a nonce is valid; zero: nonces are not required.
    """

    def __init__(self, peppers: Sequence[IdentifiedKey], lifetime_seconds: int) -> None:
        self._keys = [derive_key(pepper.value.get_secret_value(), "tokenhouse dpop nonce 1") for pepper in peppers]
        self.lifetime_seconds = lifetime_seconds

    def create(self, now: int) -> str:
        """Return a nonce for this second."""
        time = now.to_bytes(_TIME_BYTES)
        return urlsafe_b64encode(time + _mac(self._keys[0], time)).decode()

    def issued_at(self, unverified_nonce: str) -> int | None:
        """Return when a nonce was issued, in seconds since 1970; ``None`` if this server did not issue it."""
        raw = decode(unverified_nonce) if unverified_nonce.isascii() else None
        if raw is None or len(raw) != _TIME_BYTES + _MAC_BYTES:
            return None
        time, sent = raw[:_TIME_BYTES], raw[_TIME_BYTES:]
        is_ours = any(hmac.compare_digest(_mac(key, time), sent) for key in self._keys)
        return int.from_bytes(time) if is_ours else None


def _mac(key: bytes, text: bytes) -> bytes:
    return hmac.digest(key, text, hashlib.sha256)[:_MAC_BYTES]


def _refuse(reason: RefusalReason, detail: str | None = None) -> NoReturn:
    raise InvalidDpopProof(reason, detail=detail)
