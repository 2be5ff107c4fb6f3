"""Whether a token is alive: what it says by itself (``inspection``), and what became of it and of its client since.

Who may ask is left to the endpoints.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.errors import ServiceUnavailable, StartError
from app.keyring.model import Ring
from app.tokens.revocations import Revocations, RevokedToken
from app.tokens.validation import TokenValidation, from_epoch, validate_token
from app.types import ALL_RESOURCES, Client


@dataclass(frozen=True, slots=True)
class TokenStatus:
    """How things are with a token.

    :param claims: what it says, for a token that we have issued and that has not expired; ``None`` for all else.
    :param reason: why it is dead; ``None`` while it lives.
    """

    claims: Mapping[str, Any] | None
    reason: str | None

    @property
    def audiences(self) -> tuple[str, ...]:
        """Whom it is for."""
        audience = (self.claims or {}).get("aud", ())
        return (audience,) if isinstance(audience, str) else tuple(audience)

    def as_revoked(self) -> RevokedToken:
        """What is to be remembered when it is taken back."""
        assert self.claims is not None  # noqa: S101 - Who asks has looked.
        return RevokedToken(self.claims["jti"], self.claims["client_id"], self.audiences, self.claims["exp"])


class TokenStatuses:
    """Looks tokens up.

    :param issuer: ours.
    :param ring: gives the key ring, ``now`` the moment that counts for it.
    """

    def __init__(
        self, issuer: str, ring: Callable[[], Ring], now: Callable[[], datetime], revocations: Revocations
    ) -> None:
        self._issuer, self._ring, self._now = issuer, ring, now
        self._revocations = revocations

    def of_token(self, unverified_token: str) -> TokenStatus:
        """How things are with a token, whoever made it.

        :raises ServiceUnavailable: the database, or the key ring, cannot be asked.
        """
        try:
            ring = self._ring()
        except StartError as error:
            raise ServiceUnavailable("no_key_ring") from error
        return self.of_validated(validate_token(unverified_token, self._issuer, ring, self._now()))

    def of_validated(self, inspection: TokenValidation) -> TokenStatus:
        """Likewise, of one whose content has been looked at."""
        if inspection.problems or inspection.unverified_claims is None:
            return TokenStatus(None, inspection.problems[0].reason)
        claims = inspection.unverified_claims
        return TokenStatus(
            claims, self._revocations.reason_against(claims["client_id"], claims["jti"], from_epoch(claims["iat"]))
        )


def may_introspect(client: Client, status: TokenStatus) -> bool:
    """Whether ``client`` may know how things are: with its own tokens, and with those for its resources."""
    if status.claims is None:
        return False
    return (
        status.claims["client_id"] == client.client_id
        or ALL_RESOURCES in client.introspects
        or not set(client.introspects).isdisjoint(status.audiences)
    )
