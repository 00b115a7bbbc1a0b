"""The log of a job on a terminal: its lines, and below them one progress bar."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self, TextIO

import typer

PAUSE = 30.0
"""Seconds between two lines of progress where the output is no terminal."""


class JobProgress:
    """Shows lines as they come. A bar is drawn over the last one on a terminal; elsewhere it is a
    line every ``PAUSE`` seconds.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._terminal = self._stream.isatty()
        self._shown = ""  # the bar that stands on the terminal's last line
        self._latest = ""  # the newest bar, shown or not
        self._next = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._terminal and self._shown:
            self._stream.write("\n")
        elif self._latest:
            self._stream.write(f"{self._latest}\n")
        self._stream.flush()

    def show_line(self, line: str) -> None:
        """A line of the log, above the bar."""
        if self._terminal and self._shown:
            self._stream.write("\r" + " " * len(self._shown) + "\r")
            self._stream.flush()
        typer.echo(line)
        if self._terminal and self._shown:
            self._stream.write(self._shown)
            self._stream.flush()

    def show_bar(self, bar: str) -> None:
        """The job's bar, in place of the one before."""
        bar = bar.strip()
        if self._terminal:
            self._stream.write("\r" + bar.ljust(len(self._shown)))
            self._shown = bar
        elif time.monotonic() >= self._next:
            self._next = time.monotonic() + PAUSE
            self._stream.write(f"{bar}\n")
            self._latest = ""
            self._stream.flush()
            return
        self._latest = "" if self._terminal else bar
        self._stream.flush()
