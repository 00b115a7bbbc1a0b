"""A cascade from the command line: learned on a dataset, used for a photo, refused with votes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from dff.cli import app
from face.morphable import MorphableModel
from tests.trainer.conftest import make_row, write_dataset

WIDE = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}


def test_a_cascade_is_learned_and_aligns_a_photo(open_head: MorphableModel, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [make_row(open_head, f"id{i:03d}", view, rng=rng) for i in range(40) for view in range(2)]
    write_dataset(tmp_path / "data", rows)
    photo, cascade, out = tmp_path / "photo.jpg", tmp_path / "cascade.safetensors", tmp_path / "faces.json"
    photo.write_bytes(rows[0].image)
    low, high = rows[0].landmarks_3d.min(0), rows[0].landmarks_3d.max(0)
    box = ",".join(f"{value:.1f}" for value in (*low, *high))
    learn = ["train-cascade", str(tmp_path / "data"), "--out", str(cascade), "--features", "sift"]
    done = CliRunner().invoke(
        app, [*learn, "--views", "64", "--held-out", "8", "--stages", "2", "--calibrate", "0"], env=WIDE
    )
    assert done.exit_code == 0, done.output
    assert "stage 2: nme_box" in done.output
    assert cascade.stat().st_size < 4_000_000
    align = ["align", str(photo), "--box", box, "--json", str(out)]
    done = CliRunner().invoke(app, [*align, "--method", "cascade", "--cascade", str(cascade)], env=WIDE)
    assert done.exit_code == 0, done.output
    ((face,),) = json.loads(out.read_text()).values()
    apart = np.linalg.norm(np.array(face["landmarks_3d"])[:, :2] - rows[0].landmarks_3d, axis=1).mean()
    assert apart < 0.15 * float(np.sqrt(np.prod(high - low)))
    refused = CliRunner().invoke(app, [*align, "--cascade", str(cascade)], env=WIDE)
    assert refused.exit_code == 2
    assert "--cascade wants --method cascade" in refused.output
