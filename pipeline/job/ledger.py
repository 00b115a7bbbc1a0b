"""What became of each shard: a record beside each, written after the shard, so that a record means
that it is there.

A worker writes its record under a key of its own. When the driver has the records of a thousand
shards that follow each other, it writes them into one segment and removes the thousand. So a job
that is killed at any time loses nothing, a finished ledger of a million shards is a thousand
objects, and what they hold depends on the plan alone.
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
from dff.infra.dataset import SEGMENT, canonical, data_folder
from dff.infra.storage import Storage
from dff.pipeline.job.plan import Failure, Plan

FOLDER = "ledger/"
READERS = 16  # objects are far away: wait for many at once
_NAME = re.compile(r"ledger/(part|segment)-(\d{5,})\.jsonl?")

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Record:
    """What became of a shard. The same for every run that makes the same bytes: no times, no
    machines.
    """

    shard: int
    plan: str  # fingerprint
    rows: int
    bytes: int
    sha256: str
    subjects: int
    failed_subjects: int  # those without any row
    failures: tuple[Failure, ...]
    counts: dict[str, dict[str, int]]  # rows by "split", "mode", "model", "licence"


_RECORD = TypeAdapter(Record)


def key_of(shard: int) -> str:
    """Of the record that a worker writes."""
    return f"{FOLDER}part-{shard:05d}.json"


def segment_key(segment: int) -> str:
    """Of the records of shards ``segment * SEGMENT`` and on, one a line."""
    return f"{FOLDER}segment-{segment:05d}.jsonl"


def write(storage: Storage, record: Record) -> None:
    """What a worker does when its shard is stored."""
    storage.write(key_of(record.shard), canonical(asdict(record)))


def read(storage: Storage, key: str) -> list[Record]:
    """The records of a ledger object. Raises BadDataset for what holds others, or is none."""
    name = f"{storage.uri.rstrip('/')}/{key}"
    try:
        records = [_RECORD.validate_json(line) for line in storage.read(key).splitlines()]
    except ValueError as error:
        raise BadDataset(f"{name} is not of a ledger: {error}") from error
    if any(
        key not in (key_of(record.shard), segment_key(record.shard // SEGMENT))
        for record in records
    ):
        raise BadDataset(f"{name} holds records of other shards than its name says")
    return records


@dataclass(frozen=True)
class Segment:
    """Up to SEGMENT shards that follow each other, as an earlier run left them."""

    index: int
    records: tuple[Record, ...]  # of shards that are there, in their order
    closed: bool  # all of the segment's records are there and only in its own object


def read_all(storage: Storage) -> Iterator[Record]:
    """Every record in the order of the shards: what ``dff inspect`` counts."""
    found = _keys(storage)
    for records in _ahead(lambda segment: _latest(storage, found[segment]), sorted(found)):
        yield from (records[shard] for shard in sorted(records))


def segments(storage: Storage, plan: Plan) -> Iterator[Segment]:
    """What need not be made again of the plan's shards: recorded, and there with the recorded size.

    Raises BadDataset for a record of another plan.
    """
    found = _keys(storage)
    yield from _ahead(
        lambda segment: _segment(storage, plan, segment, found[segment]), sorted(found)
    )


def _segment(storage: Storage, plan: Plan, segment: int, keys: list[str]) -> Segment:
    sizes = {info.key: info.size for info in storage.list(data_folder(segment, len(plan.shards)))}
    records = _latest(storage, keys)
    for record in records.values():
        if record.plan != plan.fingerprint or record.shard >= len(plan.shards):
            raise BadDataset(f"{storage.uri.rstrip('/')}/{keys[0]} has a record of another plan")
    there = [
        records[shard]
        for shard in sorted(records)
        if sizes.get(plan.data_key(shard)) == records[shard].bytes
    ]
    closed = keys == [segment_key(segment)] and len(there) == len(shards_of(segment, plan))
    return Segment(segment, tuple(there), closed)


def shards_of(segment: int, plan: Plan) -> range:
    """The numbers of a segment's shards."""
    return range(segment * SEGMENT, min((segment + 1) * SEGMENT, len(plan.shards)))


def _keys(storage: Storage) -> dict[int, list[str]]:
    """The ledger's objects by the segment that they belong to; a segment's own comes last."""
    found = defaultdict(list)
    for info in storage.list(FOLDER):
        if name := _NAME.fullmatch(info.key):
            number = int(name[2])
            found[number if name[1] == "segment" else number // SEGMENT].append(info.key)
    return found


def _latest(storage: Storage, keys: list[str]) -> dict[int, Record]:
    """Records by shard; one of its own is younger than the one in a segment."""
    groups = (
        _ahead(lambda key: read(storage, key), reversed(keys))
        if len(keys) > 1
        else [read(storage, keys[0])]
    )
    return {record.shard: record for records in groups for record in records}


def _ahead(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """``map`` by threads that never are more than a few results ahead of whoever takes them."""
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


class Book:
    """Where the driver keeps records until a segment has all of its own."""

    def __init__(self, storage: Storage, plan: Plan) -> None:
        self._storage, self._plan = storage, plan
        self._open: dict[int, dict[int, Record]] = {}

    def add(self, record: Record) -> None:
        """Keep a record; with the last of its segment, store the segment. Raises StorageError."""
        segment = record.shard // SEGMENT
        records = self._open.setdefault(segment, {})
        records[record.shard] = record
        if len(records) == len(shards_of(segment, self._plan)):
            lines = [canonical(asdict(records[shard])) + b"\n" for shard in sorted(records)]
            # Written whole and over an older one: a shard that had vanished was made again.
            self._storage.write(segment_key(segment), b"".join(lines))
            self._storage.delete(*map(key_of, sorted(records)))
            del self._open[segment]

    def tidy(self) -> None:
        """Remove single records that another try of a shard wrote after its segment. Raises
        StorageError.
        """
        loose = [
            key
            for keys in _keys(self._storage).values()
            for key in keys
            if not key.endswith(".jsonl")
        ]
        self._storage.delete(*loose)
