"""What is counted and timed, on its way to whoever keeps it: nobody in a command, ``metrics`` in a worker.

The parts of a token request are timed from outside: what is timed does not know it.
"""

import time
from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar

from app.contracts import AccessToken, AccessTokenSource, Authentication, Authenticator, Client, Decision, TokenRequest
from app.events import Event

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")

PARTS = ("authenticate", "sign", "log")
"""Of a token request: who is it, the signature, the audit line."""


class Keeper(Protocol):
    """Keeps what it is told."""

    def count(self, event: Event) -> None:
        """Count ``event``."""
        ...

    def observe(self, part: str, seconds: float) -> None:
        """Note how long a part of a token request has taken."""
        ...


class Measures:
    """Hands on to the keeper, once there is one; a subscriber of the events."""

    def __init__(self) -> None:
        self._keeper: Keeper | None = None

    def keep_with(self, keeper: Keeper) -> None:
        """Hand on to ``keeper`` from now on."""
        self._keeper = keeper

    def __call__(self, event: Event) -> None:
        """Count ``event``."""
        if self._keeper:
            self._keeper.count(event)

    def timed(self, part: str, act: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
        """``act``, whose time is told as that of ``part``, also when it raises."""

        def act_in_time(*arguments: _Parameters.args, **named: _Parameters.kwargs) -> _Result:
            began = time.perf_counter()
            try:
                return act(*arguments, **named)
            finally:
                if self._keeper:
                    self._keeper.observe(part, time.perf_counter() - began)

        return act_in_time


class TimedTokens:
    """A source of tokens, timed as ``sign``."""

    def __init__(self, tokens: AccessTokenSource, measures: Measures) -> None:
        self._issue = measures.timed("sign", tokens.issue)

    def issue(self, client: Client, decision: Decision) -> AccessToken:
        """See :meth:`app.contracts.AccessTokenSource.issue`."""
        return self._issue(client, decision)


class TimedMethod:
    """An authentication method, timed as ``authenticate``."""

    def __init__(self, method: Authenticator, measures: Measures) -> None:
        self.name = method.name
        self.parameters = method.parameters
        self._is_presented = method.is_presented
        self._authenticate = measures.timed("authenticate", method.authenticate)

    def is_presented(self, request: TokenRequest) -> bool:
        """See :meth:`app.contracts.Authenticator.is_presented`."""
        return self._is_presented(request)

    def authenticate(self, request: TokenRequest) -> Authentication:
        """See :meth:`app.contracts.Authenticator.authenticate`."""
        return self._authenticate(request)
