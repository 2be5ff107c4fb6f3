"""Passes events and durations to the metrics and traces of a worker, if it has any.

The authorization server and the events are handed wrappers from here, so timed code does not know about it.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ParamSpec, Protocol, TypeVar

from app.audit.events import Event

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


class Spans(Protocol):
    """Records traces."""

    def record(self, event: Event) -> None:
        """Add ``event`` to the span of the request that caused it."""
        ...

    def part(self, name: str) -> AbstractContextManager[None]:
        """Return a span within that of the current request."""
        ...


class Instrumentation:
    """Passes on to the recorder and the spans, once they are set; a subscriber of the events."""

    def __init__(self) -> None:
        self._recorder: MetricsRecorder | None = None
        self._spans: Spans | None = None

    def record_with(self, recorder: MetricsRecorder) -> None:
        """Pass on to ``recorder`` from now on."""
        self._recorder = recorder

    def trace_with(self, spans: Spans) -> None:
        """Pass on to ``spans`` from now on."""
        self._spans = spans

    def __call__(self, event: Event) -> None:
        """Count ``event``."""
        if self._recorder:
            self._recorder.count(event)
        if self._spans:
            self._spans.record(event)

    def span(self, part: str) -> AbstractContextManager[None] | None:
        """Return the span of ``part`` of the current request, if requests are traced."""
        return self._spans.part(part) if self._spans else None

    def timed(self, part: str, act: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
        """Return ``act`` as a function whose duration is recorded as that of ``part``, even if it raises."""

        def act_in_time(*arguments: _Parameters.args, **named: _Parameters.kwargs) -> _Result:
            began = time.perf_counter()
            try:
                if self._spans is None:
                    return act(*arguments, **named)
                with self._spans.part(part):
                    return act(*arguments, **named)
            finally:
                if self._recorder:
                    self._recorder.observe(part, time.perf_counter() - began)

        return act_in_time
