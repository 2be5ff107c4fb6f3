"""Management of APIs, and of which clients may call them. Through the ORM, one transaction per call.

Each change also writes what token requests need into the rows of all clients concerned, in the same transaction, so a
token request needs no further statement. An API is locked before its clients, so that no two changes deadlock.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields as fields_of
from dataclasses import replace
from typing import Any, NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import scoped_session

from app.apis.fields import ApiFields
from app.audiences import normalize
from app.audit.events import ApiChanged, ClientChanged
from app.audit.outbox import Outbox, system_user
from app.clients.token_size import TokenSize
from app.clients.transactions import find_client, writing
from app.database.engine import batches
from app.database.models import DEFAULT_AUDIENCES_EVER, ApiGrantRow, ApiRow, ClientRow
from app.errors import ManagementError
from app.types import Clock

MOST_GRANTS = 100
"""APIs that one client may call."""


class Caller(NamedTuple):
    """A client that may call an API."""

    client: ClientRow
    grant: ApiGrantRow


class ApiRepository:
    """APIs in the database.

    :param session: each call commits or rolls back.
    :param token_size: limits the tokens that clients get by default.
    """

    def __init__(self, session: scoped_session[Any], outbox: Outbox, clock: Clock, token_size: TokenSize) -> None:
        self._session = session
        self._outbox = outbox
        self._clock = clock
        self._token_size = token_size

    def find(self, name: str) -> ApiRow:
        """Find an API by its name or identifier.

        :raises ManagementError: no such API exists.
        """
        return self._find(name)

    def list_all(self) -> Sequence[tuple[ApiRow, int]]:
        """Return all APIs by name, each with the number of its callers."""
        callers = select(func.count()).where(ApiGrantRow.api_name == ApiRow.name).correlate(ApiRow).scalar_subquery()
        return [(row, count) for row, count in self._session.execute(select(ApiRow, callers).order_by(ApiRow.name))]

    def count_callers(self, name: str) -> int:
        """Return how many clients may call an API."""
        return int(self._session.scalar(select(func.count()).where(ApiGrantRow.api_name == name)) or 0)

    def signing_algs(self) -> Sequence[str]:
        """Return the algorithms that sign tokens of APIs besides the server's own, sorted."""
        found = select(ApiRow.signing_alg).where(ApiRow.signing_alg.is_not(None)).distinct()
        return sorted(str(alg) for alg in self._session.scalars(found))

    def callers(self, name: str) -> Sequence[Caller]:
        """Return the clients that may call an API, by id.

        :raises ManagementError: no such API exists.
        """
        api = self._find(name)
        found = (
            select(ClientRow, ApiGrantRow)
            .join(ApiGrantRow, ApiGrantRow.client_id == ClientRow.client_id)
            .where(ApiGrantRow.api_name == api.name)
            .order_by(ClientRow.client_id)
        )
        return [Caller(client, grant) for client, grant in self._session.execute(found)]

    def create(self, fields: ApiFields) -> ApiRow:
        """Create an API.

        :raises ManagementError: the name or the identifier is taken, or the identifier is the server's own.
        """
        fields.check_not_ours(self._token_size.issuer)
        with writing(self._session) as session:
            if session.get(ApiRow, fields.name) is not None:
                raise ManagementError(f"API {fields.name!r} exists: `flask apis update` changes it")
            self._refuse_taken_identifier(fields)
            row = ApiRow(created_at=self._clock())
            self._apply(row, fields)
            session.add(row)
            self._record(row.name, "created")
            return row

    def update(self, name: str, decide_changes: Callable[[ApiFields], Mapping[str, Any]]) -> ApiRow:
        """Change fields of an API. Its callers lose scopes that it no longer has.

        :param decide_changes: returns the changes for the current fields; nobody else changes them meanwhile.
        :raises ManagementError: a value is not allowed, no such API exists, or tokens of a caller would be too long.
        """
        with writing(self._session) as session:
            row = self._find(name, for_change=True)
            before = describe(row)
            after = replace(before, **decide_changes(before))
            after.check_not_ours(self._token_size.issuer)
            if after.identifier != before.identifier:
                self._refuse_taken_identifier(after)
            self._apply(row, after)
            changed = [
                field.name for field in fields_of(after) if getattr(before, field.name) != getattr(after, field.name)
            ]
            if changed:
                grants = session.scalars(select(ApiGrantRow).where(ApiGrantRow.api_name == row.name)).all()
                for grant in grants:
                    grant.scope = [token for token in grant.scope if token in after.scope]
                self._compile_grants([grant.client_id for grant in grants])
                self._record(row.name, "updated", fields=changed)
            return row

    def delete(self, name: str) -> None:
        """Delete an API. No client gets a token for it any more; those that exist stay valid until they expire.

        :raises ManagementError: no such API exists.
        """
        with writing(self._session) as session:
            row = self._find(name, for_change=True)
            grants = session.scalars(select(ApiGrantRow).where(ApiGrantRow.api_name == row.name)).all()
            clients = [grant.client_id for grant in grants]
            for grant in grants:
                session.delete(grant)
            session.delete(row)
            self._compile_grants(clients)
            self._record(row.name, "deleted")

    def grant(self, name: str, client_id: str, scope: Sequence[str] | None) -> ApiGrantRow:
        """Let a client call an API, with these scopes; ``None`` means all that the API has now.

        :raises ManagementError: the API lacks a scope, or the client's tokens would be too long.
        """
        with writing(self._session) as session:
            api = self._find(name, for_change=True)
            find_client(session, client_id, for_change=True)
            granted = list(api.scope if scope is None else scope)
            if unknown := [token for token in granted if token not in api.scope]:
                raise ManagementError(
                    f"API {api.name!r} has no scope {' '.join(unknown)}: it has {' '.join(api.scope) or 'none'}"
                )
            row = session.get(ApiGrantRow, (client_id, api.name))
            if row is None:
                row = ApiGrantRow(client_id=client_id, api_name=api.name, granted_at=self._clock(), used={})
                session.add(row)
            row.scope = granted
            self._compile_grants([client_id])
            self._record(api.name, "granted", client_id=client_id)
            return row

    def revoke_grant(self, name: str, client_id: str) -> None:
        """Stop a client from getting tokens for an API; those that it has stay valid until they expire.

        :raises ManagementError: the client may not call it.
        """
        with writing(self._session) as session:
            api = self._find(name, for_change=True)
            find_client(session, client_id, for_change=True)
            row = session.get(ApiGrantRow, (client_id, api.name))
            if row is None:
                raise ManagementError(f"{client_id} was not granted API {api.name!r}")
            session.delete(row)
            self._compile_grants([client_id])
            self._record(api.name, "grant_revoked", client_id=client_id)

    def _find(self, name: str, *, for_change: bool = False) -> ApiRow:
        which = (ApiRow.name == name) | (ApiRow.normalized_identifier == normalize(name))
        found = select(ApiRow).where(which).order_by(ApiRow.name != name).limit(1)
        row: ApiRow | None = self._session.scalar(found)
        if row is not None and for_change:
            row = self._session.get(ApiRow, row.name, with_for_update=True, populate_existing=True)
        if row is None:
            raise ManagementError(f"there is no API {name!r}: `flask apis list` shows all")
        return row

    def _refuse_taken_identifier(self, fields: ApiFields) -> None:
        form = normalize(fields.identifier)
        other = self._session.scalar(select(ApiRow.name).where(ApiRow.normalized_identifier == form))
        if other is not None and other != fields.name:
            raise ManagementError(f"identifier {fields.identifier!r} is that of API {other!r}")

    def _apply(self, row: ApiRow, fields: ApiFields) -> None:
        row.name = fields.name
        row.identifier, row.normalized_identifier = fields.identifier, normalize(fields.identifier)
        row.scope = list(fields.scope)
        row.access_token_lifetime = fields.access_token_lifetime
        row.signing_alg = fields.signing_alg
        row.owner = fields.owner
        row.claims = dict(fields.claims) or None
        row.publishes_document = fields.publishes_document
        row.updated_at = self._clock()

    def _compile_grants(self, client_ids: Iterable[str]) -> None:
        """Write into each client what its token requests need.

        :raises ManagementError: its tokens would be too long.
        """
        self._session.flush()
        for ids in batches(sorted(client_ids)):
            locked = select(ClientRow).where(ClientRow.client_id.in_(ids)).order_by(ClientRow.client_id)
            clients = self._session.scalars(locked.with_for_update()).all()
            grants = (
                select(ApiGrantRow, ApiRow)
                .join(ApiRow, ApiRow.name == ApiGrantRow.api_name)
                .where(ApiGrantRow.client_id.in_(ids))
                .order_by(ApiGrantRow.granted_at, ApiGrantRow.api_name)
            )
            compiled: dict[str, list[dict[str, Any]]] = {}
            for grant, api in self._session.execute(grants):
                compiled.setdefault(grant.client_id, []).append(_compiled(grant, api))
            for client in clients:
                self._store(client, compiled.get(client.client_id, []))

    def _store(self, client: ClientRow, apis: list[dict[str, Any]]) -> None:
        if len(apis) > MOST_GRANTS:
            raise ManagementError(f"{client.client_id} may call {MOST_GRANTS} APIs, which is the most")
        if apis == (client.apis or []):
            return
        self._token_size.check_apis(client.client_id, client.claims or {}, apis)
        client.apis = apis or None
        # Tokens for an API that is no longer granted live on, and its verifiers must learn of revocations.
        ever = client.audiences_ever or DEFAULT_AUDIENCES_EVER
        client.audiences_ever = list(dict.fromkeys([*ever, *(api["identifier"] for api in apis)]))
        client.updated_at = self._clock()
        event = ClientChanged(by=system_user(), client_id=client.client_id, change="updated", fields=("apis",))
        self._outbox.put(self._session.connection(), event)

    def _record(self, api: str, change: str, *, client_id: str | None = None, fields: Sequence[str] = ()) -> None:
        event = ApiChanged(by=system_user(), api=api, change=change, client_id=client_id, fields=tuple(fields))
        self._outbox.put(self._session.connection(), event)


def describe(row: ApiRow) -> ApiFields:
    """Return the fields of a row."""
    return ApiFields(
        name=row.name,
        identifier=row.identifier,
        scope=tuple(row.scope),
        access_token_lifetime=row.access_token_lifetime,
        signing_alg=row.signing_alg,
        owner=row.owner,
        claims=dict(row.claims or {}),
        publishes_document=row.publishes_document,
    )


def _compiled(grant: ApiGrantRow, api: ApiRow) -> dict[str, Any]:
    """Return what :class:`app.types.GrantedApi` consists of."""
    return {
        "name": api.name,
        "identifier": api.identifier,
        "scope": grant.scope,
        "access_token_lifetime": api.access_token_lifetime,
        "signing_alg": api.signing_alg,
        "claims": api.claims or {},
    }
