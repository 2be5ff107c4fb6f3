"""Events: facts that cannot be changed, told to all who subscribed."""

import dataclasses

import pytest

from app.audit.events import Event, Events, RequestFacts, TokenIssued, TokenRefused

FACTS = RequestFacts(request_id="r-1", source_address="192.0.2.1", duration_ms=1.5)
REFUSED = TokenRefused(request=FACTS, client_id=None, error="invalid_client", status=401, reason="unknown_client")
ISSUED = TokenIssued(
    request=FACTS,
    client_id="an-id",
    auth_method="client_secret_basic",
    secret_id="s-1",
    grant_type="client_credentials",
    scope="read",
    audience=("urn:a",),
    jti="a-jti",
    kid="a-kid",
    expires_in=3600,
)


def test_every_subscriber_hears_every_event_in_order() -> None:
    heard: list[tuple[str, Event]] = []
    events = Events()
    events.subscribe(lambda event: heard.append(("first", event)))
    events.subscribe(lambda event: heard.append(("second", event)))
    events.emit(REFUSED)
    events.emit(ISSUED)
    assert heard == [("first", REFUSED), ("second", REFUSED), ("first", ISSUED), ("second", ISSUED)]


def test_nobody_need_subscribe() -> None:
    Events().emit(ISSUED)


def test_a_subscriber_that_fails_costs_nobody_the_event_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Event] = []

    def broken(_event: Event) -> None:
        raise OSError(28, "No space left on device")

    events = Events()
    events.subscribe(broken)
    events.subscribe(heard.append)
    events.emit(ISSUED)
    assert heard == [ISSUED]
    (record,) = caplog.records
    assert record.getMessage() == "TokenIssued was lost, request_id=r-1"


def test_the_outcome_is_settled_by_what_happened() -> None:
    assert (ISSUED.outcome, REFUSED.outcome) == ("issued", "refused")
    with pytest.raises(TypeError, match="outcome"):
        TokenRefused(request=FACTS, client_id=None, error="e", status=1, reason="r", outcome="issued")  # type: ignore[call-arg]


@pytest.mark.parametrize("event", [FACTS, ISSUED, REFUSED])
def test_events_are_frozen_and_take_no_more_members(event: object) -> None:
    name = next(iter(dataclasses.fields(event))).name  # type: ignore[arg-type]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(event, name, "other")
    assert not hasattr(event, "__dict__")


def test_no_event_has_a_field_for_what_may_not_be_logged() -> None:
    names = {field.name for kind in (RequestFacts, TokenIssued, TokenRefused) for field in dataclasses.fields(kind)}
    assert names == {
        "request_id",
        "source_address",
        "duration_ms",
        "trace_id",
        "request",
        "client_id",
        "auth_method",
        "secret_id",
        "grant_type",
        "scope",
        "audience",
        "jti",
        "kid",
        "expires_in",
        "from_memory",
        "cnf",
        "outcome",
        "error",
        "status",
        "reason",
        "detail",
        "trust_id",
        "assertion_issuer",
        "assertion_subject",
    }
