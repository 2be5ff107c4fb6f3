"""Certificates of clients (RFC 5280): chains, revocation lists, names, thumbprints. Pure."""

import ipaddress
import re
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, Store, VerificationError
from joserfc.util import urlsafe_b64encode

from app.audiences import is_absolute_uri

_ATTRIBUTES = {
    "E": NameOID.EMAIL_ADDRESS,
    "EMAILADDRESS": NameOID.EMAIL_ADDRESS,
    "SERIALNUMBER": NameOID.SERIAL_NUMBER,
    "GIVENNAME": NameOID.GIVEN_NAME,
    "SN": NameOID.SURNAME,
    "TITLE": NameOID.TITLE,
}
"""Names of attribute types in a DN besides those of RFC 4514 section 3. Other types are written as OIDs."""
_TYPE = re.compile(r"(?<![^,+])\s*([A-Za-z]+)\s*=")
_HOST = re.compile(r"(?=.{1,253}\Z)(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}")
_EMAIL = re.compile(r"[!-?A-~]+@[A-Za-z0-9.-]+")


def thumbprint_of(certificate: x509.Certificate) -> str:
    """Return the ``x5t#S256`` of ``certificate``: RFC 7515 section 4.1.8, RFC 8705 section 3.1."""
    return urlsafe_b64encode(certificate.fingerprint(hashes.SHA256())).decode()


def thumbprint_of_x5c(x5c: object, public_key: object) -> str | None:
    """Return the thumbprint of the first certificate of ``x5c`` in a JWK; ``None`` if it is not that key's."""
    try:
        first = x509.load_der_x509_certificate(b64decode(x5c[0], validate=True))  # type: ignore[index]
        return thumbprint_of(first) if first.public_key() == public_key else None
    except (ValueError, TypeError, LookupError, UnsupportedAlgorithm, x509.InvalidVersion):
        return None


def find_date_fault(certificate: x509.Certificate, now: datetime) -> str | None:
    """Return what is wrong with the dates of ``certificate``, for the log."""
    if now > certificate.not_valid_after_utc:
        return "it has expired"
    return "it is not valid yet" if now < certificate.not_valid_before_utc else None


def verify_chain(
    certificate: x509.Certificate, intermediates: Sequence[x509.Certificate], anchors: Store, now: datetime
) -> Sequence[x509.Certificate]:
    """Verify a client's certificate: signatures, dates, constraints and usages (RFC 5280 section 6).

    Private authorities omit extensions that browsers require, such as subjectAltName. So extensions may be absent, but
    those that are present must be valid.

    :returns: the chain: the certificate first, a trust anchor last.
    :raises ValueError: what is wrong.
    """
    builder = PolicyBuilder().store(anchors).time(now)
    builder = builder.extension_policies(ca_policy=_AUTHORITIES, ee_policy=_CLIENTS)
    try:
        return builder.build_client_verifier().verify(certificate, list(intermediates)).chain
    except (VerificationError, ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType) as error:
        raise ValueError("its chain is not valid: " + _without_names(str(error))) from None


def _without_names(message: str) -> str:
    """Remove what the caller wrote into its certificate."""
    return message.partition(" (encountered")[0].removeprefix("validation failed: ")


def _require_client(_policy: object, _certificate: object, usages: x509.ExtendedKeyUsage | None) -> None:
    if usages and not {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE} & set(usages):
        raise ValueError("extendedKeyUsage is not for clients")


def _require_signing(_policy: object, _certificate: object, usage: x509.KeyUsage | None) -> None:
    if usage and not usage.digital_signature:
        raise ValueError("keyUsage is not for signatures")


def _require_certifying(_policy: object, _certificate: object, usage: x509.KeyUsage | None) -> None:
    if usage and not usage.key_cert_sign:
        raise ValueError("keyUsage of an authority is not for certificates")


def _require_no_authority(_policy: object, _certificate: object, constraints: x509.BasicConstraints | None) -> None:
    if constraints and constraints.ca:
        raise ValueError("it is the certificate of an authority")


_CLIENTS = (
    ExtensionPolicy.permit_all()
    .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _require_client)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _require_signing)
    .may_be_present(x509.BasicConstraints, Criticality.AGNOSTIC, _require_no_authority)
)
_AUTHORITIES = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, None)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _require_certifying)
)


def find_revocation_fault(
    chain: Sequence[x509.Certificate], lists: Sequence[x509.CertificateRevocationList], now: datetime
) -> str | None:
    """Return why a certificate of a verified chain counts as revoked, for the log.

    Each issuer in the chain must have a list that has not expired, as nginx and OpenSSL require.
    """
    for certificate, issuer in pairwise(chain):
        known = [one for one in lists if one.issuer == issuer.subject and _is_signed_by(one, issuer)]
        current = [one for one in known if one.next_update_utc is None or one.next_update_utc >= now]
        if any(one.get_revoked_certificate_by_serial_number(certificate.serial_number) for one in known):
            return "it is revoked" if certificate is chain[0] else "an authority in its chain is revoked"
        if not current:
            return f"the revocation list of its issuer {'has expired' if known else 'is missing'}"
    return None


def _is_signed_by(revocations: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    try:
        return revocations.is_signature_valid(issuer.public_key())  # type: ignore[arg-type]
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return False


def check_subject_dn(text: str) -> str:
    """Check a distinguished name as RFC 4514 writes it.

    :raises ValueError: what it must be.
    """
    try:
        if _parse_dn(text):
            return text
    except ValueError:
        pass
    raise ValueError("must be a distinguished name as in RFC 4514, such as CN=billing,O=Example")


def has_subject(certificate: x509.Certificate, subject_dn: str) -> bool:
    """Return whether the subject of ``certificate`` is ``subject_dn``.

    Case and repeated blanks do not count (RFC 4517 section 4.2.11).
    """
    wanted = _parse_dn(subject_dn)
    try:
        return _comparable(certificate.subject) == wanted
    except ValueError:
        # The library parses the subject only now, and a caller can send a malformed one.
        return False


def _parse_dn(text: str) -> list[frozenset[Any]]:
    known = _TYPE.sub(lambda found: found[0].replace(found[1], found[1].upper()), text)
    return _comparable(x509.Name.from_rfc4514_string(known, _ATTRIBUTES))


def _comparable(name: x509.Name) -> list[frozenset[Any]]:
    return [frozenset((one.oid, " ".join(str(one.value).split()).lower()) for one in rdn) for rdn in name.rdns]


def _same_email(text: str) -> str:
    local, _, domain = text.rpartition("@")
    return f"{local}@{domain.lower()}"


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


_Alternative = tuple[type[Any], Callable[[str], bool], Callable[[str], object], str]
ALTERNATIVES: Mapping[str, _Alternative] = {
    "dns": (x509.DNSName, lambda text: bool(_HOST.fullmatch(text)), str.lower, "a host name without wildcard"),
    "uri": (x509.UniformResourceIdentifier, is_absolute_uri, str, "an absolute URI"),
    "ip": (x509.IPAddress, _is_address, ipaddress.ip_address, "an IP address"),
    "email": (x509.RFC822Name, lambda text: bool(_EMAIL.fullmatch(text)), _same_email, "an email address"),
}
"""Kinds of subject alternative names: type, grammar, what is compared, and a description."""


def check_alternative(kind: str, text: str) -> str:
    """Check a subject alternative name that is to be registered.

    :param kind: one of :data:`ALTERNATIVES`.
    :raises ValueError: what it must be.
    """
    _, is_good, _, description = ALTERNATIVES[kind]
    if not is_good(text):
        raise ValueError(f"must be {description}")
    return text


def has_alternative(certificate: x509.Certificate, kind: str, text: str) -> bool:
    """Return whether ``certificate`` has the subject alternative name ``text``."""
    name, _, comparable, _ = ALTERNATIVES[kind]
    return comparable(text) in {comparable(str(value)) for value in _alternatives(certificate, name)}


def _alternatives(certificate: x509.Certificate, kind: type[Any]) -> Iterator[object]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType, ValueError):
        return
    values: Any = names.get_values_for_type(kind)
    # Skip networks: they belong into name constraints.
    yield from (value for value in values if kind is not x509.IPAddress or _is_address(str(value)))
