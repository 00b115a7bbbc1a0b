"""A storage that is asked again while it fails temporarily."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from dff.face.errors import TransientStorageError
from dff.infra.storage.protocol import ObjectInfo, Storage

_log = logging.getLogger(__name__)
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class PatientStorage:
    """``inner``, asked again after each of ``waits`` seconds before its temporary error is raised.

    For who has nothing else to do meanwhile. Each wait is a warning in the log.
    """

    inner: Storage
    waits: tuple[float, ...]

    @property
    def uri(self) -> str:
        return self.inner.uri

    def check_writable(self) -> None:
        self._ask(self.inner.check_writable)

    def read(self, key: str) -> bytes:
        return self._ask(lambda: self.inner.read(key))

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        return self._ask(lambda: self.inner.read_range(key, start, stop))

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        self._ask(lambda: self.inner.write(key, data, if_absent=if_absent))

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        return self._ask(lambda: self.inner.list(prefix))

    def exists(self, key: str) -> bool:
        return self._ask(lambda: self.inner.exists(key))

    def delete(self, *keys: str) -> None:
        self._ask(lambda: self.inner.delete(*keys))

    def _ask(self, question: Callable[[], Answer]) -> Answer:
        for wait in self.waits:
            try:
                return question()
            except TransientStorageError as error:
                _log.warning("%s; trying again in %.0f s", error, wait)
                time.sleep(wait)
        return question()
