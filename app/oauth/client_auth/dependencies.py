"""What client authentication methods depend on."""

from dataclasses import dataclass

from app.clients.authentication import ClientAuthenticator
from app.clients.encrypted_secrets import EncryptedSecrets
from app.clients.jwks_cache import JwksCache
from app.config.settings import Settings
from app.oauth.client_auth.trust_anchors import TrustAnchors
from app.oauth.client_certificates import ClientCertificates
from app.oauth.rate_limits import RateLimits
from app.oauth.replay_store import ReplayStore
from app.types import Clock


@dataclass(frozen=True, slots=True)
class AssertionRules:
    """What the settings allow in an assertion.

    :param issuer: our issuer, which may be the audience.
    :param token_endpoint: the URL that may be the audience too.
    :param is_issuer_only: whether it may not.
    :param longest_seconds: how far in the future an assertion may expire.
    """

    issuer: str
    token_endpoint: str
    is_issuer_only: bool
    longest_seconds: int


@dataclass(frozen=True, slots=True)
class ClientAuthDependencies:
    """Passed to each method's constructor."""

    clients: ClientAuthenticator
    replay_store: ReplayStore
    encrypted_secrets: EncryptedSecrets
    jwks_cache: JwksCache
    issuer_keys: JwksCache
    clock: Clock
    limits: RateLimits
    certificates: ClientCertificates
    trust_anchors: TrustAnchors
    rules: AssertionRules


def assertion_rules(settings: Settings, token_endpoint: str) -> AssertionRules:
    """Return the rules in the settings."""
    return AssertionRules(
        settings.issuer, token_endpoint, settings.assertion_audience == "issuer", settings.assertion_lifetime
    )
