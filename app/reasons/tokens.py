"""Why a token is not good."""

from app.reasons.reason import Reason


class TokenReason(Reason):
    """Why a token is not active, or was not revoked."""

    NOT_FOR_THIS_CALLER = (
        "not_for_this_caller",
        "The token is valid, but for no resource that client {client} may introspect.",
        "`flask clients update {client} --introspect URI` names all of its resources.",
    )
    UNKNOWN_CLIENT = "unknown_client", "No client has the token's client_id."
    DELETED_CLIENT = "deleted_client", "The token's client was deleted."
    DISABLED_CLIENT = (
        "disabled_client",
        "The token's client is disabled.",
        "`flask clients enable ID`, then the client must fetch a new token.",
    )
    TOKENS_REVOKED = (
        "tokens_revoked",
        "All tokens that the client had were revoked.",
        "The client must fetch a new one.",
    )
    REVOKED_TOKEN = "revoked_token", "The token was revoked.", "The client must fetch a new one."
    EXPIRED = (
        "expired",
        "The token has expired.",
        "The client must fetch a new one before its `expires_in` is over.",
    )
    NOT_YET = (
        "not_yet",
        "The token was issued more than a minute in the future.",
        "Check that the machines' clocks agree.",
    )
    OTHER_ISSUER = (
        "other_issuer",
        "Another server issued the token.",
        "Look for a trailing slash, or http for https, in an `iss`.",
    )
    MALFORMED_TOKEN = (
        "malformed_token",
        "This is not a JWS: three parts of base64url with dots between them, the first two JSON objects.",
        "Check whether it was truncated.",
    )
    TOO_LONG = (
        "too_long",
        "The token is longer than any that this server issues.",
        "Check whether the text contains more than one token.",
    )
    OTHER_TYPE = "other_type", "The token is not an access token: its typ is neither at+jwt nor application/at+jwt."
    CRITICAL_HEADER = "critical_header", "The token requires extensions (crit) that are not supported."
    UNKNOWN_KEY = (
        "unknown_key",
        "Our key ring has no key with the kid of the token: it was signed elsewhere, or the key was removed.",
        "Check whether another installation issued it.",
    )
    OTHER_ALGORITHM = (
        "other_algorithm",
        "The alg of the token is not that of the key that it names: it may be an attack.",
    )
    WRONG_SIGNATURE = (
        "wrong_signature",
        "The signature of the token does not match the key that it names: it was modified or forged.",
    )
    REVOKED_KEY = (
        "revoked_key",
        "The key that signed it was revoked, and is no longer in the JWKS.",
        "The client must fetch a new one.",
    )
    KEY_GONE = (
        "key_gone",
        "The key that signed it has retired, and is no longer in the JWKS.",
        "The client must fetch a new one.",
    )
    MISSING_CLAIM = "missing_claim", "A claim is missing or has the wrong type."
