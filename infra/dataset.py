"""A finished dataset: its manifest names every shard with its hash, and nothing else is read.

plan.json                             what the job was to make
data/part-00000-of-00010.parquet      shards
ledger/part-00000.json                what became of each shard, with its failures
MANIFEST.json                         written last: the dataset is complete
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter

from face.errors import BadDataset, NotFound
from infra.shards import SCHEMA_VERSION, ViewRow, columns_of, metadata_of, parquet_to_rows
from infra.split import split_of
from infra.storage import Storage, open_storage

MANIFEST = "MANIFEST.json"


@dataclass(frozen=True)
class ShardInfo:
    """One shard of a finished dataset."""

    key: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a finished dataset holds."""

    schema_version: int
    plan: str  # the plan's fingerprint
    shards: tuple[ShardInfo, ...]
    subjects: int  # identities asked for
    failed_subjects: int  # identities of which there is no row
    failures: dict[str, int]  # by reason; single views count too
    counts: dict[str, dict[str, int]]  # rows by "split", "mode", "model", "licence"
    versions: dict[str, list[str]]  # of the libraries that made the shards

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the canonical form: it names the dataset's bytes, since it covers every shard's hash."""
        return hashlib.sha256(canonical(asdict(self))).hexdigest()

    def to_json(self) -> bytes:
        return canonical({**asdict(self), "fingerprint": self.fingerprint})


def parse_manifest(data: bytes, name: str) -> Manifest:
    """Raises BadDataset, with ``name``, when it is malformed, of another schema, or was altered."""
    try:
        content = json.loads(data)
        fingerprint = content.pop("fingerprint")
        version = content["schema_version"]
        if version != SCHEMA_VERSION:
            raise BadDataset(f"{name} has schema version {version}, this program reads {SCHEMA_VERSION}")
        manifest = TypeAdapter(Manifest).validate_python(content)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BadDataset(f"{name} is not a manifest: {error}") from error
    if manifest.fingerprint != fingerprint:
        raise BadDataset(f"{name} was altered: its content does not have the fingerprint that it names")
    return manifest


@dataclass(frozen=True)
class Dataset:
    """Reads a finished dataset; every read checks the shard's hash."""

    storage: Storage
    manifest: Manifest

    @property
    def shards(self) -> tuple[ShardInfo, ...]:
        return self.manifest.shards

    def read_shard(self, index: int) -> list[ViewRow]:
        """All rows of a shard, the views of an identity together. Raises BadDataset when its bytes were altered."""
        return parquet_to_rows(self._bytes(index), self._name(index))

    def columns(self, index: int, names: Sequence[str]) -> dict[str, list[Any]]:
        """Some columns of a shard as plain values, without decoding the rest. Raises BadDataset."""
        return columns_of(self._bytes(index), names, self._name(index))

    def verify(self) -> None:
        """Re-read everything. Raises BadDataset naming every shard that is missing, altered or inconsistent."""
        troubles = []
        identities: set[str] = set()
        for index in range(len(self.shards)):
            try:
                self._verify(index, identities)
            except (BadDataset, NotFound) as error:
                troubles.append(str(error))
        if troubles:
            raise BadDataset(f"{len(troubles)} of {len(self.shards)} shards are bad: " + "; ".join(troubles))

    def _verify(self, index: int, identities: set[str]) -> None:
        name = self._name(index)
        data = self._bytes(index)
        if metadata_of(data, name).get("plan") != self.manifest.plan:
            raise BadDataset(f"{name} belongs to another plan")
        rows = parquet_to_rows(data, name)
        if len(rows) != self.shards[index].rows:
            raise BadDataset(f"{name} has {len(rows)} rows, the manifest says {self.shards[index].rows}")
        for row in rows:
            if row.split != split_of(row.photo_id or row.identity_id):
                raise BadDataset(f"{name}: {row.sample_id} is in the wrong split")
        here = {row.identity_id for row in rows}
        if here & identities:
            raise BadDataset(f"{name}: identity {min(here & identities)!r} is also in another shard")
        identities |= here

    def _name(self, index: int) -> str:
        return f"{self.storage.uri.rstrip('/')}/{self.shards[index].key}"

    def _bytes(self, index: int) -> bytes:
        shard = self.shards[index]
        data = self.storage.read(shard.key)
        found = hashlib.sha256(data).hexdigest()
        if found != shard.sha256:
            raise BadDataset(f"{self._name(index)} was altered: sha256 {found[:12]}..., not {shard.sha256[:12]}...")
        return data


def open_dataset(uri: str, *, endpoint_url: str | None = None) -> Dataset:
    """The finished dataset in a folder or at ``s3://bucket/prefix``. Raises BadDataset when there is none."""
    storage = open_storage(uri, endpoint_url=endpoint_url)
    try:
        data = storage.read(MANIFEST)
    except NotFound as error:
        raise BadDataset(
            f"{uri} is not a finished dataset: it has no {MANIFEST}; run the command that makes it again to complete it"
        ) from error
    return Dataset(storage, parse_manifest(data, f"{storage.uri.rstrip('/')}/{MANIFEST}"))


def canonical(value: Any) -> bytes:
    """The one JSON form of a value that is stored and hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
