"""A token request as client authentication methods get it: the fields of ``app.types.TokenRequest``."""

from dataclasses import dataclass, field
from typing import Any

from app.crypto.jws import parse_unverified
from app.oauth.requests import ASSERTION_MAX_CHARACTERS
from app.types import Authentication, UnverifiedJws


@dataclass
class Request:
    """A parsed token request."""

    parameters: dict[str, str]
    authorization: str | None = None
    resources: tuple[str, ...] = ()
    source_address: str | None = "192.0.2.1"
    allows_memory: bool = False
    sent_client_id: str = ""
    presented_secrets: list[str] = field(default_factory=list)
    assertion_facts: dict[str, str] = field(default_factory=dict)
    method: str = "POST"
    environ: dict[str, Any] = field(default_factory=dict)
    authentication: Authentication = None  # type: ignore[assignment]  # As before authentication.
    response_headers: list[tuple[str, str]] = field(default_factory=list)

    @property
    def unverified_assertion(self) -> UnverifiedJws | None:
        """The client assertion, parsed."""
        return parse_unverified(self.parameters.get("client_assertion", ""), ASSERTION_MAX_CHARACTERS)
