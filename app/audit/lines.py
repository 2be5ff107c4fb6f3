"""Reads lines of the audit log: as the server wrote them, or wrapped by Docker, journald or a log collector."""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_WRAPPINGS = ("log", "MESSAGE", "message", "msg", "line")
"""Names under which others wrap our lines."""

_CONSOLE = re.compile(r"\S+Z (\w+) +((?:\w+=(?:'[^']*'|\S+) ?)+)")
_PAIR = re.compile(r"(\w+)=('[^']*'|\S+)")
"""A line in the format of development."""


def parse_line(line: str) -> dict[str, Any]:
    """Parse the object in a line, whatever precedes it, and however often it was wrapped; empty if there is none."""
    if words := _CONSOLE.fullmatch(line.strip()):
        return {"event": words[1], **{name: value.strip("'") for name, value in _PAIR.findall(words[2])}}
    start = line.find("{")
    try:
        facts = json.loads(line[start:]) if start >= 0 else None
    except (ValueError, RecursionError):
        return {}
    if not isinstance(facts, dict):
        return {}
    if "event" not in facts:
        for name in _WRAPPINGS:
            if isinstance(facts.get(name), str):
                return parse_line(facts[name])
    return facts


def lines_with(path: Path, *words: bytes) -> Iterator[dict[str, Any]]:
    """Yield the parsed lines of a log that contain one of ``words``; one that ends in ``.gz`` is decompressed.

    :raises OSError: it cannot be read.
    """
    open_it: Any = gzip.open if path.suffix == ".gz" else open
    with open_it(path, "rb") as lines:
        for line in lines:
            if any(word in line for word in words):
                yield parse_line(line.decode(errors="replace"))
