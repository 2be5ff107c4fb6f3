"""The gauges of the metrics: what the database, the key ring and the health checks say now."""

import platform
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from sqlalchemy.exc import SQLAlchemyError

from app.clients.usage import EXCESS_BUCKETS
from app.errors import StartError
from app.keyring.model import KeyState
from app.observability.health import check_health
from app.services import Services, installed_version

EXCESS_SECONDS = 600.0
"""How often the tokens of all clients are compared with what they need."""

LIMITED_WITHIN = timedelta(minutes=5)
"""How long a client that was refused for a rate limit is shown."""

MOST_LIMITED_SHOWN = 20


class Gauges:
    """Reads the gauges."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._next_excess = 0.0
        self._last_excess: Metric | None = None

    def measure(self) -> Iterator[Metric]:
        """Yield all gauges; those that need the database are missing while it is away."""
        yield InfoMetricFamily(
            "tokenhouse_build",
            "Versions of Tokenhouse and Python.",
            {"version": installed_version(), "python": platform.python_version()},
        )
        checks = GaugeMetricFamily(
            "tokenhouse_check_healthy", "1 where /readyz says ok, 0 where it says degraded or failed.", labels=["check"]
        )
        for name, state in check_health(self._services).items():
            # A separate metric counts these.
            if name != "client_keys":
                checks.add_metric([name], state == "ok")
        yield checks
        yield GaugeMetricFamily(
            "tokenhouse_client_key_sets_failing",
            "Clients whose published keys cannot be fetched, at most 20.",
            len(self._services.clients.jwks_cache.failing),
        )
        yield GaugeMetricFamily(
            "tokenhouse_issuer_key_sets_failing",
            "Platforms that clients trust whose keys cannot be fetched, at most 20.",
            len(self._services.clients.issuer_keys.failing),
        )
        with suppress(SQLAlchemyError):
            yield GaugeMetricFamily(
                "tokenhouse_client_secrets_expiring",
                "Valid secrets that expire within 30 days.",
                self._services.clients.secrets.count_expiring(),
            )
        with suppress(SQLAlchemyError):
            yield GaugeMetricFamily(
                "tokenhouse_client_certificates_expiring",
                "Clients with a registered certificate that expires within 30 days, or has expired.",
                self._services.clients.repository.count_expiring_certificates(),
            )
        with suppress(SQLAlchemyError):
            skipped = GaugeMetricFamily(
                "tokenhouse_client_key_skipped",
                "Published keys of clients that cannot be used, at most 20.",
                labels=["client_id", "reason"],
            )
            for client_id, reason in self._services.clients.jwks_cache.find_skipped():
                skipped.add_metric([client_id, reason], 1)
            yield skipped
        with suppress(SQLAlchemyError):
            yield self._limited()
            yield self._excess()
            yield GaugeMetricFamily(
                "tokenhouse_revoked_tokens",
                "Revoked tokens that have not expired.",
                self._services.tokens.revocations.count_live(),
            )
        with suppress(StartError):
            yield from self._keys()

    def _excess(self) -> Metric:
        """Return the histogram of yesterday, which changes little: it is made once in ten minutes."""
        if self._last_excess is None or time.monotonic() >= self._next_excess:
            lifetime = self._services.settings.access_token_lifetime
            *within, clients = self._services.clients.usage.count_excess(lifetime)
            excess = GaugeMetricFamily(
                "tokenhouse_client_token_excess",
                "Clients that got at most so many times as many tokens yesterday as one caller needs.",
                labels=["at_most"],
            )
            for bound, number in [*zip(map(str, EXCESS_BUCKETS), within, strict=True), ("+Inf", clients)]:
                excess.add_metric([bound], number)
            self._last_excess = excess
            self._next_excess = time.monotonic() + EXCESS_SECONDS
        return self._last_excess

    def _limited(self) -> Metric:
        gauge = GaugeMetricFamily(
            "tokenhouse_client_limited",
            "Clients whose requests were refused for a rate limit within five minutes, at most 20.",
            labels=["client_id"],
        )
        since = self._services.clock() - LIMITED_WITHIN
        for client_id in self._services.clients.last_used.limited_since(since, MOST_LIMITED_SHOWN):
            gauge.add_metric([client_id], 1)
        return gauge

    def _keys(self) -> Iterator[Metric]:
        ring, now = self._services.keys.active(), self._services.keys.active.now()
        states = [ring.state_of(key, now) for key in ring.keys]
        keys = GaugeMetricFamily("tokenhouse_signing_keys", "Keys of the ring by state.", labels=["state"])
        for state in KeyState:
            keys.add_metric([str(state)], states.count(state))
        yield keys
        if next_change := ring.next_change(now):
            yield GaugeMetricFamily(
                "tokenhouse_signing_keys_next_change_seconds",
                "Time until a key of the ring changes its state.",
                (next_change - now).total_seconds(),
            )
