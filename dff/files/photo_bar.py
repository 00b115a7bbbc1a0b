"""The progress bar of commands that take photo after photo: it names the one in work."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from tqdm import tqdm

from dff.infra.printing import printable

LARGE = 1_000_000
"""Bytes of a photo's file from which it may take seconds, so that it is named at once."""
PAUSE = 1.0
"""Seconds after which a smaller photo is named, too."""


class PhotoBar:
    """A bar on standard error, for the length of a ``with`` block. Threads may share it."""

    def __init__(self, total: int, *, shown: bool = True) -> None:
        self._bar = tqdm(total=total, unit=" photos", disable=not shown or total == 0)
        self._next = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._bar.set_postfix_str("", refresh=False)
        self._bar.close()

    def begin(self, name: object, size: int) -> None:
        """Work begins on the photo ``name``, a file of ``size`` bytes."""
        self._bar.set_postfix_str(printable(name), refresh=False)
        if size >= LARGE or time.monotonic() >= self._next:
            self._next = time.monotonic() + PAUSE
            self._bar.refresh()

    def end(self, photos: int = 1) -> None:
        """Advance by a number of photos that are done."""
        self._bar.update(photos)
