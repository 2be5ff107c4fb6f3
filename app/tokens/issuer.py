"""Claims and header of an access token (RFC 9068 section 2), signed with exactly one key, as a JWS (RFC 7515).

What the token may say is left to ``policy``, which key signs to ``keyring``.
"""

import secrets
from binascii import b2a_base64
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from orjson import dumps as compact_json

from app.errors import ServiceUnavailable, StartError
from app.keyring.model import SigningKey
from app.types import AccessToken, AccessTokenGrant, Client, Clock

TOKEN_TYPE = "at+jwt"  # noqa: S105 - RFC 9068 section 2.1.
JTI_RANDOM_BYTES = 16


_HEADERS_KEPT = 16
"""Keys that sign in one process at a time; there is one, and another after it."""

_URL_SAFE = bytes.maketrans(b"+/", b"-_")


class AccessTokenIssuer:
    """Signs access tokens.

    :param issuer: the ``iss`` of each.
    :param signing_key: gives the one key that signs now.
    """

    def __init__(self, issuer: str, signing_key: Callable[[], SigningKey], clock: Clock) -> None:
        self._issuer = issuer
        self._find_key = signing_key
        self._clock = clock

    def issue(self, client: Client, grant: AccessTokenGrant) -> AccessToken:
        """Sign a token for ``client`` that says what ``decision`` allows.

        :returns: ``aud`` is one string where there is one audience; ``iat`` is never ahead; no ``nbf``, since
            verifiers whose clock is a second behind would refuse a fresh token.
        :raises ServiceUnavailable: no key may sign now.
        """
        now = self._clock()
        # One key, whose turn it is: the next one must not sign before every verifier has had time to fetch it.
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
        """Sign a statement that is no access token, and says so in its ``typ``: RFC 8725 section 3.11.

        :raises ServiceUnavailable: no key may sign now.
        """
        return _encoded(claims, typ, self._signing_key())

    def _signing_key(self) -> SigningKey:
        try:
            return self._find_key()
        except StartError as error:
            raise ServiceUnavailable("no_signing_key") from error


def _encoded(claims: Mapping[str, Any], typ: str, key: SigningKey) -> str:
    signed = b"%b.%b" % (_encoded_header(typ, key.alg, key.kid), _base64url(compact_json(claims)))
    return (b"%b.%b" % (signed, _base64url(key.sign(signed)))).decode("ascii")


@lru_cache(maxsize=_HEADERS_KEPT)
def _encoded_header(typ: str, alg: str, kid: str) -> bytes:
    return _base64url(compact_json({"typ": typ, "alg": alg, "kid": kid}))


def _base64url(raw: bytes) -> bytes:
    """Without padding: RFC 7515 section 2."""
    return b2a_base64(raw).rstrip(b"=\n").translate(_URL_SAFE)
