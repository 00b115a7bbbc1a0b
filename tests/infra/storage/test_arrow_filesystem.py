"""Checkpoints go through Arrow's file systems: to a folder, or to a bucket of any S3 server."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from ray.train import Checkpoint
from ray.train.v2._internal.execution.storage import StorageContext

from dff.infra.storage import arrow, open_storage
from dff.infra.storage.arrow import open_filesystem
from tests.s3_server import FaultyS3, refuse
from tests.swift_server import Swift


@pytest.mark.parametrize("kind", ["s3", pytest.param("swift", marks=pytest.mark.swift)])
def test_ray_keeps_a_checkpoint_in_a_bucket(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    server: FaultyS3 | Swift = request.getfixturevalue(kind)
    filesystem, path = open_filesystem("s3://faces/our/runs/", endpoint_url=server.url)
    assert path == "faces/our/runs"
    state = os.urandom(11 << 20)  # more than one part of an upload
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "checkpoint.pt").write_bytes(state)
    sent = pickle.dumps(filesystem)
    assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in sent
    context = StorageContext(path, "first", pickle.loads(sent))
    kept = context.persist_current_checkpoint(
        Checkpoint.from_directory(str(tmp_path / "made")), "step-0000002"
    )
    stored = open_storage("s3://faces/our/runs", endpoint_url=server.url)
    assert "first/step-0000002/checkpoint.pt" in {info.key for info in stored.list("first/")}
    with kept.as_directory() as folder:
        assert (Path(folder) / "checkpoint.pt").read_bytes() == state


def test_a_write_that_is_answered_by_409_is_repeated(
    s3: FaultyS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice here; a third answer of this kind is an error."""
    monkeypatch.setattr(arrow, "WAITS", (0.0, 0.0))
    filesystem, path = open_filesystem("s3://faces/conflicts", endpoint_url=s3.url)
    assert filesystem is not None
    conflict = ("PUT", refuse("409 Conflict", "OperationAborted"))
    s3.faults += [conflict] * 2
    with filesystem.open_output_stream(f"{path}/snapshot.json") as stream:
        stream.write(b"{}")
    assert s3.faults == []
    assert open_storage("s3://faces/conflicts", endpoint_url=s3.url).read("snapshot.json") == b"{}"
    s3.faults += [conflict] * 3
    with pytest.raises(OSError, match="409"):
        filesystem.create_dir(path)
    assert s3.faults == []


def test_a_folder_is_its_own_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_filesystem("runs") == (None, str(tmp_path / "runs"))


def test_a_bucket_that_is_not_there_is_not_made(s3: FaultyS3) -> None:
    filesystem, path = open_filesystem("s3://nobodys/runs", endpoint_url=s3.url)
    assert filesystem is not None
    with pytest.raises(OSError, match="nobodys"):
        filesystem.create_dir(path)
