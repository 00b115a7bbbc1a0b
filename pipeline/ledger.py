"""What became of each shard, one record beside each: written after the shard, so a record means that it is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from pydantic import TypeAdapter

from face.errors import BadDataset
from infra.dataset import canonical
from infra.storage import Storage
from pipeline.plan import Failure, Plan

FOLDER = "ledger/"
READERS = 16  # records are small and far away: wait for many at once
_NAME = re.compile(r"ledger/part-(\d{5,})\.json")


@dataclass(frozen=True)
class Record:
    """What became of a shard. The same for every run that makes the same bytes with the same libraries: no times."""

    shard: int
    plan: str  # fingerprint
    key: str
    rows: int
    bytes: int
    sha256: str
    subjects: int
    failed_subjects: int  # those without any row
    failures: tuple[Failure, ...]
    counts: dict[str, dict[str, int]]  # rows by "split", "mode", "model", "licence"
    versions: dict[str, str]


def key_of(shard: int) -> str:
    return f"{FOLDER}part-{shard:05d}.json"


def write(storage: Storage, record: Record) -> None:
    storage.write(key_of(record.shard), canonical(asdict(record)))


def read(storage: Storage, key: str) -> Record:
    """Raises BadDataset for what is not a record."""
    try:
        return TypeAdapter(Record).validate_json(storage.read(key))
    except ValueError as error:
        raise BadDataset(f"{storage.uri.rstrip('/')}/{key} is not a ledger record: {error}") from error


def read_all(storage: Storage) -> Iterator[Record]:
    """Every record in the order of the shards: what ``dff inspect`` counts."""
    keys = [info.key for info in storage.list(FOLDER) if _NAME.fullmatch(info.key)]
    with ThreadPoolExecutor(READERS) as pool:
        yield from pool.map(lambda key: read(storage, key), keys)


def done(storage: Storage, plan: Plan) -> Iterator[Record]:
    """The records of shards that need not be made again: their object is there with the recorded size.

    Raises BadDataset for a record of another plan.
    """
    sizes = {info.key: info.size for info in storage.list("data/")}
    for record in read_all(storage):
        if record.plan != plan.fingerprint or record.key != plan.data_key(record.shard):
            raise BadDataset(f"{storage.uri.rstrip('/')}/{key_of(record.shard)} belongs to another plan")
        if sizes.get(record.key) == record.bytes:
            yield record
