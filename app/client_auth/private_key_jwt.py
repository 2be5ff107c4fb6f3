"""A signed assertion, by a key that never leaves the client: RFC 7523 section 2.2, OpenID Connect Core section 9.

All checks are made of every assertion, an unknown client's against a key of nobody, and one sentence refuses them all;
which it was is for the log. Each is good once, on all workers and machines.
"""

import json
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from app.client_auth.doors import Doors
from app.clients.digests import is_vschar
from app.clients.jwks import SIGNING_ALGS, Jwk, check_jwks, matching, verifies
from app.clients.lookup import refusal_of
from app.contracts import Authentication, TokenRequest
from app.errors import InvalidClient, ManagementError
from app.forms import required
from app.jws import take_apart
from app.keyring.algorithms import ALGORITHMS, RSA_MIN_BITS, to_jwk

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
MAX_CHARACTERS = 8 * 1024
"""No assertion is nearly as long."""
SKEW_SECONDS = 60
"""How far a client's clock may be from ours."""
REMEMBERED_LONGER_SECONDS = 60
"""That an assertion was used is known a while longer than it is taken: our machines' clocks may differ too."""
JTI_MAX_CHARACTERS = 255
AUDIENCES = ("any", "issuer")
KEYS_WITHOUT_KID = 2
"""So many of a client's keys, the latest, are tried where an assertion names none: an old one and a new one."""

_TYPES = (None, "JWT", "jwt", "client-authentication+jwt")
"""Others are for other purposes: an access token is no assertion (RFC 8725 section 3.11)."""


@dataclass(frozen=True, slots=True)
class UnverifiedAssertion:
    """What a request has presented, taken apart."""

    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    signed: bytes
    signature: bytes

    @property
    def client_id(self) -> str:
        """Whom it speaks of; nobody where that is no id."""
        subject = self.claims.get("sub")
        return subject if isinstance(subject, str) and is_vschar(subject) else ""


class PrivateKeyJwt:
    """``private_key_jwt``: an assertion signed with a key whose public half the client has registered."""

    name = "private_key_jwt"
    parameters = frozenset({"client_id", "client_assertion", "client_assertion_type"})
    secret_bearing = False
    signing_algs = SIGNING_ALGS

    def __init__(self, doors: Doors) -> None:
        self._doors = doors

    def is_presented(self, request: TokenRequest) -> bool:
        """Whether there is an assertion, or its type."""
        return "client_assertion" in request.parameters or "client_assertion_type" in request.parameters

    def authenticate(self, request: TokenRequest) -> Authentication:
        """Who sent ``request``.

        :raises InvalidRequest: a parameter is missing.
        :raises InvalidClient: whatever else is wrong.
        :raises ServiceUnavailable: whether the assertion was used before cannot be known.
        """
        unverified = required(request.parameters, "client_assertion")
        request.presented_secrets.append(unverified)
        if required(request.parameters, "client_assertion_type") != ASSERTION_TYPE:
            raise InvalidClient("assertion_type_unknown")
        assertion = _taken_apart(unverified)
        row = self._doors.lookup.find(assertion.client_id)
        # Read anew each time, and where there is nothing something of nobody's: what was kept would tell who was here.
        fields = json.loads(row.auth_fields or _nobodys_fields())
        keys = fields["jwks"]["keys"] if "jwks" in fields and row.auth_fields else ()
        # All of it, whatever has been found wrong: the time tells nothing.
        faults = [
            *_wrong_signature(assertion, keys),
            *self._wrong_claims(assertion, is_issuer_only=fields.get("assertion_audience") == "issuer"),
        ]
        body_id = request.parameters.get("client_id", assertion.client_id)
        if body_id != assertion.client_id:
            faults.append("other_client_id")
        if reason := refusal_of(row, self.name) or next(iter(faults), None):
            raise InvalidClient(reason, client_id=row.client_id)
        claims = assertion.claims
        until = claims["exp"] + SKEW_SECONDS + REMEMBERED_LONGER_SECONDS
        if not self._doors.replay.use(assertion.client_id, claims["jti"], claims["iat"], until):
            raise InvalidClient("assertion_replayed", client_id=row.client_id)
        return self._doors.lookup.let_in(row, self.name, request.source_address)

    def _wrong_claims(self, assertion: UnverifiedAssertion, *, is_issuer_only: bool) -> Iterator[str]:
        """RFC 7523 section 3, with what it leaves open settled."""
        claims, now = assertion.claims, int(self._doors.clock().timestamp())
        if not assertion.client_id or claims.get("iss") != assertion.client_id:
            yield "assertion_of_another"
        if not self._is_for_us(claims.get("aud"), is_issuer_only=is_issuer_only or self._doors.rules.is_issuer_only):
            yield "assertion_audience"
        exp, iat, nbf = (claims.get(name) for name in ("exp", "iat", "nbf"))
        jti = claims.get("jti")
        if type(exp) is not int or type(iat) is not int or (nbf is not None and type(nbf) is not int):
            yield "assertion_times"
        elif exp <= now - SKEW_SECONDS:
            yield "assertion_expired"
        elif exp > now + self._doors.rules.longest_seconds + SKEW_SECONDS:
            yield "assertion_too_long"
        elif max(iat, iat if nbf is None else nbf) > now + SKEW_SECONDS:
            yield "assertion_in_the_future"
        if not isinstance(jti, str) or not 1 <= len(jti) <= JTI_MAX_CHARACTERS:
            yield "assertion_without_id"

    def _is_for_us(self, audience: object, *, is_issuer_only: bool) -> bool:
        """Whole, exact strings of our own; a list that holds any other is somebody else's too."""
        named = audience if isinstance(audience, list) else [audience]
        rules = self._doors.rules
        allowed = {rules.issuer} if is_issuer_only else {rules.issuer, rules.token_endpoint}
        return bool(named) and all(isinstance(one, str) and one in allowed for one in named)

    @staticmethod
    def check_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
        """Check what a client of this method registers.

        :raises ManagementError: a key set is missing or wrong, or something is there that does not belong.
        """
        if unknown := fields.keys() - {"jwks", "assertion_audience"}:
            raise ManagementError(f"private_key_jwt knows no {', '.join(sorted(unknown))}")
        if "jwks" not in fields:
            raise ManagementError(
                "private_key_jwt needs a public key: --jwks-file FILE, or --generate-key FILE makes one"
            )
        if fields.get("assertion_audience", AUDIENCES[0]) not in AUDIENCES:
            raise ManagementError(f"assertion audience must be {' or '.join(AUDIENCES)}")
        return {**fields, "jwks": check_jwks(fields["jwks"])}


def _taken_apart(unverified: str) -> UnverifiedAssertion:
    found = take_apart(unverified, MAX_CHARACTERS)
    if found is None or found.header is None or found.claims is None or not found.signature:
        raise InvalidClient("assertion_malformed")
    return UnverifiedAssertion(found.header, found.claims, found.signed, found.signature)


def _wrong_signature(assertion: UnverifiedAssertion, keys: Sequence[Jwk]) -> Iterator[str]:
    header = assertion.header
    alg, typ = header.get("alg"), header.get("typ")
    if not isinstance(alg, str) or alg not in SIGNING_ALGS:
        yield "assertion_algorithm"
        return
    if (typ is not None and not isinstance(typ, str)) or typ not in _TYPES or "crit" in header:
        yield "assertion_other_type"
    # Always as many, so that neither an unknown client nor one with many keys shows.
    count = KEYS_WITHOUT_KID if header.get("kid") is None else 1
    candidates = [_nobodys(alg)] * count + matching(keys, alg, header.get("kid"))
    verified = [verifies(key, alg, assertion.signature, assertion.signed) for key in candidates[-count:]]
    if not any(verified):
        yield "assertion_signature"


@lru_cache(maxsize=len(SIGNING_ALGS))
def _nobodys(alg: str) -> Jwk:
    """A key that nobody has, of the kind that ``alg`` needs: what it refuses takes as long as what a client's does."""
    if ALGORITHMS[alg].kind != ALGORITHMS["RS256"].kind:
        return dict(to_jwk(ALGORITHMS[alg].generate(RSA_MIN_BITS)).as_dict(private=False))
    # Some odd number: nobody knows its factors, and it is there at once.
    modulus = secrets.randbits(RSA_MIN_BITS) | 1 | 1 << (RSA_MIN_BITS - 1)
    encoded = urlsafe_b64encode(modulus.to_bytes(RSA_MIN_BITS // 8)).rstrip(b"=").decode()
    return {"kty": "RSA", "n": encoded, "e": "AQAB"}


@lru_cache(maxsize=1)
def _nobodys_fields() -> str:
    return json.dumps({"jwks": {"keys": [{**_nobodys("RS256"), "kid": "x" * 43}]}})
