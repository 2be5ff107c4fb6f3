"""Certificates of clients and of who signs them, and the headers in which proxies hand them on."""

import base64
import datetime as dt
import hashlib
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = dt.timedelta(days=1)


@dataclass(frozen=True)
class Certified:
    """A certificate with its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def key_pem(self) -> str:
        return self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode()

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def thumbprint(self) -> str:
        """Its ``x5t#S256``."""
        return base64.urlsafe_b64encode(hashlib.sha256(self.der).digest()).rstrip(b"=").decode()

    @property
    def fingerprint(self) -> str:
        """As ``openssl x509 -fingerprint -sha256`` prints it, but for colons and case."""
        return hashlib.sha256(self.der).hexdigest()


def subject(*attributes: tuple[x509.ObjectIdentifier, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(kind, value) for kind, value in attributes])


def certify(  # noqa: PLR0913 - What a certificate is made of.
    name: str | x509.Name,
    by: Certified | None = None,
    *,
    is_authority: bool = False,
    alternatives: Sequence[x509.GeneralName] = (),
    usages: Sequence[x509.ObjectIdentifier] = (),
    extensions: Sequence[tuple[Any, bool]] = (),
    not_before: dt.datetime | None = None,
    not_after: dt.datetime | None = None,
) -> Certified:
    """A new certificate, signed ``by`` an authority or by itself.

    :param extensions: further ones, and whether each is critical.
    """
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    whole = subject((NameOID.COMMON_NAME, name)) if isinstance(name, str) else name
    issuer = by.certificate.subject if by else whole
    builder = (
        x509.CertificateBuilder(issuer, whole, key.public_key(), x509.random_serial_number())
        .not_valid_before(not_before or now - DAY)
        .not_valid_after(not_after or now + 30 * DAY)
    )
    if is_authority:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    if alternatives:
        builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    for extension, is_critical in extensions:
        builder = builder.add_extension(extension, critical=is_critical)
    return Certified(builder.sign(by.key if by else key, hashes.SHA256()), key)


def client_certificate(name: str | x509.Name, by: Certified | None = None, **more: Any) -> Certified:
    """A certificate of a client."""
    return certify(name, by, usages=[ExtendedKeyUsageOID.CLIENT_AUTH], **more)


def revocations(by: Certified, *revoked: Certified, next_update: dt.datetime | None = None) -> str:
    """A list of revoked certificates (CRL) in PEM."""
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(by.certificate.subject)
        .last_update(now - 2 * DAY)
        .next_update(next_update or now + DAY)
    )
    for one in revoked:
        builder = builder.add_revoked_certificate(
            x509.RevokedCertificateBuilder()
            .serial_number(one.certificate.serial_number)
            .revocation_date(now - DAY)
            .build()
        )
    return builder.sign(by.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


def address(text: str) -> x509.IPAddress:
    return x509.IPAddress(ipaddress.ip_address(text))


def rfc9440(of: Certified, *chain: Certified) -> dict[str, str]:
    """The headers of RFC 9440."""
    sequences = [f":{base64.b64encode(one.der).decode()}:" for one in (of, *chain)]
    headers = {"Client-Cert": sequences[0]}
    return headers | {"Client-Cert-Chain": ", ".join(sequences[1:])} if chain else headers


def nginx(of: Certified) -> dict[str, str]:
    """``$ssl_client_escaped_cert``."""
    return {"Client-Cert": quote(of.pem, safe="")}


def xfcc(of: Certified, *chain: Certified) -> dict[str, str]:
    """As Envoy writes it, with ``Subject`` and all."""
    name = of.certificate.subject.rfc4514_string().replace("\\", "\\\\").replace('"', '\\"')
    whole = "".join(one.pem for one in (of, *chain))
    escaped = f'Cert="{quote(of.pem, safe="")}";' + (f'Chain="{quote(whole, safe="")}";' if chain else "")
    value = f'By=spiffe://proxy;Hash={of.fingerprint};{escaped}Subject="{name}";URI=;DNS=a.example'
    return {"Client-Cert": value}
