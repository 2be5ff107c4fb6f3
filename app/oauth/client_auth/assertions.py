"""What client assertions share, however they are signed: RFC 7521 section 4.2, RFC 7523 sections 2.2 and 3.

Every assertion passes all checks, an unknown client's with a dummy key or secret, and one sentence refuses them all;
the log has the reason. An assertion can be used once, on all workers and machines. A method adds how the signature
is verified and what its clients register.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from app.clients.authentication import Lookup, refusal_reason, to_client, usable
from app.clients.last_used import AssertionStyle
from app.clients.secret_digests import is_vschar
from app.crypto.jws import has_type, is_numeric_date
from app.errors import InvalidClient, ManagementError
from app.http.forms import require_parameter
from app.oauth.client_auth.dependencies import ClientAuthDependencies
from app.oauth.replay_store import (
    JTI_MAX_CHARACTERS,
    REMEMBERED_LONGER_SECONDS,
    SKEW_SECONDS,
    ReplayStore,
    has_jti,
)
from app.reasons import RefusalReason
from app.types import Authentication, TokenRequest, UnverifiedJws

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
SPIFFE_ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"
"""draft-ietf-oauth-spiffe-client-auth: a token of a SPIFFE workload."""
AUDIENCES = ("any", "issuer")
NEW_CLIENT_FIELDS = {"assertion_audience": "issuer"}
"""Default fields of a new client: RFC 10070."""

_TYPES = ("jwt", "client-authentication+jwt")
"""Other types are for other purposes: an access token is not an assertion (RFC 8725 section 3.11)."""


class Fault(NamedTuple):
    """What is wrong with an assertion.

    :ivar detail: which claim or header parameter, and how. Holds none of its values.
    """

    reason: RefusalReason
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class UnverifiedAssertion:
    """The assertion of a request, parsed and not verified."""

    header: Mapping[str, Any]
    claims: Mapping[str, Any]
    signed: bytes
    signature: bytes

    @property
    def client_id(self) -> str:
        """The client that it names; empty if that is not a client id."""
        subject = self.claims.get("sub")
        return subject if isinstance(subject, str) and is_vschar(subject) else ""


@dataclass(frozen=True, slots=True)
class Examination:
    """The result of verifying an assertion's signature.

    :param lookup: the client.
    :param fields: what the client has registered, or a dummy.
    :param fault: what is wrong with the signature, unless one of ``secrets`` is usable; ``None`` if it is valid.
    :param secrets: the rows of the secrets that signed, if the method has secrets.
    """

    lookup: Lookup
    fields: Mapping[str, Any]
    fault: RefusalReason | None
    secrets: Sequence[Any] = ()


class PresentsAssertion(ABC):
    """A method that is presented by a ``client_assertion``."""

    needs_certificate = False

    @abstractmethod
    def is_meant(self, request: TokenRequest) -> bool:
        """Return whether the assertion of ``request`` is for this method."""

    def is_presented(self, request: TokenRequest) -> bool:
        """Return whether the request has an assertion, or its type, for this method."""
        parameters = request.parameters
        return ("client_assertion" in parameters or "client_assertion_type" in parameters) and self.is_meant(request)


class AssertionMethod(PresentsAssertion):
    """A method whose clients sign assertions."""

    name: str
    signing_algs: tuple[str, ...]
    parameters = frozenset({"client_id", "client_assertion", "client_assertion_type"})

    def __init__(self, dependencies: ClientAuthDependencies) -> None:
        self._dependencies = dependencies

    @abstractmethod
    def is_signed_so(self, alg: object) -> bool:
        """Return whether this method verifies assertions of ``alg``, which may be any value of a header."""

    @abstractmethod
    def examine(self, assertion: UnverifiedAssertion, *, allows_memory: bool) -> Examination:
        """Find the client and verify the signature. The cost is the same for an unknown client.

        :param allows_memory: whether a known client may be served while the database is away.
        :raises ServiceUnavailable: the database did not answer.
        """

    def is_meant(self, request: TokenRequest) -> bool:
        """Return whether the client signed the assertion, with an algorithm of this method."""
        found = request.unverified_assertion
        alg = found.header.get("alg") if found and found.header else None
        return self.is_signed_so(alg) and not is_platform_token(request)

    def authenticate(self, request: TokenRequest) -> Authentication:
        """Authenticate the client that sent ``request``.

        :raises InvalidRequest: a parameter is missing.
        :raises InvalidClient: anything else is wrong.
        :raises RateLimited: the client has sent too many.
        :raises ServiceUnavailable: whether the assertion was used before cannot be known.
        """
        unverified = require_parameter(request.parameters, "client_assertion")
        request.presented_secrets.append(unverified)
        if require_parameter(request.parameters, "client_assertion_type") != ASSERTION_TYPE:
            raise InvalidClient(RefusalReason.ASSERTION_TYPE_UNKNOWN)
        assertion = require_whole(request.unverified_assertion)
        request.sent_client_id = assertion.client_id
        examined = self.examine(assertion, allows_memory=request.allows_memory)
        # All checks, whatever has failed already: the time must reveal nothing.
        faults = [*find_header_faults(assertion.header, _TYPES), *self._wrong_claims(assertion, examined.fields)]
        body_id = request.parameters.get("client_id", assertion.client_id)
        if body_id != assertion.client_id:
            faults.append(Fault(RefusalReason.OTHER_CLIENT_ID, "client_id is not sub"))
        row = examined.lookup.rows[0]
        working = usable(examined.secrets, self._dependencies.clock())
        reason = refusal_reason(row, self.name, examined.secrets, working, examined.fault)
        if fault := Fault(reason, _hint(assertion)) if reason else next(iter(faults), None):
            raise examined.lookup.refusal(fault.reason, row.client_id, fault.detail)
        self._dependencies.limits.count_assertion(to_client(row))
        longest = self._dependencies.rules.longest_seconds
        if not remember(self._dependencies.replay_store, assertion.client_id, assertion.claims, longest):
            raise InvalidClient(RefusalReason.ASSERTION_REPLAYED, client_id=row.client_id)
        self._dependencies.clients.last_used.record_assertion(row.client_id, self._style(assertion))
        secret = next(iter(working), None)
        return self._dependencies.clients.accept(examined.lookup, row, self.name, request.source_address, secret)

    def _style(self, assertion: UnverifiedAssertion) -> AssertionStyle:
        """Return the style of an assertion that passed all checks."""
        aud, issuer = assertion.claims["aud"], self._dependencies.rules.issuer
        named = aud if isinstance(aud, list) else [aud]
        to_issuer, to_others = issuer in named, any(one != issuer for one in named)
        audience = ("both" if to_issuer else "token_endpoint") if to_others else "issuer"
        typ = next((each for each in _TYPES if has_type(assertion.header, each)), "none")
        return AssertionStyle(audience, typ)

    def _wrong_claims(self, assertion: UnverifiedAssertion, fields: Mapping[str, Any]) -> Iterator[Fault]:
        """Check the claims: RFC 7523 section 3, and what it leaves open."""
        claims = assertion.claims
        if not assertion.client_id or claims.get("iss") != assertion.client_id:
            wrong = "iss is missing" if "iss" not in claims else "iss is not sub"
            yield Fault(RefusalReason.ASSERTION_OF_ANOTHER, wrong)
        is_issuer_only = audience_rule(fields) == "issuer" or self._dependencies.rules.is_issuer_only
        if wrong_audience := self._wrong_audience(claims, is_issuer_only=is_issuer_only):
            yield Fault(RefusalReason.ASSERTION_AUDIENCE, wrong_audience)
        now = int(self._dependencies.clock().timestamp())
        yield from find_time_faults(claims, now, self._dependencies.rules.longest_seconds)
        if not has_jti(claims):
            wrong = "is missing" if "jti" not in claims else f"is not a string of 1 to {JTI_MAX_CHARACTERS} characters"
            yield Fault(RefusalReason.ASSERTION_WITHOUT_ID, f"jti {wrong}")

    def _wrong_audience(self, claims: Mapping[str, Any], *, is_issuer_only: bool) -> str | None:
        """Compare whole strings. A list with any other audience is for somebody else too."""
        if "aud" not in claims:
            return "aud is missing"
        named = claims["aud"] if isinstance(claims["aud"], list) else [claims["aud"]]
        issuer, token_endpoint = self._dependencies.rules.issuer, self._dependencies.rules.token_endpoint
        if not named or any(one not in (issuer, token_endpoint) for one in named):
            return "aud is not the issuer" if len(named) <= 1 else "aud has others than the issuer"
        if is_issuer_only and set(named) != {issuer}:
            return (
                "aud is the token endpoint, not the issuer" if issuer not in named else "aud has the token endpoint too"
            )
        return None


def audience_rule(fields: Mapping[str, Any]) -> str:
    """Return which audiences a client may name, one of :data:`AUDIENCES`.

    Clients that registered before RFC 10070 have no such field: they may name the token endpoint.
    """
    return str(fields.get("assertion_audience", "any"))


def check_assertion_fields(method: str, fields: Mapping[str, Any], *others: str) -> None:
    """Check what clients of all assertion methods may register.

    :param others: what clients of ``method`` register besides.
    :raises ManagementError: an unknown field, or an unknown audience.
    """
    if unknown := fields.keys() - {"assertion_audience", *others}:
        raise ManagementError(f"{method} knows no {', '.join(sorted(unknown))}")
    if audience_rule(fields) not in AUDIENCES:
        raise ManagementError(f"assertion audience must be {' or '.join(AUDIENCES)}")


def is_platform_token(request: TokenRequest) -> bool:
    """Return whether a request has a token that a platform signed, and names its client by ``client_id``.

    A client's own assertion has its id as ``iss`` and ``sub``.
    """
    if request.parameters.get("client_assertion_type") == SPIFFE_ASSERTION_TYPE:
        return True
    found = request.unverified_assertion if "client_id" in request.parameters else None
    if found is None or not found.claims or str((found.header or {}).get("alg")).startswith("HS"):
        return False
    issuer, subject = found.claims.get("iss"), found.claims.get("sub")
    return issuer != subject and any("://" in one for one in (issuer, subject) if isinstance(one, str))


def require_whole(found: UnverifiedJws | None) -> UnverifiedAssertion:
    """Return an assertion with all its parts.

    :raises InvalidClient: it is no JWS of a JSON object.
    """
    if found is None or found.header is None or found.claims is None or not found.signature:
        raise InvalidClient(RefusalReason.ASSERTION_MALFORMED)
    return UnverifiedAssertion(found.header, found.claims, found.signed, found.signature)


def _hint(assertion: UnverifiedAssertion) -> str | None:
    """Return a hint for a platform's token that was sent without ``client_id``."""
    issuer = assertion.claims.get("iss")
    is_platforms = isinstance(issuer, str) and "://" in issuer and issuer != assertion.claims.get("sub")
    return "iss is not sub: a platform's token needs client_id" if is_platforms else None


def remember(store: ReplayStore, issuer: str, claims: Mapping[str, Any], longest_seconds: int) -> bool:
    """Remember the id of a verified assertion; return whether it was unused.

    :param longest_seconds: the longest lifetime that an assertion may have.
    :raises ServiceUnavailable: that cannot be known now.
    """
    until = math.ceil(claims["exp"]) + SKEW_SECONDS + REMEMBERED_LONGER_SECONDS
    # Without iat (RFC 7523 section 3 requires none) it may be as old as any that expires then.
    iat = claims.get("iat")
    issued_at = math.floor(claims["exp"] - longest_seconds if iat is None else iat)
    return store.use(issuer, claims["jti"], issued_at, until)


def find_header_faults(header: Mapping[str, Any], types: Sequence[str]) -> Iterator[Fault]:
    """Check a header: its type, which may be absent, and that no extension is critical."""
    if header.get("typ") is not None and not has_type(header, *types):
        yield Fault(RefusalReason.ASSERTION_OTHER_TYPE, f"typ is none of {', '.join(types)}")
    if "crit" in header:
        yield Fault(RefusalReason.ASSERTION_OTHER_TYPE, "crit names extensions")


def find_time_faults(claims: Mapping[str, Any], now: int, longest_seconds: int) -> Iterator[Fault]:
    """Check ``exp``, ``iat`` and ``nbf``.

    :param longest_seconds: how far in the future it may expire.
    """
    given = {name: claims[name] for name in ("exp", "iat", "nbf") if claims.get(name) is not None}
    if "exp" not in given:
        yield Fault(RefusalReason.ASSERTION_TIMES, "exp is missing")
    elif wrong := [name for name, value in given.items() if not is_numeric_date(value)]:
        yield Fault(RefusalReason.ASSERTION_TIMES, f"{', '.join(wrong)} is not a number")
    elif given["exp"] <= now - SKEW_SECONDS:
        yield Fault(RefusalReason.ASSERTION_EXPIRED, "exp has passed")
    elif given.pop("exp") > now + longest_seconds + SKEW_SECONDS:
        yield Fault(RefusalReason.ASSERTION_TOO_LONG, f"exp is more than {longest_seconds} s ahead")
    elif ahead := [name for name, value in given.items() if value > now + SKEW_SECONDS]:
        yield Fault(RefusalReason.ASSERTION_IN_THE_FUTURE, f"{', '.join(ahead)} is in the future")
