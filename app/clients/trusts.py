"""Management of trusts: which platforms' tokens authenticate a client, and where the platforms' keys are.

The keys of an issuer are the same for all clients that trust it. They stay when no client trusts it any more, but are
not fetched then: another machine may be adding a trust. What a trust may say is left to ``trust_rules``.
"""

import secrets
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import delete, select
from sqlalchemy.orm import scoped_session

from app.clients.jwks_cache import DISCOVERY_PATH, FetchedJwks, JwksCache, apply_fetched
from app.clients.secrets import ClientSecrets
from app.clients.transactions import find_client, writing
from app.clients.trust_rules import MOST_TRUSTS, Trust, check_trust
from app.crypto.key_set import KeySet
from app.database.models import ClientRow, ClientTrustRow, IssuerKeySetRow
from app.errors import ManagementError
from app.types import Clock

METHOD = "federated_jwt"
_ID_BYTES = 5


class NewTrust(NamedTuple):
    """A trust that was added.

    :ivar warnings: why it is wide.
    :ivar skipped: keys of the platform that cannot be used, each with the reason.
    """

    row: ClientTrustRow
    warnings: Sequence[str]
    skipped: Sequence[str]


class ClientTrusts:
    """Trusts in the database.

    :param session: each call commits or rolls back.
    :param issuer_keys: fetches the keys of platforms.
    :param own_issuer: the issuer of this server.
    """

    def __init__(
        self,
        session: scoped_session[Any],
        client_secrets: ClientSecrets,
        issuer_keys: JwksCache,
        clock: Clock,
        own_issuer: str,
    ) -> None:
        self._session = session
        self._secrets = client_secrets
        self._issuer_keys = issuer_keys
        self._clock = clock
        self._own_issuer = own_issuer

    def find(self, client_id: str) -> Sequence[ClientTrustRow]:
        """Return the trusts of a client, oldest first.

        :raises ManagementError: no such client exists.
        """
        find_client(self._session, client_id)
        return self._find(client_id)

    def find_keys(self, issuer: str) -> IssuerKeySetRow | None:
        """Return the keys of a platform that is or was trusted."""
        found: IssuerKeySetRow | None = self._session.get(IssuerKeySetRow, issuer)
        return found

    def _fetch_keys(self, issuer: str, jwks_uri: str | None) -> FetchedJwks | None:
        """Fetch the keys of a platform; return ``None`` if they are known and no place is given."""
        is_known = self.find_keys(issuer) is not None
        # No transaction stays open while others answer.
        self._session.rollback()
        if is_known and not jwks_uri:
            return None
        try:
            return self._issuer_keys.fetch(jwks_uri or f"{issuer}{DISCOVERY_PATH}")
        except ManagementError as error:
            raise ManagementError(f"{error}; --jwks-file takes keys that cannot be fetched from here") from None

    def add(self, client_id: str, trust: Trust, *, keys: KeySet | None = None, jwks_uri: str | None = None) -> NewTrust:
        """Let a client authenticate with the tokens that fit ``trust``.

        :param keys: the platform's keys, from a file.
        :param jwks_uri: where to fetch them; by default they are those that are known, or what its discovery document
            names.
        :raises ManagementError: the trust is not allowed, the client authenticates otherwise, or the keys cannot be
            fetched.
        """
        warnings = check_trust(trust, self._own_issuer)
        _require_method(find_client(self._session, client_id))
        found = keys or self._fetch_keys(trust.issuer, jwks_uri)
        with writing(self._session) as session:
            _require_method(find_client(session, client_id, for_change=True))
            known = self._find(client_id)
            if len(known) >= MOST_TRUSTS:
                raise ManagementError(f"{client_id} has {MOST_TRUSTS} trusts, which is the most")
            if same := next((each for each in known if to_trust(each) == trust), None):
                raise ManagementError(f"{client_id} has this trust already: {same.trust_id}")
            self._store_keys(session, trust.issuer, found)
            made = ClientTrustRow(
                trust_id=f"t-{secrets.token_hex(_ID_BYTES)}",
                client_id=client_id,
                issuer=trust.issuer,
                subject=trust.subject,
                claims=dict(trust.claims),
                audience=trust.audience,
                once=trust.once,
                created_at=self._clock(),
            )
            session.add(made)
            self._secrets.record_change(client_id, "trust_added", fields=["trusts"])
            return NewTrust(made, warnings, found.skipped if found else ())

    def remove(self, client_id: str, trust_id: str) -> int:
        """Remove a trust; return how many the client has left.

        :raises ManagementError: the client has no such trust.
        """
        with writing(self._session) as session:
            find_client(session, client_id, for_change=True)
            known = self._find(client_id)
            if trust_id not in {row.trust_id for row in known}:
                raise ManagementError(
                    f"{client_id} has no trust {trust_id!r}: `flask clients trusts {client_id}` shows all"
                )
            session.execute(delete(ClientTrustRow).where(ClientTrustRow.trust_id == trust_id))
            self._secrets.record_change(client_id, "trust_removed", fields=["trusts"])
            return len(known) - 1

    def _find(self, client_id: str) -> Sequence[ClientTrustRow]:
        mine = select(ClientTrustRow).where(ClientTrustRow.client_id == client_id)
        return self._session.scalars(mine.order_by(ClientTrustRow.created_at, ClientTrustRow.trust_id)).all()

    def _store_keys(self, session: scoped_session[Any], issuer: str, keys: FetchedJwks | KeySet | None) -> None:
        if keys is None:
            return
        kept = session.get(IssuerKeySetRow, issuer)
        if kept is None:
            kept = IssuerKeySetRow(issuer=issuer)
            session.add(kept)
        now = self._clock()
        if isinstance(keys, FetchedJwks):
            apply_fetched(kept, keys, now)
        else:
            kept.uri, kept.jwks, kept.skipped, kept.fault, kept.failures = "", keys.jwks, list(keys.skipped), None, 0
            kept.fetched_at = kept.tried_at = now
            kept.refresh_at = None


def _require_method(row: ClientRow) -> None:
    if row.token_endpoint_auth_method != METHOD:
        raise ManagementError(
            f"{row.client_id} authenticates with {row.token_endpoint_auth_method}: "
            f"`flask clients update {row.client_id} --auth-method {METHOD}` changes that"
        )


def to_trust(row: ClientTrustRow) -> Trust:
    """Return the trust of a row."""
    return Trust(row.issuer, row.subject, row.claims, row.audience, row.once)
