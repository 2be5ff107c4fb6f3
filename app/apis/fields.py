"""What an API may consist of: every field is checked before anything is stored. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from app.audiences import normalize
from app.clients.claims import check_claims
from app.clients.fields import SCOPE_MAX_CHARACTERS, check_audience, check_lifetime, check_scope_token, check_text
from app.config.values import is_loopback
from app.crypto.algorithms import ALGORITHMS
from app.errors import ManagementError

NAME_MAX_CHARACTERS = 100
SCOPES_MAX = 200
SCOPE_TOKEN_MAX_CHARACTERS = 200

_NOT_IN_A_NAME = set("/\\?#%")
"""They would change the path of the API's document."""

_OWN_PATHS = ("/admin", "/oauth")
"""Below the issuer: this server's own protected resources."""


@dataclass(frozen=True, slots=True)
class ApiFields:
    """The fields of a new or changed API, checked on creation of this object.

    :param name: for commands, and for the URL of its document.
    :param identifier: the ``aud`` of its tokens.
    :param scope: all scopes that clients may be granted.
    :param access_token_lifetime: whole seconds, or ``None`` for that of the client or the server.
    :param signing_alg: the algorithm that signs its tokens, or ``None`` for the server's.
    :param owner: the team or person responsible.
    :param claims: are added to its tokens.
    :param publishes_document: whether the server publishes the metadata of RFC 9728 for it.
    :raises ManagementError: a field is wrong; what is allowed.
    """

    name: str
    identifier: str
    scope: tuple[str, ...] = ()
    access_token_lifetime: int | None = None
    signing_alg: str | None = None
    owner: str = ""
    claims: Mapping[str, Any] = field(default_factory=dict)
    publishes_document: bool = False

    def __post_init__(self) -> None:
        """Check all fields."""
        _check_name(self.name)
        check_audience("identifier", self.identifier)
        self._check_scopes()
        check_lifetime(self.access_token_lifetime)
        check_text("owner", self.owner)
        check_claims(self.claims)
        if self.signing_alg is not None and self.signing_alg not in ALGORITHMS:
            raise ManagementError(f"signing algorithm must be one of {', '.join(ALGORITHMS)}")
        if self.publishes_document and not can_have_document(self.identifier):
            raise ManagementError(
                f"identifier {self.identifier!r} must be an https URL without a query for a document of RFC 9728 "
                "(section 1.2)"
            )

    def _check_scopes(self) -> None:
        if len(self.scope) > SCOPES_MAX or len(" ".join(self.scope)) > SCOPE_MAX_CHARACTERS:
            raise ManagementError(
                f"an API has at most {SCOPES_MAX} scopes, with at most {SCOPE_MAX_CHARACTERS} characters together"
            )
        for token in self.scope:
            check_scope_token(token)
            if len(token) > SCOPE_TOKEN_MAX_CHARACTERS:
                raise ManagementError(f"a scope of an API has at most {SCOPE_TOKEN_MAX_CHARACTERS} characters")

    def check_not_ours(self, issuer: str) -> None:
        """Check that the identifier is none of the server's own.

        :raises ManagementError: it is.
        """
        own = [normalize(f"{issuer}{path}") for path in _OWN_PATHS]
        form = normalize(self.identifier)
        if any(form == each or form.startswith(f"{each}/") for each in own):
            raise ManagementError(f"identifier {self.identifier!r} is one of this server's own resources")


def can_have_document(identifier: str) -> bool:
    """Return whether the identifier fits RFC 9728 section 1.2: an https URL; http is for tests on one machine."""
    if not identifier.lower().startswith(("https://", "http://")):
        return False
    url = urlsplit(identifier)
    is_secure = url.scheme == "https" or is_loopback(url.hostname or "")
    return bool(url.hostname) and is_secure and not url.query


def _check_name(name: str) -> None:
    is_plain = name.isprintable() and name == name.strip() and not _NOT_IN_A_NAME & set(name)
    if not 1 <= len(name) <= NAME_MAX_CHARACTERS or not is_plain or name in {".", ".."}:
        raise ManagementError(
            f"the name of an API must be 1 to {NAME_MAX_CHARACTERS} printable characters without / \\ ? # and %"
        )
