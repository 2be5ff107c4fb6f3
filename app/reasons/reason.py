"""What every reason consists of."""

from enum import StrEnum
from typing import NewType, Self

CausedReason = NewType("CausedReason", str)
"""A reason that ends in the class of an exception: :meth:`RefusalReason.caused_by`."""


class Reason(StrEnum):
    """A reason: its code in snake_case, which is its value.

    :ivar meaning: a sentence for an operator; ``{client}`` stands for the client's id.
    :ivar fix: what to do; empty if there is nothing to do.
    """

    meaning: str
    fix: str

    def __new__(cls, code: str, meaning: str, fix: str = "") -> Self:
        """Return the member of ``code``."""
        member = str.__new__(cls, code)
        member._value_, member.meaning, member.fix = code, meaning, fix
        return member

    @classmethod
    def of_code(cls, code: str) -> Self | None:
        """Return the reason that a line of the log gives, with or without the class of an exception."""
        exact = (reason for reason in cls if reason == code)
        prefixes = (reason for reason in cls if reason.endswith("_") and code.startswith(reason))
        return next(exact, None) or next(prefixes, None)
