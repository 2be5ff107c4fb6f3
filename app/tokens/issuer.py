"""Builds access tokens (RFC 9068 section 2) and signs them with exactly one key, as a JWS (RFC 7515).

What a token may contain is left to ``oauth.policy``, which key signs to ``keyring``.
"""

import secrets
from binascii import b2a_base64
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from orjson import dumps as compact_json

from app.errors import InvalidScope, InvalidTarget, ServiceUnavailable, StartError
from app.keyring.model import SigningKey
from app.reasons import RefusalReason
from app.types import Client, Clock

TOKEN_TYPE = "at+jwt"  # noqa: S105 - RFC 9068 section 2.1.
JTI_RANDOM_BYTES = 16


_HEADERS_KEPT = 16
"""Cached headers. One key signs at a time, and another after it."""

_URL_SAFE = bytes.maketrans(b"+/", b"-_")


class AccessToken(dict[str, Any]):
    """The response of RFC 6749 section 5.1, with what the audit log says of the token. ``access_token`` is a secret.

    :ivar kid: the key that signed it.
    :ivar confirmation: its ``cnf``.
    """

    __slots__ = ("audiences", "confirmation", "jti", "kid")

    jti: str
    kid: str
    audiences: tuple[str, ...]
    confirmation: Mapping[str, str] | None

    def __repr__(self) -> str:
        """Keep the token out of tracebacks and logs."""
        return f"AccessToken(jti={self.jti!r})"


class AccessTokenIssuer:
    """Signs access tokens: the token generator that ``create_app`` registers.

    :param issuer: the ``iss`` of all tokens.
    :param signing_key: returns the key that signs now, with the algorithm that is its argument, if there is one.
    :param max_characters: of the longest token.
    """

    def __init__(
        self, issuer: str, signing_key: Callable[..., SigningKey], clock: Clock, max_characters: int = 8 * 1024
    ) -> None:
        self._issuer = issuer
        self._find_key = signing_key
        self._clock = clock
        self._max_characters = max_characters

    def __call__(  # noqa: PLR0913 - Authlib's signature of a token generator.
        self,
        *,
        client: Client,
        scope: str | None,
        expires_in: int,
        audiences: Sequence[str],
        claims: Mapping[str, Any] | None = None,
        confirmation: Mapping[str, str] | None = None,
        signing_alg: str | None = None,
        grant_type: str = "",  # noqa: ARG002
        user: object = None,  # noqa: ARG002
        include_refresh_token: bool = False,  # noqa: ARG002
    ) -> AccessToken:
        """Sign a token for ``client``.

        :param scope: space-separated scope tokens, or ``None``.
        :param expires_in: whole seconds.
        :param audiences: one or more resources.
        :param claims: further claims. None of them replaces one that is issued anyway.
        :param confirmation: what the token is bound to (RFC 7800); empty for a bearer token.
        :param signing_alg: the algorithm that signs; ``None`` for the server's.
        :returns: a token whose ``aud`` is a string if there is one audience. ``iat`` is never in the future. There
            is no ``nbf``: verifiers whose clock is a second slow would reject a fresh token.
        :raises InvalidTarget: the token would be too long, above all because of its audiences.
        :raises InvalidScope: the token would be too long, above all because of its scopes.
        :raises ServiceUnavailable: no key may sign now.
        """
        now = self._clock()
        # Exactly one key: the next one must not sign before every verifier has had time to fetch it.
        key = self._signing_key(signing_alg)
        iat = int(now.timestamp())
        jti = secrets.token_urlsafe(JTI_RANDOM_BYTES)
        issued: dict[str, Any] = {
            "iss": self._issuer,
            "sub": client.client_id,
            "client_id": client.client_id,
            "aud": audiences[0] if len(audiences) == 1 else list(audiences),
            "iat": iat,
            "exp": iat + expires_in,
            "jti": jti,
        }
        if scope:
            issued["scope"] = scope
        if confirmation:
            issued["cnf"] = confirmation
        encoded = _encoded({**claims, **issued} if claims else issued, TOKEN_TYPE, key)
        if len(encoded) > self._max_characters:
            raise self._too_long(client, audiences, scope or "")
        token = AccessToken(access_token=encoded, token_type=token_type(confirmation), expires_in=expires_in)
        if scope:
            token["scope"] = scope
        token.jti, token.kid, token.audiences, token.confirmation = jti, key.kid, tuple(audiences), confirmation
        return token

    def sign(self, claims: Mapping[str, Any], typ: str) -> str:
        """Sign a statement that is not an access token, with its own ``typ``: RFC 8725 section 3.11.

        :raises ServiceUnavailable: no key may sign now.
        """
        return _encoded(claims, typ, self._signing_key())

    def _too_long(self, client: Client, audiences: Sequence[str], scope: str) -> InvalidTarget | InvalidScope:
        is_for_audiences = len(" ".join(audiences)) > len(scope)
        refuse, what = (InvalidTarget, "resources") if is_for_audiences else (InvalidScope, "scopes")
        return refuse(
            RefusalReason.TOKEN_TOO_LONG,
            f"The token would have more than {self._max_characters} characters: request fewer {what}.",
            client_id=client.client_id,
        )

    def _signing_key(self, alg: str | None = None) -> SigningKey:
        try:
            return self._find_key() if alg is None else self._find_key(alg)
        except StartError as error:
            raise ServiceUnavailable(RefusalReason.NO_SIGNING_KEY) from error


def token_type(confirmation: object) -> str:
    """Return how a token is presented (RFC 6750, RFC 9449 section 5).

    :param confirmation: its ``cnf``, if it has one.
    """
    return "DPoP" if isinstance(confirmation, Mapping) and "jkt" in confirmation else "Bearer"


def _encoded(claims: Mapping[str, Any], typ: str, key: SigningKey) -> str:
    signed = b"%b.%b" % (_encoded_header(typ, key.alg, key.kid), _base64url(compact_json(claims)))
    return (b"%b.%b" % (signed, _base64url(key.sign(signed)))).decode("ascii")


@lru_cache(maxsize=_HEADERS_KEPT)
def _encoded_header(typ: str, alg: str, kid: str) -> bytes:
    return _base64url(compact_json({"typ": typ, "alg": alg, "kid": kid}))


def _base64url(raw: bytes) -> bytes:
    """Encode without padding: RFC 7515 section 2."""
    return b2a_base64(raw).rstrip(b"=\n").translate(_URL_SAFE)
