"""What a DPoP proof costs in one process, in microseconds: its signature check, and all other checks together.

``python bench/proofs.py``. The first proof of a key has its key checked too; later ones find it cached. That the proof
is remembered as used costs a write besides, which ``replay_store`` makes for assertions too.
"""

import time
import timeit
from statistics import median
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from joserfc import jws
from joserfc.jwk import ECKey, OKPKey, RSAKey

from app.crypto.algorithms import ALGORITHMS
from app.crypto.jws import parse_unverified
from app.oauth.sender_constraints import dpop

TARGET = "https://tokens.example.com/oauth/token"
ROUNDS, PROOFS = 7, 500
KEYS = {
    "ES256": ECKey.generate_key("P-256"),
    "RS256": RSAKey.generate_key(2048),
    "EdDSA": OKPKey.generate_key("Ed25519"),
}


def make_proof(alg: str) -> str:
    """Return a good proof, signed with the key of ``alg``."""
    header = {"typ": dpop.PROOF_TYPE, "alg": alg, "jwk": KEYS[alg].as_dict(private=False)}
    claims = f'{{"htm":"POST","htu":"{TARGET}","iat":{int(time.time())},"jti":"{"x" * 32}"}}'
    return jws.serialize_compact(header, claims, KEYS[alg], algorithms=[alg])


def microseconds(statement: Any) -> float:
    """Return the median time of one call."""
    return median(timeit.repeat(statement, number=PROOFS, repeat=ROUNDS)) / PROOFS * 1e6


def measure(alg: str) -> tuple[float, float, float]:
    """Return the times of the signature alone, of a whole later proof, and of a key's first."""
    proof = make_proof(alg)
    parsed: Any = parse_unverified(proof, dpop.PROOF_MAX_CHARACTERS)
    key = load_der_public_key(KEYS[alg].public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

    def later() -> None:
        dpop.check_target(dpop.read_proof(proof).claims, "POST", TARGET)

    def first() -> None:
        dpop._read_header.cache_clear()  # noqa: SLF001 - As for a key that was not seen lately.
        later()

    signature = microseconds(lambda: ALGORITHMS[alg].verify(key, parsed.signature, parsed.signed))
    return signature, microseconds(later), microseconds(first)


if __name__ == "__main__":
    print("alg     signature   all other checks   of a key's first proof")
    for name in KEYS:
        of_signature, of_later, of_first = measure(name)
        print(f"{name:<6} {of_signature:8.1f} µs {of_later - of_signature:13.1f} µs {of_first - of_signature:18.1f} µs")
