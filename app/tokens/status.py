"""The status of a token: valid by itself (``validation``), and not revoked, with its client enabled (``revocations``).

Who may ask is left to the endpoints.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from app.errors import ServiceUnavailable, StartError
from app.keyring.model import Ring
from app.reasons import RefusalReason, TokenReason
from app.tokens.revocations import Revocations, RevokedToken
from app.tokens.validation import TokenValidation, from_epoch, validate_token
from app.types import ALL_RESOURCES, Client


@dataclass(frozen=True, slots=True)
class TokenStatus:
    """The status of a token.

    :param claims: the claims of a token of ours that has not expired; ``None`` for any other.
    :param reason: why it is not active; ``None`` if it is.
    """

    claims: Mapping[str, Any] | None
    reason: TokenReason | None

    @property
    def jti(self) -> str | None:
        """The id of a token of ours."""
        return self.claims["jti"] if self.claims else None

    def check_client(self, client: Client) -> bool:
        """Return whether the token is of ``client``."""
        return self.claims is not None and self.claims["client_id"] == client.client_id

    @property
    def audiences(self) -> tuple[str, ...]:
        """The audiences of the token."""
        audience = (self.claims or {}).get("aud", ())
        return (audience,) if isinstance(audience, str) else tuple(audience)

    def as_revoked(self) -> RevokedToken:
        """Return what is stored when the token is revoked."""
        assert self.claims is not None  # noqa: S101 - The caller has checked it.
        return RevokedToken(self.claims["jti"], self.claims["client_id"], self.audiences, self.claims["exp"])


class TokenStatuses:
    """Determines the status of tokens.

    :param issuer: our issuer.
    :param ring: returns the key ring.
    :param now: returns the time that counts for it.
    """

    def __init__(
        self, issuer: str, ring: Callable[[], Ring], now: Callable[[], datetime], revocations: Revocations
    ) -> None:
        self._issuer, self._ring, self._now = issuer, ring, now
        self._revocations = revocations

    def of_token(self, unverified_token: str) -> TokenStatus:
        """Return the status of a token from any source.

        :raises ServiceUnavailable: the database does not answer, or the key ring cannot be read.
        """
        try:
            ring = self._ring()
        except StartError as error:
            raise ServiceUnavailable(RefusalReason.NO_KEY_RING) from error
        return self.of_validated(validate_token(unverified_token, self._issuer, ring, self._now()))

    def of_validated(self, inspection: TokenValidation) -> TokenStatus:
        """Return the status of a validated token.

        :raises ServiceUnavailable: the database does not answer.
        """
        if inspection.problems or inspection.unverified_claims is None:
            return TokenStatus(None, inspection.problems[0].reason)
        claims = inspection.unverified_claims
        return TokenStatus(
            claims, self._revocations.reason_against(claims["client_id"], claims["jti"], from_epoch(claims["iat"]))
        )


def may_introspect(client: Client, status: TokenStatus) -> bool:
    """Return whether ``client`` may introspect the token: its own, or one for a resource that it introspects."""
    if status.claims is None:
        return False
    return (
        status.check_client(client)
        or ALL_RESOURCES in client.introspects
        or not set(client.introspects).isdisjoint(status.audiences)
    )
