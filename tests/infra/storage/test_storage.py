from __future__ import annotations

import fcntl
import hashlib
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import requests

from dff.face.errors import Conflict, NotFound, StorageError, TransientStorageError
from dff.infra.storage import ObjectInfo, Storage, open_storage, s3 as s3_storage
from tests.s3_server import BUCKET, FaultyS3, refuse, stall, stall_halfway, truncate
from tests.swift_server import Swift

_fresh = count()

HOSTILE = (
    "plain.txt",
    "with space/and more.txt",
    "ünïcödé/顔.jpg",
    "%2e%2e/%2F.txt",
    "a+b&c=d?e#f.txt",
    "quote'\"`$(ls).txt",
    "back\\slash.txt",
    ".hidden",
    "...three dots/x",
    "trailing space /x ",
    "-rf",
    "<xml>&amp;.txt",
)


@pytest.fixture(params=["folder", "s3", pytest.param("swift", marks=pytest.mark.swift)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A new, empty storage of each kind."""
    if request.param == "folder":
        return open_storage(str(tmp_path / "store"))
    server: FaultyS3 | Swift = request.getfixturevalue(request.param)
    return open_storage(f"s3://{BUCKET}/laws/{next(_fresh)}", endpoint_url=server.url)


@pytest.fixture
def bucket(s3: FaultyS3) -> Storage:
    return open_storage(f"s3://{BUCKET}/faults/{next(_fresh)}", endpoint_url=s3.url)


def test_what_is_written_is_read_under_any_name(storage: Storage) -> None:
    for i, key in enumerate(HOSTILE):
        storage.write(key, key.encode() * i)
    for i, key in enumerate(HOSTILE):
        assert storage.read(key) == key.encode() * i
        assert storage.exists(key)
    assert storage.list() == [
        ObjectInfo(key, len(key.encode()) * HOSTILE.index(key))
        for key in sorted(HOSTILE, key=str.encode)
    ]


def test_a_range_is_a_part_of_the_object(storage: Storage) -> None:
    data = bytes(range(256)) * 300
    storage.write("a/b", data)
    for start, stop in ((0, 1), (100, 100), (70_000, 76_800), (76_000, 90_000), (5, 3)):
        assert storage.read_range("a/b", start, stop) == data[start:stop]
    with pytest.raises(NotFound, match="a/c"):
        storage.read_range("a/c", 0, 10)


def test_keys_that_could_lead_outside_are_refused(storage: Storage) -> None:
    for key in ("", "/", "/etc/passwd", "a//b", "a/", "./a", "a/../../b", "..", "a/..", "a\0b"):
        for use in (storage.read, storage.exists, storage.delete, lambda k: storage.write(k, b"")):
            with pytest.raises(StorageError, match="can't be a key"):
                use(key)
    with pytest.raises(StorageError, match="can't be a key"):
        storage.list("../")


def test_an_empty_place_lists_nothing_and_says_what_is_not_there(storage: Storage) -> None:
    assert storage.list() == []
    assert not storage.exists("a/b")
    storage.delete("a/b")
    with pytest.raises(NotFound, match="a/b"):
        storage.read("a/b")


def test_a_prefix_is_a_string_not_a_folder(storage: Storage) -> None:
    for key in ("data/part-1", "data/part-2", "data-old/part-1", "dat"):
        storage.write(key, b"x")
    assert [info.key for info in storage.list("data/")] == ["data/part-1", "data/part-2"]
    assert [info.key for info in storage.list("data")] == [
        "data-old/part-1",
        "data/part-1",
        "data/part-2",
    ]
    assert [info.key for info in storage.list("data/part-2")] == ["data/part-2"]
    assert storage.list("nothing/here") == []


def test_a_write_replaces_and_a_delete_removes(storage: Storage) -> None:
    storage.write("a", b"one, which is longer")
    storage.write("a", b"two")
    assert storage.read("a") == b"two"
    storage.delete("a")
    assert not storage.exists("a")


def test_a_key_that_must_be_new_keeps_its_first_bytes(storage: Storage) -> None:
    storage.write("a", b"one", if_absent=True)
    storage.write("a", b"one", if_absent=True)
    with pytest.raises(Conflict, match=r"/a already holds other bytes"):
        storage.write("a", b"two", if_absent=True)
    assert storage.read("a") == b"one"


def test_a_storage_travels_to_another_process(storage: Storage) -> None:
    storage.write("a", b"one")
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.read("a") == b"one"
    assert copy == storage
    assert copy.uri == storage.uri


def _race(storage: Storage, payloads: list[bytes]) -> list[bool]:
    """Whether each of the payloads, written at once to one new key, was accepted."""
    accepted = [False] * len(payloads)
    gate = threading.Barrier(len(payloads))

    def write(i: int) -> None:
        gate.wait()
        try:
            storage.write("contested", payloads[i], if_absent=True)
        except Conflict:
            return
        accepted[i] = True

    threads = [threading.Thread(target=write, args=(i,)) for i in range(len(payloads))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return accepted


def test_writers_of_the_same_bytes_all_succeed(storage: Storage) -> None:
    assert all(_race(storage, [b"same" * 50_000] * 8))
    assert storage.read("contested") == b"same" * 50_000


def test_a_file_name_may_hold_a_line_break(tmp_path: Path) -> None:
    folder = open_storage(str(tmp_path))
    folder.write("new\nline.txt", b"x")  # moto does not route such a key
    assert folder.list() == [ObjectInfo("new\nline.txt", 1)]


def test_one_of_many_writers_of_a_new_file_wins(tmp_path: Path) -> None:
    for attempt in range(20):
        folder = open_storage(str(tmp_path / str(attempt)))
        payloads = [bytes([i]) * 100_000 for i in range(8)]
        accepted = _race(folder, payloads)
        assert sum(accepted) == 1
        assert folder.read("contested") == payloads[accepted.index(True)]
        assert [info.key for info in folder.list()] == ["contested"]


def test_a_listing_has_more_than_one_page(bucket: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "7")
    keys = [f"photos/{i:05d}.jpg" for i in range(30)]
    for key in keys:
        bucket.write(key, b"x")
    assert [info.key for info in bucket.list()] == keys


def test_a_marker_of_a_folder_is_no_object(bucket: Storage) -> None:
    bucket._client(s3_storage.S3Dialect()).put_object(
        Bucket=BUCKET, Key=f"{bucket.prefix}photos/", Body=b""
    )  # type: ignore[attr-defined]
    bucket.write("photos/a", b"x")
    assert [info.key for info in bucket.list()] == ["photos/a"]


# What a killed writer leaves

_WRITE_FOR_EVER = """
import sys
from dff.infra.storage import open_storage
storage = open_storage(sys.argv[1])
print("ready", flush=True)
i = 0
while True:
    storage.write("a", bytes([i % 256]) * 3_000_000)
    i += 1
"""


def test_a_killed_writer_leaves_whole_objects_and_no_litter(tmp_path: Path) -> None:
    folder = open_storage(str(tmp_path))
    folder.write("a", b"\0" * 3_000_000)
    for delay in (0.0, 0.005, 0.011, 0.017, 0.023):
        with subprocess.Popen(
            [sys.executable, "-c", _WRITE_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(0.05 + delay)
            found = folder.read("a")
            assert found == found[:1] * 3_000_000
            os.kill(child.pid, signal.SIGKILL)
        found = folder.read("a")
        assert found == found[:1] * 3_000_000
        assert [info.key for info in folder.list()] == ["a"]
    folder.write("a", b"last")
    assert _litter(tmp_path) == []


def _litter(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".tmp")]


def test_litter_of_a_dead_writer_goes_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    folder = open_storage(str(tmp_path))
    stem = f".{hashlib.sha256(b'a').hexdigest()[:16]}"
    dead, living = tmp_path / f"{stem}.{'0' * 16}.tmp", tmp_path / f"{stem}.{'1' * 16}.tmp"
    dead.write_bytes(b"half")
    with open(living, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        folder.write("a", b"y")
        assert _litter(tmp_path) == [living.name]
    assert [info.key for info in folder.list()] == ["a"]


# Troubles, each named


def _raises(kind: type[StorageError], *words: str) -> Callable[[Callable[[], object]], None]:
    def check(act: Callable[[], object]) -> None:
        with pytest.raises(kind) as caught:
            act()
        for word in words:
            assert word in str(caught.value)
        for secret in ("test-secret", "test-key", "hunter2"):
            assert secret not in str(caught.value)

    return check


def test_a_missing_bucket_is_named(s3: FaultyS3) -> None:
    nowhere = open_storage("s3://no-such-bucket/x", endpoint_url=s3.url)
    check = _raises(StorageError, "there is no bucket 'no-such-bucket'", s3.url)
    check(nowhere.list)
    check(lambda: nowhere.write("a", b""))
    check(lambda: nowhere.read("a"))


def test_an_endpoint_without_a_scheme_is_told_what_it_should_be() -> None:
    with pytest.raises(
        StorageError, match="s3://faces/x/: its endpoint is no address http://HOST:PORT"
    ):
        open_storage("s3://faces/x", endpoint_url="user:hunter2@127.0.0.1:9000").read("a")


def test_an_endpoint_that_does_not_answer_is_named_without_its_password() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test-key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test-secret")
        away = open_storage("s3://faces/x", endpoint_url=f"http://user:hunter2@127.0.0.1:{port}")
        _raises(TransientStorageError, "s3://faces/x/a", "nothing answers", f"127.0.0.1:{port}")(
            lambda: away.read("a")
        )


def test_refused_credentials_are_no_transient_trouble(s3: FaultyS3, bucket: Storage) -> None:
    requests.post(f"{s3.url}/moto-api/reset-auth", data="0", timeout=10)
    try:
        check = _raises(StorageError, "credentials were refused", "InvalidAccessKeyId", bucket.uri)
        check(lambda: bucket.write("a", b"x"))
        check(lambda: bucket.read("a"))
        check(bucket.list)
    finally:
        requests.post(f"{s3.url}/moto-api/reset-auth", data="1000000000", timeout=10)


def test_missing_credentials_are_named(
    s3: FaultyS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    anyone = open_storage("s3://faces/x", endpoint_url=s3.url)
    _raises(StorageError, "AWS_ACCESS_KEY_ID", "s3://faces/x/a")(lambda: anyone.read("a"))


@pytest.mark.parametrize(
    "uri", ["", "s3://", "s3:///x", "http://host/x", "gs://bucket/x", "s3://bucket/a/../b"]
)
def test_uris_of_other_kinds_are_refused(uri: str) -> None:
    with pytest.raises(StorageError):
        open_storage(uri)


@pytest.mark.parametrize("uri", ["s3://KEY:hunter2@faces/x", "http://u:hunter2@host/x"])
def test_a_uri_with_a_password_is_refused_without_it(uri: str) -> None:
    with pytest.raises(StorageError) as told:
        open_storage(uri)
    assert "hunter2" not in str(told.value)


def test_a_folder_that_can_be_written_passes_and_is_not_made(tmp_path: Path) -> None:
    open_storage(str(tmp_path / "new" / "folder")).check_writable()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file is a file, not a folder"):
        open_storage(str(tmp_path / "file"))
    with pytest.raises(StorageError, match="a part of the path is a file"):
        open_storage(str(tmp_path / "file" / "below")).check_writable()


def test_a_write_outlives_other_writers_slow_downs_and_lost_answers(
    s3: FaultyS3, bucket: Storage
) -> None:
    s3.faults += [("PUT", refuse("409 Conflict", "ConditionalRequestConflict"))] * 2
    s3.faults += [("PUT", refuse("503 Slow Down", "SlowDown"))]
    bucket.write("a", b"one", if_absent=True)
    assert bucket.read("a") == b"one"
    # The first try arrived, its answer was lost: the second is told that the key is taken, by its
    # own bytes.
    s3.faults += [("PUT", refuse("412 Precondition Failed", "PreconditionFailed"))]
    bucket.write("a", b"one", if_absent=True)
    assert s3.faults == []


def test_a_conflict_that_does_not_end_is_transient(s3: FaultyS3, bucket: Storage) -> None:
    s3.faults += [("PUT", refuse("409 Conflict", "ConditionalRequestConflict"))] * 6
    _raises(TransientStorageError, f"{bucket.uri}a", "another writer")(
        lambda: bucket.write("a", b"x", if_absent=True)
    )
    assert s3.faults == []


def test_a_server_in_trouble_is_transient(s3: FaultyS3, bucket: Storage) -> None:
    s3.faults += [("GET", refuse("500 Internal Server Error", "InternalError"))] * 5
    _raises(TransientStorageError, f"{bucket.uri}a", "InternalError")(lambda: bucket.read("a"))
    assert s3.faults == []


def test_a_body_cut_short_is_never_taken_for_the_object(s3: FaultyS3, bucket: Storage) -> None:
    bucket.write("a", b"whole")
    s3.faults += [("GET", truncate)] * 2
    assert bucket.read("a") == b"whole"
    s3.faults += [("GET", truncate)] * 3
    _raises(TransientStorageError, f"{bucket.uri}a")(lambda: bucket.read("a"))
    assert s3.faults == []
    assert bucket.read("a") == b"whole"


@pytest.fixture
def impatient(s3: FaultyS3, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A bucket whose client waits a third of a second for an answer."""
    monkeypatch.setattr(s3_storage, "READ_TIMEOUT", 0.3)
    return open_storage(f"s3://{BUCKET}/faults/{next(_fresh)}", endpoint_url=s3.url)


def test_silence_ends_and_is_tried_again(s3: FaultyS3, impatient: Storage) -> None:
    s3.faults += [("PUT", stall(1.0))]
    impatient.write("a", b"whole", if_absent=True)
    s3.faults += [("GET", stall(1.0)), ("GET", stall_halfway(1.0))]
    assert impatient.read("a") == b"whole"
    assert s3.faults == []


def test_endless_silence_is_transient(s3: FaultyS3, impatient: Storage) -> None:
    s3.faults += [("GET", stall(0.6))] * 5
    _raises(TransientStorageError, f"{impatient.uri}a", "ReadTimeout")(lambda: impatient.read("a"))
    assert s3.faults == []


def test_a_write_whose_answer_was_lost_has_arrived(s3: FaultyS3, bucket: Storage) -> None:
    s3.faults += [("PUT", "lost")]
    bucket.write("a", b"one", if_absent=True)
    assert s3.faults == []
    assert bucket.read("a") == b"one"


def test_many_objects_go_at_once(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_storage, "DELETED_AT_ONCE", 5)
    for key in [*HOSTILE, "kept"]:
        storage.write(key, b"")
    storage.delete(*HOSTILE, "never/there")
    storage.delete()
    assert [info.key for info in storage.list()] == ["kept"]


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    folder = open_storage(str(tmp_path))
    folder.write("a", b"x")
    _raises(StorageError, "is a file, not a folder", "a/b")(lambda: folder.write("a/b", b"x"))
    folder.write("c/d", b"x")
    _raises(StorageError, "it is a folder", "c")(lambda: folder.read("c"))
    _raises(StorageError, "too long")(lambda: folder.write("n" * 300, b"x"))


def test_a_name_that_is_not_text_is_named_and_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / os.fsdecode(b"\xff.jpg")).write_bytes(b"x")
    (tmp_path / os.fsdecode(b"\xe9t\xe9")).mkdir()
    (tmp_path / os.fsdecode(b"\xe9t\xe9") / "b.jpg").write_bytes(b"x")
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert [info.key for info in open_storage(str(tmp_path)).list()] == ["a.jpg"]
    assert r"\udcff.jpg (its name is not UTF-8; rename it)" in caplog.text
    assert r"\udce9t\udce9 (its name" in caplog.text


def test_links_are_followed_but_never_round_in_circles(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    (root / "sub").mkdir(parents=True)
    other.mkdir()
    (other / "b.jpg").write_bytes(b"b")
    (root / "sub" / "a.jpg").write_bytes(b"a")
    (root / "sub" / "linked").symlink_to(other)
    (root / "sub" / "up").symlink_to(root)
    (other / "back").symlink_to(root / "sub")
    (root / "file.jpg").symlink_to(other / "b.jpg")
    (root / "self.jpg").symlink_to(root / "self.jpg")
    (root / "nowhere.jpg").symlink_to(tmp_path / "nowhere")
    storage = open_storage(str(root))
    keys = [info.key for info in storage.list()]
    assert keys == ["file.jpg", "sub/a.jpg", "sub/linked/b.jpg"]
    os.mkfifo(root / "pipe.jpg")
    (root / "folder.jpg").mkdir()
    caplog.clear()
    assert [info.key for info in storage.list()] == keys
    for name in ("up", "back", "self.jpg", "nowhere.jpg"):
        assert f"{name} (a link" in caplog.text or "and 1 more" in caplog.text
    assert "6 entries passed over" in caplog.text
    assert [info.key for info in storage.list("sub/l")] == ["sub/linked/b.jpg"]
    assert storage.read("sub/linked/b.jpg") == b"b"


_IN_A_SMALL_DISK = """
mount -t tmpfs -o size=64k none "$1" && cd "$2" && exec "$3" -c '
import os, sys
from dff.face.errors import StorageError
from dff.infra.storage import open_storage
storage = open_storage(sys.argv[1])
storage.write("kept", b"x" * 1000)
try:
    storage.write("big", b"x" * 1_000_000)
except StorageError as error:
    print(error)
print(os.listdir(sys.argv[1]), len(storage.read("kept")))
' "$1"
"""


def test_a_full_disk_is_named_and_leaves_what_was_there(tmp_path: Path) -> None:
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode
    ):
        pytest.skip("needs user namespaces to mount a small disk")
    root = Path(__file__).parents[3]
    command = [
        "unshare",
        "-rm",
        "sh",
        "-c",
        _IN_A_SMALL_DISK,
        "sh",
        str(tmp_path),
        str(root),
        sys.executable,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"can't write {tmp_path}/big: the disk is full",
        "['kept'] 1000",
    ]


def test_a_forbidden_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    storage = open_storage(str(tmp_path))
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:  # another user, since root may write everywhere
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            storage.write("a", b"x")
        except BaseException as error:
            os.write(write_end, f"{type(error).__name__}: {error}".encode())
        os._exit(0)
    os.close(write_end)
    with open(read_end, encoding="utf-8") as answer:
        assert answer.read() == f"StorageError: can't write {tmp_path}/a: permission denied"
    os.waitpid(child, 0)
    tmp_path.chmod(0o700)
