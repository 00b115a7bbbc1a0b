"""Names of files that a terminal can't show."""

from __future__ import annotations

import io
import os
import sys

import pytest

from dff.infra.printing import describe_duration, escape_unprintable_output, printable

LATIN_1 = os.fsdecode(b"caf\xe9.jpg")


def test_names_are_printed_on_one_line_with_escapes() -> None:
    assert printable("für Zoë.jpg") == "für Zoë.jpg"
    assert printable(LATIN_1) == r"caf\udce9.jpg"
    assert printable("a\nb\x1b[31m.jpg") == r"a\nb\x1b[31m.jpg"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_strict_terminals_show_escapes(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
        monkeypatch.setattr(sys, name, stream)
    escape_unprintable_output()
    print(LATIN_1, "ü")
    print(LATIN_1, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        assert rb"caf\udce9.jpg" in stream.buffer.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (2.0, "less than a minute"),
        (80.0, "about 1 minute"),
        (3000.0, "about 50 minutes"),
        (10_000.0, "about 3 hours"),
    ],
)
def test_durations_are_told_in_words(seconds: float, text: str) -> None:
    assert describe_duration(seconds) == text
