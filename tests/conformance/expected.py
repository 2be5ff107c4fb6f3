"""The exact error answers that the tables of this folder expect: status and JSON (RFC 6749 section 5.2)."""

import re
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit

FORM = "application/x-www-form-urlencoded"
GRANT = "grant_type=client_credentials"
CHALLENGE = 'Basic realm="tokenhouse", error="invalid_client", error_description="Client authentication failed."'
PROTECTED = {"/oauth/introspect", "/oauth/revocations"}

Refusal = tuple[int, dict[str, str]]


class Response(Protocol):
    """What ``requests`` and the tests' own raw client have in common."""

    status_code: int
    headers: Any

    def json(self) -> Any:
        """The parsed body."""


def refusal(status: int, error: str, description: str) -> Refusal:
    return status, {"error": error, "error_description": description}


def invalid_request(description: str) -> Refusal:
    return refusal(400, "invalid_request", description)


def missing(parameter: str) -> Refusal:
    return invalid_request(f"The parameter {parameter} is missing.")


def repeated(parameter: str) -> Refusal:
    return invalid_request(f"The parameter {parameter} is repeated.")


def in_query(parameter: str) -> Refusal:
    return invalid_request(f"The parameter {parameter} must be in the body, not in the URL.")


def target_not_granted(*resources: str) -> Refusal:
    """The refusal of section 2 of RFC 8707, which names what was refused."""
    return refusal(400, "invalid_target", f"The client was not granted: {' '.join(resources)}")


def scope_not_granted(tokens: str) -> Refusal:
    return refusal(400, "invalid_scope", f"The client was not granted: {tokens}")


INVALID_CLIENT = refusal(401, "invalid_client", "Client authentication failed.")
MALFORMED_SCOPE = refusal(400, "invalid_scope", "The scope must be scope tokens separated by single spaces.")
UNAUTHORIZED_CLIENT = refusal(400, "unauthorized_client", "The client is not authorized to use this grant type.")
OTHER_CLIENTS_TOKEN = refusal(400, "invalid_grant", "The token was not issued to this client.")
UNSUPPORTED_GRANT = refusal(400, "unsupported_grant_type", "The grant type is not supported by this server.")
MALFORMED = invalid_request("The request is malformed.")
MALFORMED_FORM = invalid_request("The body must be a form in UTF-8.")
NOT_A_FORM = invalid_request("The content type must be application/x-www-form-urlencoded.")
SEVERAL_AUTHENTICATIONS = invalid_request("The request must authenticate the client exactly once.")
OTHER_CLIENT_ID = invalid_request("The client_id in the body is not the one that authenticates.")
ANY_REPEATED = invalid_request("A parameter is repeated.")
BODY_TOO_LONG = refusal(413, "invalid_request", "The request body is longer than 16384 bytes.")
NOT_FOUND = refusal(404, "not_found", "There is nothing at this path.")
METHOD_NOT_ALLOWED = refusal(405, "method_not_allowed", "This path does not answer this method.")


@dataclass(frozen=True)
class Granted:
    """An answer with a token that says this. ``scope`` is ``None`` for a client that has none."""

    scope: str | None = "read write"


def challenge_at(response: Response) -> str:
    """The challenge of the endpoint that answered: a protected resource names its metadata (RFC 9728 section 5.1)."""
    path = urlsplit(getattr(response, "url", "")).path
    if path not in PROTECTED:
        return CHALLENGE
    named = re.search('resource_metadata="(https?://[^/"]+)', response.headers["WWW-Authenticate"])
    assert named, f"{path} names no metadata"
    return f'{CHALLENGE}, resource_metadata="{named[1]}/.well-known/oauth-protected-resource{path}"'


def assert_refused(response: Response, expected: Refusal) -> None:
    """Status, exact JSON, and the headers that every refusal has."""
    status, body = expected
    assert (response.status_code, response.json()) == (status, body)
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert len(response.headers["X-Request-ID"]) == 32
    assert response.headers.get("WWW-Authenticate") == (challenge_at(response) if status == 401 else None)


def assert_answer(response: Response, expected: Granted | Refusal) -> None:
    """A token or a refusal, exactly."""
    if not isinstance(expected, Granted):
        assert_refused(response, expected)
        return
    assert response.status_code == 200, response.json()
    answer = response.json()
    rest = {"token_type": "Bearer", "expires_in": 3600}
    scope = {} if expected.scope is None else {"scope": expected.scope}
    assert answer == {"access_token": answer["access_token"], **rest, **scope}
