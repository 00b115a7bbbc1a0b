"""A cascade from the command line: trained on a dataset, and used for a photo."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from typer.testing import CliRunner

from dff.aligner.cascade.io import load_cascade, load_cascade_aligner
from dff.commands.app import app
from dff.face.model.landmarks import INNER, nme_box
from dff.face.model.morphable import MorphableModel
from dff.infra.networks.cascade_file import SHIPPED
from dff.infra.photos.landmark_files import parse_pts
from tests.trainer.conftest import make_row, write_dataset

WIDE = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}


def test_a_trained_cascade_aligns_a_photo(open_head: MorphableModel, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        make_row(open_head, f"id{i:03d}", view, rng=rng) for i in range(40) for view in range(2)
    ]
    write_dataset(tmp_path / "data", rows)
    photo, cascade, out = (
        tmp_path / "photo.jpg",
        tmp_path / "cascade.safetensors",
        tmp_path / "faces.json",
    )
    photo.write_bytes(rows[0].image)
    low, high = rows[0].landmarks_3d.min(0), rows[0].landmarks_3d.max(0)
    box = ",".join(f"{value:.1f}" for value in (*low, *high))
    learn = ["train-cascade", str(tmp_path / "data"), "--out", str(cascade), "--features", "sift"]
    done = CliRunner().invoke(
        app,
        [*learn, "--views", "64", "--held-out", "8", "--stages", "2", "--calibrate", "0"],
        env=WIDE,
    )
    assert done.exit_code == 0, done.output
    assert "stage 2: nme_box" in done.output
    assert cascade.stat().st_size < 4_000_000
    align = ["align", str(photo), "--box", box, "--json", str(out)]
    done = CliRunner().invoke(
        app, [*align, "--method", "cascade", "--cascade", str(cascade)], env=WIDE
    )
    assert done.exit_code == 0, done.output
    ((face,),) = json.loads(out.read_text()).values()
    apart = np.linalg.norm(
        np.array(face["landmarks_3d"])[:, :2] - rows[0].landmarks_3d, axis=1
    ).mean()
    assert apart < 0.15 * float(np.sqrt(np.prod(high - low)))
    refused = CliRunner().invoke(app, [*align, "--cascade", str(cascade)], env=WIDE)
    assert refused.exit_code == 2
    assert "--cascade needs --method cascade" in refused.output


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_cascade_aligns_a_photo_and_has_a_free_licence(name: str) -> None:
    if not SHIPPED[name].exists():
        pytest.skip(f"no cascade ships for {name}")
    assert SHIPPED[name].stat().st_size < 2_000_000
    assert load_cascade(name).card["data_licences"] == ["CC0-1.0", "CC0-1.0 AND MIT"]
    assert load_cascade(name).calibration is not None
    image = np.asarray(skimage.data.astronaut(), dtype=np.uint8)
    truth = parse_pts((Path(__file__).parents[3] / "dff/data/astronaut.pts").read_bytes())
    faces = [face for face in load_cascade_aligner(name).align(image) if not face.failed]
    assert len(faces) == 1
    assert nme_box(faces[0].landmarks_2d[INNER], truth[INNER]) < 0.06
    assert len(faces[0].trace) == len(load_cascade(name).stages)
