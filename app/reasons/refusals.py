"""Why a request was refused."""

from app.reasons.reason import CausedReason, Reason

_PARAMETERS = "Check what the caller sends: `detail` names the parameter, docs/http.md describes all of them."
_LIMITS = (
    "The `RefusalsSummarized` lines of the address give the reasons and the clients. A correct secret is not refused. "
    "TOKENHOUSE_RATELIMIT_FAILURES sets the limit."
)
_OWN_LIMIT = (
    "Have the caller keep its token until it expires (docs/calling.md), or raise the limit: "
    "`flask clients update {client} --limit RATE`."
)
_ASSERTION = "docs/client-keys.md says what an assertion must contain."
_REDIS = "Check that Redis runs and that TOKENHOUSE_REDIS_URL is right; `/readyz` shows its state. The caller retries."
_DATABASE = "Check that the database runs and responds; `/readyz` shows its state, standard error has its message."


class RefusalReason(Reason):
    """Why a request was refused. A code that ends in ``_`` is followed by the class of an exception."""

    UNKNOWN_CLIENT = (
        "unknown_client",
        "No client has, or ever had, the id that was sent.",
        "`flask clients list` shows all: look for a blank, a typing error, or another installation's settings.",
    )
    DELETED_CLIENT = (
        "deleted_client",
        "Client {client} was deleted.",
        "Create another one: `flask clients create NAME`.",
    )
    DISABLED_CLIENT = (
        "disabled_client",
        "Client {client} is disabled.",
        "`flask clients enable {client}` serves it again.",
    )
    WRONG_SECRET = (
        "wrong_secret",
        "The secret is not one of client {client}.",
        "`flask clients secrets {client}` shows the last four characters, `rotate-secret {client}` creates another.",
    )
    EXPIRED_SECRET = (
        "expired_secret",
        "The secret of client {client} is right, but has expired.",
        "`flask clients rotate-secret {client}` creates another one.",
    )
    REVOKED_SECRET = (
        "revoked_secret",
        "The secret of client {client} was revoked.",
        "Give the caller its new secret, or create one: `flask clients rotate-secret {client}`.",
    )
    OTHER_METHOD_REGISTERED = (
        "other_method_registered",
        "Client {client} authenticated with another method than the registered one.",
        "`flask clients update {client} --auth-method client_secret` allows it to use Basic and the body.",
    )
    NO_AUTHENTICATION = (
        "no_authentication",
        "The request had no credentials.",
        "Send id and secret by Basic, or as client_id and client_secret in the body. A proxy may remove headers.",
    )
    UNSUPPORTED_SCHEME = (
        "unsupported_scheme",
        "The Authorization header is not Basic.",
        "Send Basic, or the credentials in the body.",
    )
    MALFORMED_CREDENTIALS = (
        "malformed_credentials",
        "The credentials cannot be parsed, or contain characters that no id or secret has.",
        "Check whether the secret ends in a line break, or was encoded twice.",
    )
    SEVERAL_AUTHENTICATIONS = (
        "several_authentications",
        "The request authenticated with two methods at once.",
        "Send Basic or the body, not both.",
    )
    REPEATED_AUTHORIZATION = (
        "repeated_authorization",
        "The request had two Authorization headers.",
        "Send one; a proxy may have added the other.",
    )
    OTHER_CLIENT_ID = (
        "other_client_id",
        "The client_id in the body is not the client that authenticated.",
        "Leave client_id out of the body, or send the same.",
    )
    TOO_MANY_FAILURES = (
        "too_many_failures",
        "Authentication failed too often for this client id from this address.",
        _LIMITS,
    )
    TOO_MANY_FAILURES_OF_ADDRESS = (
        "too_many_failures_of_address",
        "Authentication failed too often from this address.",
        _LIMITS,
    )
    TOO_MANY_TOKENS = (
        "too_many_tokens",
        "Client {client} made more token requests than its limit allows.",
        _OWN_LIMIT,
    )
    TOKEN_QUOTA_EXCEEDED = (
        "token_quota_exceeded",
        "Client {client} got as many tokens today as TOKENHOUSE_TOKEN_QUOTA allows.",
        "Have the caller keep its token until it expires (docs/calling.md), or raise the quota.",
    )
    TOO_MANY_ASSERTIONS = (
        "too_many_assertions",
        "Client {client} authenticated with more assertions than its limit of token requests allows.",
        _OWN_LIMIT,
    )
    TOO_MANY_REVOCATIONS = (
        "too_many_revocations",
        "Client {client} made more revocation requests than TOKENHOUSE_RATELIMIT_REVOCATIONS allows.",
        "`flask tokens revoke --client {client}` revokes all of its tokens at once.",
    )
    ASSERTION_MALFORMED = "assertion_malformed", "The assertion is no JWT.", _ASSERTION
    ASSERTION_TYPE_UNKNOWN = (
        "assertion_type_unknown",
        "The client_assertion_type is not that of a JWT.",
        _ASSERTION,
    )
    ASSERTION_ALGORITHM = (
        "assertion_algorithm",
        "The assertion is signed with an algorithm that is not supported.",
        _ASSERTION,
    )
    ASSERTION_OTHER_TYPE = "assertion_other_type", "The assertion is a JWT for another purpose.", _ASSERTION
    UNREADABLE_SECRET = (
        "unreadable_secret",
        "A secret of client {client} is encrypted with a key that has left the settings.",
        "Put it back into TOKENHOUSE_ENCRYPTION_KEYS: `flask clients secrets --by-encryption-key` counts such secrets.",
    )
    ASSERTION_SIGNATURE = (
        "assertion_signature",
        "The assertion was not signed with a key that client {client} has registered.",
        "`flask clients keys {client}` shows what is registered; `keys-add {client} FILE` adds another.",
    )
    NO_TRUST = (
        "no_trust",
        "Client {client} trusts no platform that has the iss of this token.",
        "`flask clients trusts {client}` shows which it trusts; `trust-test {client} FILE` compares a token with them.",
    )
    TRUST_MISMATCH = (
        "trust_mismatch",
        "The platform's token does not fit a trust of client {client}: `detail` names the trust and the claims.",
        "`flask clients trust-test {client} FILE` shows what each trust expects and what the token has.",
    )
    ISSUER_SIGNATURE = (
        "issuer_signature",
        "The token was not signed with a key of the platform that client {client} trusts.",
        "`flask clients trusts {client}` shows whether the platform's keys can be fetched.",
    )
    ASSERTION_OF_ANOTHER = "assertion_of_another", "The assertion has no iss, or one that is not its sub.", _ASSERTION
    ASSERTION_AUDIENCE = (
        "assertion_audience",
        "The audience of the assertion is not this server, or not this server alone.",
        _ASSERTION,
    )
    ASSERTION_TIMES = (
        "assertion_times",
        "The assertion lacks exp, or one of exp, iat and nbf is not a number: `detail` names it.",
        _ASSERTION,
    )
    ASSERTION_WITHOUT_ID = "assertion_without_id", "The assertion lacks a jti, or its jti is too long.", _ASSERTION
    ASSERTION_EXPIRED = (
        "assertion_expired",
        "The assertion has expired.",
        "Sign a new one for each request; check that the clocks agree.",
    )
    ASSERTION_IN_THE_FUTURE = (
        "assertion_in_the_future",
        "The assertion was issued in the future.",
        "Check that the machines' clocks agree.",
    )
    ASSERTION_TOO_LONG = (
        "assertion_too_long",
        "The lifetime of the assertion is too long.",
        "Let it expire within minutes, at most within an hour.",
    )
    ASSERTION_REPLAYED = (
        "assertion_replayed",
        "The assertion was used before: a request was repeated, or an assertion was stolen.",
        "Sign a new one for each request, for a retry too.",
    )
    PROOF_MISSING = (
        "proof_missing",
        "Client {client} must send a DPoP proof with each token request, and sent none.",
        "docs/sender-constraints.md shows how; `flask clients update {client} --no-require-dpop` allows bearer tokens.",
    )
    PROOF_INVALID = (
        "proof_invalid",
        "The DPoP proof is invalid: `detail` says why.",
        "docs/sender-constraints.md says what a DPoP proof must contain.",
    )
    PROOF_OTHER_REQUEST = (
        "proof_other_request",
        "The DPoP proof is for another method or URL: `detail` says which differs.",
        "Have the caller use the token endpoint of the metadata, whose origin is TOKENHOUSE_ISSUER.",
    )
    PROOF_STALE = (
        "proof_stale",
        "The iat of the DPoP proof is too old or in the future: `detail` says which.",
        "Check the caller's clock, or set TOKENHOUSE_DPOP_NONCE_LIFETIME: nonces make its clock irrelevant.",
    )
    PROOF_NONCE = (
        "proof_nonce",
        "The DPoP proof had no valid nonce. The response had one, and the caller should retry with it.",
        "None is needed, unless every request fails: then the caller ignores the DPoP-Nonce header.",
    )
    PROOF_REPLAYED = (
        "proof_replayed",
        "The DPoP proof was used before: a request was repeated, or a proof was stolen.",
        "Sign a new one for each request, for a retry too.",
    )
    CERTIFICATE_FROM_UNTRUSTED_PEER = (
        "certificate_from_untrusted_peer",
        "The request had the header for client certificates, but its peer is not a trusted proxy.",
        "If the peer is your proxy, add it to TOKENHOUSE_TRUSTED_PROXIES. Otherwise this may be an attack.",
    )
    CERTIFICATE_MALFORMED = (
        "certificate_malformed",
        "The header with the client certificate is not in the format that TOKENHOUSE_MTLS_FORMAT names.",
        "Compare the proxy's settings with docs/sender-constraints.md.",
    )
    CERTIFICATE_MISSING = (
        "certificate_missing",
        "Tokens of client {client} are bound to its certificate, and the request had none.",
        "Check the proxy (docs/sender-constraints.md), or `flask clients update {client} --no-bind-certificate`.",
    )
    NO_TRUST_ANCHORS = (
        "no_trust_anchors",
        "Client {client} sent a certificate, but no authority is trusted.",
        "TOKENHOUSE_MTLS_TRUST_ANCHORS names the file with the authorities' certificates.",
    )
    CERTIFICATE_UNTRUSTED = (
        "certificate_untrusted",
        "The certificate of client {client} is not valid: `detail` says why.",
        "Renew it, or add its authority or intermediate certificates to TOKENHOUSE_MTLS_TRUST_ANCHORS.",
    )
    CERTIFICATE_NAME_MISMATCH = (
        "certificate_name_mismatch",
        "The certificate is valid, but does not have the name that client {client} has registered.",
        "Compare `flask clients show {client}` with `openssl x509 -noout -subject -ext subjectAltName`.",
    )
    CERTIFICATE_UNKNOWN = (
        "certificate_unknown",
        "Client {client} has not registered this certificate: `detail` has its thumbprint.",
        "`flask clients certificates {client}` shows all; `certificates-add {client} FILE` adds another.",
    )
    MISSING_PARAMETER = "missing_parameter", "A required parameter is missing.", _PARAMETERS
    REPEATED_PARAMETER = "repeated_parameter", "A parameter was repeated.", _PARAMETERS
    QUERY_PARAMETER = (
        "query_parameter",
        "A parameter was in its URL, where proxies log it.",
        "Send parameters in the body. If it was a secret, it is in logs now: `flask clients rotate-secret ID`.",
    )
    MALFORMED_SINCE = (
        "malformed_since",
        "The parameter since was not the time of a document.",
        "Send the `iat` of the last document, or leave it out: docs/revocation-feed.md.",
    )
    NOT_A_FORM = (
        "not_a_form",
        "The body was not a form.",
        "Send Content-Type: application/x-www-form-urlencoded, not JSON.",
    )
    MALFORMED_FORM = (
        "malformed_form",
        "The body was not a form in UTF-8.",
        "Percent-encode what is not a letter or a digit.",
    )
    INCOMPLETE_BODY = (
        "incomplete_body",
        "The body ended before it was complete.",
        "Look for a proxy or a caller that gives up early.",
    )
    BODY_TOO_LARGE = (
        "body_too_large",
        "The body was longer than 16 KiB.",
        "No token request is nearly as long: check the caller.",
    )
    GRANT_NOT_ALLOWED = (
        "grant_not_allowed",
        "Client {client} may not use this grant.",
        "`flask clients update {client} --grant-type client_credentials` allows it.",
    )
    UNKNOWN_GRANT_TYPE = (
        "unknown_grant_type",
        "The grant type is not supported.",
        "Send grant_type=client_credentials.",
    )
    MALFORMED_SCOPE = (
        "malformed_scope",
        "The scope breaks the grammar.",
        "Send scopes with one blank between them.",
    )
    SCOPE_NOT_GRANTED = (
        "scope_not_granted",
        "Client {client} requested scopes that it was not granted.",
        'Request fewer, or grant all that it needs: `flask clients update {client} --scope "…"`.',
    )
    SCOPE_OF_OTHER_API = (
        "scope_of_other_api",
        "Client {client} requested scopes that it was granted for another API.",
        "Name that API in the request: `resource`, or `audience` if its identifier is a name.",
    )
    CLAIMS_DIFFER = (
        "claims_differ",
        "Client {client} requested one token for APIs that give the same claim different values.",
        "Request one token for each API.",
    )
    ALGORITHMS_DIFFER = (
        "algorithms_differ",
        "Client {client} requested one token for APIs whose tokens are signed with different algorithms.",
        "Request one token for each API.",
    )
    MALFORMED_RESOURCE = (
        "malformed_resource",
        "A resource in it is not an absolute URI.",
        "Send a URI with a scheme and without a fragment.",
    )
    MALFORMED_AUDIENCE = (
        "malformed_audience",
        "A value of the parameter audience is neither a URI nor a name.",
        "Send the identifier of the API. TOKENHOUSE_AUDIENCE_PARAMETER=false ignores the parameter.",
    )
    TOO_MANY_RESOURCES = (
        "too_many_resources",
        "Client {client} named more than 100 resources and audiences in one request.",
        "Request a token for each API, or for a few.",
    )
    TOKEN_TOO_LONG = (
        "token_too_long",
        "The token of client {client} would have more characters than TOKENHOUSE_TOKEN_MAX_CHARACTERS allows.",
        "Have the caller request fewer resources or scopes at once.",
    )
    RESOURCE_NOT_GRANTED = (
        "resource_not_granted",
        "Client {client} requested a resource that is not among its audiences.",
        "`flask clients update {client} --audience …` replaces them.",
    )
    NO_SIGNING_KEY = "no_signing_key", "No key may sign now.", "`flask keys list` shows why."
    NO_KEY_RING = "no_key_ring", "The key ring cannot be read.", "`flask keys check` says why."
    AUDIT_LOG_STALLED = (
        "audit_log_stalled",
        "The audit log takes no lines, and the settings require a line for each token.",
        "Check who reads standard output, and whether the disk is full.",
    )
    TOKENS_JUST_REVOKED = (
        "tokens_just_revoked",
        "All tokens of client {client} were revoked in that second, and it requested many in the same second.",
        "The caller retries. If this lasts, the clocks of two machines differ.",
    )
    NOT_MADE_TO_INTROSPECT = (
        "not_made_to_introspect",
        "Client {client} requested the revocation feed, but may not introspect.",
        "`flask clients update {client} --introspect URI` names the API that it verifies tokens for.",
    )
    OTHER_CLIENTS_TOKEN = (
        "other_clients_token",
        "Client {client} wanted to revoke a live token of another client.",
        "Only its own client may revoke it; `flask tokens revoke FILE` revokes any token.",
    )
    DATABASE_SILENT = "database_silent", "The database did not respond for seconds.", _DATABASE
    REDIS_SILENT = "redis_silent", "Redis did not respond for seconds.", _REDIS
    REDIS = (
        "redis_",
        "Redis did not respond, so whether the assertion was used before could not be checked.",
        _REDIS,
    )
    DATABASE = "database_", "The database did not respond.", _DATABASE
    UNEXPECTED = (
        "unexpected_",
        "The server has a fault.",
        "Standard error has the traceback under the same request id: please report it.",
    )

    def caused_by(self, class_name: str) -> CausedReason:
        """Return this reason with the class of the exception that caused it."""
        return CausedReason(f"{self}{class_name}")
