"""Assertions as a client signs them, right ones and wrong ones."""

import base64
import json
import time
import uuid
from dataclasses import dataclass
from typing import Any

import jwt
from joserfc.jwk import ECKey, OKPKey, RSAKey

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ISSUER = "https://tokens.example.com"


@dataclass(frozen=True)
class Signer:
    """A key pair of a client."""

    alg: str
    key: Any

    @property
    def jwk(self) -> dict[str, Any]:
        """The public half."""
        return dict(self.key.as_dict(private=False))

    @property
    def kid(self) -> str:
        """Its thumbprint."""
        return str(self.key.thumbprint())

    def sign(self, claims: dict[str, Any], **header: Any) -> str:
        """A JWT of these claims; a header that is ``None`` is left out."""
        headers = {"kid": self.kid, **header}
        return jwt.encode(
            claims,
            self.key.private_key,
            algorithm=self.alg,
            headers={name: value for name, value in headers.items() if value is not None},
        )


def signed_as_ed25519(keys: Signer, header: dict[str, Any], claims: dict[str, Any]) -> str:
    """A JWS whose ``alg`` is Ed25519 (RFC 9864 section 2.2), which PyJWT does not know."""
    unsigned = by_hand({**header, "alg": "Ed25519"}, claims).rpartition(".")[0]
    signature = keys.key.private_key.sign(unsigned.encode())
    return f"{unsigned}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"


def signer(alg: str = "RS256") -> Signer:
    """A new pair for ``alg``."""
    if alg in {"RS256", "PS256"}:
        return Signer(alg, RSAKey.generate_key(2048))
    return Signer(alg, ECKey.generate_key("P-256") if alg == "ES256" else OKPKey.generate_key("Ed25519"))


def claims_of(client_id: str, audience: Any = ISSUER, **changes: Any) -> dict[str, Any]:
    """Claims of a good assertion, but for ``changes``; what is ``None`` is left out."""
    now = int(time.time())
    claims = {
        "iss": client_id,
        "sub": client_id,
        "aud": audience,
        "iat": now,
        "exp": now + 60,
        "jti": uuid.uuid4().hex,
        **changes,
    }
    return {name: value for name, value in claims.items() if value is not None}


def by_hand(header: dict[str, Any], claims: Any, signature: bytes = b"x") -> str:
    """A JWS that no library would make."""
    parts = (
        json.dumps(header).encode(),
        claims if isinstance(claims, bytes) else json.dumps(claims).encode(),
        signature,
    )
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def form(assertion: str, **more: str) -> dict[str, str]:
    """A token request."""
    return {
        "grant_type": "client_credentials",
        "client_assertion_type": ASSERTION_TYPE,
        "client_assertion": assertion,
        **more,
    }
