"""The rate limits: failed authentications, and token requests, assertions and revocations of authenticated clients.

A failure is counted after authentication failed, whether the client id exists or not. So a correct secret is never
refused because of failures: no caller can lock out another client, or slow down a client that shares its address. How
requests are counted is left to ``rate_limiter``.
"""

from datetime import timedelta
from http import HTTPStatus
from ipaddress import ip_network

from app.clients.build import ClientServices
from app.clients.usage import DAY_SECONDS
from app.config.settings import Settings
from app.errors import InvalidClient, OAuthError, RateLimited
from app.oauth.rate_limiter import RateLimiter, SharedCounts
from app.reasons import RefusalReason
from app.types import Client, Clock, Rate

MOST_FAILING = 20_000
"""Client ids and addresses whose failures one worker counts: some 6 MiB."""

TIMES_FOR_ADDRESS = 10
"""An address may fail this many times as often as one client id from it."""

MOST_CLIENTS = 20_000
"""Clients whose requests one worker counts."""

TOKENS, ASSERTIONS, REVOCATIONS = "tokens", "assertions", "revocations"
_OF_ENDPOINTS = {"token": TOKENS, "revocation": REVOCATIONS}
_REASONS = {
    TOKENS: RefusalReason.TOO_MANY_TOKENS,
    ASSERTIONS: RefusalReason.TOO_MANY_ASSERTIONS,
    REVOCATIONS: RefusalReason.TOO_MANY_REVOCATIONS,
}

_IPV6_PREFIX = 64
"""A caller usually has a whole IPv6 network of this size."""


class RateLimits:
    """The limits of the settings.

    :param clients: for the counts of issued tokens, and to record limited clients.
    :param shared: the counts of all processes, if there are any.
    """

    def __init__(
        self, settings: Settings, clients: ClientServices, clock: Clock, shared: SharedCounts | None = None
    ) -> None:
        self._is_enabled = settings.ratelimit_enabled
        self._record_limited = clients.last_used.record_limited
        self._clock = clock
        self._usage = clients.usage
        self._quota = settings.token_quota if settings.enforces_quota else None
        self._requests = RateLimiter(MOST_CLIENTS, shared)
        self._tokens = settings.ratelimit_tokens
        self._revocations = settings.ratelimit_revocations
        self._failing = RateLimiter(MOST_FAILING, shared)
        self._failures = settings.ratelimit_failures
        self._failures_of_address = Rate(self._failures.amount * TIMES_FOR_ADDRESS, self._failures.seconds)

    def count_failure(self, failure: InvalidClient, client_id: str, source_address: str | None) -> None:
        """Count a failed authentication.

        :param client_id: as it was sent.
        :raises RateLimited: in place of ``failure``, after too many.
        """
        if not self._is_enabled:
            return
        network = _network_of(source_address)
        # The address first: once it has failed too often, its ids fill no memory.
        limit, rate, reason = "address", self._failures_of_address, RefusalReason.TOO_MANY_FAILURES_OF_ADDRESS
        wait_seconds = self._failing.take(limit, network, rate)
        if not wait_seconds:
            limit, rate, reason = "failures", self._failures, RefusalReason.TOO_MANY_FAILURES
            wait_seconds = self._failing.take(limit, f"{network} {client_id}", rate)
        if wait_seconds:
            raise RateLimited(
                reason,
                limit=limit,
                amount=rate.amount,
                window_seconds=rate.seconds,
                wait_seconds=wait_seconds,
                failure=failure,
            )

    def count_request(self, endpoint: str, client: Client) -> None:
        """Count a request of a client that has authenticated, if requests at this endpoint are limited.

        :raises RateLimited: it is one too many.
        """
        if self._is_enabled and (limit := _OF_ENDPOINTS.get(endpoint)):
            self._count(limit, client)
            if limit == TOKENS and self._quota is not None:
                self._require_quota(self._quota, client)

    def _require_quota(self, quota: int, client: Client) -> None:
        if self._usage.tokens_today(client.client_id) < quota:
            return
        now = self._clock()
        tomorrow = now.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        self._record_limited(client.client_id)
        raise RateLimited(
            RefusalReason.TOKEN_QUOTA_EXCEEDED,
            limit="quota",
            amount=quota,
            window_seconds=DAY_SECONDS,
            wait_seconds=(tomorrow - now).total_seconds(),
            client_id=client.client_id,
        )

    def count_assertion(self, client: Client) -> None:
        """Count a valid assertion, before it is stored as used.

        :raises RateLimited: it is one too many.
        """
        if self._is_enabled:
            self._count(ASSERTIONS, client)

    def _count(self, limit: str, client: Client) -> None:
        rate = self._revocations if limit == REVOCATIONS else client.rate_limit or self._tokens
        wait_seconds = self._requests.take(limit, client.client_id, rate)
        if wait_seconds:
            self._record_limited(client.client_id)
            raise RateLimited(
                _REASONS[limit],
                limit=limit,
                amount=rate.amount,
                window_seconds=rate.seconds,
                wait_seconds=wait_seconds,
                client_id=client.client_id,
            )

    def count_refusal(self, error: OAuthError, source_address: str | None, *, is_authenticated: bool) -> bool:
        """Count a refused request; return whether it is beyond a limit, so that the log only summarizes it.

        Malformed requests of callers that did not authenticate count as failures of their address.
        """
        if isinstance(error, RateLimited):
            return True
        if not self._is_enabled or is_authenticated or isinstance(error, InvalidClient):
            return False
        if error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return False
        return self._failing.take("address", _network_of(source_address), self._failures_of_address) > 0


def _network_of(source_address: str | None) -> str:
    """Return the address, or the network of an IPv6 address; empty for the peer of a Unix socket."""
    if source_address is None or ":" not in source_address:
        return source_address or ""
    try:
        return str(ip_network(f"{source_address}/{_IPV6_PREFIX}", strict=False))
    except ValueError:
        return source_address
