"""How long a client's tokens are, before any is issued: a default that could never be issued is refused when it is set.

The exact length of a token is checked by ``tokens.issuer``.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from app.clients.fields import ClientFields
from app.config.settings import PREFIX, Settings
from app.errors import ManagementError

_HEADER_CHARACTERS = 110
"""``typ``, ``alg``, and a ``kid`` of 43 characters, in base64url."""

_SIGNATURE_CHARACTERS = 683
"""A signature by RSA with 4,096 bits: a larger key than today's may sign tomorrow."""

_FIXED_CLAIMS: dict[str, Any] = {"iat": 10**9, "exp": 10**9, "jti": "x" * 22, "cnf": {"jkt": "x" * 43}}


@dataclass(frozen=True, slots=True)
class TokenSize:
    """Limits the tokens that clients get by default.

    :param max_characters: of the longest token.
    """

    issuer: str
    default_audience: str
    max_characters: int

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Return the limit of the settings."""
        return cls(settings.issuer, settings.default_audience, settings.token_max_characters)

    def check(self, client_id: str, fields: ClientFields) -> None:
        """Check the token that a client gets if its request names neither scope nor resource.

        :raises ManagementError: it would be too long.
        """
        audience = fields.audiences[0] if fields.audiences else self.default_audience
        self._check(client_id, audience, fields.scope, fields.claims)

    def check_apis(self, client_id: str, claims: Mapping[str, Any], apis: Iterable[Mapping[str, Any]]) -> None:
        """Check the token that a client gets for each of its APIs.

        :param claims: the client's own.
        :param apis: as in ``ClientRow.apis``.
        :raises ManagementError: one would be too long.
        """
        for api in apis:
            self._check(client_id, api["identifier"], api["scope"], {**claims, **api["claims"]})

    def _check(self, client_id: str, audience: str, scope: Iterable[str], further: Mapping[str, Any]) -> None:
        claims = {
            **further,
            **_FIXED_CLAIMS,
            "iss": self.issuer,
            "sub": client_id,
            "client_id": client_id,
            "aud": audience,
            "scope": " ".join(scope),
        }
        content = len(json.dumps(claims, separators=(",", ":"), ensure_ascii=False).encode())
        characters = _HEADER_CHARACTERS + -(-content * 4 // 3) + _SIGNATURE_CHARACTERS + len("..")
        if characters > self.max_characters:
            raise ManagementError(
                f"a token of {client_id} for {audience} with all scopes may have {characters} characters, and none is "
                f"issued with more than {self.max_characters} ({PREFIX}TOKEN_MAX_CHARACTERS): give it fewer or shorter "
                "scopes, audiences and claims"
            )
