"""The work of one shard: which subjects it has, what a worker makes of them, and their seeds."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass

from dff.infra.datasets.shards import ViewRow
from dff.pipeline.recovery.photos import PhotoRef

Option = str | int | float | bool | None


@dataclass(frozen=True)
class Subject:
    """One identity of a job: the face of a photo, or one sampled from the model."""

    id: str  # unique in the plan; the first part of its rows' sample ids
    photo: PhotoRef | None  # None: sampled


@dataclass(frozen=True)
class ShardPlan:
    """The subjects that one task turns into one shard. A subject is never divided."""

    index: int
    subjects: tuple[Subject, ...]


@dataclass(frozen=True)
class Failure:
    """A subject, or one view of it, that could not be made."""

    subject: str
    reason: str  # the error's class name, by which failures are counted
    detail: str  # the error's message
    view: int | None = None  # None: the whole subject

    def describe(self) -> str:
        """The detail, which names the subject."""
        named = self.detail.startswith(self.subject)
        return self.detail if named else f"{self.subject}: {self.detail}"


@dataclass(frozen=True)
class ShardResult:
    """The rows of a shard, in the order of its plan, and its failures."""

    rows: tuple[ViewRow, ...]
    failures: tuple[Failure, ...]


MakeRows = Callable[[ShardPlan], ShardResult]


@dataclass(frozen=True)
class WorkSpec:
    """How a worker process builds its own ``MakeRows``, in a few bytes instead of loaded models.

    ``factory`` is ``package.module:function``. It is called once per process, with ``arguments`` as
    keywords.
    """

    factory: str
    arguments: tuple[tuple[str, Option], ...] = ()

    @staticmethod
    def create(factory: str, **arguments: Option) -> WorkSpec:
        """The work of a factory ``package.module:function`` with these arguments."""
        return WorkSpec(factory, tuple(sorted(arguments.items())))

    def build(self) -> MakeRows:
        """Import and call the factory.

        Raises ValueError when ``factory`` is not ``package.module:function``.
        """
        module, _, name = self.factory.partition(":")
        if not name:
            raise ValueError(
                f"WorkSpec.factory must be package.module:function, got {self.factory!r}"
            )
        made: MakeRows = getattr(importlib.import_module(module), name)(**dict(self.arguments))
        return made


def derive_seed(job_seed: int, sample_id: str) -> int:
    """The seed of a sample, from 0 to 2**63 - 1.

    It is a hash of the job's seed and the sample's id alone, so that it depends neither on the
    other samples nor on their order.
    """
    digest = hashlib.sha256(f"{job_seed}/{sample_id}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1
