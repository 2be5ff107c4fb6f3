"""The endpoints that are served."""

from app.endpoints.discovery import DISCOVERY
from app.endpoints.introspection import INTROSPECTION
from app.endpoints.ops import OPS
from app.endpoints.revocation import REVOCATION
from app.endpoints.revocation_feed import REVOCATION_FEED
from app.endpoints.token import TOKEN

ENDPOINTS = (TOKEN, INTROSPECTION, REVOCATION, REVOCATION_FEED, DISCOVERY, OPS)
