"""Measure how the points that people mark in AFLW differ from those of fitted faces.

    python scripts/fit_aflw_points.py FOLDER

FOLDER has crops of AFLW as ``dff evaluate aflw21`` reads them. The result, the bias of the landmark
set ``aflw21`` by pose and shape and its visibility by pose, is written to aligner/data/aflw21.json.
The errors are printed as the fitted mesh has them, and cross-validated.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dff.aligner.evaluation.landmark_offsets import OffsetConfig
from dff.aligner.evaluation.visible_points import (
    align_crops,
    cross_validate_points,
    fit_point_bias,
    load_point_set,
    measure_visible_points,
)
from dff.aligner.load import load_aligner
from dff.infra.files import write_file

OUT = Path("aligner/data/aflw21.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="crops of AFLW with labels.npz")
    parser.add_argument("--weights", help="of the aligner; by default the shipped ones")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    aligner, config = load_aligner(arguments.weights), OffsetConfig()
    found = align_crops(arguments.folder, aligner)
    on_mesh = load_point_set(as_marked=False)
    for name, report in (
        ("on the fitted mesh", measure_visible_points(found, aligner.model, on_mesh)),
        ("cross-validated", cross_validate_points(found, aligner.fit_model, config)),
    ):
        print(name, json.dumps(report.summary))
    bias = fit_point_bias(found, aligner.fit_model, config)
    # One row of each table a line.
    rows = {name: ",\n  ".join(map(json.dumps, table)) for name, table in bias.to_json().items()}
    content = ",\n".join(f'"{name}": [\n  {table}\n]' for name, table in rows.items())
    write_file(arguments.out, f"{{\n{content}\n}}\n".encode())


if __name__ == "__main__":
    main()
