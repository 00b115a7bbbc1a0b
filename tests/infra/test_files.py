from __future__ import annotations

from pathlib import Path

import pytest

from dff.infra.files import replaced_file


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
