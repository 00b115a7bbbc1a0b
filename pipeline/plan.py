"""What a synthesis job will make, fixed before it starts: identities in shards, options, versions, one fingerprint.

Everything that may change a byte of the result is in the plan, and nothing else is: not where the photos lie, not how
many workers there are. So two runs of one plan make the same shards, and two plans never share a dataset.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path

from pydantic import TypeAdapter

from face.errors import BadDataset
from infra.dataset import canonical
from infra.shards import SCHEMA_VERSION, ViewRow
from pipeline.photos import PhotoRef

KEY = "plan.json"

Options = Mapping[str, str | int | float | bool | None]


@dataclass(frozen=True)
class Subject:
    """One identity of a job: the face of a photo, or one sampled from the model."""

    id: str  # unique in the plan; the first part of its rows' sample ids
    photo: PhotoRef | None  # None: sampled


@dataclass(frozen=True)
class ShardPlan:
    """Whole identities that one task turns into one shard."""

    index: int
    subjects: tuple[Subject, ...]


@dataclass(frozen=True)
class Failure:
    """An input that could not be used, or one view of it."""

    subject: str
    reason: str  # an error's class name: what failures are counted by
    detail: str  # the error's message, for people
    view: int | None = None  # None: the whole subject


@dataclass(frozen=True)
class ShardResult:
    """What making a shard gave: rows in the order of the plan, and what failed."""

    rows: tuple[ViewRow, ...]
    failures: tuple[Failure, ...]


MakeRows = Callable[[ShardPlan], ShardResult]


@dataclass(frozen=True)
class WorkSpec:
    """How a worker process makes its own ``MakeRows``: a few bytes that travel instead of models.

    ``factory`` is ``package.module:function``; it is called once per process with ``arguments`` as keywords.
    """

    factory: str
    arguments: tuple[tuple[str, str | int | float | bool | None], ...] = ()

    @staticmethod
    def of(factory: str, **arguments: str | int | float | bool | None) -> WorkSpec:
        return WorkSpec(factory, tuple(sorted(arguments.items())))

    def build(self) -> MakeRows:
        """Import and call the factory. Raises ValueError when it is not ``package.module:function``."""
        module, _, name = self.factory.partition(":")
        if not name:
            raise ValueError(f"WorkSpec.factory wants package.module:function, got {self.factory!r}")
        made: MakeRows = getattr(importlib.import_module(module), name)(**dict(self.arguments))
        return made


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of a dataset. Raises ValueError when two subjects share an id."""

    seed: int
    options: dict[str, str | int | float | bool | None]  # of the synthesis: views, size, ...
    assets: dict[str, str]  # name to SHA-256 of each model and texture file
    renderer: str
    code: str
    schema_version: int
    shards: tuple[ShardPlan, ...]

    def __post_init__(self) -> None:
        count = Counter(subject.id for shard in self.shards for subject in shard.subjects)
        twice = [name for name, n in count.items() if n > 1]
        if twice:
            raise ValueError(f"two subjects share an id: {twice[:3]}")

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the canonical form of all fields."""
        return hashlib.sha256(canonical(asdict(self))).hexdigest()

    @property
    def subjects(self) -> int:
        return sum(len(shard.subjects) for shard in self.shards)

    def data_key(self, shard: int) -> str:
        return f"data/part-{shard:05d}-of-{len(self.shards):05d}.parquet"

    def to_json(self) -> bytes:
        return canonical({**asdict(self), "fingerprint": self.fingerprint})


def make_plan(
    photos: Sequence[PhotoRef],
    *,
    identities: int,
    seed: int,
    options: Options,
    assets: Mapping[str, str],
    renderer: str,
    shard_subjects: int = 32,
) -> Plan:
    """Plan the photos in the order of their ids, then ``identities`` sampled ones, ``shard_subjects`` to a shard.

    Raises ValueError when there is nothing to make.
    """
    subjects = [Subject(ref.id, ref) for ref in sorted(photos, key=lambda ref: ref.id)]
    subjects += [Subject(f"sampled-{i:06d}", None) for i in range(identities)]
    if not subjects or shard_subjects < 1:
        raise ValueError("a plan wants at least one photo or identity, and shards of at least one")
    groups = [tuple(subjects[i : i + shard_subjects]) for i in range(0, len(subjects), shard_subjects)]
    shards = tuple(ShardPlan(i, group) for i, group in enumerate(groups))
    return Plan(seed, dict(options), dict(assets), renderer, code_version(), SCHEMA_VERSION, shards)


def parse_plan(data: bytes, name: str) -> Plan:
    """The plan of a stored ``plan.json``. Raises BadDataset when it is malformed or was altered; ``name`` is for it."""
    try:
        content = json.loads(data)
        fingerprint = content.pop("fingerprint")
        plan = TypeAdapter(Plan).validate_python(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadDataset(f"{name} is not a plan: {error}") from error
    if plan.fingerprint != fingerprint:
        raise BadDataset(f"{name} was altered: its fingerprint is {fingerprint[:12]}, its content's another")
    return plan


def differences(old: Plan, new: Plan) -> list[str]:
    """One line for each field in which two plans differ: ``views: 20, now 10``."""
    lines = []
    for name in ("seed", "renderer", "code", "schema_version"):
        a, b = getattr(old, name), getattr(new, name)
        if a != b:
            lines.append(f"{name}: {a}, now {b}")
    for name in ("options", "assets"):
        a, b = getattr(old, name), getattr(new, name)
        for key in sorted(set(a) | set(b)):
            if a.get(key) != b.get(key):
                lines.append(f"{key}: {a.get(key)}, now {b.get(key)}")
    olds, news = ({s for shard in p.shards for s in shard.subjects} for p in (old, new))
    if olds != news:
        lines.append(f"inputs: {len(olds)}, now {len(news)} ({len(olds - news)} gone, {len(news - olds)} new)")
    elif old.shards != new.shards:
        lines.append(f"shards: {len(old.shards)}, now {len(new.shards)}")
    return lines


def seed_of(job_seed: int, sample_id: str) -> int:
    """The seed of a sample, below 2**63: a hash of the job's seed and the sample's id, of nothing else."""
    digest = hashlib.sha256(f"{job_seed}/{sample_id}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


@cache
def code_version() -> str:
    """The package's version and a digest of the sources that can change a row."""
    root = Path(__file__).parents[1]
    files = [
        *root.glob("face/**/*.py"),
        *root.glob("pipeline/**/*.py"),
        root / "infra/shards.py",
        root / "infra/split.py",
    ]
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return f"{version('dff')}+{digest.hexdigest()[:12]}"
