"""A finished dataset: its manifest names every shard with its hash, and nothing else is read.

* ``plan.json``: what the job was to make.
* ``data/part-00000-of-00010.parquet``: the shards; of more than a thousand in folders,
  ``data/00001/part-01234-of-02000.parquet``.
* ``ledger/segment-00000.jsonl``: the record of each shard with its failures, a thousand a file.
* ``run.json``: only while a job makes it, and of one that was stopped: what its last run told.
* ``MANIFEST.json``: written last, when the dataset is complete.

No folder holds more than a thousand shards, which S3 lists in one request.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any, overload

import numpy as np
from pydantic import TypeAdapter

from dff.face.arrays import Array, Integer, UInt8
from dff.face.errors import BadDataset, NotFound
from dff.infra.datasets.shards import (
    SCHEMA_VERSION,
    ViewRow,
    parquet_to_rows,
    read_columns,
    read_metadata,
)
from dff.infra.datasets.split import Split, assign_split
from dff.infra.storage import WITH_CREDENTIALS, S3Access, Storage, is_missing, open_storage

MANIFEST = "MANIFEST.json"
SEGMENT = 1000  # shards in a folder of data, and records in a segment of the ledger


def data_folder(segment: int, count: int) -> str:
    """The key prefix of a segment's shards in a dataset of ``count`` shards."""
    return "data/" if count <= SEGMENT else f"data/{segment:05d}/"


def data_key(index: int, count: int) -> str:
    """Where shard ``index`` of ``count`` lies."""
    return f"{data_folder(index // SEGMENT, count)}part-{index:05d}-of-{count:05d}.parquet"


@dataclass(frozen=True)
class ShardInfo:
    """One shard of a finished dataset."""

    key: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True, eq=False)
class Shards(Sequence[ShardInfo]):
    """All shards of a dataset, in columns: 48 bytes for each, since there may be a million."""

    row_counts: Integer[Array, " shards"]
    sizes: Integer[Array, " shards"]  # bytes
    digests: UInt8[Array, "shards 32"]  # SHA-256

    @staticmethod
    def of(row_counts: Sequence[int], sizes: Sequence[int], sha256: Iterable[str]) -> Shards:
        """From columns; hashes in hexadecimal. Raises ValueError when their lengths differ."""
        digests = np.frombuffer(bytes.fromhex("".join(sha256)), np.uint8).reshape(-1, 32)
        if not len(row_counts) == len(sizes) == len(digests):
            raise ValueError(
                f"{len(row_counts)} row counts, {len(sizes)} sizes and {len(digests)} hashes "
                "of shards"
            )
        return Shards(np.array(row_counts, np.int64), np.array(sizes, np.int64), digests)

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> ShardInfo: ...

    @overload
    def __getitem__(self, index: slice) -> list[ShardInfo]: ...

    def __getitem__(self, index: int | slice) -> ShardInfo | list[ShardInfo]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        sha256 = self.digests[i].tobytes().hex()
        return ShardInfo(
            data_key(i, len(self)), int(self.row_counts[i]), int(self.sizes[i]), sha256
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shards) and self.columns() == other.columns()

    def columns(self) -> dict[str, list[int] | list[str]]:
        """The form in which they are stored."""
        digits = self.digests.tobytes().hex()
        return {
            "rows": self.row_counts.tolist(),
            "bytes": self.sizes.tolist(),
            "sha256": [digits[i : i + 64] for i in range(0, len(digits), 64)],
        }


@dataclass(frozen=True)
class _Header:
    schema_version: int
    plan: str  # the plan's fingerprint
    subjects: int  # identities asked for
    failed_subjects: int  # identities of which there is no row
    failures: dict[str, int]  # by reason; single views count too
    counts: dict[str, dict[str, int]]  # rows by "split", "mode", "model", "licence"
    libraries: dict[str, str]  # versions of those that made the shards


@dataclass(frozen=True)
class Manifest(_Header):
    """The contents of a finished dataset."""

    shards: Shards

    @property
    def rows(self) -> int:
        """Number of views."""
        return int(self.shards.row_counts.sum())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical form: covers every shard's hash, so it identifies the bytes."""
        return hashlib.sha256(canonical(self._content())).hexdigest()

    def to_json(self) -> bytes:
        """The canonical JSON of the file, with the fingerprint."""
        content = self._content()
        return canonical({**content, "fingerprint": hashlib.sha256(canonical(content)).hexdigest()})

    def _content(self) -> dict[str, Any]:
        return {**vars(self), "shards": self.shards.columns()}


@dataclass(frozen=True)
class _Columns:
    rows: list[int]
    bytes: list[int]
    sha256: list[str]


def parse_manifest(data: bytes, name: str) -> Manifest:
    """Raises BadDataset, with ``name``, when it is malformed, of another schema, or was altered."""
    try:
        content = json.loads(data)
        fingerprint = content.pop("fingerprint")
        version = content["schema_version"]
        if version != SCHEMA_VERSION:
            raise BadDataset(
                f"{name} has schema version {version}, this program reads {SCHEMA_VERSION}"
            )
        columns = TypeAdapter(_Columns).validate_python(content.pop("shards"))
        header = TypeAdapter(_Header).validate_python(content)
        manifest = Manifest(
            **vars(header), shards=Shards.of(columns.rows, columns.bytes, columns.sha256)
        )
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BadDataset(f"{name} is not a manifest: {error}") from error
    if manifest.fingerprint != fingerprint:
        raise BadDataset(
            f"{name} was altered: its content does not have the fingerprint that it names"
        )
    return manifest


@dataclass(frozen=True)
class Dataset:
    """Reads a finished dataset; every read checks the shard's hash."""

    storage: Storage
    manifest: Manifest

    @property
    def shards(self) -> Shards:
        """Rows, bytes and SHA-256 of every shard."""
        return self.manifest.shards

    def read_shard(self, index: int) -> list[ViewRow]:
        """All rows of a shard, the views of an identity together.

        Raises BadDataset when its bytes were altered.
        """
        return parquet_to_rows(self.shard_bytes(index), self.shard_name(index))

    def columns(self, index: int, names: Sequence[str]) -> dict[str, list[Any]]:
        """Some columns of a shard as plain values, without decoding the rest. Raises BadDataset."""
        return read_columns(self.shard_bytes(index), names, self.shard_name(index))

    def verify(self) -> None:
        """Read everything again.

        Raises BadDataset, naming every shard that is missing, altered or inconsistent.
        """
        troubles = []
        identities: set[str] = set()
        for index in range(len(self.shards)):
            try:
                self._verify(index, identities)
            except (BadDataset, NotFound) as error:
                troubles.append(str(error))
        if troubles:
            raise BadDataset(
                f"{len(troubles)} of {len(self.shards)} shards are bad: " + "; ".join(troubles)
            )

    def _verify(self, index: int, identities: set[str]) -> None:
        name = self.shard_name(index)
        data = self.shard_bytes(index)
        if read_metadata(data, name).get("plan") != self.manifest.plan:
            raise BadDataset(f"{name} belongs to another plan")
        rows = parquet_to_rows(data, name)
        if len(rows) != self.shards[index].rows:
            raise BadDataset(
                f"{name} has {len(rows)} rows, the manifest says {self.shards[index].rows}"
            )
        for row in rows:
            if row.split != assign_split(row.split_group):
                raise BadDataset(f"{name}: {row.sample_id} is in the wrong split")
        here = {row.identity_id for row in rows}
        if here & identities:
            raise BadDataset(
                f"{name}: identity {min(here & identities)!r} is also in another shard"
            )
        identities |= here

    def shard_name(self, index: int) -> str:
        """Where a shard lies, for messages."""
        return f"{self.storage.uri.rstrip('/')}/{self.shards[index].key}"

    def shard_bytes(self, index: int) -> bytes:
        """The bytes of a shard. Raises BadDataset when they do not have the manifest's SHA-256."""
        shard = self.shards[index]
        data = self.storage.read(shard.key)
        found = hashlib.sha256(data).hexdigest()
        if found != shard.sha256:
            raise BadDataset(
                f"{self.shard_name(index)} was altered: "
                f"sha256 {found[:12]}..., not {shard.sha256[:12]}..."
            )
        return data


def open_dataset(
    uri: str, *, endpoint_url: str | None = None, access: S3Access = WITH_CREDENTIALS
) -> Dataset:
    """The finished dataset in a folder or at ``s3://bucket/prefix``.

    Raises BadDataset when there is none.
    """
    storage = open_storage(uri, endpoint_url=endpoint_url, access=access)
    try:
        data = storage.read(MANIFEST)
    except NotFound as error:
        why = f"it has no {MANIFEST}; run the command that makes it again to complete it"
        if is_missing(storage):
            why = "there is no such folder"
        raise BadDataset(f"{uri} is not a finished dataset: {why}") from error
    return Dataset(storage, parse_manifest(data, f"{storage.uri.rstrip('/')}/{MANIFEST}"))


def spread_views(
    dataset: Dataset, count: int, *, split: Split | None = None, fewest_visible: int = 0
) -> list[ViewRow]:
    """At most ``count`` views at even intervals, so that they show as many identities as possible.

    Of one ``split``, or of both; of views that show at least ``fewest_visible`` landmarks. Raises
    BadDataset for an altered shard.
    """
    good: list[tuple[int, int]] = []  # shard, row
    for index in range(len(dataset.shards)):
        found = dataset.columns(index, ["split", "visible_3d"])
        good += [
            (index, row)
            for row, (part, visible) in enumerate(
                zip(found["split"], found["visible_3d"], strict=True)
            )
            if split in (None, part) and sum(visible) >= fewest_visible
        ]
    chosen = good[:: max(len(good) // count, 1)][:count]
    out: list[ViewRow] = []
    for index, rows in groupby(chosen, key=itemgetter(0)):
        shard = dataset.read_shard(index)
        out += [shard[row] for _, row in rows]
    return out


def canonical(value: Any) -> bytes:
    """The one JSON form of a value that is stored and hashed."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()
