"""Which requests are limited, in one process: failures after they failed, and what a client does too often."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SettableClock
from unit.harness import Harness, open_harness

from app.errors import InvalidClient, InvalidRequest, OAuthError, RateLimited, ServiceUnavailable
from app.oauth.rate_limits import RateLimits
from app.reasons import RefusalReason
from app.types import Client, Rate

FAILURE = InvalidClient(RefusalReason.WRONG_SECRET, client_id="a")
AWAY = ServiceUnavailable(RefusalReason.DATABASE.caused_by("OperationalError"))
MALFORMED = InvalidRequest(RefusalReason.REPEATED_PARAMETER)


def client(client_id: str = "a", rate: Rate | None = None) -> Client:
    return Client(client_id, "A", "client_secret", ("client_credentials",), (), (), None, rate_limit=rate)


@pytest.fixture
def harness(tmp_path: Path, clock: SettableClock) -> Iterator[Harness]:
    settings = {
        "ratelimit_enabled": "true",
        "ratelimit_failures": "2/minute",
        "ratelimit_tokens": "3/minute",
        "ratelimit_revocations": "1/minute",
        "token_quota": "2",
        "token_quota_mode": "enforce",
    }
    with open_harness(tmp_path, clock, **settings) as made:
        yield made


@pytest.fixture
def limits(harness: Harness) -> RateLimits:
    return harness.services.oauth.server.limits


def fail(limits: RateLimits, client_id: str, address: str | None = "192.0.2.1") -> str | None:
    """Fail once; the reason if that is once too often."""
    try:
        limits.count_failure(FAILURE, client_id, address)
    except RateLimited as limited:
        return limited.reason
    return None


def test_failures_are_counted_for_an_id_and_for_an_address(limits: RateLimits) -> None:
    assert [fail(limits, "a") for _ in range(3)] == [None, None, "too_many_failures"]
    assert fail(limits, "a", "192.0.2.2") is None
    others = [fail(limits, f"guess-{number}") for number in range(20)]
    # Twenty for the address, three of which were the first client's.
    assert others == [None] * 17 + ["too_many_failures_of_address"] * 3


@pytest.mark.parametrize(
    ("first", "second", "is_one"),
    [
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("no:address", "another:one", False),
        ("unix", "unix", True),
        (None, None, True),
    ],
)
def test_an_ipv6_network_counts_as_one_address(
    limits: RateLimits, first: str | None, second: str | None, *, is_one: bool
) -> None:
    for _ in range(2):
        assert fail(limits, "x", first) is None
    assert (fail(limits, "x", second) is not None) is is_one


@pytest.mark.parametrize(
    ("error", "is_authenticated", "counts"),
    [(MALFORMED, False, True), (MALFORMED, True, False), (FAILURE, False, False), (AWAY, False, False)],
)
def test_what_is_malformed_counts_for_its_address(
    limits: RateLimits, error: OAuthError, *, is_authenticated: bool, counts: bool
) -> None:
    told = [limits.count_refusal(error, "192.0.2.9", is_authenticated=is_authenticated) for _ in range(21)]
    assert told == [False] * 20 + [counts]


def refusals(limits: RateLimits, endpoint: str, one: Client, requests: int) -> list[str | None]:
    found: list[str | None] = []
    for _ in range(requests):
        try:
            limits.count_request(endpoint, one)
        except RateLimited as limited:
            found.append(limited.reason)
        else:
            found.append(None)
    return found


def test_each_endpoint_has_its_limit_and_a_client_may_have_its_own(harness: Harness, limits: RateLimits) -> None:
    for client_id in ("a", "b"):
        harness.register(client_id)
    assert refusals(limits, "token", client(), 4) == [None] * 3 + ["too_many_tokens"]
    assert refusals(limits, "token", client("b", Rate(1, 60)), 2) == [None, "too_many_tokens"]
    assert refusals(limits, "revocation", client(), 2) == [None, "too_many_revocations"]
    assert refusals(limits, "introspection", client(), 9) == [None] * 9
    for _ in range(3):
        limits.count_assertion(client())
    with pytest.raises(RateLimited) as limited:
        limits.count_assertion(client())
    assert (limited.value.reason, limited.value.client_id) == ("too_many_assertions", "a")
    assert limits.count_refusal(limited.value, None, is_authenticated=False)
    tracker = harness.services.clients.last_used
    tracker.flush()
    assert sorted(tracker.limited_since(harness.clock().replace(second=0), 9)) == ["a", "b"]


def test_a_quota_ends_at_midnight(harness: Harness, limits: RateLimits) -> None:
    made = harness.register("a")
    authorized = {"Authorization": made.basic}
    caller = harness.app.test_client()
    for _ in range(2):
        answer = caller.post("/oauth/token", data={"grant_type": "client_credentials"}, headers=authorized)
        assert answer.status_code == 200
    with pytest.raises(RateLimited) as limited:
        limits.count_request("token", client())
    assert limited.value.reason == "token_quota_exceeded"
    # It is noon.
    assert dict(limited.value.extra_headers())["Retry-After"] == str(12 * 3600)
    harness.services.clients.usage.flush()
    harness.clock.advance(hours=12)
    assert refusals(limits, "token", client("a", Rate(9, 60)), 1) == [None]


def test_switched_off_nothing_is_limited(tmp_path: Path, clock: SettableClock) -> None:
    settings = {"ratelimit_enabled": "false", "ratelimit_failures": "1/day", "ratelimit_tokens": "1/day"}
    with open_harness(tmp_path, clock, **settings) as harness:
        limits = harness.services.oauth.server.limits
        assert [fail(limits, "a") for _ in range(30)] == [None] * 30
        assert refusals(limits, "token", client(), 3) == [None] * 3
        limits.count_assertion(client())
        limits.count_assertion(client())
        assert not limits.count_refusal(MALFORMED, "192.0.2.1", is_authenticated=False)


def test_a_refusal_that_is_one_of_many_has_no_line_and_is_counted(harness: Harness) -> None:
    caller = harness.app.test_client()
    harness.register("a")
    for _ in range(5):
        caller.post(
            "/oauth/token", data={"grant_type": "client_credentials", "client_id": "a", "client_secret": "x" * 9}
        )
        caller.post("/oauth/introspect", data={"token": "x", "client_id": "b", "client_secret": "x" * 9})
    summaries = harness.services.audit.summaries._summaries  # noqa: SLF001 - Before they are written.
    (summary,) = summaries.values()
    assert summary.requests == 6
    assert summary.causes == {"wrong_secret": 3, "unknown_client": 3}
    assert (len(summary.id_hashes), summary.known_ids) == (2, {"a"})
