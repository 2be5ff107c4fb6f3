"""Builds the token services of an application: called once, by ``create_app``."""

from dataclasses import dataclass

from app.config.settings import Settings
from app.database.build import Database
from app.keyring.active import ActiveRing
from app.tokens.issuer import AccessTokenIssuer
from app.tokens.revocation_feed import RevocationFeed
from app.tokens.revocations import Revocations
from app.tokens.status import TokenStatuses
from app.types import Clock


@dataclass(frozen=True, slots=True)
class TokenServices:
    """The parts that sign tokens, and know which of them are live.

    :param issuer: signs tokens, and other statements of ours.
    """

    issuer: AccessTokenIssuer
    statuses: TokenStatuses
    revocations: Revocations
    revocation_feed: RevocationFeed


def build(settings: Settings, database: Database, active_keys: ActiveRing, clock: Clock) -> TokenServices:
    """Build the token services."""
    issuer = AccessTokenIssuer(settings.issuer, active_keys.signing_key, clock, settings.token_max_characters)
    revocations = Revocations(database.engine, database.connections, database.circuit_breaker, clock)
    return TokenServices(
        issuer=issuer,
        statuses=TokenStatuses(settings.issuer, active_keys, active_keys.now, revocations),
        revocations=revocations,
        revocation_feed=RevocationFeed(settings.issuer, settings.default_audience, revocations, issuer, clock),
    )
