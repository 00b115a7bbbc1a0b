"""Text for terminals and logs: names of files may hold what these can't show."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def printable(text: object) -> str:
    """``text`` on one line, with escapes for what is not text, such as a name in Latin-1.

    Surrogates stand for such bytes, and can't be written to a terminal; control characters would
    change what it shows.
    """
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(text))


def counted(number: int, thing: str, things: str | None = None) -> str:
    """``number`` and a noun, in its plural unless there is one: "1 face", "2 faces".

    ``things``: the plural, if it is not ``thing`` and an s.
    """
    return f"{number} {thing if number == 1 else things or f'{thing}s'}"


def describe_duration(seconds: float) -> str:
    """An estimated duration in words: "less than a minute", "about 5 minutes", "about 3 hours"."""
    if seconds < 60:
        return "less than a minute"
    if seconds < 2 * 3600:
        return f"about {counted(round(seconds / 60), 'minute')}"
    return f"about {round(seconds / 3600)} hours"


def listed(names: Sequence[object], most: int = 5) -> str:
    """The first names, and how many there are more: "a, b and 3 more"."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(printable, names[:most])) + more


def escape_unprintable_output() -> None:
    """Let standard output and error escape the characters that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
