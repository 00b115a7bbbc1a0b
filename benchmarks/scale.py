"""Measured bookkeeping and estimated cost of a job of 10 million views in a million shards.

    python -m benchmarks.scale [--shards 1000000] [--photos 100000] [--views 100] [--cores 1000] ...

The bookkeeping is real: plan, ledger, manifest and storage code run on a dataset of that many
shards, whose Parquet files are empty files of the right size. Each phase is a process of its own,
so that its peak memory can be measured. The costs of a photo, a view and a shard are measured on a
few; ``costs`` computes that of the whole job by the formulas of docs/experiments/scaling.md. Prices
are options.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from dataclasses import asdict, dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Annotated, Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import skimage.data
import typer
from PIL import Image
from rich.console import Console
from rich.table import Table

import dff
from dff.face.io.assets import load_model
from dff.infra.datasets.dataset import MANIFEST, SEGMENT, open_dataset
from dff.infra.storage import ObjectInfo, Storage, open_storage
from dff.pipeline.job import ledger, run as job
from dff.pipeline.job.ledger import Record
from dff.pipeline.job.plan import KEY, Plan, make_plan, parse_plan
from dff.pipeline.job.ray import SchedulerConfig
from dff.pipeline.job.run import RunConfig
from dff.pipeline.job.work import Failure, ShardPlan, Subject
from dff.pipeline.recovery.photos import PhotoRef, list_photos
from dff.pipeline.subjects.subject_file import StoredPerson, store_person
from dff.pipeline.synthesis import Options, build_person, fill_shard, make_shard_rows, render_views

ROUNDS = 3
PAGE = 1000  # keys that S3 lists, and deletes, in one request


class Killed(Exception):
    """Stands in for the kill of a driver."""


@dataclass(frozen=True)
class Counting:
    """A storage that counts what its methods would cost on S3."""

    inner: Storage
    requests: Counter[str] = field(default_factory=Counter)
    _lock: Any = field(default_factory=Lock)

    @property
    def uri(self) -> str:
        return self.inner.uri

    def _count(self, kind: str, keys: int = 1) -> None:
        with self._lock:
            self.requests[kind] += -(-keys // PAGE)

    def check_writable(self) -> None:
        for kind in ("PUT", "PUT", "DELETE"):
            self._count(kind)
        self.inner.check_writable()

    def read(self, key: str) -> bytes:
        self._count("GET")
        return self.inner.read(key)

    def read_range(self, key: str, start: int, stop: int) -> bytes:
        self._count("GET")
        return self.inner.read_range(key, start, stop)

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        self._count("PUT")
        self.inner.write(key, data, if_absent=if_absent)

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        found = self.inner.list(prefix)
        self._count("LIST", max(len(found), 1))
        return found

    def exists(self, key: str) -> bool:
        self._count("HEAD")
        return self.inner.exists(key)

    def delete(self, *keys: str) -> None:
        self._count("DELETE", len(keys))
        self.inner.delete(*keys)


# The simulated job


def simulated_plan(shards: int, photos: int) -> Plan:
    """A plan of one face per shard, ``photos`` of them of photos."""
    names = [f"set-{i % 100:02d}/{i:08d}" for i in range(photos)]
    refs = [PhotoRef(name, f"{name}.jpg", f"{name}.pts") for name in names]
    options = Options(views=10).as_dict()
    return make_plan(
        refs,
        identities=shards - photos,
        seed=0,
        options=options,
        assets={},
        renderer="zbuffer",
        shard_subjects=1,
    )


def simulated_record(shard: ShardPlan, plan: Plan) -> Record:
    """The record of a shard of ten views; every hundredth face failed."""
    failed = shard.index % 100 == 0
    counts = {"split": "train", "mode": "rerender", "model": "open-head", "licence": "CC0-1.0"}
    return Record(
        shard=shard.index,
        plan=plan.fingerprint,
        rows=0 if failed else 10,
        bytes=shard_size(shard.index),
        sha256=hashlib.sha256(str(shard.index).encode()).hexdigest(),
        subjects=1,
        failed_subjects=int(failed),
        failures=(
            Failure(shard.subjects[0].id, "BadFit", "error 0.082 of the face, at most 0.035"),
        )
        if failed
        else (),
        counts={} if failed else {name: {value: 10} for name, value in counts.items()},
    )


def shard_size(shard: int) -> int:
    return 350_000 + shard % 977


# Phases, each in a process of its own; they leave and find their work in one folder


def lay_out(storage: Storage, shards: int, photos: int) -> dict[str, float]:
    """Plan the job, and put empty files of the right size where its shards will be."""
    start = time.process_time()
    plan = simulated_plan(shards, photos)
    planned = time.process_time() - start
    start = time.process_time()
    data = plan.to_json()
    written = time.process_time() - start
    storage.write(KEY, data)
    root = Path(storage.uri)
    for index in range(shards):
        path = root / plan.data_key(index)
        if index % PAGE == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, shard_size(index))
    return {"plan MB": len(data) / 1e6, "make s": planned, "to JSON s": written}


def parse(storage: Storage) -> dict[str, float]:
    """Read the plan back and check its fingerprint."""
    data = storage.read(KEY)
    return {"shards": len(parse_plan(data, KEY).shards)}


def drive(storage: Storage, in_flight: int) -> dict[str, float]:
    """The driver's work, killed when 3/4 of the last ``in_flight`` shards are done."""
    plan = parse_plan(storage.read(KEY), KEY)
    count = len(plan.shards)
    assert (count - in_flight) % SEGMENT == 0, (
        "else records of an open segment would be lost with the driver"
    )

    def make(shards: Iterable[ShardPlan], on_retry: job.OnRetry) -> Generator[Record]:
        for shard in shards:
            record = simulated_record(shard, plan)
            if shard.index < count - in_flight:
                yield record
            elif shard.index % 4:
                ledger.write_record(storage, record)
                yield record
        raise Killed

    try:
        job.drive(plan, storage, make, config=job.RunConfig(budget=0.5), progress=False)
    except Killed:
        return {"records": count - in_flight // 4}
    raise AssertionError("the driver was not killed")


def resume(storage: Storage) -> dict[str, float]:
    """List what exists, make what is missing, close the ledger, write the manifest."""
    plan = parse_plan(storage.read(KEY), KEY)
    made = 0

    def make(shards: Iterable[ShardPlan], on_retry: job.OnRetry) -> Generator[Record]:
        nonlocal made
        for shard in shards:
            made += 1
            yield simulated_record(shard, plan)

    manifest = job.drive(plan, storage, make, config=job.RunConfig(budget=0.5), progress=False)
    assert len(manifest.shards) == len(plan.shards)
    return {"shards made": made}


def verify(storage: Storage) -> dict[str, float]:
    """Read what ``dff inspect`` reads beside the shards: the manifest and all failures."""
    dataset = open_dataset(storage.uri)
    failures = rows = 0
    for record, shard in zip(ledger.read_all(storage), dataset.shards, strict=True):
        assert (record.rows, record.bytes, record.sha256) == (shard.rows, shard.bytes, shard.sha256)
        failures, rows = failures + len(record.failures), rows + record.rows
    assert rows == dataset.manifest.rows
    return {
        "failures": failures,
        "manifest MB": os.path.getsize(Path(storage.uri) / MANIFEST) / 1e6,
    }


def over_http(storage: Storage) -> dict[str, float]:
    """``resume`` of the finished dataset through the S3 client, from a local server."""
    server = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.scale", "serve", storage.uri],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        os.environ |= {
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": "b",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        bucket = Counting(open_storage("s3://bucket/set", endpoint_url=f"http://127.0.0.1:{port}"))
        return resume(bucket) | dict(bucket.requests)
    finally:
        server.terminate()
        server.wait()


def handler(here: Storage) -> type[BaseHTTPRequestHandler]:
    """A handler of GET and LIST for prefix "set" of a bucket, where every written key exists."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            """Silent."""

        def answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            query = parse_qs(parts.query)
            if "list-type" not in query:
                self.answer(200, here.read(unquote(parts.path).removeprefix("/bucket/set/")))
                return
            found = here.list(query["prefix"][0].removeprefix("set/"))
            begin = int(query.get("continuation-token", ["0"])[0])
            more = begin + PAGE < len(found)
            entries = "".join(
                f"<Contents><Key>set/{escape(info.key)}</Key>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                f"<ETag>&quot;{'0' * 32}&quot;</ETag><Size>{info.size}</Size>"
                "<StorageClass>STANDARD</StorageClass></Contents>"
                for info in found[begin : begin + PAGE]
            )
            token = f"<NextContinuationToken>{begin + PAGE}</NextContinuationToken>" if more else ""
            self.answer(
                200,
                '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
                f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>".encode(),
            )

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")

    return Handler


# What one photo, one view, one shard cost


@dataclass(frozen=True)
class Units:
    """Measured units: CPU seconds of one core, bytes."""

    photo: float  # s, its fit and texture
    identity: float  # s, a sampled face
    view: float  # s, with its share of writing the shard
    start: float  # s, until a new process has made its first view
    bytes: float  # of a view, with its share of what its face keeps
    shard_put: float  # requests of a shard
    photo_get: float  # requests of a photo
    memory: float  # MB, peak of a process that makes full shards


def measure(folder: Path, options: Options) -> Units:
    """Measure with a worker's code, on a public-domain photo and a full shard of sampled faces."""
    begin = time.process_time()
    photos = folder / "photos"
    photos.mkdir()
    Image.fromarray(skimage.data.astronaut()).save(photos / "astronaut.png")
    shutil.copy(Path(dff.__file__).parent / "data" / "astronaut.pts", photos)
    source = Counting(open_storage(str(photos)))
    photo, sampled = Subject("astronaut", list_photos(source)[0]), Subject("sampled-000000", None)
    model = load_model(options.model)

    def make(subject: Subject) -> StoredPerson:
        return store_person(build_person(subject, storage=source, seed=0, options=options), model)

    for subject in (photo, sampled):  # numba loads or compiles
        render_views(make(subject), model=model, seed=0, views=1, size=options.size)
    start = time.process_time() - begin
    source.requests.clear()
    photo_seconds, identity_seconds = (
        fastest(partial(make, subject)) for subject in (photo, sampled)
    )
    out = Counting(open_storage(str(folder / "out")))
    faces = fill_shard(options)
    plan = make_plan(
        [],
        identities=2 * faces,
        seed=0,
        options=options.as_dict(),
        assets={},
        renderer=options.renderer,
        shard_subjects=faces,
    )
    rows = partial(make_shard_rows, storage=None, seed=0, options=options)
    begin = time.process_time()
    records = [
        job.make_shard(
            shard,
            key=plan.data_key(shard.index),
            plan=plan.fingerprint,
            storage=out,
            make_rows=rows,
        )
        for shard in plan.shards
    ]
    spent = time.process_time() - begin - 2 * faces * identity_seconds
    return Units(
        photo=photo_seconds,
        identity=identity_seconds,
        view=spent / sum(record.rows for record in records),
        start=start,
        bytes=sum(record.bytes for record in records) / sum(record.rows for record in records),
        shard_put=out.requests["PUT"] / len(records),
        photo_get=source.requests["GET"] / ROUNDS,
        memory=peak(),
    )


def fastest(work: Callable[[], object]) -> float:
    """CPU seconds of the fastest of some rounds."""
    spent = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        work()
        spent.append(time.process_time() - begin)
    return min(spent)


def peak() -> float:
    """Peak memory of this process in megabytes."""
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return int(line.split()[1]) / 1e3


# The whole job


@dataclass(frozen=True)
class Job:
    """The size of the job, and its machines."""

    photos: int
    views: int  # of a photo
    cores: int
    shard_photos: int
    # share of a core's time that work gets: the rest is scheduling, waiting for storage, the tail
    busy: float
    lost: float  # processes lost, to preempted machines and memory, for each core and hour
    bad_photos: float  # share of the photos that can't be used
    transient: float  # share of the requests that fail even after the S3 client's own tries
    retries: int  # of a shard


@dataclass(frozen=True)
class Prices:
    """US dollars, of one region of one provider; each is an option."""

    core_hour: float
    put: float  # 1,000 PUT or LIST requests
    get: float  # 1,000 GET requests
    month: float  # 1 GB for a month


def costs(wanted: Job, unit: Units, price: Prices) -> dict[str, float]:
    """The formulas of docs/experiments/scaling.md."""
    good = wanted.photos * (1 - wanted.bad_photos)
    views = good * wanted.views
    shards = math.ceil(wanted.photos / wanted.shard_photos)
    work = wanted.photos * unit.photo + views * unit.view
    of_shard = work / shards
    hours = work / wanted.busy / 3600
    # A lost process loses half a shard, and its successor starts again.
    losses = hours * wanted.lost
    hours += losses * (of_shard / 2 + unit.start) / 3600
    starts = wanted.cores + losses + shards / SchedulerConfig.max_calls
    hours += starts * unit.start / 3600
    segments = math.ceil(shards / PAGE)
    gets = wanted.photos * unit.photo_get
    puts = shards * unit.shard_put + segments + 2
    lists = (
        math.ceil(wanted.photos * unit.photo_get / PAGE) + segments + math.ceil(segments / PAGE) + 1
    )
    # A try of a shard fails when its process is lost or one of its requests fails for good.
    tries = shards + losses
    of_try = (gets + puts) / shards
    fails = 1 - (1 - wanted.transient) ** of_try * math.exp(-of_shard / 3600 * wanted.lost)
    size = views * unit.bytes
    return {
        "views": views,
        "shards": shards,
        "bytes": size,
        "shard bytes": size / shards,
        "shard seconds": of_shard,
        "core hours": hours,
        "wall hours": hours / wanted.cores,
        "PUT": puts,
        "GET": gets,
        "LIST": lists,
        "requests per second": (puts + gets + lists) / (hours / wanted.cores * 3600),
        "MB per second": size / 1e6 / (hours / wanted.cores * 3600),
        "shards per second": shards / (hours / wanted.cores * 3600),
        "lost processes": losses,
        "tries of shards": tries,
        "chance that a try fails": fails,
        "chance that the job stops for a shard": 1 - (1 - fails ** (wanted.retries + 1)) ** shards,
        "compute $": hours * price.core_hour,
        "requests $": (puts + lists) / 1000 * price.put + gets / 1000 * price.get,
        "storage $ a month": size / 1e9 * price.month,
        "worker memory MB": unit.memory,
    }


# Command line

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def main(
    context: typer.Context,
    shards: Annotated[int, typer.Option(help="Of the simulated dataset.")] = 1_000_000,
    photos: Annotated[
        int, typer.Option(help="Of the simulated plan, and of the estimated job.")
    ] = 100_000,
    views: Annotated[int, typer.Option(help="Of each photo, in the estimated job.")] = 100,
    cores: int = 1000,
    busy: Annotated[float, typer.Option(help="Share of a core's time that work gets.")] = 0.85,
    lost: Annotated[float, typer.Option(help="Processes lost for each core and hour.")] = 0.01,
    bad_photos: Annotated[
        float, typer.Option(help="Share of the photos that can't be used.")
    ] = 0.05,
    transient: Annotated[
        float, typer.Option(help="Share of requests that fail after the client's own tries.")
    ] = 1e-5,
    core_hour: Annotated[float, typer.Option(help="US dollars.")] = 0.045,
    put: Annotated[float, typer.Option(help="US dollars for 1,000 PUT or LIST requests.")] = 0.005,
    get: Annotated[float, typer.Option(help="US dollars for 1,000 GET requests.")] = 0.0004,
    month: Annotated[float, typer.Option(help="US dollars for a GB and month.")] = 0.023,
) -> None:
    """Simulate, measure and compute; print docs/experiments/scaling.md's tables."""
    if context.invoked_subcommand is not None:
        return
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        unit = Units(
            **{k: v for k, v in apart("units", folder).items() if k in Units.__dataclass_fields__}
        )
        found = simulate(Path(folder) / "set", shards, min(photos, shards))
    wanted = Job(
        photos,
        views,
        cores,
        fill_shard(Options(views=views)),
        busy,
        lost,
        bad_photos,
        transient,
        len(RunConfig.retry_waits),
    )
    price = Prices(core_hour, put, get, month)
    out = Console(width=140, highlight=False)
    out.print(table(f"A ledger of {shards:,} shards", found))
    out.print(table("One of each", {"measured": asdict(unit)}))
    out.print(table("The job", {"reckoned": costs(wanted, unit, price)}))


PHASES: dict[str, Callable[..., dict[str, float]]] = {
    "lay out": lay_out,
    "parse the plan": parse,
    "drive, then be killed": drive,
    "resume and finish": resume,
    "resume when finished": resume,
    "verify the ledger": verify,
    "resume by S3 requests": over_http,
}


def simulate(
    folder: Path, shards: int, photos: int, in_flight: int = 2000
) -> dict[str, dict[str, float]]:
    """Every phase, each in a process of its own."""
    more = {"lay out": (shards, photos), "drive, then be killed": (in_flight,)}
    return {name: apart("phase", name, folder, *more.get(name, ())) for name in PHASES}


def apart(*arguments: object) -> dict[str, float]:
    """The output of a command of this module, run in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", *map(str, arguments)]
    said = subprocess.run(
        command, stdout=subprocess.PIPE, check=True, cwd=Path(__file__).parents[1]
    ).stdout
    found: dict[str, float] = json.loads(said)
    return found


@app.command(hidden=True)
def phase(
    name: str, folder: str, numbers: Annotated[list[int] | None, typer.Argument()] = None
) -> None:
    """Run one phase; its results, time and peak of memory go to standard output."""
    storage = Counting(open_storage(folder))
    wall, cpu = time.perf_counter(), time.process_time()
    found = PHASES[name](storage, *(numbers or ()))
    spent = {
        "wall s": time.perf_counter() - wall,
        "CPU s": time.process_time() - cpu,
        "peak MB": peak(),
    }
    typer.echo(json.dumps(spent | dict(storage.requests) | found))


@app.command(hidden=True)
def units(folder: str) -> None:
    """Measure the units, to standard output."""
    typer.echo(json.dumps(asdict(measure(Path(folder), Options()))))


@app.command(hidden=True)
def serve(folder: str) -> None:
    """Serve a folder by the part of the S3 protocol that resuming uses; prints the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(open_storage(folder)))
    typer.echo(server.server_port)
    server.serve_forever()


def table(title: str, columns: dict[str, dict[str, float]]) -> Table:
    """A table with one figure per row."""
    shown = Table("", *columns, title=title)
    for name in dict.fromkeys(name for column in columns.values() for name in column):
        shown.add_row(
            name, *(figure(column[name]) if name in column else "" for column in columns.values())
        )
    return shown


def figure(value: float) -> str:
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


if __name__ == "__main__":
    app()
