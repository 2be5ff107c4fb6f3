"""Claims and header of an access token (RFC 9068 section 2), signed with exactly one key.

What the token may say is left to ``policy``, which key signs to ``keyring``.
"""

import secrets
from collections.abc import Callable
from typing import Any

from joserfc import jws, jwt

from app.contracts import AccessToken, Client, Clock, Decision
from app.errors import ServiceUnavailable
from app.keyring.algorithms import ALGORITHMS
from app.keyring.ring import SigningKey
from app.settings import StartError

TOKEN_TYPE = "at+jwt"  # noqa: S105 - RFC 9068 section 2.1.
JTI_RANDOM_BYTES = 16


class _OwnAlgorithms(jws.JWSRegistry):
    """Signs with what the ring's keys are for. joserfc warns of ``EdDSA``, whose new name no verifier knows yet."""

    def get_alg(self, name: str) -> Any:
        """Find the algorithm, without a word."""
        return self.algorithms[name]


_REGISTRY = _OwnAlgorithms(algorithms=list(ALGORITHMS))


class AccessTokenIssuer:
    """Signs access tokens.

    :param issuer: the ``iss`` of each.
    :param signing_key: gives the one key that signs now.
    """

    def __init__(self, issuer: str, signing_key: Callable[[], SigningKey], clock: Clock) -> None:
        self._issuer = issuer
        self._find_key = signing_key
        self._clock = clock

    def issue(self, client: Client, decision: Decision) -> AccessToken:
        """Sign a token for ``client`` that says what ``decision`` allows.

        :returns: ``aud`` is one string where there is one audience; ``iat`` is never ahead; no ``nbf``, since
            verifiers whose clock is a second behind would refuse a fresh token.
        :raises ServiceUnavailable: no key may sign now.
        """
        now = self._clock()
        # One key, never the set: joserfc picks a random member of a set, and the next key must not sign before every
        # verifier has had time to fetch it.
        key = self._signing_key()
        iat = int(now.timestamp())
        jti = secrets.token_urlsafe(JTI_RANDOM_BYTES)
        claims = {
            "iss": self._issuer,
            "sub": client.client_id,
            "client_id": client.client_id,
            "aud": decision.audiences[0] if len(decision.audiences) == 1 else list(decision.audiences),
            "iat": iat,
            "exp": iat + decision.lifetime_seconds,
            "jti": jti,
        }
        if decision.scope:
            claims["scope"] = " ".join(decision.scope)
        header = {"alg": key.alg, "typ": TOKEN_TYPE, "kid": key.kid}
        encoded = jwt.encode(header, claims, key.jwk, registry=_REGISTRY)
        return AccessToken(encoded, jti, key.kid, decision)

    def _signing_key(self) -> SigningKey:
        try:
            return self._find_key()
        except StartError as error:
            raise ServiceUnavailable("no_signing_key") from error
