"""Every refusal on one screen: code, status, and the one sentence that the caller reads.

Responses have the form of RFC 6749 section 5.2, whatever the status. The sentence is constant, so that nothing a
caller sent is reflected, except scopes and resources that have passed their grammar. The true cause is the
``reason``: it goes to the log, never to the caller.
"""

import math
from collections.abc import Iterable
from http import HTTPStatus
from typing import ClassVar

from authlib.oauth2 import OAuth2Error

from app.reasons import CausedReason, RefusalReason

BODY_LIMIT_BYTES = 16 * 1024
"""The longest request body, in bytes."""

RETRY_AFTER_SECONDS = 1
"""The ``Retry-After`` of a 503, in seconds. Callers back off from there by themselves."""

Rendered = tuple[int, dict[str, str], list[tuple[str, str]]]
"""Status, JSON body, headers."""


class StartError(Exception):
    """A fault that stops a start: one line per fault, with its name, what is wrong and what is allowed."""


class Unreachable(StartError):
    """Something cannot be reached now, and may be later."""


class ManagementError(Exception):
    """A refused change to clients or keys: one line that says what is wrong and what is allowed."""

    exit_status: ClassVar[int] = 1
    """The exit status of the command."""


class StillInUse(ManagementError):
    """A secret that was to be retired is still in use: a script may wait and try again."""

    exit_status = 3


class OAuthError(OAuth2Error):
    """A refusal. The caller reads code and description, the log has the ``reason`` too.

    :param reason: the cause, for the operator; never sent to the caller. Default: the class's own.
    :param description: a sentence for the caller, in the characters of RFC 6749 section 5.2.
    :param client_id: the client, if it is known to exist.
    :param detail: more about the cause, for the operator; holds nothing that the caller sent.
    """

    error: str
    status_code: int = HTTPStatus.BAD_REQUEST
    description: str
    cause: ClassVar[RefusalReason]

    def __init__(
        self,
        reason: RefusalReason | CausedReason | None = None,
        description: str | None = None,
        *,
        client_id: str | None = None,
        detail: str | None = None,
    ) -> None:
        super().__init__(description=description)
        self.reason = str(reason or self.cause)
        self.client_id = client_id
        is_constant = self.description == type(self).description
        self.detail: str | None = detail or (None if is_constant else self.description)

    def extra_headers(self) -> list[tuple[str, str]]:
        """Return the headers that this refusal adds."""
        return []


class InvalidRequest(OAuthError):
    """The request is malformed: RFC 6749 section 5.2."""

    error = "invalid_request"
    description = "The request is malformed."


class BodyTooLarge(InvalidRequest):
    """The body is longer than :data:`BODY_LIMIT_BYTES`; it was not parsed."""

    status_code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    description = f"The request body is longer than {BODY_LIMIT_BYTES} bytes."
    cause = RefusalReason.BODY_TOO_LARGE


class InvalidClient(OAuthError):
    """Client authentication failed. One sentence for every cause, so that no caller learns which clients exist.

    :ivar resource_metadata: the URL of the metadata of the protected resource (RFC 9728 section 5.1), if it is one.
    """

    resource_metadata: str | None = None

    error = "invalid_client"
    status_code = HTTPStatus.UNAUTHORIZED
    description = "Client authentication failed."

    def extra_headers(self) -> list[tuple[str, str]]:
        """Return the challenge of RFC 6749 section 5.2, with the error for clients that read it before the body."""
        challenge = f'Basic realm="tokenhouse", error="{self.error}", error_description="{self.description}"'
        if self.resource_metadata:
            challenge += f', resource_metadata="{self.resource_metadata}"'
        return [("WWW-Authenticate", challenge)]


class UnauthorizedClient(OAuthError):
    """The client is authenticated, but may not use this grant."""

    error = "unauthorized_client"
    description = "The client is not authorized to use this grant type."
    cause = RefusalReason.GRANT_NOT_ALLOWED


class InvalidGrant(OAuthError):
    """The token is another client's: RFC 7009 section 2.1."""

    error = "invalid_grant"
    description = "The token was not issued to this client."
    cause = RefusalReason.OTHER_CLIENTS_TOKEN


class UnsupportedGrantType(OAuthError):
    """No such grant is registered."""

    error = "unsupported_grant_type"
    description = "The grant type is not supported by this server."
    cause = RefusalReason.UNKNOWN_GRANT_TYPE


class InvalidScope(OAuthError):
    """The scope breaks the grammar of RFC 6749 section 3.3, or contains a scope that the client was not granted."""

    error = "invalid_scope"
    description = "The scope must be scope tokens separated by single spaces."


class InvalidTarget(OAuthError):
    """A resource is malformed, or the client was not granted it: RFC 8707 section 2."""

    error = "invalid_target"
    description = "A resource must be an absolute URI without a fragment."


class InvalidDpopProof(OAuthError):
    """The DPoP proof is not good: RFC 9449 section 5."""

    error = "invalid_dpop_proof"
    description = "The DPoP proof is missing, is invalid, or was used before."


class UseDpopNonce(OAuthError):
    """The DPoP proof must contain the nonce of the ``DPoP-Nonce`` header: RFC 9449 section 8."""

    error = "use_dpop_nonce"
    description = "The DPoP proof must contain the nonce of the DPoP-Nonce header."
    cause = RefusalReason.PROOF_NONCE


class RateLimited(OAuthError):
    """The request exceeds a rate limit.

    :param limit: the name of the limit, for the ``RateLimit`` headers.
    :param amount: how many requests are allowed in ``window_seconds``.
    :param wait_seconds: until more are.
    :param failure: why authentication failed, if that is what was counted.
    """

    error = "temporarily_unavailable"
    status_code = HTTPStatus.TOO_MANY_REQUESTS
    description = "There were too many requests. Retry later."

    def __init__(  # noqa: PLR0913 - What the headers say.
        self,
        reason: RefusalReason,
        *,
        limit: str,
        amount: int,
        window_seconds: int,
        wait_seconds: float,
        failure: OAuthError | None = None,
        client_id: str | None = None,
    ) -> None:
        super().__init__(reason, client_id=failure.client_id if failure else client_id)
        self.failure = failure.reason if failure else None
        self._policy = f'"{limit}";q={amount};w={window_seconds}'
        self._wait = max(1, math.ceil(wait_seconds))
        self._state = f'"{limit}";r=0;t={self._wait}'

    def extra_headers(self) -> list[tuple[str, str]]:
        """Return when to retry, also as draft-ietf-httpapi-ratelimit-headers-10 says it."""
        return [("Retry-After", str(self._wait)), ("RateLimit-Policy", self._policy), ("RateLimit", self._state)]


class ServerError(OAuthError):
    """The server failed."""

    error = "server_error"
    status_code = HTTPStatus.INTERNAL_SERVER_ERROR
    description = "The server failed to handle the request."


class ServiceUnavailable(ServerError):
    """Something that the server needs is away: the caller may retry."""

    status_code = HTTPStatus.SERVICE_UNAVAILABLE
    description = "The server cannot handle the request right now."

    def extra_headers(self) -> list[tuple[str, str]]:
        """Return when to retry."""
        return [("Retry-After", str(RETRY_AFTER_SECONDS))]


_HTTP_ERRORS: dict[int, tuple[str, str]] = {
    400: ("invalid_request", InvalidRequest.description),
    404: ("not_found", "There is nothing at this path."),
    405: ("method_not_allowed", "This path does not answer this method."),
    408: ("invalid_request", "The request was not complete in time."),
    411: ("invalid_request", "The request must say how long its body is."),
    412: ("invalid_request", "The document has changed: no entity tag of If-Match is its own."),
    413: ("invalid_request", BodyTooLarge.description),
    414: ("invalid_request", "The request line is too long."),
    415: ("invalid_request", "The content type is not supported here."),
    417: ("invalid_request", "The expectation cannot be met."),
    431: ("invalid_request", "The request headers are too large."),
    500: ("server_error", ServerError.description),
    501: ("invalid_request", "The transfer coding is not supported."),
    503: ("server_error", ServiceUnavailable.description),
    505: ("invalid_request", "The HTTP version is not supported: it must be 1.1 or 1.0."),
}


def http_error_body(status: int) -> dict[str, str]:
    """Return the body of an error below OAuth: HTTP framing, an unknown path, a wrong method.

    :param status: the HTTP status. A status that is not listed gets the sentence of 400 or, from 500 on, of 500.
    """
    fallback = HTTPStatus.BAD_REQUEST if status < HTTPStatus.INTERNAL_SERVER_ERROR else HTTPStatus.INTERNAL_SERVER_ERROR
    code, description = _HTTP_ERRORS.get(status, _HTTP_ERRORS[fallback])
    return {"error": code, "error_description": description}


def render(error: OAuthError, extra: Iterable[tuple[str, str]] = ()) -> Rendered:
    """Return status, body and headers of the response to ``error``."""
    body = {"error": error.error, "error_description": error.description}
    return error.status_code, body, [*error.extra_headers(), *extra]
