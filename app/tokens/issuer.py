"""Builds access tokens (RFC 9068 section 2) and signs them with exactly one key, as a JWS (RFC 7515).

What a token may contain is left to ``oauth.policy``, which key signs to ``keyring``.
"""

import secrets
from binascii import b2a_base64
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from orjson import dumps as compact_json

from app.errors import ServiceUnavailable, StartError
from app.keyring.model import SigningKey
from app.reasons import RefusalReason
from app.types import AccessToken, AccessTokenGrant, Client, Clock

TOKEN_TYPE = "at+jwt"  # noqa: S105 - RFC 9068 section 2.1.
JTI_RANDOM_BYTES = 16


_HEADERS_KEPT = 16
"""Cached headers. One key signs at a time, and another after it."""

_URL_SAFE = bytes.maketrans(b"+/", b"-_")


class AccessTokenIssuer:
    """Signs access tokens.

    :param issuer: the ``iss`` of all tokens.
    :param signing_key: returns the key that signs now.
    """

    def __init__(self, issuer: str, signing_key: Callable[[], SigningKey], clock: Clock) -> None:
        self._issuer = issuer
        self._find_key = signing_key
        self._clock = clock

    def issue(self, client: Client, grant: AccessTokenGrant) -> AccessToken:
        """Sign a token for ``client`` with the contents of ``grant``.

        :returns: a token whose ``aud`` is a string if there is one audience. ``iat`` is never in the future. There
            is no ``nbf``: verifiers whose clock is a second slow would reject a fresh token.
        :raises ServiceUnavailable: no key may sign now.
        """
        now = self._clock()
        # Exactly one key: the next one must not sign before every verifier has had time to fetch it.
        key = self._signing_key()
        iat = int(now.timestamp())
        jti = secrets.token_urlsafe(JTI_RANDOM_BYTES)
        claims = {
            "iss": self._issuer,
            "sub": client.client_id,
            "client_id": client.client_id,
            "aud": grant.audiences[0] if len(grant.audiences) == 1 else list(grant.audiences),
            "iat": iat,
            "exp": iat + grant.lifetime_seconds,
            "jti": jti,
        }
        if grant.scope:
            claims["scope"] = " ".join(grant.scope)
        return AccessToken(_encoded(claims, TOKEN_TYPE, key), jti, key.kid, grant)

    def sign(self, claims: Mapping[str, Any], typ: str) -> str:
        """Sign a statement that is not an access token, with its own ``typ``: RFC 8725 section 3.11.

        :raises ServiceUnavailable: no key may sign now.
        """
        return _encoded(claims, typ, self._signing_key())

    def _signing_key(self) -> SigningKey:
        try:
            return self._find_key()
        except StartError as error:
            raise ServiceUnavailable(RefusalReason.NO_SIGNING_KEY) from error


def _encoded(claims: Mapping[str, Any], typ: str, key: SigningKey) -> str:
    signed = b"%b.%b" % (_encoded_header(typ, key.alg, key.kid), _base64url(compact_json(claims)))
    return (b"%b.%b" % (signed, _base64url(key.sign(signed)))).decode("ascii")


@lru_cache(maxsize=_HEADERS_KEPT)
def _encoded_header(typ: str, alg: str, kid: str) -> bytes:
    return _base64url(compact_json({"typ": typ, "alg": alg, "kid": kid}))


def _base64url(raw: bytes) -> bytes:
    """Encode without padding: RFC 7515 section 2."""
    return b2a_base64(raw).rstrip(b"=\n").translate(_URL_SAFE)
