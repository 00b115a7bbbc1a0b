"""The ledger of a job: a record of each finished shard, written after the shard itself.

A record hence means that its shard is stored. A worker writes each record to an object of its own.
When the driver has the records of all shards of a segment, a thousand consecutive ones, it writes
them to one object and deletes the single ones. So a job that is killed at any time loses nothing,
the finished ledger of a million shards has a thousand objects, and their content depends on the
plan alone.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TypeVar

from pydantic import TypeAdapter

from dff.face.errors import BadDataset
from dff.infra.datasets.dataset import SEGMENT, canonical, data_folder
from dff.infra.storage import Storage
from dff.pipeline.job.plan import Plan
from dff.pipeline.job.work import Failure

FOLDER = "ledger/"
READERS = 16  # objects that are read at the same time: remote storage answers slowly
_NAME = re.compile(r"ledger/(part|segment)-(\d{5,})\.jsonl?")

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Record:
    """A finished shard. It has no times or machines: runs that make the same bytes agree in it."""

    shard: int
    plan: str  # the plan's fingerprint
    rows: int
    bytes: int
    sha256: str
    subjects: int
    failed_subjects: int  # subjects without any row
    failures: tuple[Failure, ...]
    counts: dict[str, dict[str, int]]  # number of rows by "split", "mode", "model", "licence"


_RECORD = TypeAdapter(Record)


def record_key(shard: int) -> str:
    """The key of the record that a worker writes."""
    return f"{FOLDER}part-{shard:05d}.json"


def segment_key(segment: int) -> str:
    """The key of the records of the shards from ``segment * SEGMENT`` on, one per line."""
    return f"{FOLDER}segment-{segment:05d}.jsonl"


def write_record(storage: Storage, record: Record) -> None:
    """Store a record; its shard must be stored before."""
    storage.write(record_key(record.shard), canonical(asdict(record)))


def read_ledger_object(storage: Storage, key: str) -> list[Record]:
    """The records of a ledger's object.

    Raises BadDataset when it is malformed or its shards are not those of its key.
    """
    name = f"{storage.uri.rstrip('/')}/{key}"
    try:
        records = [_RECORD.validate_json(line) for line in storage.read(key).splitlines()]
    except ValueError as error:
        raise BadDataset(f"{name} is not a ledger object: {error}") from error
    if any(
        key not in (record_key(record.shard), segment_key(record.shard // SEGMENT))
        for record in records
    ):
        raise BadDataset(f"{name} holds records of other shards than its key says")
    return records


@dataclass(frozen=True)
class Segment:
    """The finished shards of a segment, as an earlier run left them."""

    index: int
    records: tuple[Record, ...]  # of the stored shards, in their order
    closed: bool  # all records exist, and only in the segment's own object


def read_all(storage: Storage) -> Iterator[Record]:
    """All records, in the order of their shards."""
    found = _list_keys(storage)
    for records in _map_ahead(lambda segment: _read_latest(storage, found[segment]), sorted(found)):
        yield from (records[shard] for shard in sorted(records))


def read_segments(storage: Storage, plan: Plan) -> Iterator[Segment]:
    """The shards that need not be made again: recorded, and stored with the recorded size.

    Raises BadDataset for a record of another plan.
    """
    found = _list_keys(storage)
    yield from _map_ahead(
        lambda segment: _read_segment(storage, plan, segment, found[segment]), sorted(found)
    )


def _read_segment(storage: Storage, plan: Plan, segment: int, keys: list[str]) -> Segment:
    sizes = {info.key: info.size for info in storage.list(data_folder(segment, len(plan.shards)))}
    records = _read_latest(storage, keys)
    for record in records.values():
        if record.plan != plan.fingerprint or record.shard >= len(plan.shards):
            raise BadDataset(f"{storage.uri.rstrip('/')}/{keys[0]} has a record of another plan")
    stored = [
        records[shard]
        for shard in sorted(records)
        if sizes.get(plan.data_key(shard)) == records[shard].bytes
    ]
    complete = len(stored) == len(segment_shards(segment, plan))
    return Segment(segment, tuple(stored), complete and keys == [segment_key(segment)])


def segment_shards(segment: int, plan: Plan) -> range:
    """The indices of a segment's shards."""
    return range(segment * SEGMENT, min((segment + 1) * SEGMENT, len(plan.shards)))


def _list_keys(storage: Storage) -> dict[int, list[str]]:
    """The keys of the ledger's objects by segment; the segment's own object comes last."""
    found = defaultdict(list)
    for info in storage.list(FOLDER):
        if name := _NAME.fullmatch(info.key):
            number = int(name[2])
            found[number if name[1] == "segment" else number // SEGMENT].append(info.key)
    return found


def _read_latest(storage: Storage, keys: list[str]) -> dict[int, Record]:
    """Records by shard. A single record is newer than the shard's record in the segment."""
    groups = (
        _map_ahead(lambda key: read_ledger_object(storage, key), reversed(keys))
        if len(keys) > 1
        else [read_ledger_object(storage, keys[0])]
    )
    return {record.shard: record for records in groups for record in records}


def _map_ahead(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """``map`` by threads that run at most 2 * READERS results ahead of the consumer."""
    running: deque[Future[R]] = deque()
    with ThreadPoolExecutor(READERS) as pool:
        try:
            for item in items:
                running.append(pool.submit(work, item))
                if len(running) >= 2 * READERS:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class SegmentWriter:
    """Collects records on the driver, and writes each segment that is complete."""

    def __init__(self, storage: Storage, plan: Plan) -> None:
        self._storage, self._plan = storage, plan
        self._open: dict[int, dict[int, Record]] = {}

    def add(self, record: Record) -> None:
        """Keep a record, and store its segment when it is the last of it. Raises StorageError."""
        segment = record.shard // SEGMENT
        records = self._open.setdefault(segment, {})
        records[record.shard] = record
        if len(records) == len(segment_shards(segment, self._plan)):
            lines = [canonical(asdict(records[shard])) + b"\n" for shard in sorted(records)]
            # An older object is overwritten: a shard that had been deleted was made again.
            self._storage.write(segment_key(segment), b"".join(lines))
            self._storage.delete(*map(record_key, sorted(records)))
            del self._open[segment]

    def delete_leftovers(self) -> None:
        """Delete the single records that a second attempt at a shard wrote after its segment.

        Raises StorageError.
        """
        leftovers = [
            key
            for keys in _list_keys(self._storage).values()
            for key in keys
            if not key.endswith(".jsonl")
        ]
        self._storage.delete(*leftovers)
