"""Reads the trust anchors of ``tls_client_auth`` and their revocation lists from files, again when a file changes."""

import logging
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.x509.verification import Store

from app.errors import StartError

log = logging.getLogger(__name__)

_CRL = re.compile(rb"-----BEGIN X509 CRL-----.*?-----END X509 CRL-----", re.DOTALL)


class Trusted(NamedTuple):
    """The content of the files.

    :ivar lists: ``None`` if no revocation lists are configured.
    """

    anchors: Store
    lists: Sequence[x509.CertificateRevocationList] | None


class TrustAnchors:
    """Reads the files of ``TOKENHOUSE_MTLS_TRUST_ANCHORS`` and ``TOKENHOUSE_MTLS_CRLS``.

    :param anchors: a file with certificates in PEM; ``None``: no authority is trusted.
    :param lists: files with revocation lists in PEM or DER.
    """

    def __init__(self, anchors: Path | None, lists: Sequence[Path]) -> None:
        self._anchors = anchors
        self._lists = lists
        self._lock = threading.Lock()
        self._seen: object = None
        self._trusted: Trusted | None = None

    def load(self) -> Trusted | None:
        """Return the current content of the files; ``None`` if no trust anchors are configured.

        If a file becomes unreadable, the last readable content stays in use, and the log says why.

        :raises StartError: a file could not be read since the start.
        """
        if self._anchors is None:
            return None
        with self._lock:
            state = [_state_of(path) for path in (self._anchors, *self._lists)]
            if state != self._seen:
                try:
                    self._trusted = Trusted(_read_anchors(self._anchors), self._read_lists())
                except StartError as error:
                    if self._trusted is None:
                        raise
                    log.error("%s; the last readable content stays in use", error)  # noqa: TRY400 - The traceback says no more.
                self._seen = state
            return self._trusted

    def _read_lists(self) -> Sequence[x509.CertificateRevocationList] | None:
        return [one for path in self._lists for one in _read_list(path)] if self._lists else None


def _state_of(path: Path) -> Any:
    try:
        found = path.stat()
    except OSError as error:
        return error.errno
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read_anchors(path: Path) -> Store:
    try:
        return Store(x509.load_pem_x509_certificates(path.read_bytes()))
    except (OSError, ValueError, x509.InvalidVersion) as error:
        raise _unreadable("TOKENHOUSE_MTLS_TRUST_ANCHORS", path, "certificates in PEM", error) from None


def _read_list(path: Path) -> Sequence[x509.CertificateRevocationList]:
    try:
        raw = path.read_bytes()
        blocks = _CRL.findall(raw)
        return [x509.load_pem_x509_crl(block) for block in blocks] if blocks else [x509.load_der_x509_crl(raw)]
    except (OSError, ValueError, x509.InvalidVersion) as error:
        raise _unreadable("TOKENHOUSE_MTLS_CRLS", path, "revocation lists in PEM or DER", error) from None


def _unreadable(setting: str, path: Path, content: str, error: Exception) -> StartError:
    why = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else f"must hold {content}"
    return StartError(f"{setting}: {path} {why}")
