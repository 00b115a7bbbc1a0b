from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from dff.face.errors import StorageError
from dff.infra.files import (
    append_file,
    check_local,
    check_output_file,
    check_output_folder,
    replaced_file,
    strip_suffix,
    write_file,
)
from tests.small_disk import small_disk


@pytest.mark.parametrize(
    ("path", "stem"),
    [
        ("a/b.jpg", "a/b"),
        ("a.b/c", "a.b/c"),
        ("a/b.c.d", "a/b.c"),
        ("a/..png", "a/."),
        ("a//b.c", "a//b"),
    ],
)
def test_a_path_without_its_suffix(path: str, stem: str) -> None:
    assert strip_suffix(path) == stem


def test_a_file_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with replaced_file(path) as temporary:
        temporary.write_text("one")
        assert temporary.parent == path.parent
        assert not path.exists()
    assert path.read_text() == "one"
    assert [found.name for found in path.parent.iterdir()] == ["file"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one")

    def fail(temporary: Path) -> None:
        temporary.write_text("tw")
        raise OSError("full")

    with pytest.raises(OSError, match="full"), replaced_file(path) as temporary:
        fail(temporary)
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_as_readable_as_others(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    with replaced_file(tmp_path / "file") as temporary:
        temporary.touch()
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_file_that_can_be_written_passes_and_is_not_made(tmp_path: Path) -> None:
    check_output_file(None)
    check_output_folder(None)
    check_output_file(tmp_path / "new" / "file")
    check_output_folder(tmp_path / "new" / "folder")
    (tmp_path / "old").touch()
    check_output_file(tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="is a folder: name a file in it"):
        check_output_file(tmp_path)
    for path in (tmp_path / "file" / "x", tmp_path / "file" / "y" / "x"):
        with pytest.raises(StorageError, match="file is a file, not a folder"):
            check_output_file(path)
    if os.getuid():  # root may write everywhere
        (tmp_path / "shut").mkdir(mode=0o500)
        with pytest.raises(StorageError, match="may not be written to"):
            check_output_file(tmp_path / "shut" / "x")


@pytest.mark.parametrize("address", ["s3://bucket/w", "s3:/bucket/w", "models:/dff@champion"])
def test_an_address_is_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for check in (check_output_file, check_output_folder):
        with pytest.raises(StorageError, match="is an address"):
            check(address)
    with pytest.raises(StorageError, match="is an address"), replaced_file(Path(address)):
        pass
    spelled = address if address.startswith("models:") else "s3://bucket/w"
    with pytest.raises(StorageError, match=f"^{spelled} is"):
        check_local(Path(address))
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_said_with_the_path(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"No space left on device: .*w\.bin"),
        replaced_file(tmp_path / "w.bin"),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        lines = disk / "a.jsonl"
        write_file(lines, b"")
        append_file(lines, b"one\n")
        for write in (write_file, append_file):
            with pytest.raises(StorageError, match=r"can't write .*a\.jsonl: No space left"):
                write(lines, bytes(100_000))
        with pytest.raises(StorageError, match=r"new\.png: No space left"):
            write_file(disk / "new.png", bytes(100_000))
        assert lines.read_bytes() == b"one\n"
        assert [path.name for path in disk.iterdir()] == ["a.jsonl"]


def test_what_is_no_file_is_written_to_and_a_link_followed(tmp_path: Path) -> None:
    pipe, link, target = tmp_path / "pipe", tmp_path / "link", tmp_path / "target"
    os.mkfifo(pipe)
    with open(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        write_file(pipe, b"data")
        assert reader.read() == b"data"
    assert pipe.is_fifo()
    target.touch()
    link.symlink_to(target)
    write_file(link, b"data")
    assert link.is_symlink()
    assert target.read_bytes() == b"data"
    long = tmp_path / ("n" * 250)
    write_file(long, b"data")
    assert long.read_bytes() == b"data"


def test_a_folder_that_will_be_made_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    check_output_file(tmp_path / "a.json")
    assert not caplog.text
    check_output_file(tmp_path / "new" / "deep" / "a.json")
    assert f"{tmp_path / 'new' / 'deep'} is a new folder" in caplog.text
    assert not (tmp_path / "new").exists()
