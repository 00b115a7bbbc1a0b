"""The demo runs the whole chain, and never removes what it did not write."""

from __future__ import annotations

import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from dff.demo import run
from dff.demo.errors import DemoError
from dff.demo.run import CONTENT, remove_earlier, run_demo
from tests.ray_forks.start import forked_from


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


@pytest.mark.ray
@pytest.mark.slow
def test_one_photograph_goes_through_the_whole_chain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_forks: Path
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setattr(run, "PORT", probe.getsockname()[1])
    whole = run._train_config
    monkeypatch.setattr(
        run, "_train_config", lambda *told: replace(whole(*told), batch=8, loaders=0)
    )
    said: list[str] = []
    with forked_from(ray_forks, "ray.train.torch", "ray.serve"):
        report = run_demo(tmp_path / "demo", identities=3, views=4, steps=2, say=said.append)
    assert {path.name for path in (tmp_path / "demo").iterdir()} == CONTENT
    with Image.open(tmp_path / "demo" / "overview.jpg") as overview:
        assert overview.width == 1200
    page = report.read_text("utf-8")
    assert re.findall(r"<h2>(.*)</h2>", page) == [
        "Overview",
        "Inverse rendering",
        "Synthesised views",
        "Exact correspondence",
        "The Deep Face Feature",
        "Alignment by the served aligner",
        "Timings",
    ]
    assert "<td>state</td><td>accepted</td>" in page
    assert "16 views in Parquet shards" in page
    cells = re.findall(r"<td>(.*?)</td><td>(.*?)</td>", page)
    assert len(cells) > 15
    assert not [name for name, _ in cells if "_" in name.replace("nme_box", "")]  # words, no keys
    assert len(said) == 2 * 4  # each step when it begins and when it ends
