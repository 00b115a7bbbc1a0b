"""The mark by which a run of a job tells that it works, and since when: for ``dff status``.

The object lies beside the plan while shards are made, and is gone when the dataset is complete. A
run that is interrupted or fails says so in it. One that is killed leaves it as it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from dff.face.errors import NotFound, StorageError
from dff.infra.storage import Storage
from dff.infra.storage.patient import PatientStorage

KEY = "run.json"
_RUNNING, _ENDED = (json.dumps({"state": state}).encode() for state in ("running", "ended"))


@dataclass(frozen=True)
class RunMark:
    """The mark that the last run of a job has left."""

    ended: bool  # interrupted or failed
    told: float  # Unix seconds of the storage's clock


@contextmanager
def marked(storage: PatientStorage) -> Iterator[None]:
    """Mark a run for the length of a ``with`` block that makes shards. Raises StorageError.

    A run that ends does not wait for a storage that fails.
    """
    storage.write(KEY, _RUNNING)
    try:
        yield
    except StorageError:  # there is nowhere to tell it
        raise
    except BaseException:
        with suppress(StorageError):
            storage.inner.write(KEY, _ENDED)
        raise


def remove_mark(storage: Storage) -> None:
    """Remove the mark of this run or of one that was killed. Raises StorageError."""
    storage.delete(KEY)


def read_mark(storage: Storage) -> RunMark | None:
    """The mark of the last run; None before the first shards and when the dataset is complete.

    Raises StorageError.
    """
    for info in storage.list(KEY):
        if info.key == KEY:
            with suppress(NotFound):  # the run has just completed the dataset
                return RunMark(storage.read(KEY) == _ENDED, info.modified)
    return None
