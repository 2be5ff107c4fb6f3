"""Passes events and durations to the metrics and traces of a worker, if it has any.

The authorization server and the events are handed wrappers from here, so timed code does not know about it.
"""

import time
from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

from app.audit.events import Event, RefusalCounted
from app.database.circuit_breaker import Spans

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

PARTS = ("authenticate", "sign", "log")
"""Parts of a token request: client authentication, signature, audit line."""


class MetricsRecorder(Protocol):
    """Records metrics."""

    def count(self, event: Event) -> None:
        """Count ``event``."""
        ...

    def observe(self, part: str, seconds: float) -> None:
        """Record the duration of a part of a token request."""
        ...


class EventSpans(Spans, Protocol):
    """Records traces."""

    def record(self, event: Event) -> None:
        """Add ``event`` to the span of the request that caused it."""
        ...


class Instrumentation:
    """Passes on to the recorder and the spans, once they are set; a subscriber of the events."""

    def __init__(self) -> None:
        self._recorder: MetricsRecorder | None = None
        self.spans: EventSpans | None = None
        """What makes the spans of the current request; ``None`` while requests are not traced."""

    def record_with(self, recorder: MetricsRecorder) -> None:
        """Pass on to ``recorder`` from now on."""
        self._recorder = recorder

    def trace_with(self, spans: EventSpans) -> None:
        """Pass on to ``spans`` from now on."""
        self.spans = spans

    def __call__(self, event: Event) -> None:
        """Count ``event``; a refusal that is not logged like any other."""
        event = event.refusal if isinstance(event, RefusalCounted) else event
        if self._recorder:
            self._recorder.count(event)
        if self.spans:
            self.spans.record(event)

    def timed(self, part: str, act: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
        """Return ``act`` as a function whose duration is recorded as that of ``part``, even if it raises."""

        def act_in_time(*arguments: _Parameters.args, **named: _Parameters.kwargs) -> _Result:
            began = time.perf_counter()
            try:
                if self.spans is None:
                    return act(*arguments, **named)
                with self.spans.part(part):
                    return act(*arguments, **named)
            finally:
                if self._recorder:
                    self._recorder.observe(part, time.perf_counter() - began)

        return act_in_time
