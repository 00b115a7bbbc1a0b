"""After any fault a job ends with the bytes of the undisturbed one, or stops with a reason."""

from __future__ import annotations

import io
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

from dff.face.errors import BadDataset, StorageError, TransientStorageError
from dff.infra.datasets.dataset import open_dataset
from dff.infra.storage import LocalStorage, ObjectInfo, Storage, open_storage, s3 as s3_storage
from dff.pipeline.inspection.inspect import inspect_dataset
from dff.pipeline.job import run as job
from dff.pipeline.job.plan import Plan, list_differences
from dff.pipeline.job.run import RunConfig
from dff.pipeline.recovery.photos import PhotoRef, read_photo
from dff.pipeline.synthesis import Options, plan_synthesis, synthesize
from tests.pipeline.job.test_run import objects
from tests.pipeline.job.toy_work import toy_plan, toy_work
from tests.s3_server import BUCKET, DIALECTS, FaultyS3, refuse, stall, stall_halfway, truncate

_fresh = count()
POINTS = (Path(__file__).parents[3] / "dff/data/astronaut.pts").read_bytes()


@pytest.fixture(scope="module")
def plan() -> Plan:
    return toy_plan(4, shard_subjects=2)


@pytest.fixture(scope="module")
def whole(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Every object of a job that ran through undisturbed."""
    place = tmp_path_factory.mktemp("whole")
    storage = open_storage(str(place / "out"))
    job.run(plan, storage, toy_work(place).build())
    return objects(storage)


@dataclass(frozen=True)
class Interrupted:
    """A storage that calls ``fault`` before or after its ``at``-th change, counted from 0."""

    inner: Storage
    at: int
    fault: Callable[[], None]
    after: bool = False
    changes: Iterator[int] = field(default_factory=count)

    @property
    def uri(self) -> str:
        return self.inner.uri

    def read(self, key: str) -> bytes:
        return self.inner.read(key)

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        return self.inner.list(prefix)

    def exists(self, key: str) -> bool:
        return self.inner.exists(key)

    def write(self, key: str, data: bytes, *, if_absent: bool = False) -> None:
        self._change(lambda: self.inner.write(key, data, if_absent=if_absent))

    def delete(self, *keys: str) -> None:
        self._change(lambda: self.inner.delete(*keys))

    def _change(self, make: Callable[[], None]) -> None:
        now = next(self.changes) == self.at
        if now and not self.after:
            self.fault()
        make()
        if now and self.after:
            self.fault()


CHANGES = ("plan", "data", "record", "data", "record", "segment", "removal", "tidying", "manifest")
"""What a job of two shards does to a storage, in its order."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "at", range(len(CHANGES)), ids=[f"{i}-{name}" for i, name in enumerate(CHANGES)]
)
def test_killed_between_any_two_changes_a_job_is_completed_with_the_same_bytes(
    plan: Plan, whole: dict[str, bytes], out: Storage, log: Path, at: int, after: bool
) -> None:
    make_rows = toy_work(log).build()
    child = os.fork()
    if child == 0:
        try:
            job.run(plan, Interrupted(out, at, lambda: os._exit(9), after), make_rows)
        finally:
            os._exit(1)  # it was not killed, or it raised
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    if (at, after) != (len(CHANGES) - 1, True):
        with pytest.raises(BadDataset, match="not a finished dataset"):
            open_dataset(out.uri)
    job.run(plan, out, make_rows)
    assert objects(out) == whole


@pytest.mark.parametrize(
    "at", range(len(CHANGES)), ids=[f"{i}-{name}" for i, name in enumerate(CHANGES)]
)
def test_a_disk_that_fills_up_at_any_change_stops_the_job_and_loses_nothing(
    plan: Plan, whole: dict[str, bytes], out: Storage, log: Path, at: int
) -> None:
    def full() -> None:
        raise StorageError("can't write: the disk is full")

    with pytest.raises(StorageError, match="disk is full"):
        job.run(plan, Interrupted(out, at, full), toy_work(log).build())
    job.run(plan, out, toy_work(log).build())
    assert objects(out) == whole


def test_temporary_storage_errors_are_retried(
    plan: Plan, whole: dict[str, bytes], out: Storage, log: Path
) -> None:
    hurried = RunConfig(retry_waits=(0.0, 0.0))

    def unwell() -> None:
        raise TransientStorageError("the bucket is unwell")

    job.run(plan, Interrupted(out, 1, unwell), toy_work(log).build(), config=hurried)
    assert objects(out) == whole
    with pytest.raises(TransientStorageError, match="unwell"):
        job.run(
            toy_plan(2),
            AlwaysUnwell(open_storage(out.uri + "-other"), -1, unwell),
            toy_work(log).build(),
            config=hurried,
        )


class AlwaysUnwell(Interrupted):
    """Only the plan can be written."""

    def _change(self, make: Callable[[], None]) -> None:
        if next(self.changes):
            self.fault()
        make()


_IN_A_SMALL_DISK = """
mount -t tmpfs -o size=40k none "$1" && cd "$2" && exec "$3" -c '
import subprocess, sys
from pathlib import Path
from dff.face.errors import StorageError
from dff.infra.storage import open_storage
from dff.pipeline.job import run as job
from dff.pipeline.job.run import RunConfig
from dff.pipeline.job.plan import parse_plan
from tests.pipeline.job.test_run import objects
from tests.pipeline.job.toy_work import toy_work
place, log, whole = map(Path, sys.argv[1:])
plan = parse_plan((whole / "plan.json").read_bytes(), "plan")
out, make_rows = open_storage(str(place)), toy_work(log).build()
try:
    job.run(plan, out, make_rows)
except StorageError as error:
    print(error)
litter = list(place.glob("**/*.tmp"))
print(len(out.list("data/")), "of", len(plan.shards), "shards, litter:", litter)
subprocess.run(["mount", "-o", "remount,size=4m", "none", str(place)], check=True)
job.run(plan, out, make_rows)
print("the same bytes:", objects(out) == objects(open_storage(str(whole))))
' "$1" "$4" "$5"
"""


def test_on_a_full_disk_a_job_stops_and_goes_on_when_there_is_room(
    tmp_path: Path, log: Path
) -> None:
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode
    ):
        pytest.skip("needs user namespaces to mount a small disk")
    whole, place, root = tmp_path / "whole", tmp_path / "small", Path(__file__).parents[3]
    place.mkdir()
    plan = toy_plan(12)
    job.run(plan, open_storage(str(whole)), toy_work(log).build())
    command = [
        "unshare",
        "-rm",
        "sh",
        "-c",
        _IN_A_SMALL_DISK,
        "sh",
        *map(str, (place, root, sys.executable, log, whole)),
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert re.fullmatch(rf"can't write {place}/\S+: the disk is full", said[0])
    made = re.fullmatch(r"(\d) of 4 shards, litter: \[\]", said[1])
    assert made
    assert 1 <= int(made[1]) < 4
    assert said[2] == "the same bytes: True"


# Photos that can't be used, among one that can


def bomb(side: int) -> bytes:
    """A true PNG of ``side`` x ``side`` black pixels: a few hundred kB that would be gigabytes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    deflate, rows = zlib.compressobj(1), bytes(500 * (1 + side // 8))
    packed = b"".join([*(deflate.compress(rows) for _ in range(side // 500)), deflate.flush()])
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    )


def encoded(pixels: np.ndarray, suffix: str = "png") -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, suffix)
    return out.getvalue()


def bad_photos() -> dict[str, tuple[bytes, bytes | None, str, str]]:
    """By name: image, landmarks, the reason of refusal, and words of its detail."""
    good = encoded(skimage.data.astronaut(), "jpeg")
    lines = POINTS.decode().splitlines()
    first = lines.index("{") + 1
    cut = "\n".join([*lines[:first], "nan 100.0", *lines[first + 1 :]]).encode()
    far = "\n".join([*lines[:first], "100.0 1e9", *lines[first + 1 :]]).encode()
    pixel = encoded(np.zeros((1, 1, 3), np.uint8))
    strip = encoded(np.zeros((1, 50_000, 3), np.uint8))
    return {
        "bomb": (bomb(50_000), POINTS, "BadPhoto", "50000 x 50000 pixels|megapixels"),
        "cut short": (good[: len(good) // 2], POINTS, "BadPhoto", "truncated or damaged"),
        "empty": (b"", POINTS, "BadPhoto", "empty"),
        "far away": (good, far, "BadLandmarks", "points span"),
        "nan": (good, cut, "BadLandmarks", "not finite"),
        "no landmarks": (good, None, "BadLandmarks", "no .pts or .mat"),
        "one pixel": (pixel, POINTS, "BadPhoto", "1 x 1, a side is shorter"),
        "strip": (strip, POINTS, "BadPhoto", "50000 x 1, a side is shorter"),
        "text": (b"GIF89a or so", POINTS, "BadPhoto", "not an image"),
    }


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything of ``bad_photos`` and one good photo."""
    folder = tmp_path_factory.mktemp("photos")
    for name, (image, landmarks, _, _) in bad_photos().items():
        (folder / f"{name}.jpg").write_bytes(image)
        if landmarks is not None:
            (folder / f"{name}.pts").write_bytes(landmarks)
    (folder / "astronaut.jpg").write_bytes(encoded(skimage.data.astronaut(), "jpeg"))
    (folder / "astronaut.pts").write_bytes(POINTS)
    return folder


@pytest.fixture(scope="module")
def undisturbed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of those photos."""
    place = tmp_path_factory.mktemp("undisturbed") / "set"
    make(str(photos), str(place))
    return place


def make(photos: str, place: str, endpoint_url: str | None = None) -> None:
    synthesize(
        photos,
        place,
        views=1,
        size=64,
        config=RunConfig(budget=0.95, retry_waits=(0.0, 0.0)),
        shard_subjects=4,
        endpoint_url=endpoint_url,
    )


def test_each_bad_photo_is_in_the_report_with_its_reason(undisturbed: Path) -> None:
    found = inspect_dataset(str(undisturbed))
    assert (found.manifest.rows, found.manifest.subjects, found.manifest.failed_subjects) == (
        1,
        10,
        9,
    )
    said = {f.subject: f for failures in found.failures.values() for f in failures}
    wanted = bad_photos()
    assert found.manifest.failures == {"BadPhoto": 6, "BadLandmarks": 3}
    for name, failure in said.items():
        _, _, reason, words = wanted[name]
        assert failure.reason == reason
        assert re.search(words, failure.detail), failure
        assert name in failure.detail
    assert len(said) >= 8  # the report shows the first five of each reason


def test_a_decompression_bomb_is_refused_by_its_header(photos: Path) -> None:
    """50,000 x 50,000 pixels are refused at once, without allocating them."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak
    before, start = memory("VmRSS"), time.process_time()
    with pytest.raises(Exception, match="megapixels"):
        read_photo(open_storage(str(photos)), PhotoRef("bomb", "bomb.jpg", "bomb.pts"))
    assert time.process_time() - start < 0.2
    assert memory("VmHWM") - before < 20_000


def memory(name: str) -> int:
    """kB of this process."""
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
    )
    return int(line.split()[1])


def test_a_failing_bucket_gets_the_undisturbed_dataset(
    photos: Path, undisturbed: Path, s3: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_storage, "READ_TIMEOUT", 0.5)
    source = open_storage(f"s3://{BUCKET}/photos-{next(_fresh)}", endpoint_url=s3.url)
    for info in LocalStorage(photos).list():
        source.write(info.key, (photos / info.key).read_bytes())
    target = open_storage(f"s3://{BUCKET}/set-{next(_fresh)}", endpoint_url=s3.url)
    slow_down = refuse("503 Slow Down", "SlowDown")
    s3.faults += [
        ("GET", slow_down),
        ("PUT", slow_down),
        ("GET", stall(1.0)),
        ("PUT", stall(1.0)),
        ("PUT", "lost"),
    ]
    s3.faults += [
        ("GET", truncate),
        ("GET", stall_halfway(1.0)),
        ("PUT", refuse("409 Conflict", "OperationAborted")),
    ]
    s3.faults += [
        ("GET", refuse("500 Internal Server Error", "InternalError"))
    ] * 5  # more than the client tries
    s3.faults += [("PUT", "lost"), ("POST", slow_down), ("POST", "lost"), ("PUT", "lost")]
    make(source.uri, target.uri, s3.url)
    assert s3.faults == []
    assert objects(target) == objects(open_storage(str(undisturbed)))


def test_a_photo_that_may_not_be_read_is_one_failure_and_a_shut_folder_stops_the_job(
    photos: Path,
) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are shut to others
        copy, place = Path(folder, "photos"), Path(folder, "set")
        shutil.copytree(photos, copy)
        place.mkdir()
        for path in (Path(folder), copy, place):
            path.chmod(0o777)
        copy.chmod(0o744)  # its names can be listed, and nothing more
        said = as_somebody_else(lambda: make(str(copy), str(place)))
        assert re.match(rf"StorageError: can't \w+( at)? {copy}.*: permission denied", said), said
        assert not list(place.iterdir())
        copy.chmod(0o777)
        (copy / "nan.pts").chmod(0)
        assert as_somebody_else(lambda: make(str(copy), str(place))) == ""
        found = inspect_dataset(str(place))
        assert found.manifest.failures == {"BadPhoto": 6, "BadLandmarks": 2, "UnreadableObject": 1}
        (failure,) = found.failures["UnreadableObject"]
        assert failure.detail == f"can't read {copy}/nan.pts: permission denied"


def as_somebody_else(act: Callable[[], None]) -> str:
    """The error of an act by a user without rights: root may read everything."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            act()
        except BaseException as error:
            os.write(write_end, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(write_end)
    with open(read_end, encoding="utf-8") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said


# Mixing


@pytest.mark.parametrize("option", [option.name for option in fields(Options)])
def test_every_option_is_in_the_fingerprint_and_named_when_it_differs(option: str) -> None:
    other: dict[str, object] = {
        "model": "ict-facekit",
        "albedo": "other",
        "photo_terms": "CC-BY-4.0",
        "renderer": "pyrender",
        "deformed": 0.5,
        "closed_eyes": 0.5,
    }
    old, _ = plan_synthesis(None, identities=1, seed=0, options=Options())
    value = vars(Options())[option]
    changed = other.get(
        option,
        value / 2 if isinstance(value, float) else value * 2 if isinstance(value, int) else None,
    )
    assert changed is not None, f"give an other value of the new option {option}"
    new = replace(old, options={**old.options, option: changed})
    assert new.fingerprint != old.fingerprint
    assert list_differences(old, new) == [f"{option}: {value}, now {changed}"]


def test_a_photo_that_was_replaced_is_another_plan(
    undisturbed: Path, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    (tmp_path / "photos" / "text.jpg").write_bytes(b"another")
    with pytest.raises(
        BadDataset, match=r"another plan \(photos: 10, now 10 \(1 gone, 1 new; the first: text\)\)"
    ):
        make(str(tmp_path / "photos"), str(undisturbed))


def test_a_dataset_of_other_options_is_refused_with_the_differences(
    undisturbed: Path, photos: Path
) -> None:
    with pytest.raises(BadDataset, match=r"another plan \(views: 1, now 2\); repeat that command"):
        synthesize(str(photos), str(undisturbed), views=2, size=64, shard_subjects=4)


@pytest.mark.parametrize("dialect", [name for name in DIALECTS if name != "all"] + ["all"])
def test_servers_of_every_s3_dialect_get_the_same_dataset(
    s3: FaultyS3, plan: Plan, whole: dict[str, bytes], tmp_path: Path, dialect: str
) -> None:
    bucket = open_storage(f"s3://{BUCKET}/faults/{next(_fresh)}", endpoint_url=s3.url)
    s3.dialect = dialect
    try:
        bucket.check_writable()
        job.run(plan, bucket, toy_work(tmp_path).build())
    finally:
        s3.dialect = ""
    assert objects(bucket) == whole


def test_a_place_that_refuses_writes_is_found_before_the_photos_are_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="a part of the path is a file"):
        synthesize(str(tmp_path / "no photos here"), str(tmp_path / "file" / "out"))


def test_a_photo_under_a_key_that_is_no_path_is_one_failure(s3: FaultyS3, tmp_path: Path) -> None:
    raw = open_storage(f"s3://{BUCKET}/odd-keys/{next(_fresh)}", endpoint_url=s3.url)
    client = raw._client(s3_storage.S3Dialect())  # type: ignore[attr-defined]
    for key in ("//a.jpg", "/sub//b.jpg"):
        name = f"{raw.uri.removeprefix(f's3://{BUCKET}/').rstrip('/')}{key}"
        client.put_object(Bucket=BUCKET, Key=name, Body=b"never read")
    result = synthesize(
        raw.uri,
        str(tmp_path / "out"),
        endpoint_url=s3.url,
        identities=1,
        views=1,
        size=64,
        config=RunConfig(budget=0.7),
    )
    assert result.manifest is not None
    assert result.manifest.failures == {"UnreadableObject": 2}
    assert result.manifest.rows == 1
