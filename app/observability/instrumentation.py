"""What is counted, timed and traced, on its way to whoever keeps it: ``metrics`` and ``tracing`` in a worker.

The parts of a token request are timed from outside: what is timed does not know it.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ParamSpec, Protocol, TypeVar

from app.audit.events import Event

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

PARTS = ("authenticate", "sign", "log")
"""Of a token request: who is it, the signature, the audit line."""


class MetricsRecorder(Protocol):
    """Keeps what it is told."""

    def count(self, event: Event) -> None:
        """Count ``event``."""
        ...

    def observe(self, part: str, seconds: float) -> None:
        """Note how long a part of a token request has taken."""
        ...


class Spans(Protocol):
    """Traces what it is told."""

    def record(self, event: Event) -> None:
        """Note ``event`` in the span of the request that caused it."""
        ...

    def part(self, name: str) -> AbstractContextManager[None]:
        """A span within that of the request that is being served."""
        ...


class Instrumentation:
    """Hands on to the keeper and to the spans, once there are any; a subscriber of the events."""

    def __init__(self) -> None:
        self._recorder: MetricsRecorder | None = None
        self._spans: Spans | None = None

    def record_with(self, recorder: MetricsRecorder) -> None:
        """Hand on to ``keeper`` from now on."""
        self._recorder = recorder

    def trace_with(self, spans: Spans) -> None:
        """Hand on to ``spans`` from now on."""
        self._spans = spans

    def __call__(self, event: Event) -> None:
        """Count ``event``."""
        if self._recorder:
            self._recorder.count(event)
        if self._spans:
            self._spans.record(event)

    def span(self, part: str) -> AbstractContextManager[None] | None:
        """What ``part`` of a request happens within, where requests are traced."""
        return self._spans.part(part) if self._spans else None

    def timed(self, part: str, act: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
        """``act``, whose time is told as that of ``part``, also when it raises."""

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
