"""The result of a check of the doctor."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How serious a finding is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check.

    :param check: what was checked.
    :param what: what was found, in one line. Contains no secret.
    :param why: why it matters; empty if all is well.
    :param how: how to fix it.
    """

    check: str
    severity: Severity
    what: str
    why: str = ""
    how: str = ""


class NotResponding(Finding):
    """Something does not respond now, and may when it is needed: no reason to stop a start."""

    __slots__ = ()


Found = Iterator[Finding]
