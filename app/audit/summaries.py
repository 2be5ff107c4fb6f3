"""Summarizes refusals beyond a rate limit: one line per minute and address, in each worker.

``oauth.rate_limits`` decides which refusals those are.
"""

import threading
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime

from app.audit.events import Events, RefusalCounted, RefusalsSummarized
from app.types import Clock

SUMMARY_SECONDS = 60.0
"""How often the lines are written."""

MOST_SUBJECTS = 100
"""Addresses and clients that are kept apart in one worker. The refusals of all others are summarized together."""

MOST_IDS = 1000
"""Different client ids that are counted for one address."""

MOST_KNOWN_IDS = 10

_Subject = tuple[str | None, str | None]
"""Source address, or the id of an authenticated client. Both ``None``: all others."""

_OTHERS: _Subject = (None, None)


@dataclass(slots=True)
class _Summary:
    since: datetime
    requests: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    id_hashes: set[int] = field(default_factory=set)
    known_ids: set[str] = field(default_factory=set)


class RefusalSummaries:
    """Collects :class:`RefusalCounted`, and emits :class:`RefusalsSummarized`.

    :param events: where they are emitted.
    """

    def __init__(self, events: Events, clock: Clock) -> None:
        self._events = events
        self._clock = clock
        self._lock = threading.Lock()
        self._summaries: dict[_Subject, _Summary] = {}

    def add(self, event: RefusalCounted) -> None:
        """Collect one of many refusals."""
        refusal, sent = event.refusal, event.sent_id_hash
        subject: _Subject = (refusal.request.source_address, None) if sent is not None else (None, refusal.client_id)
        with self._lock:
            if subject not in self._summaries and len(self._summaries) >= MOST_SUBJECTS:
                subject = _OTHERS
            summary = self._summaries.get(subject)
            if summary is None:
                summary = self._summaries[subject] = _Summary(self._clock())
            summary.requests += 1
            summary.causes[event.cause] += 1
            if sent is not None and len(summary.id_hashes) < MOST_IDS:
                summary.id_hashes.add(sent)
            if sent is not None and refusal.client_id and len(summary.known_ids) < MOST_KNOWN_IDS:
                summary.known_ids.add(refusal.client_id)

    def flush(self) -> None:
        """Emit the summaries, and begin new ones."""
        with self._lock:
            summaries, self._summaries = self._summaries, {}
        for (source_address, client_id), summary in summaries.items():
            self._events.emit(
                RefusalsSummarized(
                    source_address=source_address,
                    client_id=client_id,
                    since=summary.since,
                    requests=summary.requests,
                    causes=dict(summary.causes.most_common()),
                    client_ids_sent=len(summary.id_hashes) or None,
                    known_client_ids=tuple(sorted(summary.known_ids)),
                )
            )
