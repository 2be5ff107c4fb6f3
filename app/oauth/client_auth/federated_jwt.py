"""A platform's own token instead of a secret: RFC 7521 section 4.2, RFC 7523, draft-ietf-oauth-spiffe-client-auth.

A pod, a pipeline or a SPIFFE workload sends the token that its platform signed. ``client_id`` names the client, whose
trusts say which issuers, subjects and claims are it. Platforms cache their tokens, so one may be used again, unless
its trust says ``once``.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from app.clients.authentication import refusal_reason, to_client
from app.clients.secret_digests import is_vschar
from app.clients.trust_rules import SPIFFE, ClaimCheck, Trust, check_claims
from app.crypto.jwk import SIGNING_ALGS, Jwk
from app.errors import InvalidClient, ManagementError
from app.http.forms import require_parameter
from app.oauth.client_auth.assertions import (
    ASSERTION_TYPE,
    SPIFFE_ASSERTION_TYPE,
    Fault,
    PresentsAssertion,
    UnverifiedAssertion,
    find_header_faults,
    find_time_faults,
    is_platform_token,
    remember,
    require_whole,
)
from app.oauth.client_auth.dependencies import ClientAuthDependencies
from app.oauth.client_auth.private_key_jwt import dummy_key_set, find_signature_fault
from app.oauth.replay_store import has_jti
from app.reasons import RefusalReason
from app.types import Authentication, TokenRequest, UnverifiedJws

LONGEST_SECONDS = 24 * 3600
"""How far in the future a platform's token may expire."""
SUBJECT_LOGGED_CHARACTERS = 255

NO_ISSUER = "-"
"""No issuer that can be trusted has this name."""

_TYPES = ("jwt", "jose", "wit+jwt")


class _Candidate(NamedTuple):
    """A trust of the client in the issuer of the token."""

    trust_id: str
    trust: Trust
    faults: Sequence[str]


class FederatedJwt(PresentsAssertion):
    """``federated_jwt``: a token of a platform that the client trusts."""

    name = "federated_jwt"
    has_secrets = False
    uses_secret_as_key = False
    requires: tuple[str, ...] = ()
    signing_algs = SIGNING_ALGS
    parameters = frozenset({"client_id", "client_assertion", "client_assertion_type"})

    def __init__(self, dependencies: ClientAuthDependencies) -> None:
        self._dependencies = dependencies

    def is_meant(self, request: TokenRequest) -> bool:
        """Return whether a platform signed the token."""
        return is_platform_token(request)

    def authenticate(self, request: TokenRequest) -> Authentication:
        """Authenticate the client that sent ``request``.

        :raises InvalidRequest: a parameter is missing.
        :raises InvalidClient: anything else is wrong.
        :raises RateLimited: the client has sent too many.
        :raises ServiceUnavailable: the database did not answer.
        """
        request.presented_secrets.append(require_parameter(request.parameters, "client_assertion"))
        sent_type = require_parameter(request.parameters, "client_assertion_type")
        if sent_type not in {ASSERTION_TYPE, SPIFFE_ASSERTION_TYPE}:
            raise InvalidClient(RefusalReason.ASSERTION_TYPE_UNKNOWN)
        assertion = require_whole(request.unverified_assertion)
        client_id = require_parameter(request.parameters, "client_id")
        request.sent_client_id = client_id
        known_id = client_id if is_vschar(client_id) else ""
        lookup = self._dependencies.clients.find_with_trusts(known_id, _issuer_of(assertion.claims))
        row = lookup.rows[0]
        # A dummy is verified where there is no trust: the time must reveal nothing. The claims are compared only if the
        # platform has signed them.
        fault = self._find_fault(assertion, row)
        closest = min(_find_candidates(lookup.rows, assertion.claims), key=_distance) if fault is None else None
        faults = list(_find_faults(assertion, closest, int(self._dependencies.clock().timestamp())))
        reason = refusal_reason(row, self.name, (), (), fault)
        if closest:
            request.assertion_facts.update(_facts(assertion.claims, closest))
        if refused := Fault(reason) if reason else next(iter(faults), None):
            raise lookup.refusal(refused.reason, row.client_id, refused.detail)
        self._dependencies.limits.count_assertion(to_client(row))
        if closest and closest.trust.once and not self._use(closest.trust.issuer, assertion.claims):
            raise InvalidClient(RefusalReason.ASSERTION_REPLAYED, client_id=row.client_id)
        return self._dependencies.clients.accept(lookup, row, self.name, request.source_address)

    @staticmethod
    def check_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
        """Check what a client of this method registers: nothing, its trusts are separate.

        :raises ManagementError: a field was given.
        """
        if fields:
            raise ManagementError(
                "federated_jwt takes neither keys nor --assertion-audience: `flask clients trust` names the platform"
            )
        return {}

    def _use(self, issuer: str, claims: Mapping[str, Any]) -> bool:
        return remember(self._dependencies.replay_store, issuer, claims, LONGEST_SECONDS)

    def _find_fault(self, assertion: UnverifiedAssertion, row: Any) -> RefusalReason | None:
        """Verify the signature with the issuer's keys; with a dummy if the client does not trust it.

        :param row: the first, which has the keys.
        """
        keys = json.loads(row.issuer_jwks or dummy_key_set())["keys"]
        fault = find_signature_fault(assertion, keys if row.issuer_jwks else ())
        if row.trust_id is None:
            return RefusalReason.NO_TRUST
        if fault == RefusalReason.ASSERTION_SIGNATURE:
            # The key may be newer than the cached set. This request does not wait for a fetch.
            self._dependencies.issuer_keys.request_refresh(row.issuer)
            return RefusalReason.ISSUER_SIGNATURE
        return fault


def examine_token(token: UnverifiedJws, trust: Trust, keys: Sequence[Jwk], now: datetime) -> list[ClaimCheck]:
    """Compare a token with a trust, for people: each claim, the header, the times and the signature.

    :param token: one whose header and claims are objects.
    """
    assertion = UnverifiedAssertion(token.header or {}, token.claims or {}, token.signed, token.signature)
    checks = list(check_claims(trust, assertion.claims))
    faults = [
        *find_header_faults(assertion.header, _TYPES),
        *find_time_faults(assertion.claims, int(now.timestamp()), LONGEST_SECONDS),
    ]
    checks += [ClaimCheck(fault.detail or str(fault.reason), "", "", fits=False) for fault in faults]
    if trust.once and not has_jti(assertion.claims):
        checks.append(ClaimCheck("jti", "an id", assertion.claims.get("jti"), fits=False))
    is_signed = find_signature_fault(assertion, keys) is None
    signed = f"alg {assertion.header.get('alg')}, kid {assertion.header.get('kid')}"
    expected = f"a key of the issuer: {', '.join(key['kid'] for key in keys)}"
    return [*checks, ClaimCheck("signature", expected, signed, fits=is_signed)]


def _find_candidates(rows: Sequence[Any], claims: Mapping[str, Any]) -> Iterator[_Candidate]:
    # The first one's issuer has signed: of a token without iss the rows may be of several.
    for row in (row for row in rows if row.issuer == rows[0].issuer):
        trust = _to_trust(row.issuer, row.subject, row.trust_claims, row.audience, once=bool(row.once))
        faults = [check.fault for check in check_claims(trust, claims) if not check.fits]
        yield _Candidate(row.trust_id, trust, faults)


def _issuer_of(claims: Mapping[str, Any]) -> str:
    """Return the issuer to look for: of a SPIFFE token without one its trust domain."""
    issuer, subject = claims.get("iss"), claims.get("sub")
    if issuer is None and isinstance(subject, str) and subject.startswith(SPIFFE):
        issuer = f"{SPIFFE}{subject.removeprefix(SPIFFE).partition('/')[0]}/"
    elif isinstance(issuer, str) and issuer.startswith(SPIFFE):
        # It would stand for a trust domain.
        return NO_ISSUER
    # PostgreSQL takes no NUL.
    is_text = isinstance(issuer, str) and issuer.isascii() and issuer.isprintable()
    return str(issuer) if is_text else NO_ISSUER


@lru_cache(maxsize=1024)
def _to_trust(issuer: str, subject: str, claims: str, audience: str, *, once: bool) -> Trust:
    return Trust(issuer, subject, json.loads(claims), audience, once)


def _distance(candidate: _Candidate) -> tuple[bool, int]:
    """Return a sort key: trusts whose subject matches come first, then those with fewer faults."""
    return any(fault.startswith("sub ") for fault in candidate.faults), len(candidate.faults)


def _find_faults(assertion: UnverifiedAssertion, closest: _Candidate | None, now: int) -> Iterator[Fault]:
    yield from find_header_faults(assertion.header, _TYPES)
    yield from find_time_faults(assertion.claims, now, LONGEST_SECONDS)
    if closest and closest.faults:
        yield Fault(RefusalReason.TRUST_MISMATCH, f"{closest.trust_id}: {', '.join(closest.faults)}")
    if closest and closest.trust.once and not has_jti(assertion.claims):
        yield Fault(RefusalReason.ASSERTION_WITHOUT_ID, "jti is missing")


def _facts(claims: Mapping[str, Any], closest: _Candidate) -> Iterator[tuple[str, str]]:
    """Return what the log has of a token whose signature is valid."""
    yield "trust_id", closest.trust_id
    yield "assertion_issuer", closest.trust.issuer
    subject = claims.get("sub")
    if isinstance(subject, str) and subject.isprintable():
        yield "assertion_subject", subject[:SUBJECT_LOGGED_CHARACTERS]
