"""The sender constraints; the metadata and the options of ``flask clients`` list them in this order."""

from app.oauth.sender_constraints.dpop import Dpop
from app.oauth.sender_constraints.mtls import Mtls

SENDER_CONSTRAINTS = (Dpop, Mtls)
