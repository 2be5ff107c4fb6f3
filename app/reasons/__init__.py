"""Every reason that the audit log can give, once: its code, what it means, and how to fix it.

Code that refuses raises or returns a member of these enums. ``flask explain`` and ``flask tokens inspect`` print its
sentences, and ``docs/audit-log.md`` and ``docs/tokens.md`` list them; ``make tables`` writes the lists.
"""

from app.reasons.reason import CausedReason
from app.reasons.refusals import RefusalReason
from app.reasons.tokens import TokenReason

__all__ = ["CausedReason", "RefusalReason", "TokenReason"]
