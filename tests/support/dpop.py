"""DPoP proofs as a client signs them, right ones and wrong ones."""

import time
import uuid
from typing import Any

from support.assertions import ISSUER, Signer

TOKEN_ENDPOINT = f"{ISSUER}/oauth/token"


def proof_claims(**changes: Any) -> dict[str, Any]:
    """Claims of a good proof for a token request, but for ``changes``; what is ``None`` is left out."""
    claims = {"htm": "POST", "htu": TOKEN_ENDPOINT, "iat": int(time.time()), "jti": uuid.uuid4().hex, **changes}
    return {name: value for name, value in claims.items() if value is not None}


def sign_proof(signer: Signer, header: dict[str, Any] | None = None, **changes: Any) -> str:
    """A proof of ``signer``, but for ``changes`` of its claims and ``header``; what is ``None`` is left out."""
    jwk = {name: value for name, value in signer.jwk.items() if name != "kid"}
    return signer.sign(proof_claims(**changes), **{"typ": "dpop+jwt", "jwk": jwk, "kid": None, **(header or {})})
