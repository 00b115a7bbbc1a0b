"""The demo never removes what it did not make."""

from __future__ import annotations

from pathlib import Path

import pytest

from dff.demo.errors import DemoError
from dff.demo.run import remove_earlier


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DemoError, match=r"thesis\.txt"):
        remove_earlier(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "thesis.txt"]


def test_a_file_in_the_way_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(DemoError, match="out"):
        remove_earlier(tmp_path / "out")
    assert (tmp_path / "out").read_text() == "a file"


def test_an_earlier_demo_is_removed(tmp_path: Path) -> None:
    (tmp_path / "demo" / "dataset").mkdir(parents=True)
    (tmp_path / "demo" / "report.html").write_text("old")
    remove_earlier(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()
