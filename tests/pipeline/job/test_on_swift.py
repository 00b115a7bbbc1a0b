"""Jobs against a real S3 server, whose processes can be killed and which checks who asks."""

from __future__ import annotations

import os
import threading
import time
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import botocore.auth
import pytest

from dff.face.errors import StorageError
from dff.infra.datasets.dataset import open_dataset
from dff.infra.storage import Storage, open_storage
from dff.pipeline.job import run as job
from dff.pipeline.synthesis import synthesize
from tests.pipeline.job.test_run import objects, until
from tests.pipeline.job.toy_work import made, toy_plan, toy_work
from tests.s3_proxy import every, relay_to
from tests.swift_server import BUCKET, Swift, installed, start

pytestmark = pytest.mark.swift

OUTAGE = float(os.environ.get("DFF_OUTAGE", "4"))  # seconds
HURRIED = job.RunConfig(retry_waits=(0.5, 1.0, 2.0))
_fresh = count()


@pytest.fixture
def bucket(swift: Swift) -> Storage:
    return open_storage(f"s3://{BUCKET}/job/{next(_fresh)}", endpoint_url=swift.url)


def test_a_small_synthesis_is_the_one_made_in_a_folder(
    bucket: Storage, swift: Swift, tmp_path: Path
) -> None:
    for place, endpoint in ((bucket.uri, swift.url), (str(tmp_path), None)):
        synthesize(
            None, place, identities=2, views=2, size=64, shard_subjects=1, endpoint_url=endpoint
        )
    open_dataset(bucket.uri, endpoint_url=swift.url).verify()
    assert objects(bucket) == objects(open_storage(str(tmp_path)))


def test_a_server_that_dies_during_a_job_loses_nothing(
    bucket: Storage, swift: Swift, out: Storage, log: Path
) -> None:
    plan = toy_plan(8, shard_subjects=1)
    job.run(plan, out, toy_work(log).build())
    (again := log / "again").mkdir()

    def kill_and_restart() -> None:
        until(lambda: len(made(again)) > 2)
        for kind in ("object", "container"):
            swift.processes[kind].kill()
            swift.processes[kind].wait()
        time.sleep(0.5)
        home = installed()
        assert home is not None
        for kind in ("object", "container"):
            start(swift, kind, home)

    killer = threading.Thread(target=kill_and_restart)
    killer.start()
    job.run(plan, bucket, toy_work(again, seconds=0.1).build())
    killer.join()
    assert objects(bucket) == objects(out)


@pytest.mark.parametrize("outage", [False, True], ids=["faults", "outage"])
def test_a_job_over_a_bad_network_makes_the_same_bytes(
    outage: bool, bucket: Storage, swift: Swift, out: Storage, log: Path
) -> None:
    """Every third request meets a fault, each kind in turn; or the server is away for a while."""
    plan = toy_plan(8, shard_subjects=1)
    job.run(plan, out, toy_work(log).build())
    (again := log / "again").mkdir()
    with relay_to(swift.url) as proxy:
        far = open_storage(bucket.uri, endpoint_url=proxy.url)
        proxy.stall = 0.5
        if outage:
            end = threading.Timer(OUTAGE, proxy.away.clear)
            proxy.away.set()
            end.start()
        else:
            proxy.choose = every(3)
        job.run(plan, far, toy_work(again).build(), config=job.DEFAULT if outage else HURRIED)
        assert outage or len({*proxy.spoilt}) > 4
    assert objects(bucket) == objects(out)


def test_a_wrong_secret_is_refused_at_once(
    bucket: Storage, log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    with pytest.raises(
        StorageError, match=r"the credentials were refused \(SignatureDoesNotMatch\)"
    ) as caught:
        job.run(toy_plan(2), bucket, toy_work(log).build())
    assert "hunter2" not in str(caught.value)
    assert made(log) == {}


@pytest.mark.parametrize(("minutes", "works"), [(10, True), (-10, True), (20, False)])
def test_a_clock_that_is_off(
    minutes: int, works: bool, bucket: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 takes a quarter of an hour; beyond it the error names the clock."""

    def now(remove_tzinfo: bool = True) -> datetime:
        return (datetime.now(UTC) + timedelta(minutes=minutes)).replace(
            tzinfo=None if remove_tzinfo else UTC
        )

    monkeypatch.setattr(botocore.auth, "get_current_datetime", now)
    if works:
        bucket.write("key", b"data")
        assert bucket.read("key") == b"data"
    else:
        with pytest.raises(StorageError, match=r"refuses the time of this machine's clock.*set"):
            bucket.write("key", b"data")
