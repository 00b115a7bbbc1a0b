"""What a synthesis job will make, fixed before it starts: identities in shards, options, versions,
one fingerprint.

Everything that may change a byte of the result is in the plan, and nothing else is: not where the
photos lie, not how many workers there are. So two runs of one plan make the same shards, and two
plans never share a dataset.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache, cached_property
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from dff.face.errors import BadDataset
from dff.infra.dataset import canonical, data_key
from dff.infra.shards import SCHEMA_VERSION, ViewRow
from dff.pipeline.recovery.photos import PhotoRef

KEY = "plan.json"
SAMPLED = "sampled-"
LIBRARIES = ("numba", "numpy", "opencv-python-headless", "pillow", "pyarrow", "scipy")
"""Those whose arithmetic and encoders a row's bytes come from."""

_SOURCES = (".py", ".vert", ".frag", ".geom", ".glsl")

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

    ``factory`` is ``package.module:function``; it is called once per process with ``arguments`` as
    keywords.
    """

    factory: str
    arguments: tuple[tuple[str, str | int | float | bool | None], ...] = ()

    @staticmethod
    def of(factory: str, **arguments: str | int | float | bool | None) -> WorkSpec:
        return WorkSpec(factory, tuple(sorted(arguments.items())))

    def build(self) -> MakeRows:
        """Import and call the factory. Raises ValueError when it is not
        ``package.module:function``.
        """
        module, _, name = self.factory.partition(":")
        if not name:
            raise ValueError(
                f"WorkSpec.factory wants package.module:function, got {self.factory!r}"
            )
        made: MakeRows = getattr(importlib.import_module(module), name)(**dict(self.arguments))
        return made


@dataclass(frozen=True)
class Plan:
    """Everything that decides the bytes of a dataset. Raises ValueError when two subjects share an
    id.

    Shards follow from the inputs by counting, so a plan is as large as its list of photos, however
    many shards it has.
    """

    seed: int
    options: dict[str, str | int | float | bool | None]  # of the synthesis: views, size, ...
    assets: dict[str, str]  # name to SHA-256 of each model and texture file
    renderer: str
    code: str
    libraries: dict[str, str]  # name to version
    schema_version: int
    photos: tuple[PhotoRef, ...]  # in the order of their ids
    identities: int  # sampled, after the photos
    shard_subjects: int

    def __post_init__(self) -> None:
        ids = [photo.id for photo in self.photos]
        if ids != sorted(ids):
            raise ValueError("Plan.photos must be in the order of their ids")
        twice = [a for a, b in pairwise(ids) if a == b] + [
            name for name in ids if self._is_sampled(name)
        ]
        if twice:
            raise ValueError(f"two subjects share an id: {twice[:3]}")
        if not self.subjects or self.shard_subjects < 1:
            raise ValueError(
                "a plan wants at least one photo or identity, and shards of at least one"
            )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the canonical form of all fields."""
        return hashlib.sha256(canonical(self._content())).hexdigest()

    @property
    def subjects(self) -> int:
        return len(self.photos) + self.identities

    @property
    def shards(self) -> PlannedShards:
        return PlannedShards(self)

    def subject(self, index: int) -> Subject:
        """The subject of a number below ``subjects``: photos first."""
        if index < len(self.photos):
            return Subject(self.photos[index].id, self.photos[index])
        return Subject(_sampled(index - len(self.photos)), None)

    def _is_sampled(self, name: str) -> bool:
        number = name.removeprefix(SAMPLED)
        return (
            number.isdecimal() and int(number) < self.identities and name == _sampled(int(number))
        )

    def data_key(self, shard: int) -> str:
        return data_key(shard, len(self.shards))

    def to_json(self) -> bytes:
        return canonical({**self._content(), "fingerprint": self.fingerprint})

    def _content(self) -> dict[str, Any]:
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        columns = {
            field.name: [getattr(photo, field.name) for photo in self.photos]
            for field in fields(PhotoRef)
        }
        return {**content, "photos": columns}


@dataclass(frozen=True)
class PlannedShards:
    """The shards of a plan, each made when it is asked for: a million of them take no memory."""

    plan: Plan

    def __len__(self) -> int:
        return -(-self.plan.subjects // self.plan.shard_subjects)

    def __getitem__(self, index: int) -> ShardPlan:
        if not 0 <= index < len(self):
            raise IndexError(index)
        size = self.plan.shard_subjects
        numbers = range(index * size, min((index + 1) * size, self.plan.subjects))
        return ShardPlan(index, tuple(map(self.plan.subject, numbers)))

    def __iter__(self) -> Iterator[ShardPlan]:
        return map(self.__getitem__, range(len(self)))


def _sampled(index: int) -> str:
    return f"{SAMPLED}{index:06d}"


def make_plan(
    photos: Iterable[PhotoRef],
    *,
    identities: int,
    seed: int,
    options: Options,
    assets: Mapping[str, str],
    renderer: str,
    shard_subjects: int = 32,
) -> Plan:
    """Plan the photos in the order of their ids, then ``identities`` sampled ones,
    ``shard_subjects`` to a shard.

    Raises ValueError when there is nothing to make.
    """
    return Plan(
        seed=seed,
        options=dict(options),
        assets=dict(assets),
        renderer=renderer,
        code=code_version(),
        libraries=library_versions(),
        schema_version=SCHEMA_VERSION,
        photos=tuple(sorted(photos, key=lambda ref: ref.id)),
        identities=identities,
        shard_subjects=shard_subjects,
    )


def parse_plan(data: bytes, name: str) -> Plan:
    """The plan of a stored ``plan.json``. Raises BadDataset when it is malformed or was altered;
    ``name`` is for it.
    """
    content: Any = None
    try:
        content = json.loads(data)
        fingerprint = content.pop("fingerprint")
        columns = _COLUMNS.validate_python(content.pop("photos"))
        photos = zip(*(columns[field.name] for field in fields(PhotoRef)), strict=True)
        plan = _PLAN.validate_python(
            {**content, "photos": tuple(PhotoRef(*values) for values in photos)}
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        made_by = (
            content.get("schema_version", SCHEMA_VERSION)
            if isinstance(content, dict)
            else SCHEMA_VERSION
        )
        if made_by != SCHEMA_VERSION:
            raise BadDataset(
                f"{name} has schema version {made_by}, this program reads {SCHEMA_VERSION}"
            ) from error
        raise BadDataset(f"{name} is not a plan: {error}") from error
    if plan.fingerprint != fingerprint:
        raise BadDataset(
            f"{name} was altered: its fingerprint is {fingerprint[:12]}, its content's another"
        )
    return plan


def differences(old: Plan, new: Plan) -> list[str]:
    """One line for each field in which two plans differ: ``views: 20, now 10``."""
    lines = []
    for name in (field.name for field in fields(Plan)):
        a, b = getattr(old, name), getattr(new, name)
        if a == b:
            continue
        if name == "photos":
            gone, came = set(a) - set(b), set(b) - set(a)
            first = min(ref.id for ref in gone | came)
            lines.append(
                f"photos: {len(a)}, now {len(b)} ({len(gone)} gone, {len(came)} new; the first: {first})"
            )
        elif isinstance(a, dict):
            for key in sorted({*a, *b}):
                if _said(a, key) != _said(b, key):
                    lines.append(f"{key}: {_said(a, key)}, now {_said(b, key)}")
        else:
            lines.append(f"{name}: {a}, now {b}")
    return lines


def _said(values: Mapping[str, Any], key: str) -> str:
    return str(values[key]) if key in values else "unknown"


_PLAN = TypeAdapter(Plan)
_COLUMNS = TypeAdapter(dict[str, list[str | int | None]])


def seed_of(job_seed: int, sample_id: str) -> int:
    """The seed of a sample, below 2**63: a hash of the job's seed and the sample's id, of nothing
    else.
    """
    digest = hashlib.sha256(f"{job_seed}/{sample_id}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


@cache
def library_versions() -> dict[str, str]:
    """Of LIBRARIES, in this process."""
    return {name: version(name) for name in LIBRARIES}


@cache
def code_version() -> str:
    """The package's version and a digest of the sources that can change a row."""
    root = Path(__file__).parents[2]
    found = [
        path
        for room in ("face", "pipeline")
        for path in root.glob(f"{room}/**/*")
        if path.suffix in _SOURCES
    ]
    found += [
        root / "infra" / f"{name}.py"
        for name in ("images", "landmark_files", "near_duplicates", "shards", "split")
    ]
    digest = hashlib.sha256()
    for path in sorted(found):
        digest.update(
            path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0"
        )
    return f"{version('deep-face-feature')}+{digest.hexdigest()[:12]}"
