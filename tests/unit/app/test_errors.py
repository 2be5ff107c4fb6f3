"""Every refusal as it goes over the wire: code, status, sentence, headers."""

import re
from http import HTTPStatus

import pytest

from app import errors
from app.errors import (
    BodyTooLarge,
    InvalidClient,
    InvalidDpopProof,
    InvalidGrant,
    InvalidRequest,
    InvalidScope,
    InvalidTarget,
    OAuthError,
    RateLimited,
    ServerError,
    ServiceUnavailable,
    UnauthorizedClient,
    UnsupportedGrantType,
    UseDpopNonce,
    http_error_body,
    render,
)
from app.reasons import RefusalReason

DESCRIPTION = re.compile(r"[\x20-\x21\x23-\x5B\x5D-\x7E]+")
CHALLENGE = (
    "WWW-Authenticate",
    'Basic realm="tokenhouse", error="invalid_client", error_description="Client authentication failed."',
)

DPOP_PROOF = "invalid_dpop_proof", "The DPoP proof is missing, is invalid, or was used before."
DPOP_NONCE = "use_dpop_nonce", "The DPoP proof must contain the nonce of the DPoP-Nonce header."


@pytest.mark.parametrize(
    ("refusal", "status", "code", "told", "headers"),
    [
        (InvalidRequest, 400, "invalid_request", "The request is malformed.", []),
        (BodyTooLarge, 413, "invalid_request", "The request body is longer than 16384 bytes.", []),
        (InvalidClient, 401, "invalid_client", "Client authentication failed.", [CHALLENGE]),
        (UnauthorizedClient, 400, "unauthorized_client", "The client is not authorized to use this grant type.", []),
        (UnsupportedGrantType, 400, "unsupported_grant_type", "The grant type is not supported by this server.", []),
        (InvalidGrant, 400, "invalid_grant", "The token was not issued to this client.", []),
        (InvalidScope, 400, "invalid_scope", "The scope must be scope tokens separated by single spaces.", []),
        (InvalidTarget, 400, "invalid_target", "A resource must be an absolute URI without a fragment.", []),
        (InvalidDpopProof, 400, *DPOP_PROOF, []),
        (UseDpopNonce, 400, *DPOP_NONCE, []),
        (ServerError, 500, "server_error", "The server failed to handle the request.", []),
        (
            ServiceUnavailable,
            503,
            "server_error",
            "The server cannot handle the request right now.",
            [("Retry-After", "1")],
        ),
    ],
)
def test_a_refusal_is_rendered(
    refusal: type[OAuthError], status: int, code: str, told: str, headers: list[tuple[str, str]]
) -> None:
    assert render(refusal(RefusalReason.NOT_A_FORM, client_id="an-id")) == (
        status,
        {"error": code, "error_description": told},
        headers,
    )


def test_every_refusal_of_this_table_is_tested() -> None:
    classes = {thing for thing in vars(errors).values() if isinstance(thing, type) and issubclass(thing, OAuthError)}
    assert len(classes - {OAuthError, RateLimited}) == 12


def test_a_limit_says_when_to_come_again() -> None:
    limited = RateLimited(
        RefusalReason.TOO_MANY_FAILURES,
        limit="failures",
        amount=20,
        window_seconds=60,
        wait_seconds=36.01,
        failure=InvalidClient(RefusalReason.WRONG_SECRET, client_id="an-id"),
    )
    assert render(limited) == (
        429,
        {"error": "temporarily_unavailable", "error_description": "There were too many requests. Retry later."},
        [("Retry-After", "37"), ("RateLimit-Policy", '"failures";q=20;w=60'), ("RateLimit", '"failures";r=0;t=37')],
    )
    assert (limited.reason, limited.failure, limited.client_id) == ("too_many_failures", "wrong_secret", "an-id")


def test_the_reason_is_for_the_log_only() -> None:
    refusal = InvalidClient(RefusalReason.UNKNOWN_CLIENT, client_id="an-id")
    assert (refusal.reason, refusal.client_id) == ("unknown_client", "an-id")
    status, body, headers = render(refusal, [("X-More", "1")])
    assert "unknown_client" not in str((status, body, headers))
    assert headers[-1] == ("X-More", "1")


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (BodyTooLarge(), "body_too_large"),
        (UnauthorizedClient(), "grant_not_allowed"),
        (UnsupportedGrantType(), "unknown_grant_type"),
        (InvalidRequest(RefusalReason.NOT_A_FORM), "not_a_form"),
        (ServerError(RefusalReason.UNEXPECTED.caused_by("KeyError")), "unexpected_KeyError"),
    ],
)
def test_a_refusal_has_a_reason_of_its_own(refusal: OAuthError, reason: str) -> None:
    assert refusal.reason == reason


@pytest.mark.parametrize("reflected", ['a"b', "a\\b", "é", "a\nb", "\x00"])
def test_a_sentence_that_section_5_2_forbids_cannot_be_made(reflected: str) -> None:
    with pytest.raises(ValueError, match="forbidden characters"):
        InvalidRequest(RefusalReason.NOT_A_FORM, reflected)


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "invalid_request"),
        (404, "not_found"),
        (405, "method_not_allowed"),
        (411, "invalid_request"),
        (413, "invalid_request"),
        (414, "invalid_request"),
        (415, "invalid_request"),
        (417, "invalid_request"),
        (431, "invalid_request"),
        (500, "server_error"),
        (501, "invalid_request"),
        (503, "server_error"),
        (418, "invalid_request"),
        (502, "server_error"),
    ],
)
def test_a_fault_below_oauth_has_the_same_form(status: int, code: str) -> None:
    body = http_error_body(status)
    assert list(body) == ["error", "error_description"]
    assert body["error"] == code


@pytest.mark.parametrize("status", [status for status in HTTPStatus if status >= HTTPStatus.BAD_REQUEST])
def test_every_sentence_keeps_to_the_characters_of_section_5_2(status: int) -> None:
    assert DESCRIPTION.fullmatch(http_error_body(status)["error_description"])
