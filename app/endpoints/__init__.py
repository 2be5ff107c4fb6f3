"""The endpoints that are served."""

from app.endpoints.discovery import DISCOVERY
from app.endpoints.ops import OPS
from app.endpoints.token import TOKEN

ENDPOINTS = (TOKEN, DISCOVERY, OPS)
