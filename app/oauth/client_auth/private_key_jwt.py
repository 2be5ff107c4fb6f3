"""An assertion signed with the client's private key: RFC 7523 section 2.2, OpenID Connect Core section 9."""

import json
import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from joserfc.util import int_to_base64

from app.clients.jwks_cache import check_jwks_uri
from app.crypto.algorithms import RSA_MIN_BITS, to_jwk
from app.crypto.jwk import (
    RSA_MOST_BITS,
    SIGNING_ALGS,
    VERIFICATION_ALGORITHMS,
    Jwk,
    matching,
    signature_octets,
    verifies,
)
from app.crypto.key_set import check_jwks
from app.errors import ManagementError
from app.oauth.client_auth.assertions import AssertionMethod, Examination, UnverifiedAssertion, check_assertion_fields
from app.reasons import RefusalReason

_RSA_OCTETS = range(RSA_MIN_BITS // 8, RSA_MOST_BITS // 8 + 1)

MOST_TRIED = 2
"""How many of the client's keys are tried, the latest, if an assertion names none, or if several have the name."""


class PrivateKeyJwt(AssertionMethod):
    """``private_key_jwt``: an assertion signed with a key whose public half the client has registered."""

    name = "private_key_jwt"
    has_secrets = False
    uses_secret_as_key = False
    requires: tuple[str, ...] = ()
    signing_algs = SIGNING_ALGS

    def is_signed_so(self, alg: object) -> bool:
        """Return whether ``alg`` is anything but a MAC; unknown algorithms are refused here."""
        return not (isinstance(alg, str) and alg.startswith("HS"))

    def examine(self, assertion: UnverifiedAssertion, *, allows_memory: bool) -> Examination:
        """See :meth:`AssertionMethod.examine`."""
        lookup = self._dependencies.clients.find(assertion.client_id, allows_memory=allows_memory)
        row = lookup.rows[0]
        # Parse on every request, using a dummy key set if needed: a cache would reveal by timing which clients exist.
        fields = json.loads(row.auth_fields or f'{{"jwks": {dummy_key_set()}}}')
        published = json.loads(row.published_jwks) if row.published_jwks else fields.get("jwks")
        keys = published["keys"] if published and row.auth_fields else ()
        fault = find_signature_fault(assertion, keys)
        if fault == RefusalReason.ASSERTION_SIGNATURE and row.published_jwks:
            # The key may be newer than the cached set. This request does not wait for a fetch.
            self._dependencies.jwks_cache.request_refresh(row.client_id)
        return Examination(lookup, fields, fault)

    @staticmethod
    def check_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
        """Check what a client of this method registers.

        :raises ManagementError: the key set is missing or wrong, or a field is unknown.
        """
        check_assertion_fields(PrivateKeyJwt.name, fields, "jwks", "jwks_uri")
        if ("jwks" in fields) == ("jwks_uri" in fields):
            raise ManagementError(
                "private_key_jwt needs public keys from one place: --jwks-file FILE, --jwks-uri URL, or --generate-key "
                "FILE makes a pair"
            )
        if "jwks_uri" in fields:
            return {**fields, "jwks_uri": check_jwks_uri(fields["jwks_uri"])}
        return {**fields, "jwks": check_jwks(fields["jwks"])}


def find_signature_fault(assertion: UnverifiedAssertion, keys: Sequence[Jwk]) -> RefusalReason | None:
    """Verify the signature; return what is wrong. The cost is the same whatever keys there are.

    :param keys: those that may have signed; empty for an unknown client.
    """
    alg, kid = assertion.header.get("alg"), assertion.header.get("kid")
    if not isinstance(alg, str) or alg not in SIGNING_ALGS:
        return RefusalReason.ASSERTION_ALGORITHM
    # Always the same number, so that the time reveals neither an unknown client nor one with many keys. A key that is
    # not as long as the signature cannot have made it: a dummy of that length is used in its place, so that the time
    # does not reveal the length of a client's key. Only a client with several keys of one kid costs more, and only
    # whoever knows that kid can tell.
    found = matching(keys, alg, kid)
    count = MOST_TRIED if kid is None or len(found) > 1 else 1
    octets = len(assertion.signature) if len(assertion.signature) in _RSA_OCTETS else RSA_MIN_BITS // 8
    candidates = [_dummy_key(alg, octets)] * count + found
    chosen = [key if signature_octets(key) in {None, octets} else candidates[0] for key in candidates[-count:]]
    verified = [verifies(key, alg, assertion.signature, assertion.signed) for key in chosen]
    return None if any(verified) else RefusalReason.ASSERTION_SIGNATURE


@lru_cache(maxsize=64)
def _dummy_key(alg: str, octets: int = RSA_MIN_BITS // 8) -> Jwk:
    """Return a dummy key of the kind that ``alg`` needs: refusing it takes as long as refusing a client's.

    :param octets: how long the modulus of an RSA key is.
    """
    algorithm = VERIFICATION_ALGORITHMS[alg]
    if algorithm.kind != VERIFICATION_ALGORITHMS["RS256"].kind:
        return dict(to_jwk(algorithm.generate(RSA_MIN_BITS)).as_dict(private=False))
    # An odd number: nobody knows its factors, and it takes no time to generate.
    modulus = secrets.randbits(8 * octets) | 1 | 1 << (8 * octets - 1)
    return {"kty": "RSA", "n": int_to_base64(modulus), "e": "AQAB"}


@lru_cache(maxsize=1)
def dummy_key_set() -> str:
    """Return a key set that takes as long to parse as a client's."""
    return json.dumps({"keys": [{**_dummy_key("RS256"), "kid": "x" * 43}]})
