"""An assertion with a MAC of the client's secret: RFC 7523 section 2.2, OpenID Connect Core section 9.

A last resort: anyone who can read the database and the encryption keys can impersonate these clients.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from app.clients.authentication import usable
from app.clients.queries import MOST_SECRETS
from app.oauth.client_auth.assertions import AssertionMethod, Examination, UnverifiedAssertion, check_assertion_fields
from app.reasons import RefusalReason

ALG = "HS256"

_NO_SECRET = SimpleNamespace(client_id="", encrypted=None)


class ClientSecretJwt(AssertionMethod):
    """``client_secret_jwt``: an assertion signed with HMAC-SHA-256, whose key is the secret in UTF-8."""

    name = "client_secret_jwt"
    has_secrets = True
    uses_secret_as_key = True
    requires = ("encryption_keys",)
    signing_algs = (ALG,)

    def is_signed_so(self, alg: object) -> bool:
        """Return whether ``alg`` is any MAC; those that are not supported are refused here."""
        return isinstance(alg, str) and alg.startswith("HS")

    def examine(self, assertion: UnverifiedAssertion, *, allows_memory: bool) -> Examination:
        """See :meth:`AssertionMethod.examine`."""
        lookup = self._dependencies.clients.find_with_secrets(assertion.client_id, allows_memory=allows_memory)
        # Usable ones come first. The rest only explains refusals in the log.
        rows = lookup.rows[:MOST_SECRETS]
        fields = json.loads(rows[0].auth_fields or "{}")
        if assertion.header.get("alg") != ALG:
            return Examination(lookup, fields, RefusalReason.ASSERTION_ALGORITHM)
        matching = self._matching(assertion, rows)
        for secret in usable(matching, self._dependencies.clock())[:1]:
            self._renew(secret)
        return Examination(lookup, fields, self._reason_without_match(rows), matching)

    def _matching(self, assertion: UnverifiedAssertion, rows: Sequence[Any]) -> list[Any]:
        """Return the secrets that made the signature. As many are tried for each client, dummies after the last."""
        found = []
        for place in range(MOST_SECRETS):
            row = rows[place] if place < len(rows) else _NO_SECRET
            secret, is_its_own = self._dependencies.encrypted_secrets.decrypt_or_dummy(row.client_id, row)
            mac = hmac.digest(secret.encode(), assertion.signed, hashlib.sha256)
            if hmac.compare_digest(mac, assertion.signature) and is_its_own:
                found.append(row)
        return found

    def _reason_without_match(self, rows: Sequence[Any]) -> RefusalReason:
        known_keys = self._dependencies.encrypted_secrets.key_ids
        unreadable = [row for row in rows if row.encrypted and row.encryption_key_id not in known_keys]
        return RefusalReason.UNREADABLE_SECRET if unreadable else RefusalReason.ASSERTION_SIGNATURE

    def _renew(self, secret: Any) -> None:
        """Encrypt a secret again, some seconds later, if an old key has encrypted it."""
        encrypted_secrets = self._dependencies.encrypted_secrets
        if secret.encryption_key_id != encrypted_secrets.newest_key_id:
            clear = encrypted_secrets.decrypt(secret.client_id, secret)
            self._dependencies.clients.reencrypt(
                secret, *encrypted_secrets.encrypt(secret.client_id, secret.secret_id, clear)
            )

    @staticmethod
    def check_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
        """Check what a client of this method registers besides its secrets.

        :raises ManagementError: an unknown field.
        """
        check_assertion_fields(ClientSecretJwt.name, fields)
        return dict(fields)
