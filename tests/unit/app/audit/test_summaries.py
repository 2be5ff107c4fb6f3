"""Refusals that are too many for a line each are one line for each address, and one for each client."""

import pytest
from conftest import SettableClock

from app.audit.events import Event, Events, RefusalCounted, RefusalsSummarized, RequestFacts, TokenRefused
from app.audit.summaries import MOST_IDS, MOST_KNOWN_IDS, MOST_SUBJECTS, RefusalSummaries


@pytest.fixture
def emitted() -> list[Event]:
    return []


@pytest.fixture
def summaries(clock: SettableClock, emitted: list[Event]) -> RefusalSummaries:
    events = Events()
    events.subscribe(emitted.append)
    return RefusalSummaries(events, clock)


def counted(
    address: str, sent_id_hash: int | None = 1, client_id: str | None = None, cause: str = "unknown_client"
) -> RefusalCounted:
    facts = RequestFacts(request_id="r", source_address=address, duration_ms=0.1)
    refusal = TokenRefused(
        request=facts, client_id=client_id, error="temporarily_unavailable", status=429, reason="too_many_failures"
    )
    return RefusalCounted(refusal=refusal, sent_id_hash=sent_id_hash, cause=cause)


def test_one_line_for_each_address_and_one_for_each_client(
    summaries: RefusalSummaries, emitted: list[Event], clock: SettableClock
) -> None:
    for number in range(5):
        summaries.add(counted("192.0.2.1", number % 3))
    summaries.add(counted("192.0.2.1", 7, "known", "wrong_secret"))
    clock.advance(seconds=5)
    summaries.add(counted("192.0.2.2"))
    summaries.add(counted("192.0.2.2", None, "busy", "too_many_tokens"))
    summaries.flush()
    assert emitted == [
        RefusalsSummarized(
            source_address="192.0.2.1",
            client_id=None,
            since=emitted[0].since,  # type: ignore[union-attr]
            requests=6,
            causes={"unknown_client": 5, "wrong_secret": 1},
            client_ids_sent=4,
            known_client_ids=("known",),
        ),
        RefusalsSummarized(
            source_address="192.0.2.2",
            client_id=None,
            since=clock(),
            requests=1,
            causes={"unknown_client": 1},
            client_ids_sent=1,
            known_client_ids=(),
        ),
        RefusalsSummarized(
            source_address=None,
            client_id="busy",
            since=clock(),
            requests=1,
            causes={"too_many_tokens": 1},
            client_ids_sent=None,
            known_client_ids=(),
        ),
    ]
    summaries.flush()
    assert len(emitted) == 3


def test_many_addresses_and_ids_fill_no_memory(summaries: RefusalSummaries, emitted: list[Event]) -> None:
    for number in range(MOST_SUBJECTS + 50):
        summaries.add(counted(f"192.0.2.{number}"))
    for number in range(MOST_IDS * 3):
        summaries.add(counted("192.0.2.0", number, f"client-{number}"))
    summaries.flush()
    lines = [event for event in emitted if isinstance(event, RefusalsSummarized)]
    assert len(lines) == MOST_SUBJECTS + 1
    assert (lines[-1].source_address, lines[-1].requests) == (None, 50)
    assert lines[0].client_ids_sent == MOST_IDS
    assert len(lines[0].known_client_ids) == MOST_KNOWN_IDS
