"""A client that authenticates with its certificate over mutual TLS: RFC 8705 section 2.

``tls_client_auth``: a trusted authority has certified a name that the client has registered.
``self_signed_tls_client_auth``: the client has registered the certificate itself. A request does not say which of the
two it uses: one class authenticates both, by what the client has registered.

Every request passes both checks, whether the client exists or not, and one sentence refuses them all.
"""

import json
from collections.abc import Mapping
from typing import Any

from app.clients.authentication import refusal_reason
from app.clients.jwks_cache import check_jwks_uri
from app.clients.secret_digests import is_vschar
from app.crypto.certificates import (
    ALTERNATIVES,
    check_alternative,
    check_subject_dn,
    find_date_fault,
    find_revocation_fault,
    has_alternative,
    has_subject,
    verify_chain,
)
from app.crypto.key_set import check_jwks
from app.errors import InvalidClient, ManagementError, StartError
from app.http.forms import require_parameter
from app.oauth.client_auth.assertions import Fault
from app.oauth.client_auth.dependencies import ClientAuthDependencies
from app.oauth.client_certificates import ClientCertificate
from app.reasons import RefusalReason
from app.types import Authentication, TokenRequest

SUBJECT_DN = "tls_client_auth_subject_dn"
ALTERNATIVE_NAMES = {f"tls_client_auth_san_{kind}": kind for kind in ALTERNATIVES}
NAMES = (SUBJECT_DN, *ALTERNATIVE_NAMES)
"""Fields of a client of ``tls_client_auth``, of which it has one: RFC 8705 section 2.1.2."""
CERTIFICATES = "certificates"
MOST_CERTIFICATES = 10

_CREDENTIALS = {"client_secret", "client_assertion", "client_assertion_type"}
_DUMMY_DN = "CN=nobody,O=nobody,C=ZZ"
_DUMMY_NAMES = {"dns": "nobody.invalid", "uri": "nobody:nobody", "ip": "192.0.2.0", "email": "nobody@nobody.invalid"}
_DUMMY_FIELDS = json.dumps({SUBJECT_DN: _DUMMY_DN, CERTIFICATES: [{"x5t#S256": "x" * 43}]})


class _Tls:
    """What both methods share."""

    name: str
    has_secrets = False
    uses_secret_as_key = False
    signing_algs: tuple[str, ...] = ()
    parameters = frozenset({"client_id"})
    needs_certificate = True

    def __init__(self, dependencies: ClientAuthDependencies) -> None:
        self._dependencies = dependencies

    def authenticate(self, request: TokenRequest) -> Authentication:
        """Authenticate the client that sent ``request``.

        :raises InvalidRequest: the certificate cannot be parsed.
        :raises InvalidClient: anything else is wrong.
        :raises ServiceUnavailable: the database did not answer.
        """
        presented = self._dependencies.certificates.read(request.environ)
        if presented is None:
            raise InvalidClient(RefusalReason.NO_AUTHENTICATION)
        client_id = require_parameter(request.parameters, "client_id")
        request.sent_client_id = client_id
        known_id = client_id if is_vschar(client_id) else ""
        lookup = self._dependencies.clients.find(known_id, allows_memory=request.allows_memory)
        row = lookup.rows[0]
        fields = json.loads(row.auth_fields or _DUMMY_FIELDS)
        faults = {
            TlsClientAuth.name: self._find_name_fault(presented, fields),
            SelfSignedTlsClientAuth.name: self._find_registration_fault(presented, fields, row),
        }
        registered = row.token_endpoint_auth_method
        method = registered if registered in faults else self.name
        fault = faults[method]
        reason = refusal_reason(row, method, (), (), fault.reason if fault else None)
        if reason:
            raise lookup.refusal(reason, row.client_id, fault.detail if fault and reason == fault.reason else None)
        return self._dependencies.clients.accept(lookup, row, method, request.source_address)

    def _find_name_fault(self, presented: ClientCertificate, fields: Mapping[str, Any]) -> Fault | None:
        """Verify the chain, and compare the registered name."""
        now = self._dependencies.clock()
        try:
            trusted = self._dependencies.trust_anchors.load()
        except StartError:
            trusted = None
        # Compare every kind of name for every client, so that the time reveals nothing.
        is_named = has_subject(presented.certificate, fields.get(SUBJECT_DN, _DUMMY_DN)) and SUBJECT_DN in fields
        for name, kind in ALTERNATIVE_NAMES.items():
            has_name = has_alternative(presented.certificate, kind, fields.get(name, _DUMMY_NAMES[kind]))
            is_named |= has_name and name in fields
        if trusted is None:
            return Fault(RefusalReason.NO_TRUST_ANCHORS)
        try:
            chain = verify_chain(presented.certificate, presented.intermediates, trusted.anchors, now)
        except ValueError as error:
            return Fault(RefusalReason.CERTIFICATE_UNTRUSTED, str(error))
        if trusted.lists is not None and (revoked := find_revocation_fault(chain, trusted.lists, now)):
            return Fault(RefusalReason.CERTIFICATE_UNTRUSTED, revoked)
        return None if is_named else Fault(RefusalReason.CERTIFICATE_NAME_MISMATCH)

    def _find_registration_fault(
        self, presented: ClientCertificate, fields: Mapping[str, Any], row: Any
    ) -> Fault | None:
        """Compare the certificate with those that are registered or published."""
        keys = json.loads(row.published_jwks) if row.published_jwks else fields.get("jwks", {"keys": ()})
        known = {one.get("x5t#S256") for one in (*fields.get(CERTIFICATES, ()), *keys["keys"])}
        if presented.thumbprint not in known:
            if row.published_jwks and row.token_endpoint_auth_method == SelfSignedTlsClientAuth.name:
                # It may be newer than the cached set. This request does not wait for a fetch.
                self._dependencies.jwks_cache.request_refresh(row.client_id)
            return Fault(RefusalReason.CERTIFICATE_UNKNOWN, f"its x5t#S256 is {presented.thumbprint}")
        if outdated := find_date_fault(presented.certificate, self._dependencies.clock()):
            return Fault(RefusalReason.CERTIFICATE_UNTRUSTED, outdated)
        return None


class TlsClientAuth(_Tls):
    """``tls_client_auth``: a certificate of a trusted authority, with a name that the client has registered."""

    name = "tls_client_auth"
    requires = ("trusted_proxies", "mtls_trust_anchors")

    def is_presented(self, request: TokenRequest) -> bool:
        """Return whether the request has a certificate, names a client, and has no other credentials."""
        return (
            bool(request.environ.get(self._dependencies.certificates.header))
            and "client_id" in request.parameters
            and request.authorization is None
            and not _CREDENTIALS & request.parameters.keys()
        )

    @staticmethod
    def check_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
        """Check what a client of this method registers: one name.

        :raises ManagementError: it registers none or several, a wrong one, or something else.
        """
        if len(fields) != 1 or not fields.keys() <= set(NAMES):
            raise ManagementError(
                "tls_client_auth needs one name of its certificate: --tls-subject-dn, --tls-san-dns, --tls-san-uri, "
                "--tls-san-ip or --tls-san-email; and nothing else"
            )
        ((name, value),) = fields.items()
        try:
            if name == SUBJECT_DN:
                return {name: check_subject_dn(value)}
            return {name: check_alternative(ALTERNATIVE_NAMES[name], value)}
        except ValueError as error:
            option = name.replace("tls_client_auth_", "tls-").replace("_", "-")
            raise ManagementError(f"--{option} {value!r} {error}") from None


class SelfSignedTlsClientAuth(_Tls):
    """``self_signed_tls_client_auth``: a certificate that the client has registered, or publishes in its JWKS."""

    name = "self_signed_tls_client_auth"
    requires = ("trusted_proxies",)

    def is_presented(self, request: TokenRequest) -> bool:  # noqa: ARG002
        """Return false: :class:`TlsClientAuth` answers for both."""
        return False

    @staticmethod
    def check_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
        """Check what a client of this method registers: certificates, or a JWKS with some.

        :raises ManagementError: it registers none, from several places, or something else.
        """
        if len(fields) != 1 or not fields.keys() <= {CERTIFICATES, "jwks", "jwks_uri"}:
            raise ManagementError(
                "self_signed_tls_client_auth needs certificates from one place: --tls-cert-file FILE, or a JWKS whose "
                "keys have x5c: --jwks-file FILE or --jwks-uri URL"
            )
        if "jwks_uri" in fields:
            return {"jwks_uri": check_jwks_uri(fields["jwks_uri"])}
        if "jwks" in fields:
            jwks = check_jwks(fields["jwks"])
            if not any("x5t#S256" in key for key in jwks["keys"]):
                raise ManagementError("no key of the set has an x5c with its certificate")
            return {"jwks": jwks}
        if not 1 <= len(fields[CERTIFICATES]) <= MOST_CERTIFICATES:
            raise ManagementError(f"a client has 1 to {MOST_CERTIFICATES} certificates")
        return dict(fields)
