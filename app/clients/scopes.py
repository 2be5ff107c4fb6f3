"""The grammar of scopes: RFC 6749 section 3.3. Pure.

Which scopes a client was granted is stored with it; which of them a token gets is left to ``oauth.policy``.
"""

import re

from app.errors import InvalidScope
from app.reasons import RefusalReason

SCOPE_TOKEN = re.compile(r"[\x21\x23-\x5B\x5D-\x7E]+")

RESERVED_SCOPE_PREFIX = "tokenhouse:"
"""Prefix of the scopes for managing this server. No ordinary client can be granted one."""

_SCOPE = re.compile(rf"{SCOPE_TOKEN.pattern}(?: {SCOPE_TOKEN.pattern})*")


def parse_scope(scope: str) -> tuple[str, ...]:
    """Split ``scope`` into its scope tokens, in order, without duplicates.

    :raises InvalidScope: ``scope`` is not scope tokens separated by exactly one space.
    """
    if not _SCOPE.fullmatch(scope):
        raise InvalidScope(RefusalReason.MALFORMED_SCOPE)
    return tuple(dict.fromkeys(scope.split(" ")))
