"""``dff match``: files in, files out."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from dff.aligner.align import Aligner
from dff.aligner.alignment import Alignment
from dff.commands.app import app
from dff.face.errors import NoFace
from dff.face.model.morphable import MorphableModel
from tests.aligner.oracle import OracleNet, PositionCode, make_scene, oracle_anchors


@pytest.fixture(scope="module")
def photos(
    tmp_path_factory: pytest.TempPathFactory, open_head: MorphableModel
) -> tuple[Path, Path, Aligner]:
    code = PositionCode.of(open_head)
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(4)
    files = [folder / "a.png", folder / "b.png"]
    for file, yaw in zip(files, (0.0, 25.0), strict=True):
        Image.fromarray(make_scene(open_head, code, yaw=yaw, rng=rng).image).save(file)
    aligner = Aligner(OracleNet(code), oracle_anchors(open_head, code), open_head)
    return files[0], files[1], aligner


def run(photos: tuple[Path, Path, Aligner], *options: str) -> tuple[int, str]:
    """Exit status and output of the command, with the aligner that reads the photos."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dff.files.matches.load_aligner", lambda *_, **__: photos[2])
        done = CliRunner().invoke(app, ["match", str(photos[0]), str(photos[1]), *options])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.output


def test_all_files_are_written(photos: tuple[Path, Path, Aligner], tmp_path: Path) -> None:
    names = ("out.json", "drawn.png", "heat.jpg", "map.npy")
    out = [tmp_path / name for name in names]
    options = ("--json", "--draw", "--heat-map", "--dense")
    files = [part for pair in zip(options, map(str, out), strict=True) for part in pair]
    status, said = run(
        photos,
        "--points",
        "160,160 2,2",
        "--landmarks",
        "nose_tip,chin",
        "--vertices",
        "12",
        *files,
    )
    assert status == 0
    assert "2. 2,2: not on a face" in said
    assert "nose_tip: " in said
    points = json.loads(out[0].read_text())["points"]
    assert [p["name"] for p in points] == ["160,160", "2,2", "nose_tip", "chin", "vertex 12"]
    assert [p["x"] is None for p in points] == [False, True, False, False, False]
    assert Image.open(out[1]).height == 900
    assert Image.open(out[2]).size == (320, 320)
    assert np.load(out[3]).shape == (320, 320, 4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "--points, --landmarks or --vertices"),
        (("--points", "12;3"), "x,y in pixels, got '12;3'"),
        (("--vertices", "1.5"), "whole numbers, got '1.5'"),
        (("--dense", "map.npy", "--draw", "x.png"), "are of points"),
    ],
)
def test_wrong_options_are_named(
    photos: tuple[Path, Path, Aligner], options: tuple[str, ...], says: str
) -> None:
    status, said = run(photos, *options)
    assert status == 2
    assert says in " ".join(said.replace("│", " ").split())


def test_a_photo_without_a_face_is_named(
    photos: tuple[Path, Path, Aligner], tmp_path: Path
) -> None:
    empty = tmp_path / "empty.png"
    Image.new("RGB", (64, 64)).save(empty)
    with pytest.raises(NoFace, match=r"b\.png and .*empty\.png: no face found in the second photo"):
        run((photos[1], empty, photos[2]), "--points", "160,160")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--landmarks", "nose_tip"), ("--box-first", "--box-second")),
        (("--points", "160,160"), ("--box-second",)),  # a point says whose it is
        (("--landmarks", "chin", "--dense"), ("--box-first", "--box-second")),
        (("--landmarks", "chin", "--box-first", "60,60,260,260"), ("--box-second",)),
    ],
)
def test_the_choice_among_several_faces_is_told(
    photos: tuple[Path, Path, Aligner],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    told: tuple[str, ...],
) -> None:
    find = Aligner.align_in_steps

    def find_two(*arguments: Any, **how: Any) -> Generator[None, None, list[list[Alignment]]]:
        found = yield from find(*arguments, **how)
        given = arguments[2] is not None
        return found if given else [[face, shrunk(face)] for (face,) in found]

    monkeypatch.setattr(Aligner, "align_in_steps", find_two)
    with_file = [
        part
        for option in options
        for part in ([option, str(tmp_path / "map.npy")] if option == "--dense" else [option])
    ]
    status, said = run(photos, *with_file)
    assert status == 0
    lines = [line for line in said.splitlines() if "2 faces found; the largest, at 1" in line]
    assert [line.rpartition("(")[2].split()[0] for line in lines] == list(told)


def shrunk(face: Alignment) -> Alignment:
    """A face half as large at the upper left corner of the photo."""
    return replace(face, landmarks_3d=face.landmarks_3d / 2)
