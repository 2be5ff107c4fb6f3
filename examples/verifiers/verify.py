"""Verifies access tokens for an API, including the key or certificate that a token is bound to.

An API in Flask uses the decorator ``require_token``. For other APIs, nginx and Envoy call ``/verify`` (nginx.conf,
envoy.yaml). PyJWT verifies signatures and claims; this program checks RFC 9449 section 4.3 and RFC 8705 section 3.
"""

import base64
import hashlib
import hmac
import json
import os
import re
import ssl
import threading
import time
from collections.abc import Callable
from functools import wraps
from typing import Any
from urllib.parse import unquote

import jwt
from flask import Flask, Response, g, request

ISSUER = os.environ["ISSUER"]
AUDIENCE = os.environ.get("AUDIENCE", ISSUER)
API_URL = os.environ["API_URL"].rstrip("/")  # The URL that clients use. Never take it from a request.
ALGORITHMS = ["RS256", "PS256", "ES256", "EdDSA"]
PROOF_SECONDS = 120

keys = jwt.PyJWKClient(os.environ.get("JWKS_URL", f"{ISSUER}/.well-known/jwks.json"))
app = Flask(__name__)


class Refused(Exception):
    """A refusal, with the challenge of RFC 6750 section 3.1 or RFC 9449 section 7.1."""

    def __init__(self, error: str = "invalid_token", scheme: str = "Bearer") -> None:
        super().__init__(error)
        self.challenge = f'{scheme} error="{error}"' + (f' algs="{" ".join(ALGORITHMS)}"' if scheme == "DPoP" else "")


@app.errorhandler(Refused)
def refuse(refused: Refused) -> Response:
    """401, with a challenge."""
    return Response(status=401, headers={"WWW-Authenticate": refused.challenge})


def verify_token(method: str, url: str) -> dict[str, Any]:
    """Return the claims of the request's token. Raises Refused."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    try:
        claims: dict[str, Any] = jwt.decode(
            token, keys.get_signing_key_from_jwt(token), ALGORITHMS, issuer=ISSUER, audience=AUDIENCE, leeway=60
        )
        typ = str(jwt.get_unverified_header(token).get("typ")).lower().removeprefix("application/")
    except jwt.PyJWTError:
        raise Refused from None
    if typ != "at+jwt":
        raise Refused
    # Refuse members of cnf that this program cannot check.
    confirmation = dict(claims.get("cnf", {}))
    jkt, x5t = confirmation.pop("jkt", None), confirmation.pop("x5t#S256", None)
    if confirmation or scheme.lower() != ("dpop" if jkt else "bearer"):
        raise Refused(scheme="DPoP" if jkt else "Bearer")
    if jkt and not same(jkt, verify_proof(request.headers.get("DPoP", ""), method, url, token)):
        raise Refused("invalid_dpop_proof", "DPoP")
    if x5t and not same(x5t, thumbprint_of_caller()):
        raise Refused
    return claims


def verify_proof(proof: str, method: str, url: str, token: str) -> str:
    """Return the thumbprint of a good proof's key. Raises Refused."""
    refused = Refused("invalid_dpop_proof", "DPoP")
    try:
        header = jwt.get_unverified_header(proof)
        jwk = dict(header["jwk"])
        if header["typ"].lower() != "dpop+jwt" or {"d", "k"} & jwk.keys():
            raise refused
        # The library refuses a key of another kind than the algorithm's.
        claims = jwt.decode(
            proof, jwt.PyJWK({**jwk, "alg": header["alg"]}), ALGORITHMS,
            options={"require": ["jti", "iat", "htm", "htu", "ath"], "verify_iat": False},
        )  # fmt: skip
        is_new = abs(time.time() - claims["iat"]) <= PROOF_SECONDS
        thumbprint = thumbprint_of_key(jwk)
    except (jwt.PyJWTError, LookupError, TypeError, ValueError, AttributeError):
        raise refused from None
    is_for_this = claims["htm"] == method and str(claims["htu"]).split("?")[0].split("#")[0] == url
    if not (is_new and is_for_this and same(claims["ath"], encode(hashlib.sha256(token.encode()).digest()))):
        raise refused
    if not use_once(f"{thumbprint} {claims['jti']}"):
        raise refused
    return thumbprint


def thumbprint_of_key(jwk: dict[str, Any]) -> str:
    """RFC 7638."""
    members = {"EC": ("crv", "kty", "x", "y"), "OKP": ("crv", "kty", "x"), "RSA": ("e", "kty", "n")}[jwk["kty"]]
    text = json.dumps({name: jwk[name] for name in members}, separators=(",", ":"), sort_keys=True)
    return encode(hashlib.sha256(text.encode()).digest())


def thumbprint_of_caller() -> str:
    """Return the thumbprint of the client's certificate; empty if there is none.

    Trust these headers only behind a proxy that sets them and removes those of the client.
    """
    try:
        if pem := request.headers.get("X-Client-Cert"):  # nginx: $ssl_client_escaped_cert
            return encode(hashlib.sha256(ssl.PEM_cert_to_DER_cert(unquote(pem))).digest())
    except ValueError:
        return ""
    from_envoy = re.fullmatch("(?:By=[^;,]*;)?Hash=([0-9a-f]{64})", request.headers.get("X-Forwarded-Client-Cert", ""))
    return encode(bytes.fromhex(from_envoy[1])) if from_envoy else ""


_used: dict[str, float] = {}
_using = threading.Lock()


def use_once(proof_id: str) -> bool:
    """Return whether a proof is new.

    Each process has its own memory. If there are several, share it: Redis has SET NX EX.
    """
    now = time.monotonic()
    with _using:
        while _used and next(iter(_used.values())) < now:
            del _used[next(iter(_used))]
        if proof_id in _used:
            return False
        _used[proof_id] = now + 2 * PROOF_SECONDS
        return True


def same(one: object, other: str) -> bool:
    """Compare in constant time."""
    return isinstance(one, str) and hmac.compare_digest(one.encode(), other.encode())


def encode(raw: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def require_token(view: Callable[..., Any]) -> Callable[..., Any]:
    """Require a valid token; put its claims into ``g.claims``."""

    @wraps(view)
    def guarded(*arguments: Any, **named: Any) -> Any:
        g.claims = verify_token(request.method, f"{API_URL}{request.path}")
        return view(*arguments, **named)

    return guarded


@app.get("/things")
@require_token
def list_things() -> dict[str, Any]:
    """An API."""
    return {"caller": g.claims["client_id"]}


@app.route("/verify/<path:path>", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
def verify(path: str) -> Response:
    """Verify a request for a proxy. Only the proxy may reach this."""
    claims = verify_token(request.headers.get("X-Method", request.method), f"{API_URL}/{path}")
    return Response(headers={"X-Caller": claims["client_id"]})
