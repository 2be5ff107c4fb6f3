"""The endpoints of the protocol. ``observability.health_endpoint`` adds the health checks."""

from app.oauth.endpoints.discovery import DISCOVERY
from app.oauth.endpoints.introspection import INTROSPECTION
from app.oauth.endpoints.protected_resources import protected_resources
from app.oauth.endpoints.revocation import REVOCATION
from app.oauth.endpoints.revocation_feed import REVOCATION_FEED
from app.oauth.endpoints.token import TOKEN

ENDPOINTS = (
    TOKEN,
    INTROSPECTION,
    REVOCATION,
    REVOCATION_FEED,
    DISCOVERY,
    protected_resources([INTROSPECTION, REVOCATION_FEED]),
)
