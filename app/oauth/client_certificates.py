"""Reads the client's certificate from the header in which the proxy that terminates TLS forwards it.

The format is that of RFC 9440, Envoy's ``x-forwarded-client-cert``, or nginx's escaped PEM: the settings name it, it is
never guessed. The header of an untrusted peer is refused, because its sender could claim any certificate. Verifying the
certificate is left to ``client_auth.tls``.
"""

import re
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

from cryptography import x509

from app.config.settings import Settings
from app.crypto.certificates import thumbprint_of
from app.errors import InvalidRequest
from app.http.application import peer_of
from app.http.forwarded_headers import is_trusted
from app.reasons import RefusalReason

MOST_IN_A_CHAIN = 10

_PARSED = "tokenhouse.client_certificate"
"""The WSGI variable that keeps the parsed certificate for the rest of the request."""
_BYTE_SEQUENCE = re.compile(":([A-Za-z0-9+/]+={0,2}):")
_PEM = re.compile(r"(?:-----BEGIN CERTIFICATE-----[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----\s*)+")
_PAIR = re.compile(r'([A-Za-z]+)=("(?:[^"\\]|\\.)*"|[^";,]*)(?:([;,])|\Z)')


class ClientCertificate(NamedTuple):
    """A certificate whose private key the client has proven to the proxy. Nothing else about it is verified.

    :ivar intermediates: the other certificates that the client sent.
    """

    certificate: x509.Certificate
    intermediates: Sequence[x509.Certificate] = ()

    @property
    def thumbprint(self) -> str:
        """Its ``x5t#S256``: RFC 8705 section 3.1."""
        return thumbprint_of(self.certificate)


class ClientCertificates:
    """Reads the certificate of a request.

    :ivar header: the WSGI variable of the header.
    """

    def __init__(self, settings: Settings) -> None:
        self.header = "HTTP_" + settings.mtls_header.upper().replace("-", "_")
        self._trusted_proxies = settings.trusted_proxies
        self._read = _FORMATS[settings.mtls_format]

    def require_trusted(self, environ: Mapping[str, Any]) -> None:
        """Refuse the header of a peer that is not a trusted proxy.

        :raises InvalidRequest: the peer is not trusted.
        """
        if self.header in environ and not is_trusted(peer_of(environ), self._trusted_proxies):
            raise InvalidRequest(RefusalReason.CERTIFICATE_FROM_UNTRUSTED_PEER)

    def read(self, environ: dict[str, Any]) -> ClientCertificate | None:
        """Return the client's certificate; ``None`` if the client sent none.

        :param environ: the environment of a request that passed :meth:`require_trusted`.
        :raises InvalidRequest: the header is not in the format of the settings.
        """
        if not environ.get(self.header):
            return None
        found: ClientCertificate | None = environ.get(_PARSED)
        if found is None:
            try:
                leaf, *others = self._read(environ[self.header], environ.get(f"{self.header}_CHAIN", ""))
            except (ValueError, KeyError, x509.InvalidVersion):
                raise InvalidRequest(RefusalReason.CERTIFICATE_MALFORMED) from None
            found = environ[_PARSED] = ClientCertificate(leaf, others[:MOST_IN_A_CHAIN])
        return found


def _read_rfc9440(value: str, chain: str) -> Sequence[x509.Certificate]:
    """``Client-Cert`` and ``Client-Cert-Chain``: byte sequences of RFC 8941 with DER."""
    sequences = [value, *(chain.split(",") if chain else ())]
    found = [_BYTE_SEQUENCE.fullmatch(sequence.strip(" \t")) for sequence in sequences]
    return [x509.load_der_x509_certificate(b64decode(one[1], validate=True) if one else b"") for one in found]


def _read_nginx(value: str, chain: str) -> Sequence[x509.Certificate]:  # noqa: ARG001 - nginx has none.
    """``$ssl_client_escaped_cert``."""
    return _load_escaped(value)


def _read_xfcc(value: str, chain: str) -> Sequence[x509.Certificate]:  # noqa: ARG001 - It is in the value.
    """Envoy's header. If it has several elements, read the last one, which the nearest proxy added.

    Parse quotes as Envoy writes them, because the client chooses the ``Subject``.
    """
    members: dict[str, str] = {}
    place = 0
    while place < len(value):
        pair = _PAIR.match(value, place)
        if pair is None or pair[1].lower() in members:
            raise ValueError("not as Envoy writes it")
        members[pair[1].lower()] = pair[2].strip('"')
        place = pair.end()
        if pair[3] == ",":
            members = {}
    return [*_load_escaped(members["cert"]), *(_load_escaped(members["chain"])[1:] if "chain" in members else ())]


def _load_escaped(pem: str) -> Sequence[x509.Certificate]:
    unescaped = unquote(pem)
    if not _PEM.fullmatch(unescaped):
        raise ValueError("not certificates in PEM")
    return x509.load_pem_x509_certificates(unescaped.encode())


_FORMATS: Mapping[str, Callable[[str, str], Sequence[x509.Certificate]]] = {
    "rfc9440": _read_rfc9440,
    "xfcc": _read_xfcc,
    "nginx": _read_nginx,
}
