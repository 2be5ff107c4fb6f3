"""What binds a token to its caller; the metadata and the options of ``flask clients`` list them in this order."""

from app.oauth.sender_constraints.dpop import Dpop

SENDER_CONSTRAINTS = (Dpop,)
