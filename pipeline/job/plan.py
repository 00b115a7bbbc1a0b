"""The plan of a synthesis job, fixed before it starts: subjects in shards, options and versions.

A plan holds all that decides a byte of the result, and nothing else: neither where the photos lie
nor how many workers there are. Hence two runs of one plan make the same shards, and the fingerprint
keeps two plans from sharing a dataset.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import Any

from pydantic import TypeAdapter

from dff.face.errors import BadDataset
from dff.infra.datasets.dataset import canonical, data_key
from dff.infra.datasets.shards import SCHEMA_VERSION
from dff.pipeline.job.versions import code_version, library_versions
from dff.pipeline.job.work import Option, ShardPlan, Subject
from dff.pipeline.recovery.photos import PhotoRef

KEY = "plan.json"
SAMPLED_PREFIX = "sampled-"  # of the ids of sampled subjects

Options = Mapping[str, Option]


@dataclass(frozen=True)
class Plan:
    """All that decides the bytes of a dataset. Raises ValueError when two subjects share an id.

    Shards are counted off from the subjects, so the size of a plan is that of its list of photos.
    """

    seed: int
    options: dict[str, Option]  # of the synthesis: views, size, ...
    assets: dict[str, str]  # SHA-256 of each model and texture file, by name
    renderer: str
    code: str  # version, as by ``code_version``
    libraries: dict[str, str]  # versions by name
    schema_version: int
    photos: tuple[PhotoRef, ...]  # in the order of their ids
    identities: int  # number of sampled subjects, which follow the photos
    shard_subjects: int

    def __post_init__(self) -> None:
        ids = [photo.id for photo in self.photos]
        if ids != sorted(ids):
            raise ValueError("Plan.photos must be sorted by their ids")
        twice = [a for a, b in pairwise(ids) if a == b] + [
            name for name in ids if self._is_sampled_id(name)
        ]
        if twice:
            raise ValueError(f"two subjects would be called {twice[0]}: rename that photo")
        if not self.subjects or self.shard_subjects < 1:
            raise ValueError(
                "a plan needs at least one photo or identity, and at least one subject per shard"
            )

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the canonical form of all fields."""
        return hashlib.sha256(canonical(self._content())).hexdigest()

    @property
    def subjects(self) -> int:
        """Number of subjects: photos and sampled identities."""
        return len(self.photos) + self.identities

    @property
    def shards(self) -> PlannedShards:
        """The shards, each computed when it is read."""
        return PlannedShards(self)

    def subject(self, index: int) -> Subject:
        """The subject of an index below ``subjects``, photos first."""
        if index < len(self.photos):
            return Subject(self.photos[index].id, self.photos[index])
        return Subject(_sampled_id(index - len(self.photos)), None)

    def _is_sampled_id(self, name: str) -> bool:
        number = name.removeprefix(SAMPLED_PREFIX)
        if not number.isdecimal() or int(number) >= self.identities:
            return False
        return name == _sampled_id(int(number))

    def data_key(self, shard: int) -> str:
        """The key of a shard's Parquet file."""
        return data_key(shard, len(self.shards))

    def to_json(self) -> bytes:
        """The canonical JSON of the plan, with its fingerprint."""
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
    """The shards of a plan, each made on access: a million of them take no memory."""

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


def _sampled_id(index: int) -> str:
    return f"{SAMPLED_PREFIX}{index:06d}"


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
    """Plan the photos, sorted by their ids, and ``identities`` sampled subjects after them.

    A shard has ``shard_subjects`` subjects. Raises ValueError when there are no subjects.
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
    """The plan of a stored ``plan.json``, called ``name`` in errors.

    Raises BadDataset when it is malformed or was altered.
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
            f"{name} was altered: its fingerprint {fingerprint[:12]} is not that of its content"
        )
    return plan


def list_differences(old: Plan, new: Plan) -> list[str]:
    """One line for each field in which two plans differ, such as ``views: 20, now 10``."""
    lines = []
    for name in (field.name for field in fields(Plan)):
        a, b = getattr(old, name), getattr(new, name)
        if a == b:
            continue
        if name == "photos":
            gone, came = set(a) - set(b), set(b) - set(a)
            first = min(ref.id for ref in gone | came)
            changed = f"{len(gone)} gone, {len(came)} new; the first: {first}"
            lines.append(f"photos: {len(a)}, now {len(b)} ({changed})")
        elif isinstance(a, dict):
            for key in sorted({*a, *b}):
                if _format_value(a, key) != _format_value(b, key):
                    lines.append(f"{key}: {_format_value(a, key)}, now {_format_value(b, key)}")
        else:
            lines.append(f"{name}: {a}, now {b}")
    return lines


def _format_value(values: Mapping[str, Any], key: str) -> str:
    return str(values[key]) if key in values else "unknown"


_PLAN = TypeAdapter(Plan)
_COLUMNS = TypeAdapter(dict[str, list[str | int | None]])
