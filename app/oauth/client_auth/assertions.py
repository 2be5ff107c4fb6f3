"""What client assertions share, however they are signed: RFC 7521 section 4.2, RFC 7523 sections 2.2 and 3.

Every assertion passes all checks, an unknown client's with a dummy key or secret, and one sentence refuses them all;
the log has the reason. An assertion can be used once, on all workers and machines. A method adds how the signature
is verified and what its clients register.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.clients.authentication import Lookup, refusal_reason, to_client, usable
from app.clients.secret_digests import is_vschar
from app.crypto.jws import parse_unverified, parse_unverified_header
from app.errors import InvalidClient, ManagementError
from app.http.forms import require_parameter
from app.oauth.client_auth.dependencies import ClientAuthDependencies
from app.oauth.replay_store import SKEW_SECONDS
from app.reasons import RefusalReason
from app.types import Authentication, TokenRequest

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
MAX_CHARACTERS = 8 * 1024
"""No assertion is nearly as long."""
REMEMBERED_LONGER_SECONDS = 60
"""A used assertion is remembered a little longer than it is valid: our machines' clocks may differ too."""
JTI_MAX_CHARACTERS = 255
AUDIENCES = ("any", "issuer")

_TYPES = (None, "JWT", "jwt", "client-authentication+jwt")
"""Other types are for other purposes: an access token is not an assertion (RFC 8725 section 3.11)."""


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


class AssertionMethod(ABC):
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

    def is_presented(self, request: TokenRequest) -> bool:
        """Return whether the request has an assertion, or its type, that this method verifies."""
        parameters = request.parameters
        if "client_assertion" not in parameters and "client_assertion_type" not in parameters:
            return False
        header = parse_unverified_header(parameters.get("client_assertion", ""), MAX_CHARACTERS)
        return self.is_signed_so(header.get("alg") if header else None)

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
        assertion = _taken_apart(unverified)
        request.sent_client_id = assertion.client_id
        examined = self.examine(assertion, allows_memory=request.allows_memory)
        # All checks, whatever has failed already: the time must reveal nothing.
        faults = [*_wrong_header(assertion), *self._wrong_claims(assertion, examined.fields)]
        body_id = request.parameters.get("client_id", assertion.client_id)
        if body_id != assertion.client_id:
            faults.append(RefusalReason.OTHER_CLIENT_ID)
        row, claims = examined.lookup.rows[0], assertion.claims
        working = usable(examined.secrets, self._dependencies.clock())
        reason = refusal_reason(row, self.name, examined.secrets, working, examined.fault)
        if reason := reason or next(iter(faults), None):
            raise examined.lookup.refusal(reason, row.client_id)
        self._dependencies.limits.count_assertion(to_client(row))
        until = claims["exp"] + SKEW_SECONDS + REMEMBERED_LONGER_SECONDS
        if not self._dependencies.replay_store.use(assertion.client_id, claims["jti"], claims["iat"], until):
            raise InvalidClient(RefusalReason.ASSERTION_REPLAYED, client_id=row.client_id)
        secret = next(iter(working), None)
        return self._dependencies.clients.accept(examined.lookup, row, self.name, request.source_address, secret)

    def _wrong_claims(self, assertion: UnverifiedAssertion, fields: Mapping[str, Any]) -> Iterator[RefusalReason]:
        """Check the claims: RFC 7523 section 3, and what it leaves open."""
        claims, now = assertion.claims, int(self._dependencies.clock().timestamp())
        if not assertion.client_id or claims.get("iss") != assertion.client_id:
            yield RefusalReason.ASSERTION_OF_ANOTHER
        is_issuer_only = fields.get("assertion_audience") == "issuer" or self._dependencies.rules.is_issuer_only
        if not self._is_for_us(claims.get("aud"), is_issuer_only=is_issuer_only):
            yield RefusalReason.ASSERTION_AUDIENCE
        exp, iat, nbf = (claims.get(name) for name in ("exp", "iat", "nbf"))
        jti = claims.get("jti")
        if type(exp) is not int or type(iat) is not int or (nbf is not None and type(nbf) is not int):
            yield RefusalReason.ASSERTION_TIMES
        elif exp <= now - SKEW_SECONDS:
            yield RefusalReason.ASSERTION_EXPIRED
        elif exp > now + self._dependencies.rules.longest_seconds + SKEW_SECONDS:
            yield RefusalReason.ASSERTION_TOO_LONG
        elif max(iat, iat if nbf is None else nbf) > now + SKEW_SECONDS:
            yield RefusalReason.ASSERTION_IN_THE_FUTURE
        if not isinstance(jti, str) or not 1 <= len(jti) <= JTI_MAX_CHARACTERS:
            yield RefusalReason.ASSERTION_WITHOUT_ID

    def _is_for_us(self, audience: object, *, is_issuer_only: bool) -> bool:
        """Compare whole strings. A list with any other audience is for somebody else too."""
        named = audience if isinstance(audience, list) else [audience]
        rules = self._dependencies.rules
        allowed = {rules.issuer} if is_issuer_only else {rules.issuer, rules.token_endpoint}
        return bool(named) and all(isinstance(one, str) and one in allowed for one in named)


def check_assertion_fields(method: str, fields: Mapping[str, Any], *others: str) -> None:
    """Check what clients of all assertion methods may register.

    :param others: what clients of ``method`` register besides.
    :raises ManagementError: an unknown field, or an unknown audience.
    """
    if unknown := fields.keys() - {"assertion_audience", *others}:
        raise ManagementError(f"{method} knows no {', '.join(sorted(unknown))}")
    if fields.get("assertion_audience", AUDIENCES[0]) not in AUDIENCES:
        raise ManagementError(f"assertion audience must be {' or '.join(AUDIENCES)}")


def _taken_apart(unverified: str) -> UnverifiedAssertion:
    found = parse_unverified(unverified, MAX_CHARACTERS)
    if found is None or found.header is None or found.claims is None or not found.signature:
        raise InvalidClient(RefusalReason.ASSERTION_MALFORMED)
    return UnverifiedAssertion(found.header, found.claims, found.signed, found.signature)


def _wrong_header(assertion: UnverifiedAssertion) -> Iterator[RefusalReason]:
    typ = assertion.header.get("typ")
    if (typ is not None and not isinstance(typ, str)) or typ not in _TYPES or "crit" in assertion.header:
        yield RefusalReason.ASSERTION_OTHER_TYPE
